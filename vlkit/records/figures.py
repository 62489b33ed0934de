"""The report's own plots, as PNG on white, so that they read on light and dark pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from vlkit.comparison import ANSWER, TRUTH

LEAST = 5  # answers, below which a plot says nothing


def cost_plot(answers: Sequence[dict]) -> bytes | None:
    """Seconds by prompt tokens of the answers that were asked alone; None where there are few."""
    alone = [each for each in answers if "raw" in each and "batch" not in each]
    tokens = [each["usage"]["prompt_tokens"] for each in alone]
    if len(alone) < LEAST or len(set(tokens)) < 3:
        return None
    figure, axis = _axes()
    axis.plot(tokens, [each["seconds"] for each in alone], "o", color=TRUTH, alpha=0.75)
    axis.set(xlabel="prompt tokens", ylabel="seconds", ylim=(0, None))
    return _png(figure)


def curve_plot(training: dict) -> bytes | None:
    """The losses of a training by step; None where there are none."""
    losses, held_out = training.get("losses") or [], training.get("evaluations") or []
    if not losses:
        return None
    figure, axis = _axes()
    axis.plot(*zip(*losses, strict=True), color=TRUTH, label="training")
    if held_out:
        axis.plot(*zip(*held_out, strict=True), "o--", color=ANSWER, label="held-out")
        axis.legend(frameon=False)
    axis.set(xlabel="step", ylabel="loss", ylim=(0, None))
    return _png(figure)


def png_url(content: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()
