"""The map of the code is true: its files, its functions, its rules, and its figures."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from house import ORDER, PACKAGE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.fixture
def scripts(monkeypatch):
    """The scripts that write the page's tree and draw its figures."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import file_tree
    import walks

    yield file_tree, walks
    del sys.modules["file_tree"], sys.modules["walks"]


def names_of(file):
    """The names that a file of vlkit defines; a class's methods with its name before them."""
    names = set()
    for node in ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (each for each in node.body if isinstance(each, ast.FunctionDef))
            names |= {f"{node.name}.{method.name}" for method in methods}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def section(title):
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def files_in_tree():
    """The paths in the page's tree, by their indentation."""
    folders, found = [], []
    for line in PAGE.partition("```text\nvlkit/\n")[2].partition("```")[0].splitlines():
        entry = re.match(r"( +)([\w.-]+/?)  +\S", line)
        if entry is None:
            assert not line or line.strip().startswith("──"), line
            continue
        folders = [*folders[: len(entry[1]) // 2 - 1], entry[2]]
        if not entry[2].endswith("/"):
            found.append("".join(folders))
    return found


def test_the_tree_has_every_file_once():
    files = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and not {"__pycache__", "fonts", "classroom"} & {*path.parts}
    ]
    rooms = [file for file in files if file.endswith("/__init__.py")]  # a room's own line
    assert "\n  fonts/ " in PAGE  # a folder of data has one line
    assert "\n    classroom/ " in PAGE
    assert sorted(files_in_tree()) == sorted(set(files) - set(rooms))


def test_the_trees_are_what_the_docstrings_say(scripts):
    """After a change of a file's name or first line: python docs/file_tree.py."""
    for page, text in scripts[0].pages().items():
        assert page.read_text(encoding="utf-8") == text, page.name


def test_every_module_says_in_one_line_what_it_is_about():
    wrong = {}
    for file in MODULES:
        docstring = ast.get_docstring(ast.parse((PACKAGE / file).read_text(encoding="utf-8")))
        first, _, rest = (docstring or "").partition("\n")
        apart = not rest or rest.startswith("\n")  # a blank line follows the first one
        if not (10 < len(first) <= 100 and first.endswith(".") and apart):
            wrong[file] = docstring
    assert wrong == {}


def test_no_two_modules_say_the_same():
    lines = [(PACKAGE / file).read_text(encoding="utf-8").partition("\n")[0] for file in MODULES]
    assert len(set(lines)) == len(lines)


def test_the_doors_are_those_of_the_plan(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    from test_architecture import DOORS

    rows = re.findall(r"^\| `([\w/.]+)` \| `(\w+)` \|", section("One direction of imports"), re.M)
    assert set(rows) == set(DOORS) and len(rows) == len(DOORS)
    named = re.findall(r"\((`\w+` to `\w+`)\)", section("The core and the workbench"))
    assert named == ["`errors` to `generation`", f"`remote` to `{ORDER[-1]}`"]


@pytest.mark.parametrize("title", ["One form of each thing", "Where do I change …"])
def test_every_row_names_what_exists(title):
    rows = [line for line in section(title).splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 9
    for row in rows:
        files = re.findall(r"`([\w/]+\.(?:py|html\.jinja|css|js))`", row)
        assert files, row
        for file in files:
            assert (PACKAGE / file).is_file() or (ROOT / file).is_file(), row
        for file, names in re.findall(r"`([\w/]+\.py)` \(([^)]*`)\)", row):
            named = set(re.findall(r"`([\w.]+)`", names))
            assert named and named <= names_of(file), f"{file}: {named - names_of(file)}"


def test_makers_of_each_form_are_in_the_files_of_its_row():
    for row in section("One form of each thing").splitlines()[2:]:
        cells = row.split(" | ")
        if len(cells) == 4:
            known = set().union(*map(names_of, re.findall(r"`([\w/]+\.py)`", cells[3])))
            makers = set(re.findall(r"`([\w.]+)`", cells[2]))
            # Box, Point and Quad are made in the parser, and described in boxes.py
            assert makers <= known, f"{cells[0]}: {makers - known}"


def test_the_steps_of_the_walks_exist(scripts):
    walks = scripts[1].WALKS
    for title, steps in walks.values():
        for step in steps:
            for file, names in step.code:
                assert set(names) <= names_of(file), f"{title}: {file} {names}"
            for line in step.note:
                words = re.findall(r"`([^`]+)`", line)
                for file, *names in [words] if words else []:
                    assert set(names) <= names_of(file), f"{title}: {line}"
    assert {f"figures/{name}.svg" for name in walks} == set(re.findall(r"figures/\w+\.svg", PAGE))


def test_the_walks_are_what_the_script_draws(scripts, tmp_path):
    """After a change of a step: python docs/walks.py."""
    scripts[1].main(tmp_path)
    for drawn in tmp_path.iterdir():
        kept = scripts[1].FOLDER / drawn.name
        assert kept.read_text(encoding="utf-8") == drawn.read_text(encoding="utf-8"), drawn.name


def test_a_newcomer_finds_the_page():
    for name, link in (
        ("README.md", "docs/architecture.md"),
        ("CONTRIBUTING.md", "docs/architecture.md"),
        ("docs/index.md", "architecture.md"),
    ):
        assert f"]({link})" in (ROOT / name).read_text(encoding="utf-8"), name
