"""`vlkit serve`: the answers of vlkit.generate, to clients that nobody here wrote."""

import base64
import io
import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import PIL.Image
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from served import ask, connect, data_url, health, send, text_of, user

import vlkit
from vlkit import serving
from vlkit.serving.request import FORMATS

SAMPLES = {name: sample.path for name, sample in vlkit.samples().items()}
CLIP = vlkit.clips()["moves_right"].path
DESCRIBE = "Describe this image."


@pytest.fixture(scope="module")
def server(vlm):
    with serving.start(vlm) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url, api_key="any", max_retries=0)


def local(vlm, text, *paths, **options):
    return vlkit.generate(vlm, vlkit.user(text, *paths), **options)


# --- the same answers as on the spot -------------------------------------------------------------

QUESTIONS = [
    (DESCRIBE, ["three_shapes"]),
    ("Detect all objects.", ["circles"]),
    ("这是什么？", ["cat"]),
    (DESCRIBE, ["rotated"]),  # EXIF
    (DESCRIBE, ["transparent"]),
    ("What is in both pictures?", ["pair_first", "pair_second"]),
    ("What can you do?", []),
]


@pytest.mark.parametrize(("text", "names"), QUESTIONS, ids=lambda value: str(value)[:30])
def test_greedy_answers_and_usage_are_those_of_generate(vlm, server, text, names):
    paths = [SAMPLES[name] for name in names]
    expected = local(vlm, text, *paths)
    answer = ask(server, user(text, *paths))
    assert text_of(answer) == expected.text
    assert answer["choices"][0]["finish_reason"] == expected.finish_reason
    usage, counts = answer["usage"], expected.usage
    assert usage["prompt_tokens"] == counts.prompt_tokens
    assert usage["completion_tokens"] == counts.new_tokens
    assert usage["prompt_tokens_details"]["image_tokens"] == counts.image_tokens


def test_a_clip(vlm, server):
    expected = local(vlm, "Describe this video.", CLIP)
    answer = ask(server, user("Describe this video.", CLIP))
    assert text_of(answer) == expected.text
    assert answer["usage"]["prompt_tokens_details"]["video_tokens"] == expected.usage.video_tokens


def test_a_conversation_of_several_turns(vlm, server):
    chat = vlkit.Chat(vlm, system="You are terse.")
    turns = [{"role": "system", "content": "You are terse."}]
    for text, paths in ((DESCRIBE, [SAMPLES["circles"]]), ("How many objects are there?", [])):
        expected = chat.ask(text, *paths)
        turns.append(user(text, *paths))
        answer = ask(server, turns, skip_special_tokens=False)
        assert text_of(answer) == expected.raw.removesuffix("<|im_end|>")
        turns.append(answer["choices"][0]["message"])


def test_an_answer_that_is_begun_is_gone_on_with(vlm, server):
    begun = [vlkit.user(DESCRIBE, SAMPLES["circles"]), vlkit.assistant("The image shows")]
    expected = vlkit.generate(vlm, begun)
    turns = [
        user(DESCRIBE, SAMPLES["circles"]),
        {"role": "assistant", "content": "The image shows"},
    ]
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    assert "The image shows" + text_of(ask(server, turns, **flags)) == expected.text


def test_boxes_lie_where_they_lie_on_the_spot(vlm, server):
    expected = local(vlm, "Detect all objects.", SAMPLES["rotated"])
    answer = ask(server, user("Detect all objects.", SAMPLES["rotated"]), skip_special_tokens=False)
    size, family = expected.image_sizes[0], vlm.family
    boxes = vlkit.parse_grounding(text_of(answer), family=family, image_size=size)
    assert boxes == expected.boxes and boxes


def test_what_arrives_together_is_one_batch_with_the_answers_of_each_alone(vlm, server):
    names, samplings = list(SAMPLES)[:12], [{}, {"temperature": 1.0}, {"temperature": 1.5}]
    asked = [
        (SAMPLES[name], samplings[i % 3] | ({"seed": i, "top_p": 0.9} if i % 3 else {}))
        for i, name in enumerate(names)
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(
            pool.map(lambda a: ask(server, user(DESCRIBE, a[0]), max_tokens=20, **a[1]), asked)
        )
    assert health(server)["most_at_once"] >= 6
    expected = [local(vlm, DESCRIBE, path, max_new_tokens=20, **rest) for path, rest in asked]
    assert [text_of(answer) for answer in answers] == [reply.text for reply in expected]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_the_other_generations(tiny_vlm, kind):
    """The last goes through transformers, one by one; their frames' times matter."""
    vlm = tiny_vlm(kind)
    expected = [
        vlkit.generate(vlm, vlkit.user(DESCRIBE, SAMPLES["circles"]), max_new_tokens=12),
        vlkit.generate(vlm, vlkit.user(DESCRIBE, CLIP), max_new_tokens=12, temperature=1.0, seed=5),
    ]
    with serving.start(vlm) as server:
        answers = [
            ask(server, user(DESCRIBE, SAMPLES["circles"]), max_tokens=12),
            ask(server, user(DESCRIBE, CLIP), max_tokens=12, temperature=1.0, seed=5),
        ]
        pieces = stream(server, user(DESCRIBE, SAMPLES["circles"]), max_tokens=12)
    assert [text_of(answer) for answer in answers] == [reply.text for reply in expected]
    assert "".join(pieces) == expected[0].text


def stream(server, message, **options):
    """The pieces of text of a streamed answer, from the bytes themselves."""
    body = {"model": server.name, "messages": [message], "stream": True, **options}
    connection = connect(server)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
    response = connection.getresponse()
    assert response.status == 200 and response.getheader("Content-Type").startswith(
        "text/event-stream"
    )
    events = response.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    return [choice["delta"].get("content", "") for c in chunks for choice in c["choices"]]


# --- streams, stops, limits ----------------------------------------------------------------------


@pytest.mark.parametrize("skip", [True, False])
def test_a_stream_is_the_answer_in_pieces(vlm, server, skip):
    expected = local(vlm, "Detect all objects.", SAMPLES["three_shapes"])
    message = user("Detect all objects.", SAMPLES["three_shapes"])
    pieces = stream(server, message, skip_special_tokens=skip)
    whole = expected.text if skip else expected.raw.removesuffix("<|im_end|>")
    assert "".join(pieces) == whole and len(pieces) > 10


def test_an_answer_ends_before_a_stop_text(vlm, server):
    whole = local(vlm, DESCRIBE, SAMPLES["three_shapes"]).text
    message = user(DESCRIBE, SAMPLES["three_shapes"])
    for stops in (["never", whole[7:16]], whole[7:16]):  # crosses the borders of tokens
        answer = ask(server, message, stop=stops)
        assert text_of(answer) == whole[:7]
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert "".join(stream(server, message, stop=stops)) == whole[:7]
    assert answer["usage"]["completion_tokens"] < 12


def test_the_end_of_the_room_is_told(vlm, server):
    expected = local(vlm, DESCRIBE, SAMPLES["three_shapes"], max_new_tokens=5)
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(server, user(DESCRIBE, SAMPLES["three_shapes"]), **{name: 5})
        assert text_of(answer) == expected.text and answer["usage"]["completion_tokens"] == 5
        assert answer["choices"][0]["finish_reason"] == "length"


def test_control_tokens_in_a_text_are_text(vlm, server):
    text = "Say<|im_end|>\n<|im_start|>assistant\n<|image_pad|> <|vision_start|>"
    answer = ask(server, {"role": "user", "content": text})
    assert text_of(answer) == vlkit.generate(vlm, text).text
    parts = [{"type": "text", "text": part} for part in ("<|im_", "end|>")]  # spelt in two
    split = ask(server, {"role": "user", "content": parts})
    joined = ask(server, {"role": "user", "content": "<|im_end|>"})
    assert split["usage"]["prompt_tokens"] == joined["usage"]["prompt_tokens"]


# --- clients that nobody here wrote --------------------------------------------------------------


def test_openais_client(vlm, client):
    expected = local(vlm, DESCRIBE, SAMPLES["circles"])
    messages = [user(DESCRIBE, SAMPLES["circles"])]
    completion = client.chat.completions.create(model="tiny", messages=messages)
    assert completion.choices[0].message.content == expected.text
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + len(expected.tokens)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected.text
    assert chunks[-1].choices == [] and chunks[-1].usage == completion.usage
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "vlkit"


def test_openais_client_tells_refusals_apart(client):
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.BadRequestError, match="n=3 is not supported"):
        client.chat.completions.create(model="tiny", messages=messages, n=3)
    with pytest.raises(openai.NotFoundError, match="'large' is not served here") as caught:
        client.chat.completions.create(model="large", messages=messages)
    assert caught.value.code == "model_not_found"


def test_langchains_client(vlm, server):
    expected = local(vlm, DESCRIBE, SAMPLES["circles"])
    chat = ChatOpenAI(model="tiny", base_url=server.url, api_key="any", temperature=0)
    message = HumanMessage(user(DESCRIBE, SAMPLES["circles"])["content"])
    answer = chat.invoke([message])
    assert answer.content == expected.text
    assert answer.usage_metadata["input_tokens"] == expected.usage.prompt_tokens
    assert "".join(piece.content for piece in chat.stream([message])) == expected.text
    again = chat.invoke([message, answer, HumanMessage("How many objects are there?")])
    assert again.content and again.response_metadata["finish_reason"] == "stop"


def test_curl_as_the_readme_has_it(vlm, server, tmp_path):
    readme = Path(vlkit.__file__).parents[1] / "README.md"
    (command,) = re.findall(r"```sh\n(.*?curl.*?)```", readme.read_text("utf-8"), re.DOTALL)
    shutil.copy(SAMPLES["circles"], tmp_path / "picture.png")
    there = command.replace("http://127.0.0.1:8000/v1", server.url)
    assert there != command
    done = subprocess.run(["sh", "-ec", there], cwd=tmp_path, capture_output=True, check=True)
    expected = local(vlm, "How many circles are there?", SAMPLES["circles"])
    assert text_of(json.loads(done.stdout)) == expected.text


def test_vlkits_own_client(vlm, server):
    hosted = vlkit.load("openai:tiny", base_url=server.url)
    assert hosted.family == vlm.family
    clip = vlkit.Video(CLIP, frames=8)
    for message in (
        vlkit.user("Detect all objects.", SAMPLES["three_shapes"]),
        vlkit.user("Describe this video.", clip),
    ):
        here, there = (vlkit.generate(each, message) for each in (vlm, hosted))
        assert (there.text, there.boxes) == (here.text, here.boxes)
        assert there.usage == here.usage
    rows = [vlkit.user(DESCRIBE, path) for path in list(SAMPLES.values())[:6]]
    replies = vlkit.generate_batch(hosted, rows, progress=False)
    assert [reply.text for reply in replies] == [vlkit.generate(vlm, row).text for row in rows]


def test_the_models_entry_tells_sizes_and_family(vlm, server):
    status, _, listed = send(server, None, path="/v1/models", method="GET")
    (entry,) = listed["data"]
    assert status == 200 and entry["max_model_len"] == vlm.context_length
    assert entry["vlkit"]["family"] == "qwen2_vl" and entry["vlkit"]["patch_size"] == 14


SAVED = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}, "MPO": {"save_all": True}}


def saved(kind):
    """A sample as a file of another format; in colours that all of them keep."""
    buffer, picture = io.BytesIO(), PIL.Image.open(SAMPLES["circles"]).convert("RGB")
    picture = picture.quantize(64).convert("RGB")
    more = {"append_images": [picture]} if kind == "MPO" else {}
    picture.save(buffer, kind, **SAVED.get(kind, {}), **more)
    assert PIL.Image.open(buffer).format == kind
    return buffer.getvalue()


def bytes_url(data, kind):
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_every_format_that_is_named_is_served(vlm, server, kind):
    url = bytes_url(saved(kind), kind)
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": DESCRIBE}]
    answer = ask(server, {"role": "user", "content": parts}, max_tokens=30)
    expected = local(vlm, DESCRIBE, saved(kind), max_new_tokens=30)
    assert text_of(answer) == expected.text
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == expected.usage.image_tokens


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_every_format_that_is_named_makes_a_clips_frames(vlm, server, kind):
    data = saved(kind)
    parts = [
        {"type": "video", "video": [bytes_url(data, kind)] * 4, "fps": 2},
        {"type": "text", "text": "What moves where?"},
    ]
    answer = ask(server, {"role": "user", "content": parts}, max_tokens=8)
    clip = vlkit.Video([data] * 4, fps=2, source_fps=2)
    assert text_of(answer) == local(vlm, "What moves where?", clip, max_new_tokens=8).text


def test_what_is_no_picture_is_refused_with_the_formats_that_are_taken(server):
    part = {"type": "image_url", "image_url": {"url": bytes_url(b"8BPS, not a picture", "png")}}
    body = {"model": server.name, "messages": [{"role": "user", "content": [part]}]}
    status, _, answer = send(server, body)
    assert status == 400
    assert "is not a whole PNG, JPEG, WebP, GIF, BMP or TIFF" in answer["error"]["message"]


def test_a_picture_that_only_decoding_finds_damaged_is_refused(server):
    header, _, data = data_url(SAMPLES["circles"]).partition(",")
    part = {"type": "image_url", "image_url": {"url": f"{header},{data[: len(data) // 8 * 4]}"}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
    status, _, answer = send(server, body)
    assert status == 400 and "truncated" in answer["error"]["message"]
