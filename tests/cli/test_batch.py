"""`vlkit batch` in a shell: alone, stopped, and shared out over processes."""

import json
import os
import shutil
import signal
import time

import pandas as pd
import psutil
import pytest
from typer.testing import CliRunner

import vlkit
from vlkit.cli.app import app

PICTURES = ("red_circle", "three_shapes", "diamonds", "circles", "hello")
SHORT = ("--max-new-tokens", "12")


@pytest.fixture
def folder(tmp_path):
    """Five pictures, in a folder of their own."""
    (tmp_path / "pictures").mkdir()
    for name in PICTURES:
        shutil.copy(vlkit.sample(name), tmp_path / "pictures")
    return tmp_path / "pictures"


@pytest.fixture
def table(folder):
    """Three questions, one of which cannot be answered."""
    rows = {
        "image": ["red_circle.png", "nope.png", "hello.png"],
        "what": ["shape", "thing", "word"],
    }
    path = folder / "questions.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["batch", *map(str, arguments)], catch_exceptions=False)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_a_table_of_answers(table, tmp_path, ending):
    out = tmp_path / f"answers.{ending}"
    result = run(table, "--prompt", "Describe this {what}.", "--out", out, *SHORT)
    assert result.exit_code == 0, result.output
    assert "3 rows, 1 failed" in result.output and f"row 2 of {table}: MediaError" in result.output
    journal = lines(tmp_path / "answers.jsonl")
    assert sorted(each["index"] for each in journal) == [0, 1, 2]
    first = next(each for each in journal if each["index"] == 0)
    assert "red circle" in first["text"] and first["media"] == [
        str(table.parent / "red_circle.png")
    ]
    if ending != "jsonl":
        frame = vlkit.read_conversations(out, "{what}").table
        assert list(frame["what"]) == ["shape", "thing", "word"]
        assert frame["text"][0] == first["text"] and "nope.png" in frame["error"][1]


def test_the_same_command_goes_on_and_another_question_is_asked_anew(folder, tmp_path):
    out = tmp_path / "answers.csv"
    asked = [folder, "--prompt", "Describe this image.", "--out", out, *SHORT]
    assert "5 rows, 0 failed, " in run(*asked, "--agreement", "2").output
    before = (tmp_path / "answers.jsonl").read_bytes()
    again = run(*asked)
    assert "5 rows, 0 failed, 5 resumed; written" in again.output
    assert (tmp_path / "answers.jsonl").read_bytes() == before
    asked[2] = "What is this?"
    assert "resumed" not in run(*asked).output
    assert len(lines(tmp_path / "answers.jsonl")) == 10


def test_agreement_is_told(folder, tmp_path):
    arguments = ["--prompt", "What is this?", "--out", tmp_path / "a.jsonl", *SHORT]
    assert (
        "100 % agreement with one-by-one answers"
        in run(folder, *arguments, "--agreement", "5").output
    )


def test_all_rows_failed_is_exit_code_1(table, tmp_path):
    pd.DataFrame({"image": ["a.png", "b.png"]}).to_csv(table, index=False)
    result = run(table, "--prompt", "What?", "--out", tmp_path / "a.jsonl")
    assert result.exit_code == 1 and "2 rows, 2 failed" in result.output


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("a.txt", [], "must end in .jsonl, .csv or .parquet"),
        ("questions.csv", [], "would overwrite"),
        ("other.csv", [], "already exists"),
        ("a.jsonl", ["--batch-size", "many"], "batch_size='many'"),
        ("nowhere/a.csv", [], "nowhere does not exist"),
        ("old.jsonl", ["--no-resume"], "it already contains rows; delete it"),
        ("a.jsonl", ["--image-column", "photo"], "there is no column 'photo'"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_overwritten(table, out, options, message):
    (table.parent / "other.csv").write_text("mine")
    old = vlkit.generate_batch(vlkit.load(), ["Hi"], out=table.parent / "old.jsonl", progress=False)
    before = {path: path.read_bytes() for path in table.parent.iterdir()}
    with pytest.raises(vlkit.errors.VlkitError, match=message) as caught:
        run(table, "--prompt", "What?", "--out", table.parent / out, *options)
    assert len(old) == 1 and "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in table.parent.iterdir()} == before


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(warm, folder, tmp_path):
    out, many = tmp_path / "answers.csv", 15
    picture = next(folder.glob("*.png"))
    for number in range(many - len(list(folder.iterdir()))):  # enough not to be done at once
        shutil.copy(picture, folder / f"more_{number}.png")
    asked = [folder, "--prompt", "Describe this image.", "--out", out, "--batch-size", "1"]
    child = warm.start("-m", "vlkit", "batch", *asked)
    wait_for_rows(tmp_path / "answers.jsonl", 1)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130 and f"resumes {out}; finished" in errors, errors
    assert "Traceback" not in errors
    done = len(lines(tmp_path / "answers.jsonl"))
    assert 1 <= done < many and not out.exists()
    result = run(*asked)
    assert result.exit_code == 0 and f"{many} rows, 0 failed, {done} resumed" in result.output
    assert sorted(each["index"] for each in lines(tmp_path / "answers.jsonl")) == list(range(many))


# --- several processes ---------------------------------------------------------------------------

LAUNCHER = (
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    "--main_process_port", "0", "-m",
)  # fmt: skip


def wait_for_rows(path, count, seconds=120):
    """Wait until a file, or all that begin with its name, hold so many rows."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = list(path.parent.glob(f"{path.name}*"))
        if sum(file.read_bytes().count(b"\n") for file in found) >= count:
            return
        time.sleep(0.02)
    pytest.fail(f"{path} did not get {count} rows in {seconds} s")


@pytest.mark.slow
def test_two_processes_share_the_rows_and_merge_them_in_order(warm, folder, tmp_path):
    asked = [folder, "--prompt", "Describe this image.", *SHORT, "--out"]
    command = [*LAUNCHER, "vlkit", "batch", *asked, tmp_path / "two.csv"]
    done = warm.run(*command, env=os.environ | {"PYTHON_EXEC": warm.python}, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("5 rows, 0 failed") == 1  # the first process alone says it
    assert [each["index"] for each in lines(tmp_path / "two.jsonl")] == list(range(5))
    assert run(*asked, tmp_path / "one.csv").exit_code == 0
    one, two = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("one", "two"))
    assert list(one["text"]) == list(two["text"]) and list(one["image"]) == list(two["image"])
    assert sorted(path.name for path in tmp_path.glob("two*")) == ["two.csv", "two.jsonl"]


@pytest.mark.slow
def test_a_process_that_dies_is_made_up_for_by_the_next_call(warm, folder, tmp_path):
    out = tmp_path / "answers.jsonl"
    asked = [folder, "--prompt", "Describe this image.", "--max-new-tokens", "60", "--out", out]
    asked += ["--batch-size", "1"]
    environment = os.environ | {"PYTHON_EXEC": warm.python}
    launcher = warm.start(*LAUNCHER, "vlkit", "batch", *asked, env=environment)
    wait_for_rows(out, 1)
    psutil.Process(launcher.pid).children()[-1].kill()
    assert launcher.wait() != 0
    done = sum(len(lines(part)) for part in tmp_path.glob("answers.jsonl.part-*"))
    assert 1 <= done < 5 and not out.exists()
    result = run(*asked)
    assert f"5 rows, 0 failed, {done} resumed" in result.output
    assert sorted(each["index"] for each in lines(out)) == list(range(5))
    assert [path.name for path in tmp_path.glob("answers*")] == ["answers.jsonl"]
