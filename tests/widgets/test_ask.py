"""Panels driven by their traits and buttons, on the bundled model."""

import datetime
import html
import re
import threading
from itertools import pairwise

import pytest

import vlkit
from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Box
from vlkit.widgets import EXAMPLES, AskPanel

LONG = 60  # seconds that no test should need


@pytest.fixture
def panel(vlm):
    return AskPanel(vlm)


@pytest.fixture
def endless(vlm, monkeypatch):
    """A panel whose model only ends at max_new_tokens."""
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", None)
    panel = AskPanel(vlm)
    panel.max_new_tokens.value = 2048
    yield panel
    panel.stop()
    assert panel.wait(LONG)


def ask(panel, prompt, sample=None):
    panel.prompt.value = prompt
    if sample is not None:
        panel.picker.sample.value = sample
    panel.ask_button.click()
    assert panel.wait(LONG)
    return panel.reply


def upload(panel, **files):
    now = datetime.datetime.now(tz=datetime.UTC)
    panel.picker.upload.value = [
        {"name": name, "type": "", "size": len(data), "content": data, "last_modified": now}
        for name, data in files.items()
    ]


def iou(a: Box, b: Box) -> float:
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    shared = max(width, 0) * max(height, 0)
    areas = [(box.x2 - box.x1) * (box.y2 - box.y1) for box in (a, b)]
    return shared / (sum(areas) - shared)


def wait_for_text(panel, timeout=LONG):
    """Until the first words stand in the panel."""
    written = threading.Event()
    panel.answer.observe(lambda change: change["new"] and written.set(), names="value")
    assert panel.answer.value or written.wait(timeout)


@pytest.mark.parametrize("prompt", ["Locate the red circle.", "框出图中红色圆形的位置"])
def test_boxes_of_a_sample_are_where_the_scene_has_them(panel, prompt):
    reply = ask(panel, prompt, "three_shapes")
    (truth,) = [b for b in vlkit.samples()["three_shapes"].boxes if b.label == "red circle"]
    assert len(reply.boxes) == 1
    assert iou(reply.boxes[0], truth) > 0.5
    assert "<img" in panel.answer.value
    assert reply.text in panel.answer.value
    assert f"{reply.usage.new_tokens} new" in panel.answer.value
    assert "Done." in panel.status.value


def test_first_click_on_a_new_panel_describes_the_first_sample(panel):
    panel.ask_button.click()
    assert panel.wait(LONG)
    assert "red circle" in panel.reply.text


def test_examples_fill_the_prompt_and_own_words_leave_them(panel):
    panel.examples.value = EXAMPLES[-1]
    assert panel.prompt.value == EXAMPLES[-1]
    panel.prompt.value = "What color is the square?"
    assert panel.examples.value == ""
    assert panel.prompt.value == "What color is the square?"


def test_stop_keeps_what_is_written(endless):
    endless.ask()
    assert (endless.ask_button.disabled, endless.stop_button.disabled) == (True, False)
    wait_for_text(endless)
    endless.stop_button.click()
    assert endless.wait(LONG)
    assert endless.reply.finish_reason == "cancelled"
    assert 0 < endless.reply.usage.new_tokens < 2048
    assert "Stopped." in endless.status.value
    assert (endless.ask_button.disabled, endless.stop_button.disabled) == (False, True)


def test_a_second_ask_leaves_the_first_alone(endless):
    endless.ask()
    thread = endless._thread
    endless.ask()
    assert endless._thread is thread
    assert endless.reply is None
    assert endless.wait(0.01) is False


def test_another_panel_answers_while_one_is_busy(endless, panel):
    endless.ask()
    wait_for_text(endless)
    panel.max_new_tokens.value = 8
    reply = ask(panel, "Describe this image.", "red_circle")
    assert "red" in reply.text
    assert endless.wait(0) is False


@pytest.mark.parametrize(
    ("prompt", "tokens", "line"),
    [
        ("  ", 16, "VlkitError: the prompt is empty"),
        ("word " * 50_000, 16, "ModelError: "),  # raised by the model's thread
    ],
)
def test_an_error_is_one_line_and_the_panel_goes_on(panel, prompt, tokens, line, capsys):
    panel.max_new_tokens.value = tokens
    assert ask(panel, prompt) is None
    assert 'role="alert"' in panel.status.value
    assert line in panel.status.value
    assert "\n" not in panel.status.value
    assert "red circle" in ask(panel, "Describe this image.", "red_circle").text
    assert 'role="alert"' not in panel.status.value
    assert capsys.readouterr() == ("", "")


def test_a_foreign_error_is_shown_too(panel, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("first line <b>\nsecond line")

    monkeypatch.setattr(type(panel.vlm.processor), "__call__", fail)
    assert ask(panel, "Describe this image.") is None
    assert "RuntimeError: first line &lt;b&gt;</div>" in panel.status.value
    assert not panel.ask_button.disabled


def test_uploads_are_asked_about_in_order(panel):
    names = ["pair_first", "pair_second"]
    upload(panel, **{f"{name}.png": vlkit.sample(name).read_bytes() for name in names})
    assert panel.picker.sample.value == ""
    assert panel.picker.view.value.count("<img") == 2
    reply = ask(panel, "Describe this image.")
    originals = [vlkit.load_image(vlkit.sample(name)) for name in names]
    assert [image.tobytes() for image in reply.images] == [each.tobytes() for each in originals]
    panel.picker.sample.value = "red_circle"
    assert panel.picker.upload.value == ()
    assert panel.picker.view.value.count("<img") == 1
    panel.picker.sample.value = ""
    assert panel.picker.view.value == ""


def test_uploads_boxes_are_those_of_the_same_sample(panel):
    upload(panel, **{"shapes.png": vlkit.sample("three_shapes").read_bytes()})
    (truth,) = [b for b in vlkit.samples()["three_shapes"].boxes if b.label == "blue square"]
    (box,) = ask(panel, "Locate the blue square.").boxes
    assert iou(box, truth) > 0.5


def test_an_upload_that_is_no_picture_is_refused_by_name(panel):
    upload(panel, **{"<i>notes</i>.png": b"no picture at all"})
    assert "MediaError: &lt;i&gt;notes&lt;/i&gt;.png: " in panel.status.value
    assert ask(panel, "Describe this image.") is None
    assert 'role="alert"' in panel.status.value
    panel.picker.sample.value = "red_circle"
    assert 'role="alert"' not in panel.status.value


def test_text_of_users_and_models_is_escaped(panel):
    upload(panel, **{"<script>.png": vlkit.sample("red_circle").read_bytes()})
    panel.max_new_tokens.value = 4
    ask(panel, "<script>alert(1)</script> Describe this image.")
    shown = [panel.picker.view, panel.status, panel.answer, panel._code_view]
    assert "&lt;script&gt;alert(1)" in panel._code_view.value
    assert "&lt;script&gt;.png" in panel.picker.view.value
    assert not [widget.value for widget in shown if "<script" in widget.value]


def test_streamed_text_is_escaped(panel, monkeypatch):
    seen = []
    panel.answer.observe(lambda change: seen.append(change["new"]), names="value")
    tokenizer = panel.vlm.processor.tokenizer
    monkeypatch.setattr(type(tokenizer), "decode", lambda *args, **kwargs: "<script> & \n")
    ask(panel, "Describe this image.")
    assert any("&lt;script&gt; &amp;" in value for value in seen)
    assert not [value for value in seen if "<script" in value]


@pytest.mark.parametrize("prompt", ['Say "it\'s" \\n {0} \n', "这是什么？"])
def test_code_gives_the_same_answer(panel, vlm, prompt):
    panel.temperature.value, panel.seed.value, panel.image_tokens.value = 0.7, 3, 16
    panel.max_new_tokens.value = 24
    reply = ask(panel, prompt, "six_shapes")
    assert reply.usage.image_tokens <= 16
    namespace = {"vlm": vlm}
    exec(panel.code, namespace)
    assert namespace["reply"].raw == reply.raw
    assert namespace["message"]["content"][-1]["text"] == prompt


def test_code_follows_every_control_and_names_the_model(panel):
    panel.picker.sample.value = ""
    assert panel.code.splitlines()[2:] == [
        "# vlm = vlkit.load('tiny')",
        "message = vlkit.user('Describe this image.')",
        "reply = vlkit.generate(vlm, message, max_new_tokens=256, temperature=0.0, seed=0)",
        "reply",
    ]
    panel.seed.value = 12
    assert "seed=12" in panel._code_view.value
    upload(panel, **{"a'b.png": vlkit.sample("red_circle").read_bytes()})
    assert '"a\'b.png")' in panel.code


def test_a_panel_without_samples_asks_about_uploads_and_text(vlm):
    panel = AskPanel(vlm, samples=False)
    assert panel.picker.sample not in panel.picker.children
    panel.max_new_tokens.value = 4
    assert ask(panel, "这是什么？").images == ()


def test_streaming_shows_the_answer_as_it_grows(panel):
    seen = []
    panel.answer.observe(lambda change: seen.append(change["new"]), names="value")
    reply = ask(panel, "Generate the caption in English with grounding:", "ten_shapes")
    streamed = [value for value in seen if value and "<img" not in value]
    texts = [html.unescape(re.sub("<[^>]+>", "", value)) for value in streamed]
    assert len(texts) > 2
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == reply.text


@pytest.mark.parametrize(
    "panel", ["AskPanel", "BatchPanel", "GroundingPanel", "LoraPanel", "VideoPanel"]
)
@pytest.mark.parametrize("wrong", ["tiny", None])
def test_a_panel_of_no_model_is_refused_at_once(panel, wrong):
    with pytest.raises(VlkitError, match=r"is not a loaded model; pass what vlkit\.load"):
        getattr(vlkit.widgets, panel)(wrong)


def test_one_line_stands_for_a_panel_where_widgets_are_not_shown(panel):
    assert repr(panel) == "AskPanel: run this cell in Jupyter to use it"
