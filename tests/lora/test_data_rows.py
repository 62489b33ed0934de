"""Rows as people really have them: nothing in one is dropped or changed without a word."""

import json
import warnings

import PIL.Image
import pytest

import vlkit
from vlkit.errors import VlkitError
from vlkit.lora import DataError, label_example, load_conversations

PICTURE = "<picture>"
ASK, ANSWER = {"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "Red."}
ONE = [("user", [PICTURE, "What?"]), ("assistant", ["Red."])]
SYSTEM = ("system", ["Be terse."])


@pytest.fixture
def folder(tmp_path):
    PIL.Image.new("RGB", (100, 50), "red").save(tmp_path / "a.png")
    (tmp_path / "clip").mkdir()
    for i in range(4):
        PIL.Image.new("RGB", (64, 48), (60 * i, 0, 0)).save(tmp_path / "clip" / f"{i}.png")
    return tmp_path


def load(folder, *rows):
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return load_conversations(folder / "rows.json")


def said(example):
    return [(m["role"], [i.get("text", PICTURE) for i in m["content"]]) for m in example.messages]


def human(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def table(**row):
    return {"image": "a.png", **row}


ROWS = {
    "system beside conversations": (
        {"system": "Be terse.", "conversations": human("<image>What?", "Red."), "image": "a.png"},
        [SYSTEM, *ONE],
    ),
    "system beside messages": (
        {"system": "Be terse.", "messages": [ASK, ANSWER], "images": ["a.png"]},
        [SYSTEM, *ONE],
    ),
    "system_prompt of a table": (
        table(system_prompt="Be terse.", question="What?", answer="Red."), [SYSTEM, *ONE],
    ),
    "an empty system": (
        {"system": "", "conversations": human("<image>What?", "Red."), "image": "a.png"}, ONE,
    ),
    "alpaca": (
        table(instruction="<image>Translate.", input="into German", output="Halt"),
        [("user", [PICTURE, "Translate.\ninto German"]), ("assistant", ["Halt"])],
    ),
    "alpaca with history": (
        table(instruction="What?", input="", output="Red.", history=[["Hello", "Hi"]], system=""),
        [("user", [PICTURE, "Hello"]), ("assistant", ["Hi"]), ("user", ["What?"]), ONE[1]],
    ),
    "alpaca with input alone": (table(instruction="", input="What?", output="Red."), ONE),
    "answers of DocVQA": (table(question="What?", answers=["Red.", "A red one"]), ONE),
    "answers of VQA": (
        table(question="What?", answers=[{"answer": a} for a in ("Blue", "Red.", "Red.")]), ONE,
    ),
    "answers that are numbers": (
        table(question="What?", answers=[3, 4, 4]), [ONE[0], ("assistant", ["4"])],
    ),
    "image_path beside messages": (
        {"image_path": "a.png", "messages": [{"role": "user", "content": "What?"}, ANSWER]}, ONE,
    ),
    "Images beside messages": (
        {"Images": ["a.png"], "messages": [{"role": "user", "content": "What?"}, ANSWER]}, ONE,
    ),
    "image_url beside conversations": (
        {"image_url": "a.png", "conversations": human("<image>What?", "Red.")}, ONE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_read_whole(folder, name):
    row, expected = ROWS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert said(load(folder, row)[0]) == expected


REFUSED = {
    "sound in a message": (
        {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}, ANSWER]},
        "content item of type 'audio' is not supported",
    ),
    "two systems": (
        {"system": "A", "messages": [{"role": "system", "content": "B"}, ASK, ANSWER]},
        'it has a system message and "system"; leave one of them out',
    ),
    "reasoning": (
        {"messages": [ASK, ANSWER | {"reasoning_content": "Looks red."}], "images": ["a.png"]},
        "'reasoning_content', which is not supported; write it into the content, as <think>",
    ),
    "tool calls": (
        {"messages": [ASK, ANSWER | {"tool_calls": [{"name": "zoom"}]}], "images": ["a.png"]},
        "'tool_calls', which is not supported",
    ),
    "pictures of a message": (
        {"messages": [{"role": "user", "content": "What?", "images": ["a.png"]}, ANSWER]},
        "'images', which is not supported; put them under the row's images",
    ),
    "loss on a question": (
        {"messages": [ASK | {"loss": True}, ANSWER], "images": ["a.png"]},
        "row 1: loss=True on a user turn; only answers are learnt, remove it",
    ),
    "weight on a system message": (
        {"messages": [{"role": "system", "content": "Be terse.", "weight": 1}, ASK, ANSWER],
         "images": ["a.png"]},
        "row 1: weight=1 on a system turn; only answers are learnt",
    ),
    "loss on a human's turn": (
        {"conversations": [{"from": "human", "value": "<image>What?", "loss": 1},
                           {"from": "gpt", "value": "Red."}], "image": "a.png"},
        "row 1: loss=1 on a user turn",
    ),
    "fractions as thousandths": (
        {"messages": [ASK, ANSWER | {"content": "<|box_start|>(0.1,0.2),(0.5,0.6)<|box_end|>"}],
         "images": ["a.png"]},
        r"row 1: .*\(0\.1,0\.2\),\(0\.5,0\.6\).* \(fractions\) is not in the form of qwen2_vl",
    ),
    "objects in fractions": (
        {"messages": [ASK, ANSWER | {"content": "<bbox>"}], "images": ["a.png"],
         "objects": {"ref": [], "bbox": [[0.1, 0.2, 0.5, 0.6]]}},
        'its boxes are fractions; add "bbox_type": "norm1"',
    ),
    "half a weight": (
        {"messages": [ASK, ANSWER | {"weight": 0.5}], "images": ["a.png"]},
        r"weight=0\.5 .* \(0 or 1\)",
    ),
    "no answer to learn": (
        {"messages": [ASK, ANSWER | {"loss": False}], "images": ["a.png"]},
        "leaves no answer to learn",
    ),
    "a question that is a list": (
        table(question=[{"role": "user", "content": "What?"}], answer="Red."), "expected text",
    ),
    "a history without pairs": (
        table(instruction="What?", output="Red.", history=["Hello"]), "expected pairs of texts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learnt_is_refused(folder, name):
    row, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        load(folder, row)


def test_keys_that_are_not_read_are_named_once_a_file(folder):
    row = {"messages": [ASK, ANSWER | {"rating": 5}], "images": ["a.png"], "id": 1, "rejected": "B"}
    more = {"messages": [ASK, ANSWER], "image": "a.png", "images": ["a.png"]}
    with pytest.warns(UserWarning) as warned:
        assert len(load(folder, row, row, more)) == 3
    (warning,) = warned
    text = str(warning.message)
    assert text.startswith("rows.json: these keys are not read: ")
    for part in ("'rejected' (2 rows)", "'messages[].rating' (2 rows)", "'images' (1 row)"):
        assert part in text
    assert "'id'" not in text


def test_keys_of_objects_that_are_not_read_are_named(folder):
    objects = {"ref": [], "bbox": [[10, 20, 50, 40]], "format": "xywh"}
    answer = ANSWER | {"content": "<bbox>"}
    with pytest.warns(UserWarning, match=r"not read: 'objects\.format' \(1 row\)"):
        load(folder, {"messages": [ASK, answer], "images": ["a.png"], "objects": objects})


def test_columns_of_rows_without_messages_are_not_read_beside_messages(folder):
    extra = {"label": True, "input": "x", "question": "y", "tools": ""}
    row = {"messages": [ASK, ANSWER | {"tool_calls": None, "name": ""}], "images": ["a.png"]}
    with pytest.warns(UserWarning, match="not read") as warned:
        load(folder, row | extra)
    text = str(warned[0].message)
    assert all(f"'{key}' (1 row)" in text for key in ("label", "input", "question"))
    assert "tool" not in text and "name" not in text


@pytest.mark.parametrize("key", ["loss", "weight"])
def test_an_answer_without_loss_is_shown_but_not_learnt(folder, key):
    row = {
        "messages": [ASK, ANSWER | {key: 0}, {"role": "user", "content": "And?"},
                     {"role": "assistant", "content": "Round.", key: 1}],
        "images": ["a.png"],
    }  # fmt: skip
    vlm = vlkit.load("tiny", device="cpu")
    (example,) = load(folder, row)
    labelled = label_example(vlm, example)
    decode = vlm.processor.tokenizer.decode
    assert decode(labelled.labels[labelled.labels >= 0]) == "Round.<|im_end|>"
    assert "Red." in decode(labelled.tensors["input_ids"][0])
    for format in ("ms-swift", "messages"):
        path = vlkit.lora.export(folder / "rows.json", folder / format, format=format)
        again = load_conversations(path)
        assert [
            ("loss" in m, *s) for m, s in zip(again[0].messages, said(again[0]), strict=True)
        ] == [("loss" in m, *s) for m, s in zip(example.messages, said(example), strict=True)]
    with pytest.raises(VlkitError, match=r"not learnt \(loss\)"):
        vlkit.lora.export(folder / "rows.json", folder / "llava", format="llava")


@pytest.mark.parametrize(
    "media",
    [
        {"videos": ["clip"]},
        {"videos": [[f"clip/{i}.png" for i in range(4)]]},
        {"video": [f"clip/{i}.png" for i in range(4)]},
    ],
)
def test_a_clip_is_a_folder_or_a_list_of_frames_relative_to_the_file(folder, media):
    messages = {"messages": [{"role": "user", "content": "<video>?"}, ANSWER]}
    (example,) = load(folder, messages | media)
    (item,) = example.media
    clip = vlkit.Video(item["video"]).load()
    assert [int(frame[0, 0, 0]) for frame in clip.frames] == [0, 60, 120, 180]
    with pytest.raises(DataError, match=r"clip/9\.png is missing"):
        load(folder, messages | {"videos": [["clip/0.png", "clip/9.png"]]})


def test_a_system_prompt_is_no_turn_for_llava(folder):
    """QwenLM's reader takes every turn that is not human's for an answer to learn."""
    load(folder, {"system": "Be terse.", "messages": [ASK, ANSWER], "images": ["a.png"]})
    path = vlkit.lora.export(folder / "rows.json", folder / "out", format="llava")
    (row,) = json.loads(path.read_text(encoding="utf-8"))
    assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"]
    assert row["system"] == "Be terse."
    assert said(load_conversations(path)[0]) == [SYSTEM, *ONE]
