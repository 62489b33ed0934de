"""The notebooks' house rules: short cells, more prose than code, no outputs, nothing said twice."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
ALL = sorted(FOLDER.glob("*.ipynb"))
LONGER = ("05_lora_finetuning.ipynb", "08_inside_the_model.ipynb", "09_your_own_boxes.ipynb")
VERSION = r"vlkit\.__version__"


def read(path):
    return nbformat.read(path, as_version=4)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def cells(notebook, kind):
    """The install cell is the same everywhere, and not counted."""
    own = [cell for cell in notebook.cells if cell not in tagged(notebook, "install")]
    return [cell for cell in own if kind in (cell.cell_type, "any")]


def code_lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def functions(notebook):
    for cell in cells(notebook, "code"):
        tree = ast.parse(cell.source)
        yield from (node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_there_are_notebooks_and_they_are_numbered_in_order():
    numbers = [int(path.name[:2]) for path in NOTEBOOKS]
    assert numbers == list(range(len(numbers))) and numbers


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_shape(path):
    notebook = read(path)
    code, prose = cells(notebook, "code"), cells(notebook, "markdown")
    assert 20 <= len(cells(notebook, "any")) <= 40
    assert sum(len(code_lines(cell)) for cell in code) <= (140 if path.name in LONGER else 100)
    assert max(len(code_lines(cell)) for cell in code) <= 15
    assert len(prose) >= len(code) * (1.4 if path.name in LONGER else 1)
    assert all(cell.source.strip() for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_beginning_and_end(path):
    notebook = read(path)
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    assert first.startswith(f"# {path.name[:2]} ·")
    assert all(
        word in first for word in ("After this notebook", "**Time**", "**memory**", "**model**")
    )
    (parameters,) = tagged(notebook, "parameters")
    assert all(name in parameters.source for name in ("MODEL = ", "SEED = ", "MAX_NEW_TOKENS = "))
    assert any(re.search(VERSION, cell.source) for cell in cells(notebook, "code")[:3])
    assert all(word in last for word in ("## Takeaways", "**Exercise.**", ".ipynb)"))


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_clean(path):
    notebook = read(path)
    for cell in [each for each in notebook.cells if each.cell_type == "code"]:
        assert cell.outputs == [] and cell.execution_count is None
        assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE), cell.source
        assert not re.search(r"""["'](/|[A-Z]:\\|~/)""", cell.source), cell.source


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_the_second_cell_installs_vlkit_only_where_it_is_missing(path, tmp_path, monkeypatch):
    second = read(path).cells[1]
    assert (
        second.metadata["tags"] == ["install"]
        and second.source == tagged(read(ALL[0]), "install")[0].source
    )
    called = []
    names = {"get_ipython": lambda: SimpleNamespace(run_line_magic=lambda *c: called.append(c))}
    monkeypatch.chdir(path.parent)
    exec(second.source, names)
    assert called == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(second.source, names)
    monkeypatch.chdir(tmp_path)
    exec(second.source, names)
    assert called == [("pip", f"install -q {w}[notebooks]") for w in ("..", "vlkit")]


def test_no_helper_is_defined_in_two_notebooks():
    names = [name for path in NOTEBOOKS for name in set(functions(read(path)))]
    assert len(names) == len(set(names))
