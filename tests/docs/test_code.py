"""The documentation's Python runs, page by page, and prints what the page says."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vlkit
from vlkit.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
SMALLER = {"teaching.md": {"rows=96": "rows=32"}}  # as the notebooks have smaller parameters


def runnable(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for written, smaller in SMALLER.get(page, {}).items():
        assert written in text
        text = text.replace(written, smaller)
    return BLOCK.findall(text)


@pytest.fixture
def run_page(tmp_path, monkeypatch, capsys):
    """``run_page(page)``: run its code in ``tmp_path``; the names that it leaves."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")

    def run(page):
        names = {"__name__": "page"}
        for code, said in runnable(page):
            capsys.readouterr()
            exec(compile(code, page, "exec"), names)
            if said:
                assert capsys.readouterr().out == said
        return names

    return run


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page) and page != "tour.md"])
def test_the_code_of_a_page_runs(page, run_page):
    run_page(page)


def test_the_tour_runs_in_python_and_its_batch_in_a_shell(run_page, tmp_path):
    names = run_page("tour.md")
    saved = vlkit.read_conversations("answers.csv", "").table
    assert list(saved["text"]) == [reply.text for reply in names["results"]]
    assert vlkit.load("wug-model").adapter is None and names["tuned"].adapter
    assert names["run"].path.is_dir() and (tmp_path / "report.html").is_file()
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    section = tour.partition("## Many questions")[2].partition("\n## ")[0]
    command, said = re.search(r"```\n\$ vlkit (.*)\n(.*)\n```", section).groups()
    (tmp_path / "answers.csv").unlink()
    done = CliRunner().invoke(app, shlex.split(command), catch_exceptions=False)
    assert done.exit_code == 0
    shape = re.escape(re.sub(r"[\d.]+ s, \d+ tokens", "TIME", said)).replace("TIME", ".*")
    assert re.search(shape, done.output), done.output


def test_pages_with_code_are_there():
    pages = {page for page in PAGES if runnable(page)}
    assert {"howto.md", "spaces.md", "teaching.md", "tour.md"} <= pages
