"""Runs of ``vlkit.lora.train`` on disk, listed and laid over each other."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlkit.datasets.files import read_json
from vlkit.errors import VlkitError
from vlkit.lora.curves import Curves, curves_html, read_history
from vlkit.lora.runs import ARGUMENTS, DATA

_STATE = "trainer_state.json"
_CELL = "padding:2px 14px 2px 0;text-align:left;border:none;white-space:nowrap"


def list_runs(folder: Path) -> list[Path]:
    """The folders in a folder that hold a run with something to show, the newest last."""
    found = [path.parent for path in folder.glob(f"*/{ARGUMENTS}") if _states(path.parent)]
    return sorted(found, key=lambda run: (run / ARGUMENTS).stat().st_mtime)


def read_run(folder: Path) -> tuple[dict[str, Any], Curves]:
    """What a run was asked for, and its curves as its newest checkpoint has them.

    Raises:
        VlkitError: there is no run, or its files are damaged.
    """
    states = _states(folder)
    if not states:
        raise VlkitError(f"{folder} holds no run with a checkpoint")
    state = read_json(states[-1])
    history = state.get("log_history", [])
    return read_json(folder / ARGUMENTS), read_history(history, state.get("max_steps", 0))


def runs_html(folders: Sequence[Path]) -> str:
    """Curves of runs over each other, and a table of what they do not have in common."""
    if not folders:
        return ""
    runs = {folder.name: read_run(folder) for folder in folders}
    curves = curves_html({name: each for name, (_, each) in runs.items()})
    asked = {name: arguments for name, (arguments, _) in runs.items()}
    names = dict.fromkeys(key for told in asked.values() for key in told if key not in DATA)
    told = [n for n in names if len({repr(a.get(n)) for a in asked.values()}) > 1]
    heads = ["run", *told, "last loss", "held out", "right"]
    rows = [
        [name, *(arguments.get(n) for n in told), *_last(runs[name][1])]
        for name, arguments in asked.items()
    ]
    return curves + _table(heads, rows)


def _last(curves: Curves) -> list[str]:
    series = (curves.losses, curves.evaluations, curves.metrics)
    return [f"{each[-1][1]:.3g}" if each else "" for each in series]


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(tag: str, cells: Sequence[Any]) -> str:
        return "".join(f'<{tag} style="{_CELL}">{html.escape(str(c))}</{tag}>' for c in cells)

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    style = "border-collapse:collapse;font-size:.9em;color:inherit;margin-top:6px"
    table = f'<table style="{style}"><tr>{line("th", heads)}</tr>{body}</table>'
    return f'<div style="overflow-x:auto">{table}</div>'


def _states(folder: Path) -> list[Path]:
    found = [
        path for path in folder.glob(f"checkpoint-*/{_STATE}") if path.parent.name[11:].isdigit()
    ]
    return sorted(found, key=lambda path: int(path.parent.name[11:]))


def next_name(output_dir: str, taken: Mapping[str, Any] | Sequence[str] = ()) -> str:
    """The folder's name with the next number at its end that is free."""
    stem = output_dir.rstrip("0123456789")
    number = int(output_dir[len(stem) :] or 1)
    while Path(f"{stem}{number}").exists():
        number += 1
    return f"{stem}{number}" if output_dir != stem else f"{stem}-{number}"
