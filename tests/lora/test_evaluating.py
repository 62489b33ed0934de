"""Answers are compared with what the data say, on scenes whose content is known."""

from __future__ import annotations

import signal

import PIL.Image
import pytest

import vlkit
from vlkit.lora import evaluate, load_conversations


def row(picture, question, answer, box=None):
    said = [
        {"role": "user", "content": f"<image>{question}"},
        {"role": "assistant", "content": answer},
    ]
    objects = {"objects": {"ref": [box.label], "bbox": [list(box.xyxy)]}} if box else {}
    return {"messages": said, "images": [str(picture)], **objects}


@pytest.fixture(scope="module")
def scores(vlm, tmp_path_factory):
    """A red circle where it says, where it does not, named rightly, and named wrongly."""
    sample = vlkit.samples()["red_circle"]
    (box,) = sample.boxes
    far = vlkit.Box(box.label, 0, 0, 10, 10)
    locate, tags = f"Locate the {box.label}.", "<ref-object><bbox>"
    answer = vlkit.generate(vlm, vlkit.user("What is this?", str(sample.path))).text
    rows = [
        row(sample.path, locate, tags, box),
        row(sample.path, locate, tags, far),
        row(sample.path, "What is this?", f" {answer.upper()}\n"),
        row(sample.path, "What is this?", "a blue elephant"),
    ]
    return evaluate(vlm, load_conversations(rows), match_labels=False, progress=False)


def test_exact_answers_are_counted_where_no_box_is_asked(scores):
    assert scores.accuracy == 0.5
    assert scores.table["exact"].tolist()[2:] == [True, False]
    assert scores.table["row"].tolist() == [1, 2, 3, 4]


def test_boxes_are_counted_at_iou(scores):
    assert scores.grounding.accuracy == 0.5
    assert scores.grounding.rows["kind"].tolist() == ["found", "missed", "extra"]


def test_a_row_that_fails_is_wrong(vlm, tmp_path):
    path = tmp_path / "a.png"
    PIL.Image.new("RGB", (64, 64)).save(path)
    data = load_conversations([row(path, "What?", "A"), row(vlkit.sample("cat"), "What?", "B")])
    path.unlink()
    scores = evaluate(vlm, data, progress=False)
    assert scores.table["answer"].isna().tolist() == [True, False]
    assert not scores.table["exact"].iloc[0] and scores.grounding is None


def test_ctrl_c_ends_it_and_no_row_counts_as_wrong(vlm):
    path = vlkit.samples()["red_circle"].path
    rows = [row(path, f"What is this? {number}", "red circle") for number in range(6)]
    hook = vlm.model.model.visual.register_forward_pre_hook(
        lambda *_: signal.raise_signal(signal.SIGINT)
    )
    try:
        with pytest.raises(KeyboardInterrupt):
            evaluate(vlm, rows, batch_size=2)
    finally:
        hook.remove()
