"""Curves of training runs as HTML, drawn anew as they grow."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f")
Series = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 460, 210, 44, 26, 10
_POINTS = 240  # of a line; more would not be seen
_FAINT = "opacity:.65;font-size:.85em"


@dataclass(frozen=True)
class Curves:
    """What a run has to show, at any time of it.

    Attributes:
        losses, evaluations, metrics: (step, value), as :class:`vlkit.lora.LoraRun` has them.
        samples: (question, truth, answer) of the last evaluation.
        steps: that the whole run will have; 0 where that is unknown.
    """

    losses: Series = ()
    evaluations: Series = ()
    metrics: Series = ()
    samples: Sequence[Sequence[str]] = ()
    steps: int = 0


def read_history(history: Sequence[Mapping[str, Any]], steps: int = 0) -> Curves:
    """The curves of a Trainer's ``state.log_history``."""
    told = [each["samples"] for each in history if each.get("samples")]
    return Curves(
        losses=_series(history, "loss"),
        evaluations=_series(history, "eval_loss"),
        metrics=_series(history, "eval_accuracy"),
        samples=told[-1] if told else (),
        steps=steps,
    )


def curves_html(runs: Mapping[str, Curves]) -> str:
    """Loss and metric of one run or of several, and the last answers where it is one.

    Colours besides the lines' come from the page, so that it reads on dark and light.
    """
    losses = [
        line
        for (name, run), colour in zip(runs.items(), _colours(), strict=False)
        for line in (
            _Line(f"{name}, loss" if len(runs) > 1 else "loss", run.losses, colour, smooth=True),
            _Line("" if len(runs) > 1 else "held-out loss", run.evaluations, colour, dots=True),
        )
    ]
    metrics = [
        _Line(name if len(runs) > 1 else "", run.metrics, colour, dots=True)
        for (name, run), colour in zip(runs.items(), _colours(), strict=False)
    ]
    steps = max((run.steps for run in runs.values()), default=0)
    charts = [_chart("loss", losses, steps, None)]
    if any(line.points for line in metrics):
        charts.append(_chart("right answers, held out", metrics, steps, 1.0))
    told = next(iter(runs.values())).samples if len(runs) == 1 else ()
    return (
        '<div class="vlkit-curves" style="display:flex;flex-wrap:wrap;gap:12px">'
        f"{''.join(charts)}</div>{answers_html(told)}"
    )


def answers_html(samples: Sequence[Sequence[str]]) -> str:
    """A few held-out questions with their true and the model's answers, or nothing."""
    cell = "padding:2px 14px 2px 0;text-align:left;vertical-align:top;border:none"
    rows = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{html.escape(str(t)[:300])}</td>' for t in each)
        + f'<td style="{cell}">{"✓" if _same(each[1], each[2]) else ""}</td></tr>'
        for each in samples
    )  # fmt: skip
    heads = "".join(f'<th style="{cell}">{n}</th>' for n in ("question", "truth", "answer", ""))
    style = "border-collapse:collapse;font-size:.9em;color:inherit;margin-top:6px"
    return f'<table style="{style}"><tr>{heads}</tr>{rows}</table>' if rows else ""


def _same(truth: str, answer: str) -> bool:
    return truth.strip().casefold() == answer.strip().casefold()


def _series(history: Sequence[Mapping[str, Any]], name: str) -> Series:
    return tuple((each["step"], each[name]) for each in history if name in each)


def _colours() -> Iterable[str]:
    while True:
        yield from COLOURS


@dataclass(frozen=True)
class _Line:
    name: str
    points: Series
    colour: str
    dots: bool = False
    smooth: bool = False


def _chart(title: str, lines: Sequence[_Line], steps: int, top: float | None) -> str:
    points = [point for line in lines for point in line.points if math.isfinite(point[1])]
    last = max([steps, 1, *(step for step, _ in points)])
    high = top or _rounded_up(max((value for _, value in points), default=1.0))
    drawn = "".join(_draw(line, last, high) for line in lines)
    legend = " ".join(
        f'<span style="margin-right:10px"><span style="color:{line.colour}">'
        f"{'●' if line.dots else '━'}</span> {html.escape(line.name)}</span>"
        for line in lines
        if line.name and line.points and (line.name != title or len(lines) > 2)
    )
    return (
        f'<div style="flex:1 1 300px;max-width:560px"><b>{html.escape(title)}</b> '
        f'<span style="{_FAINT}">{legend}</span>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}" '
        f'style="width:100%;display:block">{_axes(last, high)}{drawn}</svg></div>'
    )


def _rounded_up(value: float) -> float:
    """The next number whose quarters are short to write."""
    power = 10 ** math.floor(math.log10(max(value, 1e-6)))
    return next(n * power for n in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if n * power >= value)


def _draw(line: _Line, last: float, high: float) -> str:
    points = [(_x(s, last), _y(v, high)) for s, v in line.points if math.isfinite(v)]
    if not points:
        return ""
    if line.smooth and len(points) > 12:
        mean = _smoothed(points)
        return _path(_thinned(points), line.colour, 1, 0.3) + _path(mean, line.colour, 2, 1)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{line.colour}"/>' for x, y in points
    )
    dash = 0.6 if line.dots else 1
    return _path(points, line.colour, 1.5, dash) + (marks if line.dots or len(points) == 1 else "")


def _path(points: Sequence[tuple[float, float]], colour: str, width: float, opacity: float) -> str:
    told = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{told}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-opacity="{opacity}" stroke-linejoin="round"/>'
    )


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    step = max(1, math.ceil(len(points) / _POINTS))
    return [*points[::step], points[-1]]


def _smoothed(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """A running mean over a twentieth of the points."""
    reach = max(1, len(points) // 40)
    windows = (points[max(0, i - reach) : i + reach + 1] for i in range(len(points)))
    means = [sum(y for _, y in window) / len(window) for window in windows]
    return _thinned([(x, mean) for (x, _), mean in zip(points, means, strict=True)])


def _axes(last: float, high: float) -> str:
    faint = 'stroke="currentColor" stroke-opacity=".2"'
    text = 'fill="currentColor" fill-opacity=".7" font-size="11"'
    lines = ""
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(share * high, high)
        lines += f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" {faint}/>'
        lines += (
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" {text}>'
            f"{share * high:.2g}</text>"
        )
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = _x(share * last, last)
        lines += (
            f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}" {text}>'
            f"{share * last:,.0f}{' steps' if share == 1 else ''}</text>"
        )
    return lines


def _x(step: float, last: float) -> float:
    return _LEFT + (_WIDTH - 8 - _LEFT) * step / last


def _y(value: float, high: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * min(max(value, 0.0), high) / high
