"""Loss and metric curves, as a figure and as HTML."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from vlkit.plotting.html import FAINT, fill_template

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f")
Series = Sequence[tuple[float, float]]  # (step, value)
_TEXT = "#010203"  # of axes and letters; in HTML it becomes the page's own colour
_SMOOTHED = 12  # points from which on a line is drawn with its running mean


@dataclass(frozen=True)
class Curves:
    """What a run has to show, at any time of it.

    Attributes:
        losses, evaluations, metrics: (step, value), as :class:`vlkit.lora.LoraRun` has them.
        samples: (question, truth, answer) of the last evaluation.
        steps: of the whole run; 0 where that is unknown.
    """

    losses: Series = ()
    evaluations: Series = ()
    metrics: Series = ()
    samples: Sequence[Sequence[str]] = ()
    steps: int = 0


def read_history(history: Sequence[Mapping[str, Any]], steps: int = 0) -> Curves:
    """The curves of a Trainer's ``state.log_history``."""
    samples = [entry["samples"] for entry in history if entry.get("samples")]
    return Curves(
        losses=read_series(history, "loss"),
        evaluations=read_series(history, "eval_loss"),
        metrics=read_series(history, "eval_accuracy"),
        samples=samples[-1] if samples else (),
        steps=steps,
    )


def read_series(history: Sequence[Mapping[str, Any]], name: str) -> tuple:
    """(step, value) of one name in a Trainer's ``state.log_history``."""
    return tuple((entry["step"], entry[name]) for entry in history if name in entry)


def loss_figure(runs: Mapping[str, Curves], size: tuple[float, float] = (4.6, 2.1)) -> Any:
    """Losses by step: lines with their running mean, and dashed those on held-out rows.

    Args:
        runs: curves by the run's name.
        size: (width, height) in inches.

    Returns:
        A matplotlib figure; its lines are labelled ``training`` and ``held-out``.
    """
    figure, axis = _axes(runs, size)
    for i, (run, colour) in enumerate(zip(runs.values(), cycle(COLOURS), strict=False)):
        steps, losses = _columns(run.losses)
        smooth = len(losses) > _SMOOTHED
        if smooth:
            axis.plot(steps, losses, color=colour, linewidth=0.8, alpha=0.3)
            losses = _running_mean(losses)
        style = {"marker": "o"} if len(losses) == 1 else {"linewidth": 2 if smooth else 1.5}
        axis.plot(steps, losses, color=colour, gid=f"loss-{i}", label="training", **style)
        steps, losses = _columns(run.evaluations)
        axis.plot(steps, losses, "o--", color=colour, gid=f"held-out-{i}", label="held-out")
    axis.set_ylim(bottom=0)
    return figure


def _metric_figure(runs: Mapping[str, Curves]) -> Any:
    figure, axis = _axes(runs, (4.6, 2.1))
    for i, (run, colour) in enumerate(zip(runs.values(), cycle(COLOURS), strict=False)):
        axis.plot(*_columns(run.metrics), "o--", color=colour, gid=f"metric-{i}")
    axis.set_ylim(0, 1)
    return figure


def _axes(runs: Mapping[str, Curves], size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=size)
    axis = figure.add_axes((0.4 / width, 0.25 / height, 1 - 0.6 / width, 1 - 0.35 / height))
    lines = [line for run in runs.values() for line in (run.losses, run.evaluations, run.metrics)]
    last = max([1, *(run.steps for run in runs.values()), *(s for line in lines for s, _ in line)])
    axis.set_xlim(-0.01 * last, 1.02 * last)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(_TEXT)
    axis.tick_params(colors=_TEXT, labelsize=8, length=0)
    axis.locator_params(axis="x", nbins=4, integer=True)
    axis.locator_params(axis="y", nbins=4)
    axis.grid(axis="y", color=_TEXT, alpha=0.2)
    return figure, axis


def _columns(points: Series) -> tuple[list[float], list[float]]:
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def _running_mean(values: Sequence[float]) -> Any:
    """Each value's mean with its neighbours, a twentieth of all."""
    import pandas

    window = 2 * max(1, len(values) // 40) + 1
    return pandas.Series(values).rolling(window, center=True, min_periods=1).mean()


def curves_html(runs: Mapping[str, Curves]) -> str:
    """Loss and metric of one run or of several, and the last answers if it is one.

    Axes and letters take the page's colour, so that it reads on dark and light themes.
    """
    figures = {"loss": loss_figure(runs)}
    if any(run.metrics for run in runs.values()):
        figures["right answers, held-out"] = _metric_figure(runs)
    alone = next(iter(runs.values())) if len(runs) == 1 else None
    return fill_template(
        "vlkit.lora", "curves.html.jinja", faint=FAINT,
        charts={title: _svg(figure, title) for title, figure in figures.items()},
        held_out=any(run.evaluations for run in runs.values()),
        legend={} if alone else dict(zip(runs, cycle(COLOURS), strict=False)),
        samples=[(*sample, is_same(*sample[1:])) for sample in (alone.samples if alone else ())],
    )  # fmt: skip


def _svg(figure: Any, title: str) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):  # letters as text
        figure.savefig(buffer, format="svg", transparent=True)
    drawing = buffer.getvalue().replace(_TEXT, "currentColor")
    style = f'role="img" aria-label="{title}" style="width:100%;display:block"'
    drawing = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', style, drawing, count=1)
    return drawing[drawing.index("<svg") :]


def is_same(truth: str, answer: str) -> bool:
    """Whether an answer is exact, ignoring case and surrounding blanks."""
    return truth.strip().casefold() == answer.strip().casefold()
