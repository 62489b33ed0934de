"""`vlkit doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vlkit.cli.options import console
from vlkit.errors import VlkitError, counted


def doctor() -> None:
    """Say what is installed, what is wrong, and how to fix it."""
    from vlkit.diagnosis import doctor as examine

    diagnosis = examine()
    table = Table("", "what", "found", "to do", box=None)
    color = {"ok": "green", "note": "yellow", "problem": "bold red"}
    for f in diagnosis.findings:
        table.add_row(f"[{color[f.level]}]{f.level}[/]", f.topic, escape(f.value), escape(f.remedy))
    console.print(table)
    problems = len(diagnosis.problems)
    console.print(f"{counted(problems, 'problem')}." if problems else "Ready.")
    raise typer.Exit(1 if diagnosis.problems else 0)


def report(
    run: Annotated[str, typer.Argument(help='A run\'s folder, or "last".')] = "last",
    out: Annotated[
        list[Path] | None,
        typer.Option(help="A .html, .pdf, .md or .bib; may be repeated. By default report.html."),
    ] = None,
    directory: Annotated[Path, typer.Option(help='Where "last" looks for runs.')] = Path("runs"),
    most: Annotated[int, typer.Option(min=0, help="How many answers are shown.")] = 100,
) -> None:
    """Write a recorded run up: one page that holds everything, a PDF, Markdown or BibTeX."""
    from vlkit import records

    record = records.read_run(_last(directory) if run == "last" else run)
    for path in out or [Path("report.html")]:
        records.report(record, path, most=most)
        console.print(f"written to {path}", markup=False, highlight=False, soft_wrap=True)


def _last(directory: Path) -> str:
    """The run that ended last, or was written to last."""
    import pandas

    from vlkit import records

    found = records.runs(directory)
    if not len(found):
        raise VlkitError(f"{directory} holds no run; record one with vlkit.records.Run")
    started = pandas.to_datetime(found["started"], utc=True, format="ISO8601")
    ended = started + pandas.to_timedelta(found["seconds"], unit="s")
    return found["path"][ended.idxmax()]  # a run may hold others
