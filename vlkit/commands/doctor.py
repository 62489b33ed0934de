"""`vlkit doctor`."""

from __future__ import annotations

import typer
from rich.markup import escape
from rich.table import Table

from vlkit.commands.options import console
from vlkit.phrases import counted


def doctor() -> None:
    """Say what is installed, what is wrong, and how to mend it."""
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
