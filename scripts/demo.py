"""`make demo`: run every notebook on the bundled model, ask a few questions, write one page.

Leaves in ``reports/`` the executed notebooks, the pictures with their boxes and ``index.html``.
"""

from __future__ import annotations

import html
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from rich.console import Console

import vlkit
from vlkit.replies import image_html

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports"
QUESTIONS = [
    ("three_shapes", "Describe this image."),
    ("red_circle", "Locate the red circle."),
    ("six_shapes", "Generate the caption in English with grounding:"),
    ("three_shapes", "框出图中蓝色正方形的位置"),
    ("circles", "How many circles are there?"),
    ("rotated", "Detect all objects."),
]
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 980px; margin: 2rem auto; padding: 0 1rem;
       color: #1c2430; background: #fff; }
h1 { margin-bottom: 0; } .muted { color: #5d6877; }
.card { display: grid; grid-template-columns: minmax(0, 420px) 1fr; gap: 1.2rem; padding: 1.2rem 0;
        border-top: 1px solid #dde2e8; }
.question { font-weight: 600; } table { border-collapse: collapse; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; font-variant-numeric: tabular-nums; }
@media (max-width: 700px) { .card { grid-template-columns: 1fr; } }
"""
console = Console()


def main() -> int:
    REPORTS.mkdir(exist_ok=True)
    os.environ |= {"VLKIT_SETTINGS": "", "VLKIT_MODEL": ""}  # the bundled model, always
    runs = [run_notebook(path) for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    vlm = vlkit.load()
    answers = [answer(vlm, name, question) for name, question in QUESTIONS]
    page = REPORTS / "index.html"
    page.write_text(render(vlm, runs, answers), encoding="utf-8")
    console.print(f"\nOpen {page.relative_to(ROOT)}; `make lab` opens the notebooks in JupyterLab.")
    return 1 if any(error for _, _, error in runs) else 0


def run_notebook(path: Path) -> tuple[Path, float, str]:
    """Execute one notebook into ``reports/``; its time in seconds and its error, if any."""
    console.print(f"[bold]{path.name}[/] …", end=" ")
    notebook = nbformat.read(path, as_version=4)
    start, error = time.perf_counter(), ""
    client = NotebookClient(
        notebook,
        timeout=900,
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


def answer(vlm: vlkit.VLM, name: str, question: str):
    """Ask about a sample, print the answer with its boxes, keep the picture."""
    sample = vlkit.samples()[name]
    reply = vlkit.generate(vlm, vlkit.user(question, sample.path))
    console.print(f"\n[bold]{sample.path.name}[/]  {question}\n  {reply.text}", highlight=False)
    for box in reply.boxes:
        corners = ", ".join(f"{value:.0f}" for value in box.xyxy)
        console.print(f"    {box.label}: ({corners})", highlight=False, markup=False)
    picture = reply.plot()
    picture.save(REPORTS / f"{name}_{len(reply.boxes)}.png")
    return sample, question, reply, picture


def render(vlm: vlkit.VLM, runs, answers) -> str:
    cards = "".join(render_card(*each) for each in answers)
    rows = "".join(
        f'<tr><td><a href="{path.name}">{path.name}</a></td><td>{seconds:.0f} s</td>'
        f"<td>{html.escape(error) or 'ran to its end'}</td></tr>"
        for path, seconds, error in runs
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>vlkit demo</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{STYLE}</style><h1>vlkit</h1><p class="muted">{html.escape(repr(vlm))}</p>'
        f"{cards}<h2>Notebooks</h2><table>{rows}</table></html>"
    )


def render_card(sample: vlkit.Sample, question: str, reply: vlkit.Reply, picture) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(box.label)}</td>"
        + "".join(f"<td>{value:.0f}</td>" for value in box.xyxy)
        + f"<td>{best_iou(box, sample):.2f}</td></tr>"
        for box in reply.boxes
    )
    head = "<tr><th>label</th><th>x1</th><th>y1</th><th>x2</th><th>y2</th><th>IoU</th></tr>"
    table = f"<table>{head}{rows}</table>" if rows else ""
    return (
        f'<section class="card"><div>{image_html(picture, width=840, alt=reply.text)}</div><div>'
        f'<p class="muted">{html.escape(sample.path.name)}, {reply.seconds:.2f} s</p>'
        f'<p class="question">{html.escape(question)}</p><p>{html.escape(reply.text)}</p>{table}'
        "</div></section>"
    )


def best_iou(box: vlkit.Box, sample: vlkit.Sample) -> float:
    """Overlap with the nearest of the sample's true boxes."""
    return max((vlkit.iou(box, truth) for truth in sample.boxes), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
