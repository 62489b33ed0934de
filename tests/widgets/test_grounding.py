"""The GroundingPanel driven by its traits and buttons, on the bundled model and samples."""

import json
import time

import pytest
from panels import LONG, ask, upload

import vlkit
from vlkit.errors import VlkitError
from vlkit.widgets.grounding import BoxCanvas, GroundingPanel


@pytest.fixture
def panel(vlm):
    panel = GroundingPanel(vlm)
    yield panel
    assert panel.wait(LONG)


def test_ask_in_words_and_see_boxes(panel):
    reply = ask(panel, "Detect all objects.", "three_shapes")
    assert panel.items == reply.boxes and len(panel.items) == 3
    shown = panel.canvas.items
    assert [item["label"] for item in shown] == [box.label for box in reply.boxes]
    assert [item["points"] for item in shown] == [
        [[box.x1, box.y1], [box.x2, box.y2]] for box in reply.boxes
    ]
    assert len({item["color"] for item in shown}) == 3
    sure = [panel.scores.confidence(box) for box in reply.boxes]
    assert [item["confidence"] for item in shown] == sure and all(0 < s <= 1 for s in sure)
    assert "Done." in panel.status.value and panel.turns[-1].tokens == [
        list(pair) for pair in panel.scores.characters
    ]


@pytest.mark.parametrize("number", range(3))
def test_ask_what_is_in_a_drawn_box(panel, vlm, number):
    panel.picker.sample.value = "three_shapes"
    truth = vlkit.samples()["three_shapes"].boxes[number]
    assert panel.ask_box_button.disabled
    panel.canvas.drawn = list(truth.xyxy)
    assert not panel.ask_box_button.disabled
    panel.ask_box_button.click()
    assert panel.wait(LONG)
    assert truth.label in panel.reply.text
    written = vlkit.format_grounding(panel.drawn, family=vlm.family, image_size=(400, 300))
    assert panel.turns[-1].question == f"What is in this box? {written}"
    assert panel.prompt.value == panel.examples.value  # what is in the field stays
    namespace = {}
    exec(panel.turns[-1].code, namespace)
    assert namespace["reply"].raw == panel.reply.raw


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_the_box_is_written_in_the_familys_own_convention(tiny_vlm, kind):
    """Read back as the family writes, it is the box that was drawn."""
    vlm = tiny_vlm(kind)
    panel = GroundingPanel(vlm)
    panel.picker.sample.value = "large"
    panel.canvas.drawn = [400.0, 200.0, 1200.0, 900.0]
    panel.max_new_tokens.value = 2
    panel.ask_box()
    assert panel.wait(LONG)
    (box,) = vlkit.parse_grounding(
        panel.turns[-1].question.partition("? ")[2],
        family=kind,
        image_size=(1600, 1200),
        input_size=panel.reply.input_sizes[0],
    )
    step = 1600 / min(1000, panel.reply.input_sizes[0][0])
    assert box.xyxy == pytest.approx(panel.drawn.xyxy, abs=step)


def test_enter_on_the_picture_asks_about_the_box(panel):
    panel.picker.sample.value = "red_circle"
    panel.canvas.drawn = [70.0, 70.0, 154.0, 154.0]
    panel.canvas._handle_custom_msg({"kind": "ask"}, [])
    assert panel.wait(LONG)
    assert "red circle" in panel.reply.text


def test_truth_is_that_of_the_sample_and_goes_with_it(panel):
    panel.picker.sample.value = "three_shapes"
    panel.show_truth.value = True
    assert panel.canvas.show_truth
    truth = vlkit.samples()["three_shapes"].boxes
    corners = [[[b.x1, b.y1], [b.x2, b.y2]] for b in truth]
    assert [item["points"] for item in panel.canvas.truth] == corners
    upload(panel, "own.png", vlkit.sample("three_shapes").read_bytes())
    assert panel.canvas.truth == [] and panel.show_truth.disabled
    assert not panel.canvas.show_truth
    panel.picker.sample.value = "portrait"
    assert len(panel.canvas.truth) == 4 and not panel.show_truth.disabled


def test_another_picture_takes_the_boxes_away(panel):
    ask(panel, "Detect all objects.", "three_shapes")
    panel.canvas.drawn = [1.0, 2.0, 30.0, 40.0]
    panel.picker.sample.value = "rotated"
    assert panel.canvas.items == [] and panel.items == [] and panel.drawn is None
    assert panel.canvas.picture_size == [300, 400]  # upright
    assert panel.canvas.about == "rotated" and panel.ask_box_button.disabled
    panel.picker.sample.value = ""
    assert panel.canvas.picture == ""


def test_export_holds_what_is_shown(panel):
    reply = ask(panel, "Detect all objects.", "three_shapes")
    panel.canvas.drawn = [10.0, 20.0, 30.0, 40.0]
    whole = json.loads(json.dumps(panel.export()))
    assert whole["answer"] == reply.raw and whole["size"] == [400, 300]
    assert whole["drawn"] == [10, 20, 30, 40] and len(whole["truth"]) == 3
    values = [tuple(box[k] for k in ("x1", "y1", "x2", "y2")) for box in whole["boxes"]]
    assert values == [box.xyxy for box in reply.boxes]
    sure = sorted(box["confidence"] for box in whole["boxes"])
    panel.threshold.value = (sure[0] + sure[1]) / 2
    assert panel.canvas.threshold == panel.threshold.value
    assert sorted(box["confidence"] for box in panel.export()["boxes"]) == sure[1:]


def test_the_button_hands_the_json_to_the_browser(panel, monkeypatch):
    sent = []
    monkeypatch.setattr(panel, "send", lambda *message: sent.append(message))
    ask(panel, "框出图中红色圆形的位置", "three_shapes")
    panel.export_button.click()
    message, (content,) = sent[0]
    assert message["do"] == "save" and "红色" in content.decode()
    assert json.loads(content) == json.loads(json.dumps(panel.export()))


def test_a_corrected_box_is_exported(panel):
    ask(panel, "Detect all objects.", "three_shapes")
    first = dict(panel.canvas.items[0], points=[[1.0, 2.0], [30.0, 40.0]], corrected=True)
    panel.canvas.items = [first, *panel.canvas.items[1:]]  # as the browser writes it
    boxes = panel.export()["boxes"]
    assert [boxes[0][side] for side in ("x1", "y1", "x2", "y2")] == [1, 2, 30, 40]
    assert boxes[0]["corrected"] and "corrected" not in boxes[1]
    assert (boxes[1]["x1"], boxes[1]["y1"]) == panel.reply.boxes[1].xyxy[:2]


def test_an_answer_about_a_picture_that_was_changed_is_not_drawn_on_the_new_one(panel, monkeypatch):
    monkeypatch.setattr(panel.vlm.model.generation_config, "eos_token_id", None)
    panel.max_new_tokens.value = 200
    panel.picker.sample.value, panel.prompt.value = "three_shapes", "Detect all objects."
    panel.ask()
    panel.picker.sample.value = "cat"
    panel.stop()
    assert panel.wait(LONG)
    assert panel.canvas.items == [] and panel.shown == -1
    assert panel.turns[0].media[0]["name"] == "three_shapes" and panel.canvas.about == "cat"


def test_no_box_no_picture_and_no_words_are_one_line(panel):
    panel.ask_box()
    assert "there is no box; draw one with the mouse" in panel.status.value
    panel.picker.sample.value = ""
    assert ask(panel, "Detect all objects.") is None
    assert "no picture is chosen" in panel.status.value
    panel.picker.sample.value = "red_circle"
    assert ask(panel, " ") is None
    assert "the prompt is empty" in panel.status.value
    assert not panel.ask_button.disabled and not panel.canvas.busy


def test_labels_and_names_are_data(panel):
    upload(panel, "<b>a.png", vlkit.sample("red_circle").read_bytes())
    reply = ask(panel, "Locate <img src=x onerror=alert(1)>.")
    assert reply is not None and "<img src=x" in panel.turns[-1].question
    assert "<img src=x" not in reply._repr_html_()
    upload(panel, "<b>notes</b>.png", b"no picture")
    assert ">&lt;b&gt;notes&lt;/b&gt;.png is not a picture: " in panel.status.value
    assert panel.canvas.picture == ""


def test_an_error_of_the_model_is_shown_and_the_panel_goes_on(panel, monkeypatch):
    def fail(*args, **kwargs):
        raise VlkitError("no more tokens today")

    with monkeypatch.context() as patched:
        patched.setattr("vlkit.widgets.ask.token_logprobs", fail)
        ask(panel, "Detect all objects.", "three_shapes")
    assert "no more tokens today" in panel.status.value
    assert [item["confidence"] for item in panel.canvas.items] == [None] * 3
    assert not panel.ask_button.disabled and not panel.canvas.busy
    assert len(ask(panel, "Detect all objects.").boxes) == 3 == len(panel.canvas.items)


def test_stop_keeps_what_is_written(vlm, panel, monkeypatch):
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", None)
    panel.max_new_tokens.value = 2000
    panel.ask()
    while not panel.turns[-1].text:
        assert panel.canvas.busy
        time.sleep(0.02)
    panel.stop_button.click()
    assert panel.wait(LONG)
    assert panel.reply.finish_reason == "cancelled" and panel.scores is not None
    assert not panel.canvas.busy


def test_an_answer_cut_off_in_its_first_box_says_so_and_is_weighed(panel):
    panel.max_new_tokens.value = 8
    reply = ask(panel, "Locate the red circle.", "red_circle")
    assert "<|box_start|>" in reply.raw and "<|box_end|>" not in reply.raw
    assert 'role="status">the answer ends inside' in panel.status.value
    assert len(panel.scores.tokens) == 8 and panel.canvas.items == []


def test_the_widget_ships_its_script_and_style():
    assert "pointerdown" in str(BoxCanvas._esm) and "vlkit-canvas" in str(BoxCanvas._css)
    assert "innerHTML" not in str(BoxCanvas._esm)
