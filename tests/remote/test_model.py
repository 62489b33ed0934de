"""The bundled model behind `vlkit serve`, through the same calls as on the spot."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

import ipywidgets as widgets
import pytest
from openai_server import KEY, Said, serve
from panels import LONG, ask
from served import free_port
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from typer.testing import CliRunner

import vlkit
from vlkit import serving
from vlkit.cli.app import app
from vlkit.errors import VlkitError
from vlkit.records import Run
from vlkit.remote.request import seen_size
from vlkit.widgets import AskPanel, VideoPanel
from vlkit.widgets.batch import BatchPanel
from vlkit.widgets.grounding import GroundingPanel

SAMPLES = ["three_shapes", "rotated", "transparent", "gray16", "large", "hello", "cat", "banner"]
LOCATE = "Detect all objects."


@pytest.fixture(scope="module")
def server(vlm):
    with serving.start(vlm, api_key=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def remote(server):
    return vlkit.load("openai:tiny", base_url=server.url, api_key=KEY)


@pytest.fixture(scope="module")
def told():
    """What must be equal of a reply from afar and one from here."""
    return lambda reply: (
        reply.text, reply.raw.removesuffix("<|im_end|>"), reply.usage, reply.input_sizes,
        reply.image_sizes, reply.clip_sizes, reply.finish_reason, reply.family,
    )  # fmt: skip


@pytest.fixture
def few(tmp_path):
    """A folder with two pictures."""
    (tmp_path / "few").mkdir()
    for name in ("red_circle", "circles"):
        shutil.copy(vlkit.sample(name), tmp_path / "few")
    return tmp_path / "few"


@pytest.mark.parametrize("name", SAMPLES)
def test_answers_boxes_and_counts_are_those_of_the_model_itself(vlm, remote, told, name):
    message = vlkit.user(LOCATE, vlkit.sample(name))
    expected = vlkit.generate(vlm, message, max_new_tokens=64)
    reply = vlkit.generate(remote, message, max_new_tokens=64)
    assert told(reply) == told(expected)


def test_streams_chats_and_samples_as_the_model_itself(vlm, remote, told):
    message = vlkit.user(LOCATE, vlkit.sample("three_shapes"))
    here, there = vlkit.stream(vlm, message), vlkit.stream(remote, message)
    assert "".join(there) == "".join(here) and told(there.reply) == told(here.reply)
    options = {"temperature": 0.8, "top_p": 0.9, "seed": 7}
    sampled = [vlkit.generate(each, message, **options).text for each in (vlm, remote)]
    assert sampled[0] == sampled[1]
    turns = []
    for each in (vlm, remote):
        chat = vlkit.Chat(each, system="Be terse.")
        chat.ask("这是什么？", vlkit.sample("three_shapes"))
        turns.append(chat.ask("框出图中红色圆形的位置").text)
    assert turns[0] == turns[1]


def test_a_clip_is_seen_as_by_the_model_itself(vlm, remote, told):
    clip = vlkit.Video(vlkit.sample("moves_right"), fps=2, max_frames=8)
    message = vlkit.user("How does the red circle move?", clip)
    here, there = vlkit.generate(vlm, message), vlkit.generate(remote, message)
    assert "right" in there.text and there.usage.video_tokens == here.usage.video_tokens
    assert there.clip_sizes == here.clip_sizes
    assert there.clips[0].timestamps == here.clips[0].timestamps


def test_a_batch_gives_the_same_rows(vlm, remote, told):
    rows = [vlkit.user(LOCATE, vlkit.sample(name)) for name in SAMPLES[:4]]
    here = vlkit.generate_batch(vlm, rows, max_new_tokens=32, progress=False)
    there = vlkit.generate_batch(remote, rows, max_new_tokens=32, progress=False, agreement=2)
    assert [told(reply) for reply in there] == [told(reply) for reply in here]
    assert there.report.agreement == 1 and there.report.new_tokens == here.report.new_tokens


def test_an_answer_is_gone_on_with(vlm, remote):
    talk = [vlkit.user("这是什么？", vlkit.sample("red_circle")), vlkit.assistant("一个")]
    assert vlkit.generate(remote, talk).text == vlkit.generate(vlm, talk).text


def test_a_limit_gives_the_same_size(vlm, server):
    options = {"base_url": server.url, "api_key": KEY, "max_image_tokens": 60}
    message = vlkit.user(LOCATE, vlkit.sample("large"))
    reply = vlkit.generate(vlkit.load("openai:tiny", **options), message, max_new_tokens=4)
    limited = vlkit.load(max_image_tokens=60)
    assert reply.input_sizes == vlkit.generate(limited, message, max_new_tokens=4).input_sizes


def test_what_needs_weights_says_so(remote):
    message = vlkit.user("?", vlkit.sample("red_circle"))
    for call in (vlkit.token_logprobs, partial(vlkit.attention_map, token="a")):
        with pytest.raises(VlkitError, match="runs elsewhere; this needs a model whose weights"):
            call(remote, message)


NAMES = ["Qwen2-VL-7B-Instruct", "Qwen2.5-VL-7B-Instruct", "qwen3-vl-plus", "qwen-vl-max"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [None, 100, 1000])
def test_pictures_have_sizes_that_transformers_leaves_alone(name, limit):
    """So that a service resizes nothing, and boxes in pixels are those of what it was sent."""
    vlm = vlkit.load(f"dashscope:{name}", api_key=KEY)
    rules = vlm.rules
    low, high = rules.image_pixels[0], 16_384 * rules.side**2
    for seed in range(300):
        draw = random.Random(seed)
        size = (draw.randint(20, 5000), draw.randint(20, 5000))
        picture = vlkit.Image(None, max_tokens=limit)
        width, height = seen_size(vlm, size, picture)
        seen = smart_resize(height, width, rules.side, low, high)
        assert seen == (height, width), size


# --- transformers serve --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers_serve(vlm, tmp_path_factory):
    """The server of the transformers package, with the bundled model: (name, base_url)."""
    home = tmp_path_factory.mktemp("hub")
    (home / "hub").mkdir()
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(vlm.folder.path)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    with (home / "log").open("wb") as log:
        server = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)
        try:
            for _ in range(600):
                assert server.poll() is None, (home / "log").read_text()
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.2)
            yield str(vlm.folder.path), f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait()


@pytest.mark.slow
def test_transformers_serve_answers_as_the_model_itself(vlm, transformers_serve):
    """It refuses fields that it does not know by name: transformers/cli/serving/utils.py."""
    name, url = transformers_serve
    there = vlkit.load(f"openai:{name}", base_url=url, family="qwen2_vl")
    message = vlkit.user(LOCATE, vlkit.sample("three_shapes"))
    expected = vlkit.generate(vlm, message)
    with pytest.warns(UserWarning, match="does not accept skip_special_tokens"):
        reply = vlkit.generate(there, message)
    assert (reply.text, reply.boxes, reply.usage.prompt_tokens) == (
        expected.text, expected.boxes, expected.usage.prompt_tokens
    )  # fmt: skip
    pieces = vlkit.stream(there, message)
    assert "".join(pieces) == expected.text == pieces.reply.text
    with pytest.warns(UserWarning, match="does not accept top_k"):
        sampled = vlkit.generate(there, message, temperature=0.5, top_p=0.9, seed=1)
    assert sampled.finish_reason == "stop"
    rows = vlkit.generate_batch(there, [message, "hello"], progress=False)
    assert rows[0].boxes == expected.boxes and rows[1].text == vlkit.generate(vlm, "hello").text
    chat = vlkit.Chat(there)
    chat.ask("这是什么？", vlkit.sample("red_circle"))
    assert len(chat.ask("框出图中红色圆形的位置").boxes) == 1
    clip = vlkit.user("?", vlkit.Video(vlkit.sample("moves_right"), fps=2, max_frames=8))
    with pytest.raises(VlkitError, match=r"leave out the clip .send its frames as pictures"):
        vlkit.generate(there, clip)
    with pytest.raises(VlkitError, match="leave out the assistant's message at the end"):
        vlkit.generate(there, [message, vlkit.assistant("the")])


# --- panels --------------------------------------------------------------------------------------


def test_ask_panel(remote, vlm, monkeypatch):
    panel = AskPanel(remote)
    reply = ask(panel, LOCATE, "three_shapes")
    assert (
        reply.boxes == vlkit.generate(vlm, vlkit.user(LOCATE, vlkit.sample("three_shapes"))).boxes
    )
    assert "Done." in panel.status.value and KEY not in panel.code
    assert KEY not in str(widgets.Widget.get_manager_state())  # what a notebook would save
    assert f"vlkit.load('openai:tiny', base_url={remote.base_url!r})" in panel.code
    monkeypatch.setenv("OPENAI_API_KEY", KEY)  # the code loads the model, without its key
    namespace = {}
    exec(panel.code, namespace)
    assert namespace["reply"].text == reply.text


def test_grounding_panel_without_confidences(remote):
    panel = GroundingPanel(remote)
    reply = ask(panel, LOCATE, "three_shapes")
    assert panel.items == reply.boxes and len(panel.items) == 3
    assert panel.scores is None and "Done." in panel.status.value
    assert [box["confidence"] for box in panel.export()["boxes"]] == [None] * 3
    panel.canvas.drawn = list(vlkit.samples()["three_shapes"].boxes[0].xyxy)
    panel.ask_box_button.click()
    assert panel.wait(LONG) and vlkit.samples()["three_shapes"].boxes[0].label in panel.reply.text


def test_video_panel(remote):
    panel = VideoPanel(remote)
    assert "right" in ask(panel, "How does the red circle move?", "moves_right").text
    assert panel.reply.usage.video_tokens == panel.view.tokens


def test_batch_panel(remote, few):
    panel = BatchPanel(remote, str(few))
    panel.max_new_tokens.value = 8
    panel.start_button.click()
    assert panel.wait(LONG) and "Done in" in panel.status.value
    assert not any(isinstance(result, vlkit.Failure) for result in panel.results)


def test_panels_tell_what_a_service_refuses():
    with serve() as fake:
        fake.script = [Said(status=400, message=f"bad {KEY}", code="data_inspection_failed")]
        fake.models = [{"id": "Qwen2-VL-7B-Instruct", "object": "model"}]
        vlm = vlkit.load("openai:Qwen2-VL-7B-Instruct", base_url=fake.url, api_key=KEY)
        panel = AskPanel(vlm)
        assert ask(panel, "?", "red_circle") is None
        assert "the content was refused" in panel.status.value and KEY not in panel.status.value
        fake.script = [Said("x" * 500, pause=0.05)]
        panel.ask_button.click()
        while not panel.turns[-1].text:
            pass
        panel.stop_button.click()
        assert panel.wait(LONG) and panel.reply.finish_reason == "cancelled"


# --- records and the shell -----------------------------------------------------------------------


def test_a_run_records_a_hosted_model_without_its_key(remote, tmp_path):
    with Run("hosted", directory=tmp_path) as run:
        vlkit.generate(remote, vlkit.user(LOCATE, vlkit.sample("red_circle")), max_new_tokens=4)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in files)
    assert b"openai:tiny" in content and remote.base_url.encode() in content
    assert KEY.encode() not in content


def test_predict_and_batch_in_a_shell(remote, few, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    where = ["--model", "openai:tiny", "--base-url", remote.base_url]
    picture = str(vlkit.sample("red_circle"))
    predict = ["predict", "--prompt", LOCATE, "--image", picture, "--json", *where]
    record = json.loads(run(*predict).stdout)
    truth = vlkit.samples()["red_circle"].boxes[0]
    assert record["model"] == "openai:tiny" and record["revision"] is None
    assert vlkit.iou(vlkit.Box(**record["boxes"][0]), truth) > 0.5
    out = tmp_path / "answers.csv"
    batch = ["batch", str(few), "--prompt", "?", "--out", str(out), "--max-new-tokens", "2", *where]
    assert "0 failed" in run(*batch).stdout and out.exists()
    assert KEY not in out.read_text() + out.with_suffix(".jsonl").read_text()


def run(*arguments):
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result
