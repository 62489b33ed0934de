"""Tables of an evaluation: metrics with their intervals, overall, by label and by size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vlkit.metrics import SIZES, Evaluation, label_key

if TYPE_CHECKING:
    from vlkit.coco import AveragePrecision

_CORNERS = [f"{who}_{key}" for who in ("true", "answer") for key in ("x1", "y1", "x2", "y2")]
_ORDER = ["picture", "label", "size", "kind", "iou", "first_iou", *_CORNERS]


def tabulate(
    rows: list[dict],
    names: Sequence[Any],
    thresholds: tuple[float, ...],
    precision: AveragePrecision | None,
    bootstrap: int,
    seed: int,
) -> Evaluation:
    """The evaluation of matched rows."""
    table = pd.DataFrame(rows)
    table["kind"] = np.where(table["iou"] >= thresholds[0], "found", "missed")
    table.loc[~table["truth"], "kind"] = "extra"
    numbers = pd.factorize(pd.Series(list(names), dtype=object))[0]
    place = dict(zip(names, numbers, strict=True))
    pictures = table["picture"].map(place).to_numpy()
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(names), [1 / len(names)] * len(names), size=bootstrap)
    draws = draws.astype(np.float64) if len(names) > 1 else draws[:0].astype(np.float64)

    def measure(part: np.ndarray) -> pd.DataFrame:
        return _measure(table[part], pictures[part], len(names), thresholds, draws)

    overall = measure(np.ones(len(table), bool))
    if precision:
        overall = pd.concat([overall, _precision_rows(precision, draws[: bootstrap // 10])])
    keys = table["label"].map(lambda label: label_key(label, True))
    shown = table["label"].groupby(keys).first()
    labels = {shown[key]: measure((keys == key).to_numpy()) for key in sorted(shown.index)}
    sizes = {name: measure((table["size"] == name).to_numpy()) for name in SIZES}
    by_label = _wide(labels, table, keys.map(shown), thresholds)
    by_size = _wide(sizes, table, table["size"], thresholds)
    if precision:
        by_size["ap"] = [precision.by_size[name] for name in by_size.index]
    if precision and precision.by_label:
        known = precision.by_label
        by_label["ap"] = [known.get(label_key(name, True), np.nan) for name in by_label.index]
    return Evaluation(overall, by_label, by_size, table[_ORDER], thresholds)


def _measure(
    table: pd.DataFrame, pictures: np.ndarray, count: int, thresholds: tuple, draws: np.ndarray
) -> pd.DataFrame:
    """A row for each metric: its value and its 95 % interval."""
    columns = [table["truth"], table["answer"], table["first_iou"]]
    for limit in thresholds:
        columns += [table["first_iou"] >= limit, table["iou"] >= limit]
    sums = np.zeros((count, len(columns)))
    np.add.at(sums, pictures, np.stack([c.to_numpy(float) for c in columns], axis=1))
    values = _ratios(sums.sum(axis=0)[None], thresholds)
    drawn = _ratios(draws @ sums, thresholds)
    result = {}
    for name, value in values.items():
        low, high = _interval(drawn[name])
        result[name] = {"value": value[0], "low": low, "high": high}
    return pd.DataFrame(result).T


def _ratios(sums: np.ndarray, thresholds: tuple[float, ...]) -> dict[str, np.ndarray]:
    truths, answers, overlap = sums.T[:3]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = {f"accuracy@{t:g}": sums.T[3 + 2 * i] / truths for i, t in enumerate(thresholds)}
        ratios["mean_iou"] = overlap / truths
        for i, limit in enumerate(thresholds):
            ratios[f"precision@{limit:g}"] = sums.T[4 + 2 * i] / answers
            ratios[f"recall@{limit:g}"] = sums.T[4 + 2 * i] / truths
    return ratios


def _interval(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _precision_rows(precision: AveragePrecision, draws: np.ndarray) -> pd.DataFrame:
    drawn = [precision.drawn(np.repeat(np.arange(len(d)), d.astype(int))) for d in draws]
    result = {}
    for index, (name, value) in enumerate(precision.overall.items()):
        low, high = _interval(np.array([each[index] for each in drawn]))
        result[name] = {"value": value, "low": low, "high": high}
    return pd.DataFrame(result).T


def _wide(measured: dict, table: pd.DataFrame, keys: pd.Series, thresholds: tuple) -> pd.DataFrame:
    """A row for each part: how many, its metrics, and the interval of its first accuracy."""
    result = {}
    for name, metrics in measured.items():
        part = table[(keys == name).to_numpy()]
        first = metrics.loc[f"accuracy@{thresholds[0]:g}"]
        counts = {"truths": int(part["truth"].sum()), "answers": int(part["answer"].sum())}
        result[name] = {**counts, **metrics["value"], "low": first["low"], "high": first["high"]}
    wide = pd.DataFrame.from_dict(result, orient="index")
    return wide.astype({"truths": int, "answers": int})
