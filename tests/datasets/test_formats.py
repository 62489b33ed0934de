"""Other tools' formats in and out: every box comes back, and each format is what its makers say."""

import json
import random
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import vlkit
from vlkit import Box, Point, Quad
from vlkit.datasets.conversations import locate_prompt
from vlkit.datasets.pictures import Scene
from vlkit.datasets.scenes import read_scenes, write_scenes
from vlkit.errors import VlkitError
from vlkit.evaluation.asking import read_questions

SIZE = (200, 100)
CAT, DOG = Box("cat", 20, 10, 60, 50), Box('黑 <狗> & "x"', 0, 0, 200, 100)


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        PIL.Image.new("RGB", SIZE, "gray").save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def scenes(folder):
    return [Scene(folder / "a.png", SIZE, (CAT, DOG)), Scene(folder / "b.png", SIZE)]


def rotated(folder):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (200, 100)).save(folder / "turned.jpg", exif=exif)


BOXED = {"coco": "d.json", "yolo": "d", "voc": "d", "label-studio": "d.json"}
CHATS = ("ms-swift", "qwen_vl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")


@pytest.mark.parametrize("name", BOXED)
def test_there_and_back(name, folder, scenes):
    path = folder / "out" / BOXED[name]
    write_scenes(scenes, path, format=name)
    back = read_scenes(path)
    assert [scene.size for scene in back] == [SIZE, SIZE]
    assert [scene.image.name for scene in back] == ["a.png", "b.png"]
    assert all(scene.image.is_file() for scene in back)
    for a, b in zip(scenes, back, strict=True):
        assert [box.label for box in a.items] == [box.label for box in b.items]
        for old, new in zip(a.items, b.items, strict=True):
            assert new.xyxy == pytest.approx(old.xyxy, abs=1e-4)


def test_refcoco_has_a_row_for_each_box(folder, scenes):
    path = folder / "d.jsonl"
    write_scenes(scenes, path, format="refcoco")
    first, second = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert first == {
        **{"image": "a.png", "sent": "cat", "bbox": [20, 10, 60, 50]},
        **{"width": 200, "height": 100},
    }
    assert second["sent"] == DOG.label
    assert [scene.items for scene in read_scenes(path)] == [(CAT,), (DOG,)]


@pytest.mark.parametrize("name", CHATS)
def test_chats_there_and_back_within_half_a_unit(name, folder, scenes):
    path = folder / "d.jsonl"
    write_scenes(scenes, path, format=name, prompt="Locate everything.")
    back = read_scenes(path, format=name)
    assert [scene.prompt for scene in back] == ["Locate everything."] * 2
    for old, new in zip(scenes[0].items, back[0].items, strict=True):
        assert new.label == old.label and new.xyxy == pytest.approx(old.xyxy, abs=0.5)
    assert back[1].items == ()


@pytest.mark.parametrize("name", CHATS)
def test_what_is_trained_is_what_evaluation_asks(name, folder, scenes):
    path = folder / "d.jsonl"
    with pytest.warns(UserWarning, match="left out 1 picture without boxes"):
        write_scenes(scenes, path, format=name)
    prompt = locate_prompt("{label}", family=name)
    assert "{label}" in prompt
    trained = [(scene.prompt, len(scene.items)) for scene in read_scenes(path, format=name)]
    write_scenes(scenes, folder / "d.json", format="coco")
    asked = read_questions(folder / "d.json", prompt=prompt)
    assert trained == [(q.prompt, len(q.truth)) for q in asked] and len(trained) == 2


def test_points_and_quads_where_they_can_be(folder):
    items = (CAT, Point("eye", 5, 6), Quad("sign", 1, 2, 30, 4, 28, 20, 0, 18))
    scene = Scene(folder / "a.png", SIZE, items)
    path = folder / "d.json"
    write_scenes([scene], path, format="label-studio")
    (back,) = read_scenes(path)
    for old, new in zip(items, back.items, strict=True):
        assert type(new) is type(old)
        assert list(vars(new).values())[1:] == pytest.approx(list(vars(old).values())[1:])
    with pytest.warns(UserWarning, match="2 points or quads left out: coco has none"):
        write_scenes([scene], path, format="coco")
    with pytest.raises(VlkitError, match="no quads"):
        write_scenes([scene], path, format="ms-swift")


# --- each format as its makers say ----------------------------------------------------------------


def test_coco_as_pycocotools_reads_it(folder, scenes, capsys):
    from pycocotools.coco import COCO

    path = folder / "d.json"
    write_scenes(scenes, path, format="coco")
    coco = COCO(str(path))
    assert {c["name"] for c in coco.loadCats(coco.getCatIds())} == {"cat", DOG.label}
    annotation = coco.loadAnns(coco.getAnnIds(imgIds=[1]))[0]
    assert (annotation["bbox"], annotation["area"]) == ([20, 10, 40, 40], 1600)


@pytest.mark.parametrize("name, path", [("coco", "d.json"), ("yolo", "d"), ("voc", "d")])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_supervision_reads_the_same_boxes(name, path, folder, scenes):
    import supervision

    path = folder / path
    write_scenes(scenes, path, format=name)
    read = supervision.DetectionDataset
    if name == "coco":
        data = read.from_coco(images_directory_path=str(folder), annotations_path=str(path))
    elif name == "yolo":
        data = read.from_yolo(str(path / "images"), str(path / "labels"), str(path / "data.yaml"))
    else:
        data = read.from_pascal_voc(str(path / "JPEGImages"), str(path / "Annotations"))
    found = {Path(p).name: detections for p, _, detections in data}
    order = [data.classes[i] for i in found["a.png"].class_id]
    truth = {box.label: box.xyxy for box in (CAT, DOG)}
    for label, xyxy in zip(order, found["a.png"].xyxy, strict=True):
        assert tuple(xyxy) == pytest.approx(truth[label], abs=0.01)


QUARTER = Box(
    "corner", 0, 0, 50, 100
)  # of a picture that is 100×200 upright: white, the rest black


def turned(folder):
    """A scene of a file that lies on its side; its upright top left quarter is white."""
    upright = PIL.Image.new("L", (100, 200))
    upright.paste(255, (0, 0, 50, 100))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    (folder / "raw").mkdir()
    upright.transpose(PIL.Image.Transpose.ROTATE_90).save(folder / "raw" / "t.jpg", exif=exif)
    return Scene(folder / "raw" / "t.jpg", (100, 200), (QUARTER,))


def check_quarter(picture, xyxy):
    """The pixels in a box, of a picture as a reader without EXIF sees it, are the white ones."""
    values = np.asarray(picture)[..., 0] if np.ndim(picture) == 3 else np.asarray(picture)
    x1, y1, x2, y2 = (round(float(v)) for v in xyxy)
    assert values[y1:y2, x1:x2].mean() > 245 and values.sum() / 255 == pytest.approx(5000, rel=0.03)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_readers_that_ignore_exif_see_upright_boxes(folder, copy):
    import supervision
    from torchvision.datasets import CocoDetection

    scene, out = turned(folder), folder / "out"
    plain = Scene(folder / "a.png", SIZE, (CAT,))
    for name in ("coco", "yolo", "voc"):
        path = out / "d.json" if name == "coco" else out / name
        write_scenes([scene, plain], path, format=name, copy_pictures=copy)
    coco = CocoDetection(str(out), str(out / "d.json"))
    for i, box in enumerate((QUARTER, CAT)):
        picture, (annotation,) = coco[i]
        x, y, w, h = annotation["bbox"]
        assert (x, y, x + w, y + h) == box.xyxy
        if box is QUARTER:
            check_quarter(picture, box.xyxy)
    names = [image["file_name"] for image in coco.coco.dataset["images"]]
    assert names == ["d_pictures/t.png", "d_pictures/a.png" if copy else "../a.png"]
    read = supervision.DetectionDataset
    found = [
        read.from_yolo(*(str(out / "yolo" / part) for part in ("images", "labels", "data.yaml"))),
        read.from_pascal_voc(str(out / "voc/JPEGImages"), str(out / "voc/Annotations")),
    ]
    if copy:  # supervision refuses names that leave the folder
        found.append(read.from_coco(str(out), str(out / "d.json")))
    for data in found:
        for path, _, detections in data:
            if Path(path).stem == "t":
                check_quarter(PIL.Image.open(path), detections.xyxy[0])


@pytest.mark.parametrize("name", CHATS)
def test_conversations_name_an_upright_copy(folder, name):
    with pytest.warns(UserWarning, match=r"t\.jpg is rotated by its EXIF tag.* upright copy"):
        write_scenes([turned(folder)], folder / "d.jsonl", format=name)
    row = json.loads((folder / "d.jsonl").read_text())
    assert row["images"] == ["d_pictures/t.png"]
    (scene,) = read_scenes(folder / "d.jsonl", format=name)
    check_quarter(PIL.Image.open(scene.image), scene.items[0].xyxy)
    row["images"] = ["raw/t.jpg"]  # rows that are rewritten from one convention to another
    (folder / "e.jsonl").write_text(json.dumps(row))
    with pytest.warns(UserWarning, match="upright copy"):
        vlkit.convert(folder / "e.jsonl", folder / "f.jsonl", source_format=name, to="qwen2_vl")
    assert json.loads((folder / "f.jsonl").read_text())["images"] == ["f_pictures/t.png"]


def test_yolo_needs_no_folder_in_its_yaml(folder, scenes):
    """ultralytics looks for ``path`` where it runs, and without it beside the file."""
    import yaml

    write_scenes(scenes, folder / "y", format="yolo")
    assert yaml.safe_load((folder / "y" / "data.yaml").read_text(encoding="utf-8")) == {
        "train": "images", "val": "images", "names": {0: "cat", 1: DOG.label},
    }  # fmt: skip


def test_label_studio_tasks_have_ids(folder, scenes):
    write_scenes(scenes, folder / "d.json", format="label-studio")
    tasks = json.loads((folder / "d.json").read_text(encoding="utf-8"))
    assert [task["id"] for task in tasks] == [1, 2]
    assert [a["id"] for task in tasks for a in task["annotations"]] == [1, 2]
    assert [r["id"] for r in tasks[0]["annotations"][0]["result"]] == ["1-1", "1-2"]


def test_yolo_is_the_middle_and_the_size_as_shares(folder):
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for name in "ab":
        (folder / f"{name}.png").rename(folder / "images" / f"{name}.png")
    (folder / "labels" / "a.txt").write_text("1 0.5 0.5 1 1\n0 0.25 0.5 0.1 0.2 0.9\n\n")
    (folder / "classes.txt").write_text("cat\ndog\n")
    first, second = read_scenes(folder)
    assert first.items[0] == Box("dog", 0, 0, 200, 100)
    assert first.items[1].xyxy == pytest.approx((40, 40, 60, 60))
    assert second.items == ()
    (folder / "data.yaml").write_text("names: {0: katze, 1: hund}\n")
    assert [box.label for box in read_scenes(folder)[0].items] == ["hund", "katze"]
    (folder / "labels" / "a.txt").write_text("0 0 0 1 0 1 1 0 1\n")
    with pytest.warns(UserWarning, match="left out 1 polygons"):
        assert read_scenes(folder)[0].items == ()


def test_voc_counts_pixels_from_one(folder):
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>200</xmax><ymax>100</ymax></bndbox>"
    (folder / "a.xml").write_text(
        f"<annotation><filename>a.png</filename><object><name>cat</name>{box}</object></annotation>"
    )
    assert read_scenes(folder)[0].items == (Box("cat", 0, 0, 200, 100),)


def test_label_studio_percent_rotation_and_addresses(folder):
    value = {"x": 50, "y": 0, "width": 10, "height": 20, "rotation": 90, "rectanglelabels": ["cat"]}
    result = {
        "type": "rectanglelabels",
        "original_width": 200,
        "original_height": 100,
        "value": value,
    }
    other = {**result, "type": "choices", "value": {"choices": ["yes"]}}
    for source in ("/data/local-files/?d=some/where/a.png", "/data/upload/1/a.png", "a.png"):
        tasks = [{"data": {"image": source}, "annotations": [{"result": [result, other]}]}]
        (folder / "d.json").write_text(json.dumps(tasks))
        with pytest.warns(UserWarning, match="left out 1 results"):
            (scene,) = read_scenes(folder / "d.json")
        assert scene.image == folder / "a.png"
        (quad,) = scene.items  # 20 wide and 20 high, hanging from (100, 0) to the left
        assert [v for c in quad.corners for v in c] == pytest.approx(
            [100, 0, 100, 20, 80, 20, 80, 0]
        )


def swift(folder, **row):
    path = folder / "d.jsonl"
    row = {"images": ["a.png"], **row}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


def said(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize(
    "answer, objects, items",
    [
        (
            "<ref-object><bbox> and <ref-object><bbox> play",
            {"ref": ["a dog", "a man"], "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]},
            (Box("a dog", 1, 2, 3, 4), Box("a man", 5, 6, 7, 8)),
        ),
        (
            "<bbox><bbox>",
            {"ref": [], "bbox": [[0.1, 0.1, 0.5, 0.5], [0.25, 0.5]], "bbox_type": "norm1"},
            (Box("", 20, 10, 100, 50), Point("", 50, 50)),
        ),
        (
            '```json\n[{"bbox_2d": <bbox>, "label": "<ref-object>"}]\n```',
            {"ref": ['a "b"'], "bbox": [[1.5, 2, 3, 4]]},
            (Box('a "b"', 1.5, 2, 3, 4),),
        ),
        ("nothing", {}, ()),
    ],
)
def test_ms_swift(folder, answer, objects, items):
    path = swift(folder, messages=said("<image>Find them", answer), objects=objects)
    (scene,) = read_scenes(path, format="ms-swift")
    assert (scene.items, scene.prompt) == (items, "Find them")


def test_ms_swift_labels_go_on_from_the_question(folder):
    objects = {"ref": ["sheep"], "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]}
    path = swift(
        folder, messages=said("<image>Find the <ref-object>", "<bbox>, <bbox>"), objects=objects
    )
    (scene,) = read_scenes(path)
    assert scene.prompt == "Find the sheep"
    assert scene.items == (Box("sheep", 1, 2, 3, 4), Box("sheep", 5, 6, 7, 8))


def test_rows_that_ask_with_a_box_are_left_out_of_scenes(folder):
    objects = {"ref": [], "bbox": [[1, 2, 3, 4]]}
    path = swift(folder, messages=said("<image>What is in <bbox>?", "A cat."), objects=objects)
    with pytest.warns(UserWarning, match="left out 1 rows with a box in the question"):
        assert read_scenes(path) == []


# --- sizes and rotation ---------------------------------------------------------------------------


def test_boxes_made_before_the_exif_rotation_are_refused(folder):
    rotated(folder)
    row = {"image": "turned.jpg", "sent": "x", "bbox": [0, 0, 9, 9], "width": 200, "height": 100}
    path = folder / "d.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(VlkitError, match=r"100×200 upright, the data set says 200×100.*EXIF"):
        read_scenes(path)
    path.write_text(json.dumps(row | {"width": 100, "height": 200}))
    assert read_scenes(path)[0].size == (100, 200)
    path.write_text(json.dumps(row | {"width": 50, "height": 100}))
    with pytest.raises(VlkitError, match="for another size"):
        read_scenes(path)


def test_a_missing_picture_needs_a_stated_size(folder):
    row = {"image": "gone.png", "sent": "x", "bbox": [0, 0, 9, 9]}
    path = folder / "d.jsonl"
    path.write_text(json.dumps(row | {"width": 20, "height": 10}))
    assert read_scenes(path)[0].size == (20, 10)
    path.write_text(json.dumps(row))
    with pytest.raises(VlkitError, match=r"gone\.png is missing.*images="):
        read_scenes(path)


def test_pictures_may_lie_elsewhere(folder, scenes):
    path = folder / "labels" / "d.jsonl"
    row = {"image": "train/a.png", "sent": "cat", "bbox": [0, 0, 9, 9]}
    path.parent.mkdir()
    path.write_text(json.dumps(row))
    assert read_scenes(path, images=folder)[0].image == folder / "a.png"


def test_pictures_of_one_name_are_copied_apart(folder):
    (folder / "x").mkdir()
    PIL.Image.new("RGB", (50, 60)).save(folder / "x" / "a.png")
    scenes = [
        Scene(folder / "a.png", SIZE, (CAT,)),
        Scene(folder / "x" / "a.png", (50, 60), (CAT,)),
    ]
    scenes.append(Scene(folder / "a.png", SIZE, (DOG,)))  # another question about the first
    for name in ("yolo", "voc"):
        write_scenes(scenes, folder / name, format=name)
        back = read_scenes(folder / name)
        assert sorted((s.image.name, s.size, len(s.items)) for s in back) == [
            ("a.png", SIZE, 2),
            ("a_2.png", (50, 60), 1),
        ]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("d.json", "", "cannot tell the format of"),
        ("d.json", "[]", "cannot tell the format of"),
        ("d.json", "{nope", "line 1 is not JSON"),
        ("d.json", '{"x": 1}', "cannot tell the format of"),
        ("d.json", '{"images": [{"id": 1}], "annotations": [], "categories": []}', "KeyError"),
        ("d.json", '{"images": [], "annotations": [{}], "categories": []}', "KeyError"),
        ("d.json", '{"images": [], "annotations": {}, "categories": 7}', "not a COCO file"),
        ("d.jsonl", '{"sent": "x"}', 'row 1 lacks "image"'),
        (
            "d.jsonl",
            '{"sent": "x", "image": "a.png", "bbox": [1, 2, "x", 4]}',
            "row 1.*four numbers",
        ),
        (
            "d.jsonl",
            '{"sent": "x", "image": "a.png", "bbox": [1, 2, NaN, 4]}',
            "row 1.*four numbers",
        ),
        ("d.jsonl", '{"sent": "x", "image": "a.png", "bbox": [1,2,3,4]}\n[1]', "row 2: expected"),
        ("d.jsonl", '{"sent": "x", "image": "a.png", "width": -1, "height": 2}', "its size is"),
        ("d.json", '[{"data": {}, "annotations": []}]', "task 1 is not a Label Studio"),
        ("d.json", '[{"data": {"image": "a.png"}, "annotations": [{"result": [{}]}]}]', "task"),
        (
            "d.jsonl",
            '{"objects": {}, "messages": [3], "images": ["a.png"]}',
            "row 1: it has no list",
        ),
        ("d.jsonl", '{"objects": {}, "messages": [], "images": [3]}', "row 1: its picture is 3"),
        ("d.jsonl", '{"objects": {}, "messages": []}', "row 1: it names no picture"),
        (
            "d.jsonl",
            '{"messages": [], "images": ["a.png"]}',
            "cannot tell which family.*qwen2_5_vl",
        ),
    ],
)
def test_malformed_files_are_one_line(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(VlkitError, match=message) as caught:
        read_scenes(folder / name)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "answer, objects, message",
    [
        ("<bbox>", {"bbox": []}, "more <bbox> than its objects"),
        ("none", {"bbox": [[1, 2, 3, 4]]}, "1 more boxes than <bbox>"),
        ("<ref-object><bbox>", {"bbox": [[1, 2, 3, 4]]}, "more <ref-object>"),
        ("<bbox>", {"bbox": [[1, 2, 3]]}, "is neither a box"),
        ("<bbox>", {"bbox": ["abcd"]}, "is neither a box"),
        ("<bbox>", {"bbox": [[1, 2, 3, 4]], "image_id": [1]}, "on another picture"),
    ],
)
def test_malformed_ms_swift(folder, answer, objects, message):
    path = swift(folder, messages=said("<image>?", answer), objects=objects)
    with pytest.raises(VlkitError, match=f"row 1: .*{message}"):
        read_scenes(path, format="ms-swift")


ALIASES = "a0: &a0 [x]\n" + "".join(  # each level is nine times as large as the one before
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "has no Annotations"),
        ({"a.xml": "<annotation>"}, "not a Pascal VOC"),
        ({"a.xml": "<annotation/>"}, "it has no <filename>"),
        ({"a.xml": "<!DOCTYPE x [<!ENTITY a 'b'>]><annotation/>"}, "declares entities"),
        ({"labels/a.txt": "0 0 0 1 1", "images/x": ""}, "neither a data.yaml"),
        ({"labels/a.txt": "", "classes.txt": "cat"}, "contains no pictures"),
        ({"labels/a.txt": "", "data.yaml": "names: 5"}, "names=5 must be a list of names"),
        ({"labels/a.txt": "", "data.yaml": "names: {x: a}"}, "must be a list of names"),
        ({"labels/a.txt": "", "data.yaml": "names: 2020-01-01"}, "must be a list of names"),
        ({"labels/a.txt": "", "data.yaml": "names: [[a], b]"}, "must be a list of names"),
        ({"labels/a.txt": "", "data.yaml": ALIASES}, "stand for more than 1,000,000 values"),
    ],
)
def test_malformed_folders(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(VlkitError, match=message):
        read_scenes(tmp_path)


@pytest.mark.parametrize("line", ["x 0 0 1 1", "0 0 0 1", "5 0 0 1 1", "0 nan 0 1 1"])
def test_malformed_yolo_lines_are_named(folder, scenes, line):
    write_scenes(scenes, folder / "y", format="yolo")
    (folder / "y" / "labels" / "a.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(VlkitError, match=r"a\.txt, line 2"):
        read_scenes(folder / "y")


def test_nothing_is_overwritten_and_nothing_half_written(folder, scenes):
    with pytest.raises(VlkitError, match="already exists and is not empty"):
        write_scenes(scenes, folder, format="yolo")
    path = folder / "d.json"
    path.write_text("before")
    broken = [*scenes, Scene(folder / "a.png", SIZE, (None,))]
    with pytest.raises(AttributeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_scenes([*broken, None], path, format="coco")
    assert path.read_text() == "before"
    missing = [*scenes, Scene(folder / "gone.png", SIZE, (CAT,))]
    for name in ("yolo", "voc"):
        with pytest.raises(VlkitError, match=r"gone\.png is missing"):
            write_scenes(missing, folder / name, format=name)
        assert not (folder / name).exists() and not list(folder.glob(".*"))
    with pytest.raises(VlkitError, match="unknown; formats"):
        write_scenes(scenes, path, format="pickle")
    with pytest.raises(VlkitError, match="does not exist"):
        read_scenes(folder / "nothing")


ODD = [None, -1, 1e400, "x", [], {}, [None], {"a": 1}, True, "a.png", ["1"], "<bbox>", "<box>(1,"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["coco", "refcoco", "label-studio", *CHATS])
def test_files_with_anything_in_them_raise_nothing_else(name, folder):
    chance, path = random.Random(5), folder / "d.jsonl"
    whole = [Scene(folder / "a.png", SIZE, (CAT, CAT), "where?")]
    write_scenes(whole, path, format=name)
    good, refused = path.read_text(encoding="utf-8"), 0
    for _ in range(300):
        rows = [json.loads(line) for line in good.splitlines()] if name == "refcoco" else None
        data = rows or json.loads(good)
        places = [
            (o, key) for o in walk(data) for key in (o if isinstance(o, dict) else range(len(o)))
        ]
        for holder, key in chance.sample(places, 2):
            if chance.random() < 0.3 and isinstance(holder, dict):
                holder.pop(key, None)
            elif isinstance(holder, dict) or key < len(holder):
                holder[key] = chance.choice(ODD)
        path.write_text(json.dumps(data))
        for known in ("auto", name):
            try:
                read_scenes(path, format=known)
            except VlkitError as error:
                refused += str(error).isprintable()
    assert refused > 100


def walk(value):
    if isinstance(value, dict | list):
        yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from walk(each)


# --- supervision ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_detections_there_and_back():
    detections = vlkit.to_detections([CAT, Point("eye", 1, 2), DOG, CAT])
    assert detections.class_id.tolist() == [0, 1, 0]
    assert vlkit.from_detections(detections) == [CAT, DOG, CAT]
    assert vlkit.from_detections(vlkit.to_detections([])) == []
    assert vlkit.to_detections([CAT], classes=["dog", "cat"]).class_id.tolist() == [1]
    with pytest.raises(VlkitError, match="not among the classes"):
        vlkit.to_detections([CAT], classes=["dog"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_detections_with_numbers_alone_and_its_annotators():
    import supervision

    detections = supervision.Detections(np.array([[1.0, 2, 3, 4]]), class_id=np.array([1]))
    with pytest.raises(VlkitError, match="pass classes"):
        vlkit.from_detections(detections)
    assert vlkit.from_detections(detections, classes=["a", "b"]) == [Box("b", 1, 2, 3, 4)]
    drawn = supervision.BoxAnnotator().annotate(
        PIL.Image.new("RGB", SIZE), vlkit.to_detections(CAT)
    )
    assert np.asarray(drawn)[10:50, 20].any() and not np.asarray(drawn)[:5].any()
