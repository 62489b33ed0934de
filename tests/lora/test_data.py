"""Conversations to learn from: every format read alike, every problem named, no leak in a split."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import PIL.Image
import pytest

import vlkit
from vlkit.lora import DataError, data, load_conversations
from vlkit.models.families import rules_of_processor

SIZE = (200, 100)
QUESTION, ANSWER = "What is this?", "A red square."


@pytest.fixture
def folder(tmp_path):
    """Three pictures of 200 × 100 that differ, clip/ of four frames, and media that are damaged."""
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        PIL.Image.new("RGB", SIZE, colour).save(tmp_path / f"{name}.png")
    PIL.Image.effect_noise(SIZE, 90).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "bad.mp4").write_text("xx")
    (tmp_path / "empty").mkdir()
    (tmp_path / "clip").mkdir()
    for i in range(4):
        PIL.Image.new("RGB", (64, 64), (60 * i, 0, 0)).save(tmp_path / "clip" / f"{i}.png")
    return tmp_path


def write(folder, rows, name="meta.json"):
    path = folder / name
    lines = "\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows)
    path.write_text(lines, encoding="utf-8")
    return path


def qwen(*texts, **more):
    said = [{"from": ("user", "assistant")[i % 2], "value": t} for i, t in enumerate(texts)]
    return {"id": "x", "conversations": said, **more}


def chat(*texts, **more):
    said = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]
    return {"messages": said, **more}


def shape(example):
    """Roles, and texts and the names of media, in order."""
    told = []
    for message in example.messages:
        parts = [
            item["text"] if item["type"] == "text" else item["type"] + ":" + name_of(item)
            for item in message["content"]
        ]
        told.append((message["role"], parts))
    return told


def name_of(item):
    source = item[item["type"]]
    return source.rpartition("/")[2] if isinstance(source, str) else type(source).__name__


A, B = "image:a.png", "image:b.png"
ONE = [("user", [A, QUESTION]), ("assistant", [ANSWER])]
IMAGE = {"type": "image"}
TEXT = {"type": "text", "text": QUESTION}
FORMATS = {
    "PAI": (qwen(f"<img>a.png</img>{QUESTION}", ANSWER), ONE),
    "PAI, newline after": (qwen(f"<img>a.png</img>\n{QUESTION}", ANSWER), ONE),
    "PAI, two pictures in the middle": (
        qwen("Picture 1: <img>a.png</img>\nand <img>b.png</img> differ?", "Yes."),
        [("user", ["Picture 1: ", A, "and ", B, " differ?"]), ("assistant", ["Yes."])],
    ),
    "PAI, many turns, a picture in the third": (
        qwen("Hello", "Hi", f"<img>b.png</img>{QUESTION}", ANSWER),
        [
            ("user", ["Hello"]),
            ("assistant", ["Hi"]),
            ("user", [B, QUESTION]),
            ("assistant", [ANSWER]),
        ],
    ),
    "PAI, no picture": (qwen("Hello", "Hi"), [("user", ["Hello"]), ("assistant", ["Hi"])]),
    "PAI, a clip": (
        qwen("<video>clip</video>What moves?", "Nothing."),
        [("user", ["video:clip", "What moves?"]), ("assistant", ["Nothing."])],
    ),
    "LLaVA": (
        {
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{QUESTION}"},
                {"from": "gpt", "value": ANSWER},
            ],
        },
        ONE,
    ),
    "LLaVA, several": (
        qwen("<image> or <image>?", "The first.", image=["a.png", "b.png"]),
        [("user", [A, " or ", B, "?"]), ("assistant", ["The first."])],
    ),
    "LLaVA, picture without a tag": (qwen(QUESTION, ANSWER, image="a.png"), ONE),
    "LLaVA, a clip": (
        qwen("<video>What moves?", "Nothing.", video="clip"),
        [("user", ["video:clip", "What moves?"]), ("assistant", ["Nothing."])],
    ),
    "ms-swift": (chat(f"<image>{QUESTION}", ANSWER, images=["a.png"]), ONE),
    "ms-swift, dict": (chat(f"<image>{QUESTION}", ANSWER, images=[{"path": "a.png"}]), ONE),
    "ms-swift, query and response": (
        {
            "system": "Be terse.",
            "history": [["Hello", "Hi"]],
            "query": f"<image>{QUESTION}",
            "response": ANSWER,
            "images": ["a.png"],
        },
        [("system", ["Be terse."]), ("user", ["Hello"]), ("assistant", ["Hi"]), *ONE],
    ),
    "PAI, the picture named twice": (
        qwen(f"<img>a.png</img>{QUESTION}", ANSWER, image="a.png"),
        ONE,
    ),
    "messages, metadata that is no picture": (
        chat([{"type": "image", "image": "a.png"}, TEXT], ANSWER, file_name="b.png"),
        ONE,
    ),
    "messages": (chat([{"type": "image", "image": "a.png"}, TEXT], ANSWER), ONE),
    "messages, None keys": (
        chat([IMAGE | {"image": "a.png", "text": None}, TEXT | {"image": None}], ANSWER),
        ONE,
    ),
    "messages, url spelling": (
        chat([{"type": "image_url", "image_url": {"url": "a.png"}}, TEXT], ANSWER),
        ONE,
    ),
    "messages, pictures beside": (chat([IMAGE, TEXT], ANSWER, images=["a.png"]), ONE),
    "table": ({"image": "a.png", "question": QUESTION, "answer": ANSWER}, ONE),
}


@pytest.mark.parametrize(("row", "expected"), FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize("name", ["meta.json", "meta.jsonl"])
def test_formats(folder, row, expected, name):
    data = load_conversations(write(folder, [row], name))
    assert [shape(example) for example in data] == [expected]


def test_system_message_stays_first(folder):
    row = chat("Hello", "Hi")
    row["messages"].insert(0, {"role": "system", "content": "Be terse."})
    assert [role for role, _ in shape(load_conversations([row])[0])] == [
        "system", "user", "assistant",
    ]  # fmt: skip


def test_image_dir(folder, tmp_path_factory):
    meta = write(tmp_path_factory.mktemp("elsewhere"), [FORMATS["PAI"][0]])
    assert shape(load_conversations(meta, folder)[0]) == ONE
    with pytest.raises(DataError, match=r"row 1: image a\.png is missing"):
        load_conversations(meta)


def test_paths_of_another_machine_are_found_by_name(folder):
    row = qwen(f"<img>/mnt/somewhere/a.png</img>{QUESTION}", ANSWER)
    assert shape(load_conversations(write(folder, [row]))[0]) == ONE


def test_data_frame_with_pictures_and_missing_cells(folder):
    table = pd.DataFrame(
        {
            "image": [PIL.Image.new("RGB", SIZE), np.nan],
            "question": [QUESTION, "Hello"],
            "answer": [ANSWER, "Hi"],
        }
    )
    data = load_conversations(table)
    assert [shape(e)[0][1] for e in data] == [["image:Image", QUESTION], ["Hello"]]


def test_csv(folder):
    (folder / "t.csv").write_text(f"image,question,answer\na.png,{QUESTION},{ANSWER}\n")
    assert shape(load_conversations(folder / "t.csv")[0]) == ONE


def test_parquet_keeps_lists_within_lists(folder):
    objects = {"ref": ["it"], "bbox": [[50.0, 20.0, 100.0, 80.0]]}
    row = chat("<image>Where?", "<ref-object><bbox>", images=["a.png"], objects=objects)
    pd.DataFrame([row]).to_parquet(folder / "t.parquet")
    example = load_conversations(folder / "t.parquet")[0]
    assert answer(example, "qwen2_vl") == WRITTEN["qwen2_vl"]


def test_arrays_of_pixels_are_pictures(folder):
    pixels = np.zeros((8, 9, 3), np.uint8)
    table = pd.DataFrame({"image": [pixels], "question": [QUESTION], "answer": [ANSWER]})
    assert shape(load_conversations(table)[0])[0] == ("user", ["image:ndarray", QUESTION])


class Image:  # as `datasets.Image`
    def __init__(self, decode=True):
        self.decode = decode


class Video(Image):  # as `datasets.Video`
    pass


class List:  # as `datasets.List`
    def __init__(self, feature):
        self.feature = feature


class Dataset:
    """What `datasets.Dataset` shows of itself; a decoded picture would be a PIL image."""

    def __init__(self, rows, features):
        self.rows, self.features = rows, features

    def cast_column(self, name, feature):
        return Dataset(self.rows, self.features | {name: feature})

    def __iter__(self):
        for row in self.rows:
            decoded = [
                name
                for name, feature in (self.features or {}).items()
                if getattr(getattr(feature, "feature", feature), "decode", False)
            ]
            yield row | {name: PIL.Image.new("RGB", SIZE) for name in decoded}


@pytest.mark.parametrize("several", [False, True])
def test_dataset_pictures_stay_files(folder, several):
    stored = {"bytes": (folder / "a.png").read_bytes(), "path": "lost.png"}
    row = {"image": [stored] if several else stored, "question": QUESTION, "answer": ANSWER}
    features = {"image": List(Image()) if several else Image(), "question": "string"}
    data = load_conversations(Dataset([row], features))
    assert shape(data[0]) == [("user", ["image:bytes", QUESTION]), ("assistant", [ANSWER])]


def test_dataset_clips_stay_files_and_a_stream_has_no_features(folder):
    stored = {"bytes": None, "path": str(folder / "clip")}
    row = {"video": stored, "question": QUESTION, "answer": ANSWER}
    for features in ({"video": Video()}, None):
        assert shape(load_conversations(Dataset([row], features))[0])[0] == (
            "user",
            ["video:clip", QUESTION],
        )


# --- problems ------------------------------------------------------------------------------------

SWAPPED = "<ref>it</ref><box>(500,500),(10,10)</box>"
PROBLEMS = {
    "half a JPEG": (qwen("<img>half.jpg</img>?", "A"), r"half\.jpg is truncated after"),
    "PNG cut off": (qwen("<img>cut.png</img>?", "A"), r"cut\.png is truncated after 60 bytes"),
    "bad data URL": (
        qwen("<img>data:image/png;base64,xxx</img>?", "A"), "data URL of 25 characters cannot be"
    ),
    "clip that is none": (qwen("<video>bad.mp4</video>?", "A"), r"bad\.mp4 is not a clip"),
    "clip without frames": (qwen("<video>empty</video>?", "A"), "a folder without pictures"),
    "picture as a clip": (qwen("<video>a.png</video>?", "A"), r"a\.png is not a clip"),
    "part that a clip has not": (
        chat([{"type": "video", "video": "clip", "video_start": 9.0}, TEXT], "A"),
        "start=9 is behind the end",
    ),
    "picture of another folder": (qwen("<img>sub/b.png</img>?", "A"), r"sub/b\.png is missing"),
    "name on two lines": (qwen("<img>no\npe.png</img>?", "A"), r"image 'no\\npe\.png' is missing"),
    "bare base64": (qwen("<image>?", "A", image="iVBORw0KGgo" * 400), "base64 needs data:image"),
    "tag without a name": (qwen("<img> </img>?", "A"), "an image without a file"),
    "unbalanced video": (qwen("<img>a.png</img><video>b?", "A"), "unbalanced tags: <video>"),
    "corners swapped": (qwen("<img>a.png</img>?", SWAPPED), r"\[500, 500, 10, 10\] has its"),
    "no area": (
        qwen("<img>a.png</img>?", SWAPPED.replace("10,10", "500,900")), "has no area"
    ),
    "swift box swapped": (
        chat("<image>?", "<bbox>", images=["a.png"], objects={"bbox": [[50, 50, 10, 10]]}),
        "corners swapped",
    ),
    "swift type of box": (
        chat("<image>?", "<bbox>", images=["a.png"],
             objects={"bbox": [[1, 2, 3, 4]], "bbox_type": "zz"}),
        "bbox_type='zz'; expected 'real' or 'norm1'",
    ),
    "swift objects of no dict": (
        chat("<image>?", "<bbox>", images=["a.png"], objects=[1]), r"its objects are \[1\]"
    ),
    "table without an answer": (
        {"image": "a.png", "question": "?", "answer": ""}, "turn 2: the answer is empty"
    ),
    "table without a question": (
        {"question": None, "answer": "A"}, "turn 1: the question is empty"
    ),
    "turns of no list": (
        {"conversations": "Hello"}, "\"conversations\" is not a list of messages but 'Hello'"
    ),
    "missing picture": (qwen("<img>no.png</img>?", "A"), r"image no\.png is missing"),
    "unbalanced img": (qwen("<img>a.png?", "A"), "unbalanced tags: <img>"),
    "img closed twice": (qwen("<img>a.png</img></img>?", "A"), "unbalanced tags: </img>"),
    "nested img": (qwen("<img>a<img>b.png</img>?", "A"), "unbalanced tags: <img>"),
    "unbalanced box": (
        qwen("<img>a.png</img>?", "<ref>it</ref><box>(1,2),(3,4)"),
        "unbalanced tags: <box> and </box>",
    ),
    "box outside": (
        qwen("<img>a.png</img>?", "<ref>it</ref><box>(1,2),(1300,40)</box>"),
        r"box \[1, 2, 1300, 40\] is outside its picture's \(1000, 1000\)",
    ),
    "swift box outside": (
        chat("<image>?", "<ref-object><bbox>", images=["a.png"],
             objects={"ref": ["it"], "bbox": [[0, 0, 200, 150]]}),
        r"box \[0, 0, 200, 150\] is outside its picture's \(200, 100\)",
    ),
    "swift box left": (
        chat("<image>?", "A", images=["a.png"], objects={"ref": [], "bbox": [[0, 0, 9, 9]]}),
        "1 more boxes than <bbox>",
    ),
    "pixels on two sizes": (
        chat("<image><image>?", "<ref-object><bbox>", images=["a.png", "clip/0.png"],
             objects={"ref": ["it"], "bbox": [[0, 0, 9, 9]]}),
        "several sizes",
    ),
    "JSON of which family": (
        chat("<image>?", '[{"bbox_2d": [1, 2, 3, 4], "label": "it"}]', images=["a.png"]),
        r"pass boxes=, one of \['qwen2_5_vl', 'qwen3_vl', 'qwen3_5'\]",
    ),
    "answer first": ({"messages": [{"role": "assistant", "content": "A"}]},
                     "roles out of order: turn 1 is 'assistant', expected 'user'"),
    "two questions": (
        {"messages": [{"role": "user", "content": "A"}, {"role": "user", "content": "B"}]},
        "roles out of order: turn 2 is 'user', expected 'assistant'",
    ),
    "unknown role": ({"messages": [{"role": "robot", "content": "A"}]}, "which is not a role"),
    "no answer": (qwen("What?"), "it ends without an answer"),
    "empty answer": (qwen("What?", " \n"), "turn 2: the answer is empty"),
    "empty question": (qwen("", "A"), "turn 1: the question is empty"),
    "picture in an answer": (qwen("?", "<img>a.png</img>"), "turn 2: a picture in an answer"),
    "tag without a picture": (chat("<image>?", "A"), "more <image> than its 0 images"),
    "picture without a tag": (
        qwen("<image>?", "A", images=["a.png", "b.png"]), "1 of its images have no <image>"
    ),
    "picture beside others in the text": (
        qwen("<img>a.png</img>?", "A", image="b.png"), "1 of its images have no <image>"
    ),
    "history of no list": ({"query": "A", "response": "B", "history": 5}, "its history is 5"),
    "history of no pairs": ({"query": "A", "response": "B", "history": ["C"]}, "pairs of texts"),
    "no picture file": (qwen("<img>meta.json</img>?", "A"), "is not a picture"),
    "lone surrogate": (qwen("What?", "\ud800"), "lone surrogate"),
    "no turns": ({"conversations": []}, "no list of messages"),
    "nothing known": ({"colour": "red"}, "no columns for question and answer"),
    "no object": (5, "expected an object, not 5"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "problem"), PROBLEMS.values(), ids=list(PROBLEMS))
def test_problem_names_its_row(folder, row, problem):
    sound = FORMATS["PAI"][0]
    meta = write(folder, [sound, row])
    with pytest.raises(DataError, match=problem) as raised:
        load_conversations(meta)
    assert {each.row for each in raised.value.problems} == {2}
    assert str(raised.value).startswith("meta.json: 1 row has problems: row 2: ")
    with pytest.warns(UserWarning, match="left out of meta.json: 1 row has problems: row 2"):
        data = load_conversations(meta, strict=False)
    assert [shape(example) for example in data] == [ONE]
    assert data.problems == raised.value.problems


def test_all_problems_are_in_one_error(folder):
    rows = [row for row, _ in PROBLEMS.values()]
    with pytest.raises(DataError) as raised:
        load_conversations(write(folder, rows))
    assert {each.row for each in raised.value.problems} == set(range(1, len(rows) + 1))
    assert "row 1:" in str(raised.value) and "(in .problems)" in str(raised.value)


def test_one_row_may_have_several(folder):
    row = qwen("<img>no.png</img><img>nor.png</img>?", "")
    with pytest.raises(DataError) as raised:
        load_conversations(write(folder, [row]))
    assert len(raised.value.problems) == 3


def test_an_unknown_role_is_one_problem(folder):
    row = chat("What?", "A")
    row["messages"][1]["role"] = "tool"
    with pytest.raises(DataError) as raised:
        load_conversations([row])
    assert len(raised.value.problems) == 1


JSON = '[{"bbox_2d": [500, 500, 10, 10], "label": "it"}]'


@pytest.mark.parametrize(
    ("row", "arguments", "problem"),
    [
        (qwen("<img>a.png</img>?", "A"), {"format": "llava"}, "'<img>a.png</img>' is PAI's"),
        (qwen("What?", "A"), {"format": "ms-swift"}, 'no list of messages under "messages"'),
        (chat("<image>?", JSON, images=["a.png"]), {"boxes": "qwen3_vl"}, "corners swapped"),
        (
            chat("<image>?", "<bbox>", images=["a.png"], objects={"bbox": [[1, 2, 3, 4]]}),
            {"boxes": "qwen2_vl"},
            "are ms-swift's, not qwen2_vl's",
        ),
    ],
)
def test_problems_of_what_was_named(folder, row, arguments, problem):
    with pytest.raises(DataError, match=problem):
        load_conversations(write(folder, [row]), **arguments)


def test_each_picture_is_decoded_once_and_urls_are_not_fetched(folder, monkeypatch):
    tried = []
    monkeypatch.setattr(data, "_is_whole_file", lambda source: not tried.append(source))
    monkeypatch.setattr(data, "load_image", lambda media: pytest.fail("read"))
    names = ["a.png", "a.png", "b.png", "https://nowhere.invalid/a.png"]
    rows = [qwen(f"<img>{name}</img>?", "A") for name in names]
    assert len(load_conversations(write(folder, rows))) == 4
    assert sorted(tried) == [str(folder / name) for name in ("a.png", "b.png")]


@pytest.mark.parametrize("cut", [1, 2, 40, 400])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_is_read_to_its_end(folder, options, cut):
    path = folder / "noise.jpg"
    PIL.Image.effect_noise((320, 240), 90).save(path, **options)
    item = {"type": "image", "image": str(path)}
    assert data.find_damaged([item]) == [None]
    path.write_bytes(path.read_bytes()[:-cut])
    (damage,) = data.find_damaged([item])
    try:
        vlkit.load_image(path)
    except vlkit.errors.MediaError as error:
        assert damage == str(error)
    else:
        assert damage is None


def test_two_absolute_paths_are_not_one_file(folder):
    names = ("/mnt/cats/a.png", "C:\\dogs\\a.png", "/mnt/cats/b.png", "/mnt/cats/b.png")
    rows = [qwen(f"<img>{name}</img>?", "A") for name in names]
    with pytest.raises(DataError, match=r"would both be read from .*a\.png") as raised:
        load_conversations(write(folder, rows))
    assert [problem.row for problem in raised.value.problems] == [1, 2]


TALK = json.dumps(chat("Hello", "Hi")["messages"])
ROW = json.dumps(chat("Hello", "Hi"))


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("x.jsonl", f"{TALK}\n{TALK}\n", 2),
        ("x.jsonl", TALK, 1),
        ("x.jsonl", f"[{ROW}, {ROW}]", 2),
        ("x.json", f"[\n{ROW},\n{ROW}\n]", 2),
        ("x.json", f"{ROW}\n\n{ROW}\n", 2),
        ("x.json", json.dumps(chat("Hello", "Hi"), indent=1), 1),
    ],
)
def test_json_of_any_shape(tmp_path, name, text, count):
    (tmp_path / name).write_text(text)
    data = load_conversations(tmp_path / name)
    assert [shape(e) for e in data] == [[("user", ["Hello"]), ("assistant", ["Hi"])]] * count


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f'{{"data":\n[{ROW}]}}', r"x\.json is one object, not a list .* columns: \['data'\]"),
        (f"[{ROW[:-5]}", "neither a list of rows nor one row a line"),
        (f"[\n{ROW},\n]", "neither a list of rows nor one row a line"),
        ("", "no conversation that can be trained on"),
        (b"\xff\xfe", r"x\.json is not UTF-8 text"),
    ],
)
def test_json_that_is_none(tmp_path, text, problem):
    (tmp_path / "x.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(vlkit.errors.VlkitError, match=problem) as raised:
        load_conversations(tmp_path / "x.json")
    assert str(raised.value).count("no JSON") <= 1


def test_a_spoilt_line_is_a_row_too(folder):
    path = write(folder, [FORMATS["PAI"][0]], "meta.jsonl")
    path.write_text(path.read_text() + "\n{oops\n")
    with pytest.raises(DataError, match="row 2: it is not JSON"):
        load_conversations(path)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"format": "coco"}, "format='coco' is unknown"),
        ({"boxes": "pixels"}, "boxes='pixels' is unknown"),
        ({"boxes": ["qwen2_vl"]}, r"boxes=\['qwen2_vl'\] is unknown"),
        ({"strict": "no"}, "strict='no' is unknown"),
        ({"image_dir": 5}, "image_dir=5 is not a folder"),
        ({"image_dir": "nowhere"}, "image_dir='nowhere' is not a folder"),
        ({"max_image_tokens": "x"}, "max_image_tokens='x' must be a whole number"),
        ({"max_image_tokens": -1}, "max_image_tokens=-1 must be a whole number"),
        ({"meta": ""}, "'' is a folder"),
        ({"meta": "."}, "'.' is a folder"),
        ({"meta": b"x"}, "expected a file, a table or rows, not bytes"),
        ({"meta": "no\0.json"}, r"'no\\x00.json' cannot be read"),
        ({"meta": 5}, "expected a file, a table or rows, not int"),
        ({"meta": []}, "no conversation that can be trained on"),
        ({"meta": "nowhere.json"}, r"nowhere\.json cannot be read"),
    ],
)
def test_wrong_arguments(arguments, problem):
    with pytest.raises(vlkit.errors.VlkitError, match=problem):
        load_conversations(**{"meta": [chat("A", "B")], **arguments})


# --- boxes ---------------------------------------------------------------------------------------


def model(family):
    """As much of a loaded model as says which family writes the boxes, and at which size."""
    size = SimpleNamespace(size={"shortest_edge": 4 * 28**2, "longest_edge": 1280 * 28**2})
    processor = SimpleNamespace(image_processor=size, video_processor=size)
    return SimpleNamespace(family=family, rules=rules_of_processor(processor, family, None))


def answer(example, family):
    return example.messages_for(model(family))[-1]["content"][0]["text"]


PIXELS = (50.0, 20.0, 100.0, 80.0)  # of 200 × 100
SHARES = [250, 200, 500, 800]  # of 1000
WRITTEN = {
    "qwen_vl": "<ref>it</ref><box>(250,200),(500,800)</box>",
    "qwen2_vl": "<|object_ref_start|>it<|object_ref_end|>"
    "<|box_start|>(250,200),(500,800)<|box_end|>",
    "qwen2_5_vl": [49, 22, 98, 90],  # pixels of 196 × 112, multiples of 28
    "qwen3_vl": SHARES,
    "qwen3_5": SHARES,
}


@pytest.mark.parametrize("target", [name for name in WRITTEN if name != "qwen_vl"])
@pytest.mark.parametrize("source", ["ms-swift", "norm1", "qwen_vl", "qwen2_vl", "qwen3_vl"])
def test_boxes_are_written_as_the_family_writes_them(folder, source, target):
    said, more = WRITTEN.get(source), {}
    if source == "qwen3_vl":
        said = json.dumps([{"bbox_2d": SHARES, "label": "it"}])
    elif source in ("ms-swift", "norm1"):
        numbers = [0.25, 0.2, 0.5, 0.8] if source == "norm1" else list(PIXELS)
        kind = {"bbox_type": "norm1"} if source == "norm1" else {}
        said, more = "<ref-object><bbox>", {"objects": {"ref": ["it"], "bbox": [numbers], **kind}}
    row = chat("<image>Where?", said, images=["a.png"], **more)
    boxes = "qwen3_vl" if source == "qwen3_vl" else "auto"
    text = answer(load_conversations(write(folder, [row]), boxes=boxes)[0], target)
    if isinstance(WRITTEN[target], str):
        assert text == WRITTEN[target]
    else:
        (written,) = json.loads(text.removeprefix("```json").removesuffix("```"))
        assert written == {"bbox_2d": WRITTEN[target], "label": "it"}


def test_boxes_in_questions_are_written_too(folder):
    row = qwen("<img>a.png</img>What is in <box>(250,200),(500,800)</box>?", "A square.")
    example = load_conversations(write(folder, [row]))[0]
    question = example.messages_for(model("qwen2_vl"))[0]["content"][-1]["text"]
    assert question == "What is in <|box_start|>(250,200),(500,800)<|box_end|>?"


def test_own_convention_and_boxes_none_leave_the_text(folder):
    text = '[{"bbox_2d": [1, 2, 3, 4], "label": "it"}]'
    meta = write(folder, [chat("<image>?", text, images=["a.png"])])
    assert answer(load_conversations(meta, boxes="qwen3_vl")[0], "qwen3_vl") == text
    assert answer(load_conversations(meta, boxes=None)[0], "qwen2_vl") == text


def test_pictures_of_two_sizes_keep_shares_and_refuse_pixels(folder):
    text = "<img>a.png</img><img>clip/0.png</img>Where?"
    data = load_conversations(write(folder, [qwen(text, WRITTEN["qwen_vl"])]))
    assert answer(data[0], "qwen2_vl") == WRITTEN["qwen2_vl"]
    with pytest.raises(vlkit.errors.VlkitError, match="row 1: qwen2_5_vl writes pixels"):
        answer(data[0], "qwen2_5_vl")


# --- split ---------------------------------------------------------------------------------------


def pictures(data):
    return [part["image"] for example in data for part in example.media]


@pytest.fixture
def many(folder):
    """40 rows on 20 pictures, two each; a copy of every picture under another name and format."""
    rows = []
    for i in range(20):
        picture = PIL.Image.new("RGB", (16, 16), (10 * i, 5, 7))
        picture.save(folder / f"{i}.png")
        picture.save(folder / f"copy{i}.bmp")
        rows += [qwen(f"<img>{n}</img>What?", "A") for n in (f"{i}.png", f"copy{i}.bmp")]
    return load_conversations(write(folder, rows))


@pytest.mark.parametrize("seed", range(5))
def test_no_picture_is_on_both_sides(many, seed):
    train, evaluation = many.split(0.25, seed=seed)
    assert len(train) == 30 and len(evaluation) == 10
    pixels = [{PIL.Image.open(p).getpixel((0, 0)) for p in pictures(side)}
              for side in (train, evaluation)]  # fmt: skip
    assert not pixels[0] & pixels[1]
    assert sorted(pictures(train) + pictures(evaluation)) == sorted(pictures(many))


def test_split_follows_the_seed(many):
    chosen = [[e.row for e in many.split(0.25, seed=seed)[1]] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(many.split(4)[1]) == 4


def test_chains_of_pictures_stay_together(folder):
    rows = [qwen(f"<img>{a}.png</img><img>{b}.png</img>?", "A") for a, b in ("ab", "bc")]
    data = load_conversations(write(folder, [*rows, qwen("Hello", "Hi"), qwen("Hello", "Hi")]))
    train, evaluation = data.split(0.5)
    assert {tuple(e.row for e in side) for side in (train, evaluation)} == {(1, 2), (3, 4)}
    with pytest.raises(vlkit.errors.VlkitError, match="cannot be split"):
        data[:2].split(0.5)


@pytest.mark.parametrize("share", [0, -1, 1.0, 40, "all", True, float("nan")])
def test_split_refuses(many, share):
    with pytest.raises(vlkit.errors.VlkitError, match="evaluation="):
        many.split(share)


@pytest.mark.parametrize("seed", [[1], "x", None, 0.5, True])
def test_split_refuses_a_seed(many, seed):
    with pytest.raises(vlkit.errors.VlkitError, match=r"seed=.* must be a whole number"):
        many.split(0.25, seed=seed)


def test_repr_counts(many):
    assert repr(many) == "TrainingData(meta.json: 40 rows, 40 media)"
