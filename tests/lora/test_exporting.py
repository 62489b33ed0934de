"""Training data written for other trainers, and read back: nothing is lost, nothing misread."""

from __future__ import annotations

import json
import re

import numpy as np
import PIL.Image
import pytest

import vlkit
from vlkit.errors import MediaError, VlkitError
from vlkit.lora import export, load_conversations
from vlkit.lora.exporting import FILES

SIZE = (200, 100)
BOX = vlkit.Box("red square", 20, 10, 100, 60)
LABEL = "<|object_ref_start|>red square<|object_ref_end|>"
TAGGED = LABEL + "<|box_start|>(100,100),(500,600)<|box_end|>"
JSON = '[{"bbox_2d": [100, 100, 500, 600], "label": "red square"}]'  # of Qwen3-VL


@pytest.fixture
def pictures(tmp_path):
    """Two plain pictures, one turned by its EXIF, one transparent, and a clip of three frames."""
    folder = tmp_path / "source"
    (folder / "clip").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (7, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    names = ("a.png", "b.jpg")
    for name, pixels in zip(names, noise, strict=False):
        PIL.Image.fromarray(pixels).save(folder / name)
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    PIL.Image.fromarray(noise[2]).save(folder / "turned.jpg", exif=turned)
    PIL.Image.new("RGBA", SIZE, (0, 0, 0, 0)).save(folder / "clear.png")
    for number, pixels in enumerate(noise[3:6]):
        PIL.Image.fromarray(pixels).save(folder / "clip" / f"{number}.png")
    return folder


def item(path, **more):
    kind = "video" if path.suffix == "" else "image"
    return {"type": kind, kind: str(path), **more}


def rows_of(pictures):
    a, b, turned, clear, clip = (
        item(pictures / n) for n in ("a.png", "b.jpg", "turned.jpg", "clear.png", "clip")
    )
    talks = [
        [[a, "What is this?"], "Noise."],
        [["First ", a, "then ", b, "which?"], "The <b>first</b>.", ["And now?", b], "两个。"],
        [["No picture."], "Indeed."],
        [[turned, clear, "Which is clear?"], "The second."],
        [[clip, "What moves?"], "Nothing."],
    ]
    roles = ("user", "assistant")
    said = [[{"role": roles[i % 2], "content": t} for i, t in enumerate(talk)] for talk in talks]
    return [*said[:4], [{"role": "system", "content": "Be terse."}, *said[4]]]


def content(data):
    """Roles, texts, and the pixels of all media, in order."""
    told = []
    for example in data:
        for message in example.messages:
            parts = [
                part["text"] if part["type"] == "text" else pixels(part)
                for part in message["content"]
            ]
            told.append((message["role"], parts))
    return told


def pixels(part):
    source = part[part["type"]]
    if part["type"] == "image":
        return vlkit.load_image(source).tobytes()
    return vlkit.Video(source, frames=3).load().frames.tobytes()


@pytest.mark.parametrize("format", FILES)
def test_round_trip(pictures, tmp_path, format):
    data = load_conversations(rows_of(pictures))
    path = export(data, tmp_path / "out", format=format)
    assert content(load_conversations(path, format=format)) == content(data)
    assert content(load_conversations(path)) == content(data)


@pytest.mark.parametrize("format", FILES)
def test_other_readers_see_the_pictures_upright_and_opaque(pictures, tmp_path, format):
    """Read as a plain trainer does it: the file beside the JSON, PIL, convert("RGB")."""
    path = export(rows_of(pictures), tmp_path / "out", format=format)
    names = sorted(set(re.findall(r"media/[\w.]+", path.read_text())))
    seen = {name: path.parent / name for name in names}
    assert sorted(p.name for p in (path.parent / "media").iterdir()) == [n[6:] for n in names]
    read = [PIL.Image.open(file).convert("RGB") for file in seen.values() if file.is_file()]
    ours = [vlkit.load_image(pictures / n) for n in ("a.png", "b.jpg", "turned.jpg", "clear.png")]
    assert [picture.tobytes() for picture in read] == [picture.tobytes() for picture in ours]


def test_what_pai_reads(pictures, tmp_path):
    path = export(rows_of(pictures)[:1], tmp_path / "out")
    (row,) = json.loads(path.read_text())
    assert [turn["from"] for turn in row["conversations"]] == ["user", "assistant"]
    question = row["conversations"][0]["value"]
    assert question == "<img>media/000001.png</img>\nWhat is this?"
    assert path.name == "meta.json"


def test_what_ms_swift_reads(pictures, tmp_path):
    """It keeps every character after a tag: scripts/read_exports.py has it read by ms-swift."""
    path = export(rows_of(pictures)[:1], tmp_path / "out", format="ms-swift")
    row = json.loads(path.read_text())
    assert row["messages"][0] == {"role": "user", "content": "<image>What is this?"}
    assert row["images"] == ["media/000001.png"]


# --- boxes ---------------------------------------------------------------------------------------


def boxed(pictures, answer):
    asked = {"role": "user", "content": [item(pictures / "a.png"), "Where?"]}
    return [[asked, {"role": "assistant", "content": answer}]]


def answered(path, family):
    (row,) = json.loads(path.read_text())
    text = row["conversations"][-1]["value"]
    sizes = {"image_size": SIZE, "input_size": (196, 112)}  # multiples of 28
    return vlkit.parse_grounding(text, family=family, **sizes)


@pytest.mark.parametrize("family", ["qwen_vl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_boxes_are_written_for_a_family(pictures, tmp_path, family):
    data = load_conversations(boxed(pictures, TAGGED))
    (found,) = answered(export(data, tmp_path / family, family=family), family)
    assert found.label == BOX.label and vlkit.iou(found, BOX) > 0.95


def test_boxes_stay_without_a_family(pictures, tmp_path):
    path = export(load_conversations(boxed(pictures, TAGGED)), tmp_path / "out", format="llava")
    assert json.loads(path.read_text())[0]["conversations"][1]["value"] == TAGGED


@pytest.mark.parametrize(("answer", "boxes"), [(TAGGED, "auto"), (JSON, "qwen3_vl")])
def test_ms_swift_gets_objects(pictures, tmp_path, answer, boxes):
    data = load_conversations(boxed(pictures, answer), boxes=boxes)
    path = export(data, tmp_path / "out", format="ms-swift")
    row = json.loads(path.read_text())
    assert row["objects"] == {"ref": [BOX.label], "bbox": [list(BOX.xyxy)]}
    assert row["messages"][1]["content"].count("<bbox>") == 1
    again = export(load_conversations(path), tmp_path / "again", format="ms-swift")
    assert json.loads(again.read_text()) == row
    (found,) = answered(export(path, tmp_path / "back", family="qwen2_vl"), "qwen2_vl")
    assert vlkit.iou(found, BOX) > 0.95


# --- what cannot be written ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("pai", "see <img>x</img>"),
        ("llava", "write <image>"),
        ("llava", "see <img>x</img>"),
        ("ms-swift", "an <audio> tag"),
    ],
)
def test_a_text_that_would_be_read_as_a_picture(tmp_path, format, text):
    rows = [[vlkit.user(text), vlkit.assistant("Yes.")]]
    with pytest.raises(VlkitError, match=r"row 1: .*read as a picture or box"):
        export(rows, tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()
    back = load_conversations(export(rows, tmp_path / "out", format="messages"), format="messages")
    assert content(back) == content(load_conversations(rows))


def test_limits_of_a_picture_are_kept_or_refused(pictures, tmp_path):
    rows = [[vlkit.user("What?", vlkit.Image(pictures / "a.png", max_tokens=9)),
             vlkit.assistant("Noise.")]]  # fmt: skip
    with pytest.raises(VlkitError, match=r"row 1: .*it has no field for max_tokens=9"):
        export(rows, tmp_path / "out", format="llava")
    path = export(rows, tmp_path / "out", format="messages")
    assert load_conversations(path)[0].media[0]["max_tokens"] == 9


@pytest.mark.parametrize(
    "argument",
    [
        {"format": "csv"},
        {"format": ["pai"]},
        {"family": "qwen9"},
        {"family": ["qwen2_vl"]},
        {"max_image_tokens": "x"},
        {"folder": None},
        {"folder": ""},
    ],
)
def test_wrong_arguments(tmp_path, argument):
    (name,) = argument
    data = [[vlkit.user("a"), vlkit.assistant("b")]]
    with pytest.raises(VlkitError, match=f"{name}=.* (is unknown; choose one of|must be )"):
        export(data, **{"folder": tmp_path / "out", **argument})


def test_no_rows(tmp_path):
    data = load_conversations([[vlkit.user("a"), vlkit.assistant("b")]])
    with pytest.raises(VlkitError, match=r"^data has no rows; pass at least one"):
        export(data[:0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_boxes_of_ms_swift_need_a_family_elsewhere(pictures, tmp_path):
    swift = export(load_conversations(boxed(pictures, TAGGED)), tmp_path / "s", format="ms-swift")
    with pytest.raises(VlkitError, match=r"row 1: .*pass family="):
        export(swift, tmp_path / "out", format="messages")


def test_folder_in_use_and_picture_gone(pictures, tmp_path):
    with pytest.raises(VlkitError, match="is not empty; choose another folder"):
        export(rows_of(pictures), pictures)
    data = load_conversations(rows_of(pictures))
    (pictures / "a.png").unlink()
    with pytest.raises(MediaError, match=r"row 1: .*a\.png"):
        export(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
