"""The documentation's Python runs, page by page, and prints what the page says."""

import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    names = {"__name__": "page"}
    for code, said in runnable(page):
        capsys.readouterr()
        exec(compile(code, page, "exec"), names)
        if said:
            assert capsys.readouterr().out == said


def test_pages_with_code_are_there():
    pages = {page for page in PAGES if runnable(page)}
    assert {"howto.md", "spaces.md", "teaching.md", "tour.md"} <= pages
