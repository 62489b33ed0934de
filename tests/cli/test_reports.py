"""`vlkit run` and `vlkit report`: a notebook with other parameters, recorded and written up."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from served import wait_until
from typer.testing import CliRunner

from vlkit.cli.app import app
from vlkit.cli.notebooks import run_notebook
from vlkit.errors import VlkitError
from vlkit.records import read_run, runs


def notebook(path, *cells):
    first = nbformat.v4.new_code_cell("NAME = 'taxi'\nSEED = 0", metadata={"tags": ["parameters"]})
    rest = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=[first, *rest]), path)
    return path


def test_a_notebook_becomes_a_dated_copy_and_a_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = notebook(
        tmp_path / "study.ipynb",
        "import vlkit\nvlm = vlkit.load()",
        "with vlkit.records.Run('inner', directory='runs'):\n"
        "    pass\n"
        "question = vlkit.user('?', vlkit.sample(NAME))\n"
        "vlkit.generate(vlm, question, max_new_tokens=SEED)",
    )
    words = ["run", str(path), "-p", "NAME", "red_circle", "-p", "SEED", "3"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    frame = runs("runs")
    assert list(frame["name"]) == ["study", "inner"] and set(frame["status"]) == {"finished"}
    record = read_run(frame["path"][0])
    assert record.answers[0]["media"][0]["name"] == "red_circle.png"
    assert record.answers[0]["usage"]["new_tokens"] == 3
    assert record.values == {"NAME": "red_circle", "SEED": 3}
    copy = nbformat.read(record.path / "study.ipynb", as_version=4)
    assert any(cell.get("outputs") for cell in copy.cells)
    done = CliRunner().invoke(app, ["report", "last", "--out", "r.html", "--out", "r.bib"])
    assert done.exit_code == 0 and "study" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert (tmp_path / "r.bib").is_file()


def test_errors_are_one_line_and_the_copy_stays(tmp_path):
    path = notebook(tmp_path / "bad.ipynb", "1 / 0")
    with pytest.raises(VlkitError, match=r"bad\.ipynb failed: ZeroDivisionError") as caught:
        run_notebook(path, {}, directory=tmp_path / "runs")
    (found,) = (tmp_path / "runs").glob("*/bad.ipynb")
    assert str(found) in str(caught.value) and read_run(found.parent).status == "failed"
    with pytest.raises(VlkitError, match=r"no parameter 'SEEED'; it has \['NAME', 'SEED'\]"):
        run_notebook(path, {"SEEED": 1}, directory=tmp_path / "other")
    with pytest.raises(VlkitError, match="is not a notebook"):
        run_notebook(tmp_path / "none.ipynb", {}, directory=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_ctrl_c_says_where_the_rest_lies(tmp_path):
    path = notebook(
        tmp_path / "long.ipynb",
        "import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(100)",
    )
    command = [sys.executable, "-m", "vlkit", "run", str(path)]
    child = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert wait_until(lambda: (tmp_path / "begun").exists(), 60)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does, to the kernel too
    _, errors = child.communicate(timeout=60)
    (folder,) = (tmp_path / "runs").iterdir()
    assert child.returncode == 130
    assert f"Stopped. What was run and asked so far is in {Path('runs') / folder.name}." in errors
    assert (folder / "long.ipynb").is_file() and read_run(folder).status == "failed"
