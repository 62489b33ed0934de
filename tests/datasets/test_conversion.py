"""A data set moves between the generations' conventions and keeps every box where it was."""

import json

import PIL.Image
import pytest

import vlkit
from vlkit import Box
from vlkit.datasets.scenes import read_scenes
from vlkit.errors import VlkitError

SIZE = (1000, 500)  # a unit of 1000 is one pixel across, half a pixel down
REF, BOX = "<|object_ref_start|>{}<|object_ref_end|>", "<|box_start|>({},{}),({},{})<|box_end|>"
CAT = REF.format("cat") + BOX.format(100, 200, 300, 400)
CAT_JSON = '```json\n[\n\t{{"bbox_2d": [{}, {}, {}, {}], "label": "cat"}}\n]\n```'


@pytest.fixture
def folder(tmp_path):
    PIL.Image.new("RGB", SIZE, "gray").save(tmp_path / "a.png")
    return tmp_path


def chat(folder, question, answer, **row):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    row = {"messages": messages, "images": ["a.png"], "id": 7, **row}
    (folder / "in.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder / "in.jsonl"


def converted(folder, source, **options):
    vlkit.convert(source, folder / "out.jsonl", **options)
    row = json.loads((folder / "out.jsonl").read_text(encoding="utf-8"))
    return row, [message["content"] for message in row["messages"]]


@pytest.mark.parametrize(
    "target, answer",
    [
        ("qwen2_5_vl", CAT_JSON.format(101, 101, 302, 202)),
        ("qwen3_vl", CAT_JSON.format(100, 200, 300, 400)),
        ("qwen_vl", "<ref>cat</ref><box>(100,200),(300,400)</box>"),
        ("qwen2_vl", CAT),
    ],
)
def test_from_qwen2_vl(folder, target, answer):
    source = chat(folder, "<image>Find the cat.", f"It is here: {CAT}, asleep.")
    row, texts = converted(folder, source, to=target)
    assert texts == ["<image>Find the cat.", f"It is here: {answer}, asleep."]
    assert (row["images"], row["id"]) == (["a.png"], 7)


def test_boxes_in_the_question_are_rewritten_too(folder):
    source = chat(folder, f"<image>What is in {BOX.format(0, 0, 1000, 1000)}?", "A cat.")
    _, texts = converted(folder, source, to="qwen_vl")
    assert texts == ["<image>What is in <box>(0,0),(1000,1000)</box>?", "A cat."]


def test_a_label_without_a_box_keeps_or_loses_its_tags(folder):
    source = chat(folder, "<image>Find the " + REF.format("cat"), CAT)
    assert converted(folder, source, to="qwen_vl")[1][0] == "<image>Find the <ref>cat</ref>"
    assert converted(folder, source, to="qwen3_vl")[1][0] == "<image>Find the cat"


def test_several_groups_stay_apart(folder):
    dog = REF.format("dog") + BOX.format(0, 0, 10, 10)
    source = chat(folder, "?", f"A {CAT} and {dog}{BOX.format(5, 5, 9, 9)}.")
    _, texts = converted(folder, source, to="qwen_vl")
    assert texts[1] == (
        "A <ref>cat</ref><box>(100,200),(300,400)</box> and "
        "<ref>dog</ref><box>(0,0),(10,10)</box><box>(5,5),(9,9)</box>."
    )
    _, texts = converted(folder, source, to="qwen3_vl")
    assert texts[1].count("```json") == 2 and texts[1].startswith("A ```json")


@pytest.mark.parametrize(
    "answer",
    [
        CAT_JSON.format(100, 200, 300, 400),
        '[{"bbox_2d": [100, 200, 300, 400], "label": "cat"}]',
        '{"label": "cat", "bbox_2d": [100, 200, 300, 400]}',
    ],
)
@pytest.mark.parametrize("before, after", [("", ""), ("Look:\n", "\nThere.")])
def test_from_json_the_fence_and_the_list_go(folder, answer, before, after):
    source = chat(folder, "?", before + answer + after)
    _, texts = converted(folder, source, source_format="qwen3_vl", to="qwen2_vl")
    assert texts[1] == before + CAT + after


def test_xml_points_become_tags(folder):
    answer = 'Here: <points x1="100" y1="200" x2="300" y2="400" alt="eye">eye</points>!'
    source = chat(folder, "?", answer)
    _, texts = converted(folder, source, source_format="qwen3_vl", to="qwen_vl")
    assert texts[1] == "Here: <ref>eye</ref><box>(100,200)</box><box>(300,400)</box>!"


def test_to_ms_swift_and_back(folder):
    source = chat(folder, "<image>Find " + REF.format("cat"), f"One: {CAT}.")
    row, texts = converted(folder, source, to="ms-swift")
    assert texts == ["<image>Find cat", "One: <ref-object><bbox>."]
    assert row["objects"] == {"ref": ["cat"], "bbox": [[100, 100, 300, 200]]}
    (folder / "out.jsonl").rename(folder / "swift.jsonl")
    row, texts = converted(folder, folder / "swift.jsonl", to="qwen2_vl")
    assert texts == ["<image>Find cat", f"One: {CAT}."] and "objects" not in row


@pytest.mark.parametrize(
    "key, roles", [("conversations", ("human", "gpt")), ("messages", ("user", "assistant"))]
)
def test_both_spellings_and_lists_of_items(folder, key, roles):
    field, speaker = ("value", "from") if key == "conversations" else ("content", "role")
    said = [{speaker: roles[0], field: "?"}, {speaker: roles[1], field: CAT}]
    if key == "messages":
        said[1]["content"] = [{"type": "text", "text": CAT}]
    (folder / "in.json").write_text(json.dumps([{key: said, "image": "a.png"}]))
    report = vlkit.convert(folder / "in.json", folder / "out.jsonl", to="qwen_vl")
    row = json.loads((folder / "out.jsonl").read_text())
    text = row[key][1][field]
    text = text if isinstance(text, str) else text[0]["text"]
    assert text == "<ref>cat</ref><box>(100,200),(300,400)</box>"
    assert (report.rows, report.items, row["image"]) == (1, 1, "a.png")
    assert str(report) == "qwen2_vl → qwen_vl: 1 rows, 1 boxes and points"


def test_paths_follow_the_new_file(folder):
    source = chat(folder, "?", CAT)
    vlkit.convert(source, folder / "deep" / "out.jsonl", to="qwen_vl")
    assert json.loads((folder / "deep" / "out.jsonl").read_text())["images"] == ["../a.png"]


def test_a_row_without_picture_or_box_goes_through(folder):
    source = chat(folder, "Hello", "Hi", images=[])
    assert converted(folder, source, source_format="qwen2_vl", to="qwen3_vl")[1] == ["Hello", "Hi"]


@pytest.mark.parametrize("middle", ["coco", "voc", "yolo", "refcoco", "label-studio", "ms-swift"])
def test_through_another_format_and_back(folder, middle):
    source = chat(folder, "<image>Find the cat.", CAT)
    between = folder / ("between" + {"refcoco": ".jsonl", "ms-swift": ".jsonl"}.get(middle, ""))
    vlkit.convert(source, between, to=middle)
    vlkit.convert(between, folder / "back.jsonl", source_format=middle, to="qwen2_5_vl")
    (scene,) = read_scenes(folder / "back.jsonl", format="qwen2_5_vl")
    assert scene.items[0].label == "cat"
    assert scene.items[0].xyxy == pytest.approx((100, 100, 300, 200), abs=0.5)


def within_half(value):
    return pytest.approx(value, abs=0.5)


def test_points_survive_between_families(folder):
    source = chat(folder, "?", "<ref>eye</ref><box>(500,500)</box>")
    vlkit.convert(source, folder / "out.jsonl", to="qwen2_5_vl")
    (scene,) = read_scenes(folder / "out.jsonl", format="qwen2_5_vl")
    (eye,) = scene.items
    assert (eye.label, eye.x, eye.y) == ("eye", *map(within_half, (500, 250)))


@pytest.mark.parametrize(
    "answer, row, message",
    [
        ("<box>(1,2),(3</box>", {}, "row 1: .*neither a box"),
        ("<box>(1,2),(3,4)</box><box>(5,6", {}, "row 1: .*1 read, 1 left out"),
        ("<box>(1,2),(3,4)</box>", {"images": ["gone.png"]}, "row 1: .*gone.png is missing"),
        ("<box>(1,2),(3,4)</box>", {"width": 5, "height": 5}, "row 1: .*says 5×5"),
        ("<quad>(1,2),(3,4),(5,6),(7,8)</quad>", {}, r"row 1: .*quad\.bounds"),
    ],
)
def test_a_bad_row_is_named_and_nothing_written(folder, answer, row, message):
    source = chat(folder, "?", answer, **row)
    with pytest.raises(VlkitError, match=message):
        vlkit.convert(source, folder / "out.jsonl", source_format="qwen_vl", to="qwen3_vl")
    assert not (folder / "out.jsonl").exists()


def test_wrong_names(folder):
    source = chat(folder, "?", CAT)
    with pytest.raises(VlkitError, match="'pdf' is unknown"):
        vlkit.convert(source, folder / "x", to="pdf")
    with pytest.raises(VlkitError, match="'pdf' is unknown"):
        vlkit.convert(source, folder / "x", to="coco", source_format="pdf")


def test_the_limit_of_the_training_counts_on_both_ways(folder):
    source, small = chat(folder, "?", CAT), folder / "small.jsonl"
    vlkit.convert(source, small, to="qwen2_5_vl", max_image_tokens=64)
    assert "[31, 28, 92, 56]" in small.read_text()  # of 308×140 pixels: 0.1 × 308 = 30.8
    for limit, right in ((64, True), (None, False)):
        options = {"source_format": "qwen2_5_vl", "max_image_tokens": limit}
        vlkit.convert(small, folder / "d.json", to="coco", **options)
        (box,) = read_scenes(folder / "d.json")[0].items
        assert (vlkit.iou(box, Box("", 100, 100, 300, 200)) > 0.95) is right


def test_the_samples_boxes_survive_every_convention(folder):
    """Every sample picture through every family and back: within half a unit of each."""
    from vlkit.datasets.pictures import Scene
    from vlkit.datasets.scenes import write_scenes

    samples = [sample for sample in vlkit.samples().values() if sample.boxes]
    scenes = [Scene(s.path, PIL.Image.open(s.path).size, s.boxes) for s in samples]
    scenes = [s for s in scenes if s.image.stem != "rotated"]
    for family in ("qwen_vl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"):
        write_scenes(scenes, folder / "d.jsonl", format=family, prompt="Locate everything.")
        back = read_scenes(folder / "d.jsonl", format=family)
        for old, new in zip(scenes, back, strict=True):
            for a, b in zip(old.items, new.items, strict=True):
                assert isinstance(b, Box) and b.label == a.label
                assert b.xyxy == pytest.approx(a.xyxy, abs=max(old.size) / 1000 + 0.5)


@pytest.mark.parametrize("to", ["coco", "qwen2_5_vl"])
def test_wrong_options_are_named_and_nothing_is_written(folder, to):
    source = chat(folder, "<image>Find the cat.", CAT)
    with pytest.raises(VlkitError, match=r"images='.*nowhere' is not a folder"):
        vlkit.convert(source, folder / "out", to=to, images=folder / "nowhere")
    with pytest.raises(VlkitError, match="max_image_tokens=0 must be a whole number, 1 or more"):
        vlkit.convert(source, folder / "out", to=to, max_image_tokens=0)
    assert not (folder / "out").exists()
