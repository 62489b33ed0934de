"""`make demo`: answer first, with a page to open; then run every notebook and complete the page.

Leaves in ``reports/`` the page ``index.html``, the pictures with their boxes, the executed
notebooks (as ``.ipynb`` and ``.html``), and for each notebook a folder with the files it wrote.
A notebook that fails, or takes longer than ``--limit``, costs its own row, never the page.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import html
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

START = time.perf_counter()

import nbformat  # noqa: E402
import PIL.Image  # noqa: E402
from markupsafe import Markup  # noqa: E402
from nbclient import NotebookClient  # noqa: E402
from nbclient.exceptions import CellExecutionError  # noqa: E402
from nbformat.sign import NotebookNotary  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

import vlkit  # noqa: E402
from vlkit.records import Run, report  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports"
PICTURES = ROOT / "docs" / "figures"  # panel_ask.webp …: a panel, where there is no kernel
LIMIT = 600.0  # seconds for a notebook
QUESTIONS = [
    ("city_street", "Generate the caption in English with grounding:"),
    ("city_street", "框出图中公交车的位置"),
    ("three_shapes", "Describe this image."),
    ("red_circle", "Locate the red circle."),
    ("three_shapes", "框出图中蓝色正方形的位置"),
    ("circles", "How many circles are there?"),
    ("rotated", "Detect all objects."),
]
WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Row:
    """A notebook's line of the page's table.

    Attributes:
        path: the notebook.
        state: what became of it, in words.
        seconds: how long it took; None before it ended.
        failed: whether the line is red.
    """

    path: Path
    state: str = "waiting"
    seconds: float | None = None
    failed: bool = False

    def cells(self) -> tuple[Markup | str, str, Markup | str]:
        name: Markup | str = self.path.stem
        if self.seconds is not None:
            name = Markup('<a href="{0}.html">{0}</a> (<a href="{0}.ipynb">ipynb</a>)').format(name)
        state = Markup('<span class="bad">{}</span>').format(self.state)
        return (
            name,
            "" if self.seconds is None else f"{self.seconds:.0f} s",
            state if self.failed else self.state,
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", help="numbers, such as 00 04 (default: all)")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for each notebook")
    chosen = parser.parse_args(arguments)
    REPORTS.mkdir(exist_ok=True)
    os.environ |= {"VLKIT_SETTINGS": "", "VLKIT_MODEL": ""}  # the bundled model, always
    console.print("Loading the bundled model; its first answers follow.")
    write_page = answer_questions()
    rows = [
        Row(path)
        for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
        if not chosen.notebooks or path.name[:2] in chosen.notebooks
    ]
    page = write_page(rows)
    console.print(f"\n[bold]Open {page.relative_to(ROOT)}[/] now; each notebook adds its row.\n")
    for index, row in enumerate(rows):
        console.print(f"{row.path.name} …", end=" ")
        rows[index] = replace(row, state="running")
        write_page(rows)
        rows[index] = done = run_notebook(row.path, chosen.limit)
        write_page(rows)
        console.print(Text(done.state, "red") if done.failed else f"{done.seconds:.0f} s")
    failed = [row for row in rows if row.failed]
    minutes = (time.perf_counter() - START) / 60
    console.print(
        f"\n{len(rows) - len(failed)} of {len(rows)} notebooks ran to their end, {minutes:.1f} "
        f"minutes in all. Open {page.relative_to(ROOT)}; `make lab` opens the notebooks."
    )
    for row in failed:
        console.print(Text.assemble((row.path.name, "red"), f": {row.state}"))
    return 1 if failed else 0


# --- the answers ---------------------------------------------------------------------------------


def answer_questions() -> Callable[[list[Row]], Path]:
    """Ask, print, and keep a record; the function that writes the page with rows of notebooks."""
    with Run("vlkit demo", directory=REPORTS / "runs") as run:
        vlm = vlkit.load()
        for number, (name, question) in enumerate(QUESTIONS, start=1):
            answer(vlm, number, name, question)
    known = {sample.path.name: sample.boxes for sample in vlkit.samples().values()}

    def write_page(rows: list[Row]) -> Path:
        table = [("Notebooks", [row.cells() for row in rows])]
        return report(run, REPORTS / "index.html", truth=known, extra=table)

    return write_page


def answer(vlm: vlkit.VLM, number: int, name: str, question: str) -> None:
    """Ask about a sample, print the answer with its boxes, keep the picture."""
    sample = vlkit.samples()[name]
    reply = vlkit.generate(vlm, vlkit.user(question, sample.path))
    if number == 1:
        console.print(f"The first answer, after {time.perf_counter() - START:.0f} s:")
    console.print(f"\n[bold]{sample.path.name}[/]  {question}")
    console.print(f"  {reply.text}", markup=False)
    for box in reply.boxes:
        corners = ", ".join(f"{value:.0f}" for value in box.xyxy)
        console.print(f"    {box.label}: ({corners})", markup=False)
    reply.plot().save(REPORTS / f"answer_{number}_{name}.png")


# --- the notebooks -------------------------------------------------------------------------------


def run_notebook(path: Path, limit: float) -> Row:
    """Execute a notebook in a folder of its own; write its executed copy, whatever happens."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # no JSON, or gone
        return Row(path, f"{path.name} cannot be read: {error}", None, failed=True)
    folder = REPORTS / path.stem
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    client = NotebookClient(
        notebook,
        timeout=None,
        shutdown_kernel="immediate",
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],
    )
    start, reason = time.perf_counter(), ""
    try:
        asyncio.run(asyncio.wait_for(client.async_execute(), limit))
    except CellExecutionError as error:
        reason = f"{error.ename}: {error.evalue}"
    except Exception as error:  # no kernel, a kernel that died: this row's affair, not the page's
        reason = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    if reason and seconds >= limit:  # the kernel was stopped
        begun = sum("execution" in cell.metadata for cell in notebook.cells)
        reason = (
            f"stopped after {limit:.0f} s in code cell {begun}; with more time: "
            f"python scripts/demo.py {path.name[:2]} --limit {4 * limit:.0f}"
        )
    show_panels(notebook)
    NotebookNotary().sign(notebook)  # JupyterLab shows no drawings in a notebook it does not trust
    nbformat.write(notebook, REPORTS / path.name)
    write_html(notebook, REPORTS / f"{path.stem}.html")
    return Row(path, reason or "ran to its end", seconds, bool(reason))


def show_panels(notebook: nbformat.NotebookNode) -> None:
    """A panel's picture, and a progress bar's last words, in place of widgets.

    Widgets show nothing without a kernel, and viewers prefer them to what else an output has.
    """
    held = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    for data in [output.data for output in outputs if WIDGET in output.get("data", {})]:
        parts = held.get(data.pop(WIDGET).get("model_id"), {}).get("state", {}).get("children", [])
        values = [held[part.removeprefix("IPY_MODEL_")]["state"].get("value") for part in parts]
        if words := [html.unescape(value).strip() for value in values if isinstance(value, str)]:
            data["text/plain"] = " ".join(words)
        panel = re.match(r"(\w+)Panel|Model(\w+)", data.get("text/plain", ""))  # its class
        picture = PICTURES / f"panel_{(panel[1] or panel[2]).lower() if panel else ''}.webp"
        if picture.is_file():
            file = io.BytesIO()
            PIL.Image.open(picture).save(file, "png")
            data["image/png"] = base64.b64encode(file.getvalue()).decode()


def write_html(notebook: nbformat.NotebookNode, path: Path) -> None:
    """The executed notebook as a page that a browser opens."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    hidden = Config(TagRemovePreprocessor={"enabled": True, "remove_cell_tags": ["install"]})
    page, _ = HTMLExporter(config=hidden).from_notebook_node(notebook)
    page = re.sub(r'href="(\d\d_\w+|index)\.ipynb', r'href="\1.html', page)  # not the raw files
    path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
