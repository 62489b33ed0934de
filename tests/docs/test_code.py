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


def runnable(page):
    return BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))


@pytest.fixture
def run_page(tmp_path, monkeypatch, capsys):
    """``run_page(page)``: run its code in ``tmp_path``; the names that it leaves."""
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "notebooks"):
        (tmp_path / folder).symlink_to(ROOT / folder)

    def run(page):
        names = {"__name__": "page"}
        for code, said in runnable(page):
            capsys.readouterr()
            exec(compile(code, page, "exec"), names)
            if said:
                assert capsys.readouterr().out == said
        return names

    return run


@pytest.mark.parametrize(
    "page", [page for page in PAGES if runnable(page) and page not in ("tour.md", "teaching.md")]
)
def test_the_code_of_a_page_runs(page, run_page):
    run_page(page)


def test_the_notebooks_for_a_class_have_exercises_and_no_answers(run_page, tmp_path):
    run_page("teaching.md")
    own = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").iterdir()}
    copies = {
        path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "class").iterdir()
    }
    assert copies.keys() == own.keys()
    for name, text in copies.items():
        assert "<details>" not in text and text.count("Exercise.**") == own[name].count("<details>")


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
