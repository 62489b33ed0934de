"""The curves of training runs: losses, and the share of right answers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from math import isfinite
from typing import Any

import numpy as np

from vlkit.plotting.fonts import font_families
from vlkit.plotting.labels import printable

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")

_GRAY = "#7F7F7F"  # of axes and letters: readable on white and on black
_MEAN_FROM = 13  # points: a loss with fewer gets no running mean

Series = Sequence[Sequence[float]]


def draw_curves(
    losses: Mapping[str, Series],
    evaluations: Mapping[str, Series],
    metrics: Mapping[str, Series],
    *,
    steps: int = 0,
    background: str = "none",
) -> bytes:
    """The losses of one training run or several as a PNG, readable on dark and light pages.

    The training loss is a line, with a running mean over it; the held-out loss is a dashed line
    with dots. Values that are not finite are left out. A redraw takes about 60 ms.

    Args:
        losses: for each run's name (step, value) pairs of the training loss.
        evaluations: the same of the held-out loss.
        metrics: the same of the share of right answers, 0 to 1. Where there are any, a second chart
            at the right shows them.
        steps: how many the longest run will take, so that the axis stays; 0 where unknown.
        background: a colour of matplotlib; transparent by default.

    Returns:
        The PNG's bytes: 1,600 x 460 pixels with two charts, 900 x 460 with one. Show it at half
        that width, as ``style="width:800px;max-width:100%"``.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys([*losses, *evaluations, *metrics]))
    titles = ["loss", "right answers, held out"][: 1 + any(map(len, metrics.values()))]
    figure = Figure(figsize=(8 if len(titles) == 2 else 4.5, 2.3), dpi=200)
    charts = figure.subplots(1, len(titles), squeeze=False)[0]
    figure.subplots_adjust(
        left=0.42 / figure.get_figwidth(), right=0.97, bottom=0.19, top=0.89, wspace=0.14
    )
    legend = {}
    for name, color in zip(names, cycle(COLORS), strict=False):
        line = _plot_loss(charts[0], losses.get(name, ()), color)
        held_out_color = color if len(names) > 1 else COLORS[1]
        dots = _plot_held_out(charts[0], evaluations.get(name, ()), held_out_color)
        share = _plot_held_out(charts[-1], metrics.get(name, ()), held_out_color)
        legend[name] = line or dots or share
        if len(names) == 1 and line and dots:
            legend = {"training": line, "held out": dots}
    for chart, title in zip(charts, titles, strict=True):
        _style(chart, title)
    last_step = max([steps, 1, *(chart.dataLim.x1 for chart in charts if chart.lines)])
    for chart in charts:
        chart.set(xlim=(0, last_step), ylim=(0, None))
    if len(charts) == 2:
        charts[1].set_ylim(0, 1.02)
    if len(legend) > 1:
        _add_legend(charts[0], legend)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=background, pil_kwargs={"compress_level": 1})
    return buffer.getvalue()


def _plot_loss(chart: Any, series: Series, color: str) -> Any:
    """The line for the legend, or None where there are no points."""
    x, y = _finite(series)
    if not len(x):
        return None
    if len(x) < _MEAN_FROM:
        style = "o" if len(x) == 1 else "-"  # a line needs two points
        return chart.plot(x, y, style, color=color, markersize=3.5, clip_on=False)[0]
    chart.plot(x, y, color=color, alpha=0.3, linewidth=0.8)
    return chart.plot(x, _running_mean(y), color=color)[0]


def _plot_held_out(chart: Any, series: Series, color: str) -> Any:
    x, y = _finite(series)
    if not len(x):
        return None
    return chart.plot(x, y, "o--", color=color, linewidth=1, markersize=3.5, clip_on=False)[0]


def _finite(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """The steps, and the values."""
    points = [(step, value) for step, value in series if isfinite(value)]
    steps, values = np.array(points).reshape(-1, 2).T
    return steps, values


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Over a twentieth of the points, fewer at both ends."""
    window = np.ones(2 * max(1, len(values) // 40) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _style(chart: Any, title: str) -> None:
    chart.set_title(title, loc="left", y=1.0, fontsize=8, color=_GRAY)  # with y= it draws faster
    chart.set_facecolor("none")
    chart.set_xlabel("step", fontsize=8, color=_GRAY, labelpad=1)
    chart.locator_params(axis="x", nbins=4, integer=True)
    chart.locator_params(axis="y", nbins=4)
    chart.tick_params(colors=_GRAY, labelsize=8, left=False, bottom=False)
    chart.grid(axis="y", color=_GRAY, alpha=0.25, linewidth=0.6)
    chart.spines[:].set_visible(False)


def _add_legend(chart: Any, lines: Mapping[str, Any]) -> None:
    names = [printable(name) for name in lines]
    labels = [" " + name.replace("$", r"\$") for name in names]  # "_name" would be hidden
    chart.legend(
        lines.values(), labels, loc="upper right", frameon=False, labelcolor=_GRAY,
        prop={"family": font_families(names), "size": 7},
    )  # fmt: skip
