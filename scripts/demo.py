"""`make demo`: run every notebook on the bundled model, ask a few questions, write one page.

Leaves in ``reports/`` the executed notebooks, the pictures with their boxes and ``index.html``.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from markupsafe import Markup
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from rich.console import Console

import vlkit
from vlkit.records import Run, report

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports"
QUESTIONS = [
    ("city_street", "Generate the caption in English with grounding:"),
    ("city_street", "框出图中公交车的位置"),
    ("three_shapes", "Describe this image."),
    ("red_circle", "Locate the red circle."),
    ("three_shapes", "框出图中蓝色正方形的位置"),
    ("circles", "How many circles are there?"),
    ("rotated", "Detect all objects."),
]
console = Console()


def main() -> int:
    REPORTS.mkdir(exist_ok=True)
    os.environ |= {"VLKIT_SETTINGS": "", "VLKIT_MODEL": ""}  # the bundled model, always
    runs = [run_notebook(path) for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    with Run("vlkit demo", directory=REPORTS / "runs") as run:
        vlm = vlkit.load()
        for name, question in QUESTIONS:
            answer(vlm, name, question)
    known = {sample.path.name: sample.boxes for sample in vlkit.samples().values()}
    notebooks = [("Notebooks", [link(*each) for each in runs])]
    page = report(run, REPORTS / "index.html", truth=known, extra=notebooks)
    console.print(f"\nOpen {page.relative_to(ROOT)}; `make lab` opens the notebooks in JupyterLab.")
    return 1 if any(error for _, _, error in runs) else 0


def run_notebook(path: Path) -> tuple[Path, float, str]:
    """Execute one notebook into ``reports/``; its time in seconds and its error, if any."""
    console.print(f"[bold]{path.name}[/] …", end=" ")
    notebook = nbformat.read(path, as_version=4)
    start, error = time.perf_counter(), ""
    client = NotebookClient(
        notebook,
        timeout=3600,
        resources={"metadata": {"path": str(REPORTS)}},
        extra_arguments=["--log-level=ERROR"],
    )
    try:
        client.execute()
    except CellExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    seconds = time.perf_counter() - start
    nbformat.write(notebook, REPORTS / path.name)
    console.print(f"[red]{error}[/]" if error else f"{seconds:.0f} s", highlight=False)
    return path, seconds, error


def answer(vlm: vlkit.VLM, name: str, question: str) -> None:
    """Ask about a sample, print the answer with its boxes, keep the picture."""
    sample = vlkit.samples()[name]
    reply = vlkit.generate(vlm, vlkit.user(question, sample.path))
    console.print(f"\n[bold]{sample.path.name}[/]  {question}\n  {reply.text}", highlight=False)
    for box in reply.boxes:
        corners = ", ".join(f"{value:.0f}" for value in box.xyxy)
        console.print(f"    {box.label}: ({corners})", highlight=False, markup=False)
    reply.plot().save(REPORTS / f"{name}_{len(reply.boxes)}.png")


def link(path: Path, seconds: float, error: str) -> tuple[Markup, str, str]:
    """A row of the page's table: the notebook, its time, how it ended."""
    name = Markup('<a href="{0}">{0}</a>').format(path.name)
    return name, f"{seconds:.0f} s", error or "ran to its end"


if __name__ == "__main__":
    sys.exit(main())
