"""The journal keeps every whole row and nothing else; the key changes with what matters."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from vlkit import Box, Failure, Image, Point, Reply, Video, sample, user
from vlkit.batch.journal import Journal, row_key, row_keys
from vlkit.errors import VlkitError
from vlkit.generation.reply import Usage, record_of, result_of

RAW = (
    "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>"
    "<|box_start|>(500,500)<|box_end|><|im_end|>"
)
SPECIAL = 'two\nlines, "quotes", 汉字,   and half a character \udc80'


def reply(text="a cat", raw=RAW, **changes):
    fields = {"usage": Usage(64, 0, 80, 5), "seconds": 0.25, "family": "qwen2_vl"}
    picture = PIL.Image.new("RGB", (500, 200))
    return Reply(
        text, raw, **fields | {"images": (picture,), "input_sizes": ((504, 196),)} | changes
    )


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def write_rows(path, count, *, first=0, **options):
    with Journal(path, **options) as journal:
        for index in range(first, first + count):
            journal.append(f"key {index}", index, reply(f"answer {index}"))


# --- a line for each row -------------------------------------------------------------------------


def test_a_reply_comes_back_as_it_was(tmp_path):
    path, picture = tmp_path / "run.jsonl", sample("red_circle")
    answer = reply(SPECIAL, finish_reason="length")
    with Journal(path) as journal:
        journal.append("k", 7, answer, ["cat.png"])
    with Journal(path) as journal:
        record = journal.finished["k"]
    assert record["index"] == 7 and record["media"] == ["cat.png"]
    back = result_of(record, user("Where?", picture))
    for name in ("text", "raw", "usage", "seconds", "family", "finish_reason", "image_sizes"):
        assert getattr(back, name) == getattr(answer, name), name
    assert back.input_sizes == ((504, 196),) and back.clip_sizes == ()
    assert back.boxes == [Box("cat", 50, 40, 150, 80)]
    assert back.images[0].tobytes() == PIL.Image.open(picture).convert("RGB").tobytes()


def test_people_can_read_the_file(tmp_path):
    path = tmp_path / "run.jsonl"
    write_rows(path, 1)
    text = path.read_text(encoding="utf-8")
    assert text.startswith('{"key": "key 0", "index": 0, "text": "answer 0"')
    [record] = lines(path)
    assert record["boxes"] == [{"label": "cat", "x1": 50.0, "y1": 40.0, "x2": 150.0, "y2": 80.0}]
    assert record["points"] == [{"label": "cat", "x": 250.0, "y": 100.0}]
    assert Point(**record["points"][0]) == reply().points[0]


def test_an_answer_that_cannot_be_read_is_kept_with_the_reason(tmp_path):
    record = record_of(reply(raw="<|box_start|>(1,<|box_end|>"))
    assert record["boxes"] == [] and record["grounding_note"]
    assert result_of(record, user("?", PIL.Image.new("RGB", (500, 200)))).raw == record["raw"]


def test_a_failure_is_written_and_tried_again(tmp_path):
    path = tmp_path / "run.jsonl"
    failure = Failure("nope.png does not exist", "MediaError")
    with Journal(path) as journal:
        journal.append("k", 0, failure)
    with Journal(path) as journal:
        assert journal.finished == {}
        assert result_of(lines(path)[0], "?") == failure
        journal.append("k", 0, reply())
    with Journal(path) as journal:
        assert journal.finished["k"]["text"] == "a cat"


def test_the_last_of_two_lines_counts(tmp_path):
    path = tmp_path / "run.jsonl"
    for text in ("old", "new"):
        with Journal(path) as journal:
            journal.append("k", 0, reply(text))
    with Journal(path) as journal:
        assert journal.finished["k"]["text"] == "new"


# --- torn, foreign, locked -----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
def test_cut_anywhere_only_the_torn_row_is_lost(tmp_path, rows):
    path, cut = tmp_path / "run.jsonl", tmp_path / "cut.jsonl"
    write_rows(path, rows)
    content = path.read_bytes()
    for length in range(len(content) - len(content) // rows, len(content) + 1):
        cut.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        with Journal(cut) as journal:
            assert len(journal.finished) == whole
            journal.append("new", 9, reply())
        assert [record["key"] for record in lines(cut)] == [
            *(f"key {i}" for i in range(whole)),
            "new",
        ]


def test_zeros_that_a_power_cut_left_are_cut_off(tmp_path):
    path = tmp_path / "run.jsonl"
    write_rows(path, 2)
    with path.open("ab") as file:
        file.write(bytes(100_000))
    write_rows(path, 1, first=2)
    assert [record["index"] for record in lines(path)] == [0, 1, 2]


@pytest.mark.parametrize(
    "content",
    [b"image,prompt\na.png,What?\n", b'{"image": "a.png"}\n', b"[1, 2]\n", b"notes", b'{"key": 1}'],
)
def test_a_file_of_somebody_else_is_left_alone(tmp_path, content):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(content)
    with pytest.raises(
        VlkitError, match=r"questions\.jsonl contains something other .* choose another"
    ):
        Journal(path)
    assert path.read_bytes() == content and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "odd",
    [b"", b'{"key": "key 1", "ind', b"\0" * 40, b"[1]", b'{"key": 5}', b"[" * 100_000, b"\xff\xfe"],
    ids=lambda odd: repr(odd[:12]),
)
def test_an_odd_line_costs_itself_and_is_named(tmp_path, odd):
    path = tmp_path / "run.jsonl"
    write_rows(path, 3)
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, odd + b"\n", *rest]))
    with pytest.warns(
        UserWarning, match=r"run\.jsonl: line 2 is not a result of vlkit; it is skipped"
    ) as w:
        journal = Journal(path)
    journal.close()
    assert list(journal.finished) == ["key 0", "key 1", "key 2"] and w[0].filename == __file__


def test_a_row_that_cannot_be_written_is_written_as_its_failure(tmp_path):
    path = tmp_path / "run.jsonl"
    with Journal(path) as journal:
        assert isinstance(journal.append("a", 0, reply(usage=None)), Failure)
        assert isinstance(journal.append("b", 1, reply(text=b"bytes")), Failure)
        answer = reply()
        assert journal.append("c", 2, answer) is answer
        assert list(journal.finished) == ["c"]
    assert [sorted(line) for line in lines(path)[:2]] == [["error", "index", "key", "kind"]] * 2


@pytest.mark.parametrize(
    "changes",
    [
        {"usage": None},
        {"usage": {"new_tokens": 1}},
        {"usage": {"image_tokens": "1", "video_tokens": 0, "prompt_tokens": 1, "new_tokens": 1}},
        {"text": 5},
        {"raw": None},
        {"family": "gpt"},
        {"finish_reason": ["stop"]},
        {"seconds": "long"},
        {"cost": "much"},
        {"image_sizes": []},
        {"image_sizes": [[500]]},
        {"image_sizes": [["a", "b"]]},
        {"image_sizes": [[0, 0]]},
        {"input_sizes": [[1, 2], [3, 4]]},
        {"clip_sizes": [[[1, 2], [3, 4]]]},
        {"clip_sizes": 7},
    ],
    ids=str,
)
def test_a_record_that_was_edited_by_hand_is_refused_before_a_view_fails(changes):
    record = record_of(reply())
    messages = user("?", PIL.Image.new("RGB", (500, 200)))
    assert result_of(record, messages).boxes
    with pytest.raises((VlkitError, TypeError, ValueError)):
        result_of(record | changes, messages)


def test_resume_false_refuses_rows_and_deletes_nothing(tmp_path):
    path = tmp_path / "run.jsonl"
    write_rows(path, 1, resume=False)
    before = path.read_bytes()
    with pytest.raises(VlkitError, match="exists and resume=False; delete it"):
        Journal(path, resume=False)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/run.jsonl", "nowhere does not exist; create it"),
        ("folder", "is not a file"),
        ("nul\0.jsonl", "cannot be written"),
        ("run.csv", "must be a .jsonl file, as rows are written as JSON lines"),
        ("/proc/run.jsonl", r"/proc/run\.jsonl cannot be written \(No such file or directory\)"),
        ("汉" * 100 + ".jsonl", "File name too long; choose another file"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    with pytest.raises(VlkitError, match=message):
        Journal(tmp_path / name)


def assert_second_writer_refused(path):
    """Here and in another process."""
    code = f"from vlkit.batch.journal import Journal\nJournal({str(path)!r})"
    with pytest.raises(VlkitError, match="is being written by another process"):
        Journal(path)
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is being written by another process" in child.stderr


def test_one_writer_at_a_time_also_in_another_process(tmp_path):
    path = tmp_path / "run.jsonl"
    with Journal(path):
        assert_second_writer_refused(path)
    write_rows(path, 1)
    assert sorted(os.listdir(tmp_path)) == ["run.jsonl"]


@pytest.mark.parametrize("kind", ["symlink", "link", "folder"])
def test_a_link_to_a_file_has_no_second_writer(tmp_path, kind):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "run.jsonl"
    write_rows(path, 1)
    other = tmp_path / "other.jsonl"
    if kind == "folder":
        (tmp_path / "b").symlink_to(tmp_path / "a")
        other = tmp_path / "b" / "run.jsonl"
    else:
        getattr(os, kind)(path, other)
    with Journal(path):
        assert_second_writer_refused(other)
    write_rows(other, 2, first=1)
    assert [record["key"] for record in lines(path)] == ["key 0", "key 1", "key 2"]
    assert os.path.samefile(path, other)
    assert not [name for name in os.listdir(tmp_path / "a") if name.endswith(".lock")]


@pytest.mark.parametrize("how", ["deleted", "moved", "edited", "cut"])
def test_a_file_that_is_deleted_or_changed_under_way_is_written_again_and_said(tmp_path, how):
    path = tmp_path / "run.jsonl"
    write_rows(path, 1)

    def change():
        if how == "deleted":
            path.unlink()
        elif how == "moved":
            path.rename(tmp_path / "moved.jsonl")
        elif how == "edited":  # as editors do: a new file under the old name
            (tmp_path / "new.jsonl").write_bytes(path.read_bytes().split(b"\n")[0] + b"\n")
            (tmp_path / "new.jsonl").replace(path)
        else:
            path.write_bytes(b"")

    with pytest.warns(UserWarning, match="run.jsonl was deleted or changed during the run"):
        with Journal(path) as journal:
            journal.append("key 1", 1, reply("answer 1"))
            change()
            journal.append("key 2", 2, reply("answer 2"))
    with Journal(path) as journal:
        assert sorted(journal.finished) == ["key 0", "key 1", "key 2"]
    with pytest.warns(UserWarning, match="was deleted or changed"):
        with Journal(path) as journal:  # after the last row
            change()
    with Journal(path) as journal:
        assert sorted(journal.finished) == ["key 0", "key 1", "key 2"]


def test_a_journal_that_nobody_closed_leaves_no_lock(tmp_path):
    journal = Journal(tmp_path / "run.jsonl")
    del journal
    gc.collect()
    write_rows(tmp_path / "run.jsonl", 1)


def test_a_folder_that_is_deleted_under_way_is_an_error_and_leaves_no_lock(tmp_path):
    path = tmp_path / "a" / "run.jsonl"
    path.parent.mkdir()
    with pytest.warns(UserWarning, match="was deleted or changed"):
        with pytest.raises(VlkitError, match=r"run.jsonl cannot be written \(No such file"):
            with Journal(path) as journal:
                shutil.rmtree(path.parent)
                journal.append("key 0", 0, reply())
    path.parent.mkdir()
    write_rows(path, 1)
    assert os.listdir(path.parent) == ["run.jsonl"]


def test_a_killed_writer_leaves_no_lock_and_no_torn_row(tmp_path):
    path = tmp_path / "run.jsonl"
    code = f"""
from pathlib import Path
import PIL.Image
from vlkit.batch.journal import Journal, row_key, row_keys
from vlkit.generation.reply import Reply, Usage
journal = Journal({str(path)!r})
print(len(journal.finished), flush=True)
for i in range(len(journal.finished), 10**6):
    answer = Reply("x" * 20_000, "", Usage(0, 0, 1, 1), 0.1, "qwen2_vl")
    journal.append(f"key {{i}}", i, answer)
"""
    known = 0
    for delay in (0.01, 0.03, 0.05):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert int(child.stdout.readline()) == known
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(delay)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        with Journal(path) as journal:
            assert len(journal.finished) > known
            known = len(journal.finished)
        assert [record["index"] for record in lines(path)] == list(range(known))


def test_a_full_disk_leaves_no_torn_row(tmp_path, monkeypatch):
    path, write = tmp_path / "run.jsonl", os.write
    with Journal(path) as journal:
        journal.append("a", 0, reply())
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda file, data: write(file, data[:50]))
            with pytest.raises(VlkitError, match="the disk is full"):
                journal.append("b", 1, reply())
        journal.append("b", 1, reply())
    assert [record["key"] for record in lines(path)] == ["a", "b"]


# --- sharded runs --------------------------------------------------------------------------------


def test_parts_are_merged_in_order_of_the_rows(tmp_path):
    path = tmp_path / "run.jsonl"
    journals = [Journal(path, part=part) for part in range(3)]
    for index in range(10):
        journals[index % 3].append(f"key {index}", index, reply(f"answer {index}"))
    journals[0].close()
    with pytest.raises(VlkitError, match="part-00001 is being written"):
        Journal(path)
    assert len(journals[0].parts) == 3
    for journal in journals:
        journal.close()
    Journal(path).close()
    assert [record["text"] for record in lines(path)] == [f"answer {i}" for i in range(10)]
    assert os.listdir(tmp_path) == ["run.jsonl"]


@pytest.mark.parametrize("part", [None, 0, 5])
def test_rows_of_a_process_that_died_count(tmp_path, part):
    path = tmp_path / "run[1].jsonl"
    write_rows(path, 2)
    write_rows(path, 3, first=2, part=1)
    torn = path.with_name(path.name + ".part-00001")
    torn.write_bytes(torn.read_bytes()[:-20])
    with Journal(path, part=part) as journal:
        assert sorted(journal.finished) == [f"key {i}" for i in range(4)]
        journal.append("key 4", 4, reply())
    Journal(path).close()
    assert [record["index"] for record in lines(path)] == [0, 1, 2, 3, 4]
    assert os.listdir(tmp_path) == [path.name]


def test_killed_between_merging_and_deleting_nothing_is_doubled(tmp_path):
    path = tmp_path / "run.jsonl"
    for part in (0, 1):
        write_rows(path, 3, first=3 * part, part=part)
    kept = {part: part.read_bytes() for part in tmp_path.glob("*.part-*")}
    Journal(path).close()
    merged = path.read_bytes()
    for part, content in kept.items():
        part.write_bytes(content)
    Journal(path).close()
    assert path.read_bytes() == merged and merged.count(b"\n") == 6
    assert os.listdir(tmp_path) == ["run.jsonl"]


def test_a_failure_does_not_take_an_answers_place(tmp_path):
    path = tmp_path / "run.jsonl"
    write_rows(path, 1)
    with Journal(path, part=0) as journal:
        journal.append("key 0", 0, Failure("out of memory"))
    assert Journal(path, part=1).finished["key 0"]["text"] == "answer 0"


# --- keys ----------------------------------------------------------------------------------------

OPTIONS = {"max_new_tokens": 64, "temperature": 0.0}


def model(**changes):
    fields = {"family": "qwen2_vl", "name": "a", "max_image_tokens": None, "revision": None}
    return SimpleNamespace(identity=fields | changes)


def key(messages, vlm=None, **options):
    return row_key(vlm or model(), messages, OPTIONS | options)


def test_the_same_content_has_the_same_key_wherever_it_lies(tmp_path):
    copy = shutil.copy(sample("red_circle"), tmp_path / "copy.png")
    assert key(user("What?", copy)) == key(user("What?", sample("red_circle")))
    assert key([user("What?")]) == key("What?") == key({"role": "user", "content": "What?"})
    assert key("What?") != key("What? ") and len(key("What?")) == 64


def test_pixels_in_memory_count_however_they_are_held():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    same = [{"type": "image", "image": each} for each in (pixels, PIL.Image.fromarray(pixels))]
    other = {"type": "image", "image": pixels[::-1]}
    keys = [key({"role": "user", "content": [item]}) for item in (*same, other)]
    assert keys[0] == keys[1] != keys[2]


def test_anything_that_changes_an_answer_changes_the_key(tmp_path):
    picture = sample("red_circle")
    frames = tmp_path / "frames"
    frames.mkdir()
    shutil.copy(picture, frames / "1.png")
    clip = sample("moves_right")
    array = np.zeros((4, 28, 28, 3), np.uint8)
    different = {
        "text": key(user("Why?", picture)),
        "picture": key(user("What?", sample("cat"))),
        "two": key(user("What?", picture, picture)),
        "order": key([user("", picture), user("What?")]),
        "media option": key(user("What?", Image(picture, max_tokens=16))),
        "not strict": key(user("What?", Image(picture, strict=False))),
        "url": key(user("What?", "https://example.org/a.png")),
        "other url": key(user("What?", "https://example.org/b.png")),
        "missing": key(user("What?", "nope.png")),
        "a text": key("What?"),
        "clip": key(user("What?", clip)),
        "rate": key(user("What?", Video(clip, fps=1.0))),
        "part": key(user("What?", Video(clip, start=1.0))),
        "folder of frames": key(user("What?", Video(frames))),
        "array of frames": key(user("What?", Video(array))),
        "another array": key(user("What?", Video(array + 1))),
        "list of frames": key(user("What?", Video([picture, picture]))),
        "role": key([user("What?", picture), {"role": "assistant", "content": ""}]),
        "tokens": key(user("What?", picture), max_new_tokens=65),
        "temperature": key(user("What?", picture), temperature=0.5),
        "seed": key(user("What?", picture), seed=1),
        "revision": key(user("What?", picture), model(revision="v2")),
        "config": key(user("What?", picture), model(config={"layers": 3})),
        "limit": key(user("What?", picture), model(max_image_tokens=64)),
        "as it is": key(user("What?", picture)),
        "malformed": key([{"role": "nobody"}]),
        "malformed otherwise": key([{"role": "no one"}]),
    }
    assert len(set(different.values())) == len(different)


def test_a_file_that_changes_changes_the_key(tmp_path):
    path = tmp_path / "picture.png"
    keys = [key(user("What?", path))]
    for color in ("red", "blue"):
        PIL.Image.new("RGB", (28, 28), color).save(path)
        keys.append(key(user("What?", path)))
    assert len(set(keys)) == 3


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert key(user("What?", tmp_path / "pipe.png")) != key(user("What?"))


def test_equal_rows_have_keys_of_their_own():
    keys = row_keys(model(), ["a", "b", "a", "a"], OPTIONS)
    assert len(set(keys)) == 4
    assert keys[:2] == [key("a"), key("b")]
    assert row_keys(model(), ["b", "a", "a", "a"], OPTIONS) == [keys[1], keys[0], *keys[2:]]


def test_a_seed_is_one_of_each_row():
    first, second = (row_keys(model(), ["a", "a", "b"], OPTIONS, seed=seed) for seed in (1, 2))
    assert len({*first, *second, *row_keys(model(), ["a", "a", "b"], OPTIONS)}) == 8
    assert first[1] == second[0]  # sampled with the same seed: the same answer
