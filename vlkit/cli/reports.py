"""`vlkit doctor` and `vlkit report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from vlkit.cli.options import console, print_plain
from vlkit.errors import VlkitError, counted


def doctor() -> None:
    """Show what is installed, what is wrong, and how to fix it."""
    from vlkit.diagnosis import doctor as diagnose

    diagnosis = diagnose()
    table = Table("", "what", "found", "to do", box=None)
    color = {"ok": "green", "note": "yellow", "problem": "bold red"}
    for finding in diagnosis.findings:
        level = f"[{color[finding.level]}]{finding.level}[/]"
        table.add_row(level, finding.topic, escape(finding.value), escape(finding.remedy))
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
    """Write a report of a recorded run: a self-contained HTML page, PDF, Markdown or BibTeX."""
    from vlkit import records

    record = records.read_run(_last(directory) if run == "last" else run)
    for path in out or [Path("report.html")]:
        records.report(record, path, most=most)
        print_plain(f"written to {path}")


def _last(directory: Path) -> str:
    """The path of the run that ended last, or was written to last."""
    import pandas

    from vlkit import records

    runs = records.runs(directory)
    if not len(runs):
        raise VlkitError(f"{directory} contains no run; record one with vlkit.records.Run")
    started = pandas.to_datetime(runs["started"], utc=True, format="ISO8601")
    ended = started + pandas.to_timedelta(runs["seconds"], unit="s")  # a run may contain others
    return runs["path"][ended.idxmax()]
