"""What a model in training answers to held-out rows, and how many answers are right."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from vlkit.errors import VlkitError
from vlkit.lora.data import TrainingData
from vlkit.lora.examples import Example
from vlkit.lora.scoring import Scores, evaluate
from vlkit.models import VLM

METRICS = ("auto", "exact", "iou")
TOGETHER = 8  # rows that are asked at a time
SCORED = 64  # rows, spread over the held-out data
_TOKENS = 128  # the longest answer


class Examiner:
    """Asks a model some held-out rows, always the same.

    Args:
        vlm: the model; adapters may stand in its layers.
        data: held-out rows, or None.
        metric: of ``METRICS``; None counts nothing.
        samples: rows whose answers are told.
    """

    def __init__(self, vlm: VLM, data: TrainingData | None, metric: str | None, samples: int):
        self.vlm, self.metric = vlm, metric
        count = 0 if data is None else min(len(data), max(SCORED if metric else 0, samples))
        self.rows = [] if data is None else [data[i] for i in _spread(len(data), count)]
        self.shown = _spread(count, min(samples, count))

    def __call__(self) -> dict[str, Any]:
        """``eval_accuracy`` and ``samples``, as far as they are asked for."""
        if not self.rows:
            return {}
        scores = self._ask(self.rows)
        table = scores.table.iloc[self.shown]
        told = table[["question", "truth", "answer"]].astype(object)
        found: dict[str, Any] = {"samples": told.where(told.notna(), "").values.tolist()}
        value = score_answers(scores, self.metric)
        return found | ({} if value is None else {"eval_accuracy": value})

    def estimate_seconds(self) -> float:
        """Of a call, measured on its first few rows."""
        few = self.rows[:TOGETHER]
        start = time.perf_counter()
        if few:
            self._ask(few)
        return (time.perf_counter() - start) * len(self.rows) / max(len(few), 1)

    def _ask(self, rows: list[Example]) -> Scores:
        return evaluate(
            self.vlm, TrainingData("held-out", rows), progress=False, batch_size=TOGETHER,
            max_new_tokens=_TOKENS,
        )  # fmt: skip


def check_examined(metric: str | None, samples: int) -> None:
    """Raises VlkitError for a metric that is unknown, or a number of samples that is none."""
    if metric is not None and metric not in METRICS:
        raise VlkitError(f"metric={metric!r} is unknown; choose one of {list(METRICS)}, or None")
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 0:
        raise VlkitError(f"samples={samples!r} must be a whole number, 0 or more")


def score_answers(scores: Scores, metric: str | None) -> float | None:
    """The share of right answers; None where no row is of the kind that the metric counts.

    ``exact`` counts rows whose truth holds no box, ``iou`` the boxes of the others (at IoU 0.5),
    ``auto`` both.
    """
    boxes, texts = int(scores.table["boxes"].sum()), int((scores.table["boxes"] == 0).sum())
    right = counted = 0.0
    if metric in ("auto", "exact") and scores.accuracy is not None:
        right, counted = right + scores.accuracy * texts, counted + texts
    if metric in ("auto", "iou") and scores.grounding is not None:
        right, counted = right + scores.grounding.accuracy * boxes, counted + boxes
    return right / counted if counted else None


def _spread(total: int, count: int) -> Sequence[int]:
    return [i * total // count for i in range(count)]
