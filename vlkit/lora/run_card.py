"""A training run as a notebook shows it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlkit.lora.curves import Curves, curves_html

if TYPE_CHECKING:
    from vlkit.lora.runs import LoraRun

_FAINT = "opacity:.7;font-size:90%"
_CELL = "padding:2px 12px 2px 0;text-align:left;vertical-align:top;border-bottom:1px solid #8884"
_LONGEST = 160  # characters of an answer


def run_card(run: LoraRun) -> str:
    """HTML: how it went, the loss curve, answers before and after, and the checks."""
    parts = [_head(run), _curve(run), _answers(run), _checks(run)]
    return f'<div style="max-width:720px;line-height:1.45">{"".join(parts)}</div>'


def _head(run: LoraRun) -> str:
    stopped = "" if run.finished else ", stopped earlier"
    took = f"{run.seconds:,.0f} s" if run.seconds < 100 else f"{run.seconds / 60:,.1f} min"
    where = html.escape(str(run.output_dir))
    return f"<b>{run.steps:,} steps</b> in {took}{stopped}; written to <code>{where}</code>"


def _curve(run: LoraRun) -> str:
    if not run.losses:
        return ""
    shown = Curves(losses=run.losses, evaluations=run.evaluations, metrics=run.metrics)
    return f'<div style="margin-top:8px">{curves_html({"run": shown})}</div>'


def _answers(run: LoraRun) -> str:
    checks = run.checks
    if checks is None or checks.table.empty:
        return ""
    head = _row(list(checks.table.columns), "th")
    rows = "".join(_row(cells, "td") for cells in checks.table.values.tolist())
    right = ""
    if checks.after is not None:
        before = "" if checks.before is None else f"{checks.before:.0%} before, "
        right = f"; right on held-out rows: {before}<b>{checks.after:.0%}</b> after"
    return (
        f'<div style="margin-top:8px">Held-out answers{right}</div>'
        f'<table style="border-collapse:collapse;font-size:90%">{head}{rows}</table>'
    )


def _row(cells: Sequence, tag: str) -> str:
    shown = (html.escape(_short(str(cell))) for cell in cells)
    return "<tr>" + "".join(f'<{tag} style="{_CELL}">{cell}</{tag}>' for cell in shown) + "</tr>"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def _checks(run: LoraRun) -> str:
    checks = run.checks
    if checks is None:
        return ""
    lines = [f"training moves the logits of an answer by {checks.change:.3g} on average"]
    if checks.merged_difference is not None:
        lines.append(f"merging the adapter moves them by {checks.merged_difference:.2g}")
    if checks.refusal is not None:
        lines.append("a model of the same shape with other weights refuses the adapter")
    mark = "passed" if checks.passed else "<b>failed</b>"
    listed = "".join(f"<li>{line}</li>" for line in lines)
    listed = f'<ul style="margin:0;{_FAINT}">{listed}</ul>'
    return f'<div style="margin-top:8px">Checks {mark}{listed}</div>'
