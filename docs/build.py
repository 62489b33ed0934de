"""``make docs``: the site in ``reports/docs/``, from these pages, the notebooks and the docstrings.

Nothing is fetched, and no notebook is run: where ``make demo`` has left an executed copy of a
notebook as it is now, its outputs are shown. A warning fails the build.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ROOMS = ["settings", "lora", "records", "remote", "serving", "datasets", "widgets", "evaluation"]
ROOMS += ["plotting", "grounding", "models", "media", "errors"]
PANEL = "A panel stands here; run the notebook to use it."
COMMAND_TITLE = "# In a shell\n\nWhat `vlkit` says of itself.\n"


def main(target: Path = ROOT / "reports" / "docs") -> int:
    from sphinx.cmd.build import build_main

    os.environ["VLKIT_SETTINGS"] = ""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses kernels, we do not
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        for path in [HERE / "conf.py", *HERE.glob("*.md")]:
            shutil.copy(path, source)
        for name in ("figures", "answer"):
            shutil.copytree(HERE / name, source / name)
        write_tutorial(source)
        write_reference(source)
        shutil.rmtree(target, ignore_errors=True)
        failed = build_main(["-W", "--keep-going", "-q", "-E", "-b", "html", folder, str(target)])
        for leftover in (".doctrees", "_sources"):
            shutil.rmtree(target / leftover, ignore_errors=True)
    if not failed:
        print(f"Open {os.path.relpath(target / 'index.html')}.")
    return failed


# --- the notebooks -------------------------------------------------------------------------------


def write_tutorial(source: Path) -> None:
    (source / "notebooks").mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        nbformat.write(tidied(with_outputs(path)), source / "notebooks" / path.name)


def with_outputs(path: Path) -> nbformat.NotebookNode:
    """The executed copy in ``reports/`` where it is of the same cells, else the notebook."""
    notebook, copy = nbformat.read(path, as_version=4), ROOT / "reports" / path.name
    if not copy.is_file():
        return notebook
    executed = nbformat.read(copy, as_version=4)
    same = [c.source for c in executed.cells] == [c.source for c in notebook.cells]
    return executed if same else notebook


def tidied(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without the install cell, and with a word where a panel needs a kernel."""
    notebook.metadata.pop("widgets", None)
    cells = notebook.cells
    notebook.cells = [cell for cell in cells if "install" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                output.data = {"text/plain": PANEL}
    return notebook


# --- the names -----------------------------------------------------------------------------------


def write_reference(source: Path) -> None:
    folder = source / "reference"
    folder.mkdir()
    parts = {"vlkit": ("The names of `vlkit`", public_names("vlkit"))}
    parts |= {room: (f"`vlkit.{room}`", public_names(f"vlkit.{room}")) for room in ROOMS}
    written: list[object] = []
    for name, (title, names) in parts.items():
        names = [each for each in names if named(each) not in written]
        written += map(named, names)
        where = "vlkit" if name == "vlkit" else f"vlkit.{name}"
        about = (inspect.getdoc(importlib.import_module(where)) or "").partition("\n")[0]
        text = f"# {title}\n\n{about}\n\n" + "\n".join(map(directive, names))
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / "shell.md").write_text(COMMAND_TITLE + "\n".join(command_pages()), encoding="utf-8")


def public_names(module_name: str) -> list[str]:
    """Public functions and classes, by dotted name."""
    module = importlib.import_module(module_name)
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module_name and not name.startswith("_")
    ]
    found = {name: getattr(module, name) for name in names}
    return [
        f"{module_name}.{name}"
        for name, value in found.items()
        if inspect.isclass(value) or inspect.isfunction(value)
    ]


def named(name: str) -> object:
    room, _, last = name.rpartition(".")
    return getattr(importlib.import_module(room), last)


def directive(name: str) -> str:
    value = named(name)
    lines = [f"{'autoclass' if inspect.isclass(value) else 'autofunction'}:: {name}"]
    if inspect.isclass(value):
        lines += ["   :members:"]
    return "```{eval-rst}\n.. " + "\n".join(lines) + "\n```\n"


def command_pages() -> list[str]:
    from typer.testing import CliRunner

    from vlkit.cli.app import app

    def help_of(*names: str) -> str:
        said = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "88", "TERM": "dumb"})
        return re.sub(r"^Usage: \S+", "Usage: vlkit", said.output.strip())

    names = re.findall(r"^  ([a-z][\w-]+)  ", help_of().partition("Commands:")[2], re.MULTILINE)
    return [f"## vlkit {name}\n\n```text\n{help_of(name)}\n```\n" for name in names]


if __name__ == "__main__":
    sys.exit(main())
