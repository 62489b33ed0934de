"""Tables become conversations whose content is data, and answers become tables again."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from vlkit import Box, Failure, Reply, Video, read_conversations, sample, to_frame, write_table
from vlkit.errors import VlkitError
from vlkit.generation.reply import Usage
from vlkit.messages import as_messages

RAW = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>"
REPLY = Reply(
    text="=1+1, 汉字\n“quoted”",
    raw=RAW,
    usage=Usage(64, 0, 80, 5),
    seconds=0.25,
    family="qwen2_vl",
    images=(PIL.Image.new("RGB", (500, 200)),),
)
ROWS = [
    {"image": "a.png", "question": "What is this?", "id": "007", "note": "NA"},
    {"image": "sub/b.png", "question": "这是什么？", "id": "8", "note": ""},
]


def save(rows, path):
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".tsv":
        pd.DataFrame(rows).to_csv(path, index=False, sep="\t")
    elif path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


def said(conversation):
    """(media sources, text) of the last message."""
    *media, text = as_messages(conversation)[-1]["content"]
    return [item[item["type"]] for item in media], text["text"]


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_format_gives_the_same_conversations(tmp_path, ending):
    conversations = read_conversations(save(ROWS, tmp_path / f"table.{ending}"))
    assert len(conversations) == 2 and list(conversations.table.columns) == list(ROWS[0])
    assert [said(each) for each in conversations] == [
        ([str(tmp_path / "a.png")], "What is this?"),
        ([str(tmp_path / "sub/b.png")], "这是什么？"),
    ]
    assert list(conversations.table["id"]) == ["007", "8"]
    assert list(conversations.table["note"]) == ["NA", ""]


def test_byte_order_marks_and_commas_in_quotes(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('image,prompt\na.png,"One, two\nthree"\n', encoding="utf-8-sig")
    assert said(read_conversations(path)[0])[1] == "One, two\nthree"


def test_headers_that_are_empty_or_end_in_a_number_are_no_twins(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"prompt,image,image.1,,\nWhat?,a.png,b.png,,\n")
    conversations = read_conversations(tmp_path / "t.csv", image=["image", "image.1"])
    assert said(conversations[0]) == ([str(tmp_path / n) for n in ("a.png", "b.png")], "What?")


def test_a_folder_in_natural_order_with_a_template(tmp_path):
    for name in ("10.png", "2.png", "1.png"):
        shutil.copy(sample("red_circle"), tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    conversations = read_conversations(tmp_path, "Is this {name}?")
    assert [said(each)[1] for each in conversations] == [f"Is this {i}?" for i in (1, 2, 10)]
    assert said(conversations[2])[0] == [str(tmp_path / "10.png")]
    assert list(conversations.table["image"]) == ["1.png", "2.png", "10.png"]


def test_a_frame_may_hold_pictures_clips_and_missing_cells():
    pixels = np.zeros((28, 28, 3), np.uint8)
    clip = Video("clip.mp4", fps=1.0)
    cells = [pixels, None, float("nan"), ["a.png", pixels], clip, {"bytes": b"x", "path": "p"}]
    frame = pd.DataFrame({"picture": cells, "prompt": ["What?"] * 6})
    media = [said(each)[0] for each in read_conversations(frame)]
    assert media[0][0] is pixels and media[1] == media[2] == []
    assert media[3][0] == "a.png" and media[3][1] is pixels
    assert media[4] == ["clip.mp4"] and media[5] == [b"x"]
    assert as_messages(read_conversations(frame)[4])[0]["content"][0]["fps"] == 1.0


def test_columns_by_name_in_any_case_or_named(tmp_path):
    row = {"Left": "l.png", "right": "r.png", "FILM": "f.mp4", "System": "Be terse.", "Query": "?"}
    path = save([row], tmp_path / "table.csv")
    conversation = read_conversations(path, image=["right", "Left"], video="FILM")[0]
    assert [message["role"] for message in conversation] == ["system", "user"]
    names = ("r.png", "l.png", "f.mp4")
    assert said(conversation) == ([str(tmp_path / name) for name in names], "?")
    assert as_messages(conversation)[1]["content"][2]["type"] == "video"


def test_lists_of_pictures_and_addresses(tmp_path):
    rows = [{"images": '["a.png", "https://example.org/b.png"]', "prompt": "?"}]
    expected = [str(tmp_path / "a.png"), "https://example.org/b.png"]
    assert said(read_conversations(save(rows, tmp_path / "t.csv"))[0])[0] == expected
    rows = [{"images": ["a.png", "https://example.org/b.png"], "prompt": "?"}]
    for name in ("t.jsonl", "t.parquet"):
        assert said(read_conversations(save(rows, tmp_path / name))[0])[0] == expected


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet", "t.csv"])
def test_whole_conversations(tmp_path, name):
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be terse."}]},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "a.png"},
                {"type": "text", "text": "image and url stay: {id}"},
            ],
        },
    ]
    if name == "t.csv":
        messages = json.dumps(messages)
    path = save([{"messages": messages}], tmp_path / name)
    checked = as_messages(read_conversations(path)[0])
    assert checked[0]["content"] == [{"type": "text", "text": "Be terse."}]
    assert said(checked) == ([str(tmp_path / "a.png")], "image and url stay: {id}")


# --- data is data --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("{a}{b}", "{b}\x00" + "1.5"),
        ("{{a}} {a}", "{a} {b}\x00"),
        ("{a.b}", "dotted"),
        ("{x:>10}", "colon"),
        ("no column", "no column"),
        ("}}{{", "}{"),
    ],
)
def test_cells_are_put_in_as_they_are(prompt, text):
    frame = pd.DataFrame({"a": ["{b}\x00"], "b": [1.5], "a.b": ["dotted"], "x:>10": ["colon"]})
    assert said(read_conversations(frame, prompt)[0])[1] == text


@pytest.mark.parametrize(
    "prompt", ["{c}", "{a.__class__}", "{a!r}", "{0}", "{}", "{a", "a}", '{"a": 1}']
)
def test_anything_else_in_braces_is_refused(prompt):
    with pytest.raises(VlkitError, match=r"is not a column; columns = \['a'\] .*double"):
        read_conversations(pd.DataFrame({"a": ["x"]}), prompt)


def test_a_bad_row_is_left_to_fail_by_itself():
    frame = pd.DataFrame({"prompt": ["", None, "  ", "What?"], "image": ["a.png"] * 4})
    conversations = read_conversations(frame)
    for row in range(3):
        with pytest.raises(VlkitError, match="expected text, a message"):
            as_messages(conversations[row])
    assert said(conversations[3])[1] == "What?"
    for cell in ("not json", '{"role": "nobody"}', "[1]", "", None, 3):
        whole = read_conversations(pd.DataFrame({"messages": [cell]}, dtype=object))
        with pytest.raises(VlkitError):
            as_messages(whole[0])


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", None, "does not exist"),
        ("t.xlsx", b"x", r"is not one of \.csv, "),
        ("t.csv", b"", "is empty; it needs a header"),
        ("t.csv", b"image;prompt\na;b\n", "separates its cells by ';'; save it with commas"),
        ("t.csv", b"image\tprompt\na\tb\n", "separates its cells by"),
        ("t.csv", "prompt\n问题".encode("gbk"), "is not UTF-8 .*; save it as UTF-8"),
        (
            "t.csv",
            b"image,prompt,image\na,b,c\n",
            "t.csv has several columns called 'image'; rename",
        ),
        (
            "t.tsv",
            b"\n\xef\xbb\xbf'a'\tprompt\tprompt\n",
            "several columns called 'prompt'; rename",
        ),
        ("t.csv", b"image,prompt\na,b,c\n", "more cells than its header"),
        ("t.csv", b"image,prompt\na,b\na,b,c\n", "cannot be read"),
        ("t.csv", b"image,answer\na,b\n", r"there is no column prompt or .*\['image', 'answer'\]"),
        ("t.jsonl", b'{"prompt": "a"}\n{"prompt', "line 2 is not JSON"),
        ("t.jsonl", b"[1]\n", "row 1: expected a JSON object"),
        ("t.json", b'{"prompt": "a"}', "expected a list of objects"),
        ("t.parquet", b"no parquet", "cannot be read"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VlkitError, match=message):
        read_conversations(tmp_path / name)


def test_other_mistakes(tmp_path):
    frame = pd.DataFrame({"prompt": ["?"]})
    with pytest.raises(VlkitError, match=r"there is no column 'photo'; columns = \['prompt'\]"):
        read_conversations(frame, image="photo")
    with pytest.raises(VlkitError, match="the DataFrame has several columns called 'prompt'"):
        read_conversations(pd.concat([frame, frame], axis=1))
    with pytest.raises(VlkitError, match="prompt=3 must be text"):
        read_conversations(frame, 3)
    with pytest.raises(VlkitError, match="not list"):
        read_conversations([frame])
    with pytest.raises(VlkitError, match="without pictures"):
        read_conversations(tmp_path, "?")
    with pytest.raises(VlkitError, match=r"not one of \.csv, \.jsonl, \.parquet"):
        write_table(frame, tmp_path / "t.xlsx")
    with pytest.raises(VlkitError, match=r"the folder .*nowhere does not exist; create it"):
        write_table(frame, tmp_path / "nowhere" / "t.csv")
    with pytest.raises(VlkitError, match="expected a DataFrame, as to_frame gives, not NoneType"):
        write_table(None, tmp_path / "t.csv")
    for wrong in ([1, 2], "abc", 3):
        with pytest.raises(VlkitError, match="expected results of generate_batch"):
            to_frame(wrong)
    with pytest.raises(VlkitError, match="1 results, but 2 conversations"):
        to_frame([REPLY], read_conversations(pd.DataFrame({"prompt": ["a", "b"]})))


def test_rows_without_a_picture_among_others_are_counted():
    table = pd.DataFrame({"image": ["a.png", "", None, "b.png"], "prompt": list("abcd")})
    with pytest.warns(UserWarning, match=r"2 rows of 4 have no picture or clip in \['image'\]"):
        conversations = read_conversations(table)
    assert said(conversations[1]) == ([], "b") and said(conversations[3])[0]


def test_pictures_in_a_column_of_no_usual_name_are_not_passed_over():
    picture = PIL.Image.new("RGB", (30, 30))
    for cells in (["a.PNG", ""], ["https://x.org/b.jpg?size=1"], [picture], ["c.mp4"]):
        frame = pd.DataFrame({"photo": cells})
        with pytest.raises(VlkitError, match=r"the column 'photo' .*image='photo', or image=\[\]"):
            read_conversations(frame, "What colour?")
        assert said(read_conversations(frame, "What colour?", image="photo")[0])[0]
        assert said(read_conversations(frame, "What colour?", image=[])[0]) == ([], "What colour?")
    names = pd.DataFrame({"file": ["a.png"], "note": ["a.png shows a dog"]})
    assert said(read_conversations(names, "Is {file} a good name?")[0])[0] == []


@pytest.mark.parametrize("call", ["read_conversations({!r})", "write_table(frame, {!r})"])
def test_parquet_without_pyarrow_names_the_command(tmp_path, call):
    path = save(ROWS, tmp_path / "t.parquet")
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "import pandas as pd; from vlkit import read_conversations, write_table\n"
        f"frame = pd.DataFrame({{'a': [1]}}); {call.format(str(path))}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'Parquet needs pyarrow: pip install "vlkit[parquet]"' in done.stderr


# --- results -------------------------------------------------------------------------------------


def results():
    return [REPLY, Failure("nope.png does not exist", "MediaError")]


def test_a_frame_has_the_sources_columns_and_the_answers():
    table = pd.DataFrame({"prompt": ["a", "b"], "text": ["x", "y"]}, index=[7, 3])
    frame = to_frame(results(), read_conversations(table))
    assert list(frame.index) == [7, 3] and list(frame["text"]) == ["x", "y"]
    assert list(frame["reply_text"]) == [REPLY.text, None]
    assert [Box(**box) for box in frame["boxes"][7]] == REPLY.boxes
    assert frame["new_tokens"][7] == 5 and frame["new_tokens"].sum() == 5
    assert frame["error"][3] == "MediaError: nope.png does not exist"
    assert list(to_frame([]).columns) == list(to_frame(results()).columns)


def test_a_slice_keeps_its_columns():
    conversations = read_conversations(pd.DataFrame({"prompt": ["a", "b", "c"]}))
    part = conversations[1:]
    assert len(part) == 2 and list(part.table["prompt"]) == ["b", "c"]
    assert to_frame(results(), part)["prompt"].tolist() == ["b", "c"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_what_is_written_is_read_again(tmp_path, ending):
    source = pd.DataFrame({"prompt": ["a", "b"], "picture": [PIL.Image.new("RGB", (5, 4)), None]})
    frame = to_frame(results(), read_conversations(source))
    path = write_table(frame, tmp_path / f"out.{ending}")
    assert os.listdir(tmp_path) == [path.name]
    back = read_conversations(path).table
    assert list(back.columns) == list(frame.columns)
    assert back["text"][0] == REPLY.text
    boxes = json.loads(back["boxes"][0]) if ending == "csv" else back["boxes"][0]
    assert [Box(**box) for box in boxes] == REPLY.boxes
    assert str(back["new_tokens"][0]) == "5" and back["picture"][0] == "5×4 PIL image"
    if ending != "parquet":
        text = path.read_text(encoding="utf-8")
        assert "汉字" in text and "5.0" not in text and "NaN" not in text


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_rows_without_boxes_and_all_failures(tmp_path, ending):
    plain = Reply("yes", "yes", Usage(0, 0, 8, 1), 0.1, "qwen2_vl")
    for rows in ([plain], [Failure("no")], []):
        path = write_table(to_frame(rows), tmp_path / f"out.{ending}")
        assert path.stat().st_size or not rows


def test_an_error_leaves_the_old_file(tmp_path):
    path = write_table(pd.DataFrame({"a": [1]}), tmp_path / "t.parquet")
    before = path.read_bytes()
    with pytest.raises(VlkitError, match=r"Parquet cannot hold this table .*; write \.jsonl"):
        write_table(pd.DataFrame({"a": [1, "x", b"y"]}), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["t.parquet"]
