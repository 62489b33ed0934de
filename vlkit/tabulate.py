"""Tables of an evaluation: metrics with their intervals, overall, by label and by size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vlkit.metrics import SIZES, Evaluation, label_key

if TYPE_CHECKING:
    from vlkit.coco import AveragePrecision

MOST_INTERVALS = 200  # labels; of more, as of referring expressions, each has too few boxes
_CORNERS = [f"{who}_{key}" for who in ("true", "answer") for key in ("x1", "y1", "x2", "y2")]
_ORDER = ["picture", "label", "size", "kind", "iou", "first_iou", *_CORNERS]


def tabulate(
    rows: list[dict],
    names: Sequence[Any],
    thresholds: tuple[float, ...],
    precision: AveragePrecision | None,
    bootstrap: int,
    seed: int,
    groups: Sequence[Any],
) -> Evaluation:
    """The evaluation of matched rows."""
    table = pd.DataFrame(rows)
    table["kind"] = np.where(table["iou"] >= thresholds[0], "found", "missed")
    table.loc[~table["truth"], "kind"] = "extra"
    place = {name: number for number, name in enumerate(names)}
    pictures = table["picture"].map(place).to_numpy()
    draws = _draw(pd.factorize(pd.Series(list(groups), dtype=object))[0], bootstrap, seed)
    counted = _counted(table, thresholds)
    overall = _overall(_sums(counted, pictures, len(names)), thresholds, draws)
    if precision:
        overall = pd.concat([overall, _precision_rows(precision, draws[: bootstrap // 10])])
    keys = table["label"].map(lambda label: label_key(label, True))
    shown = keys.map(table["label"].groupby(keys).first())
    by_label = _by(shown, sorted(set(shown)), counted, pictures, thresholds, draws)
    by_size = _by(table["size"], list(SIZES), counted, pictures, thresholds, draws)
    if precision:
        by_size["ap"] = [precision.by_size[name] for name in by_size.index]
    if precision and precision.by_label:
        known = precision.by_label
        by_label["ap"] = [known.get(label_key(name, True), np.nan) for name in by_label.index]
    return Evaluation(overall, by_label, by_size, table[_ORDER], thresholds)


def _draw(groups: np.ndarray, bootstrap: int, seed: int) -> np.ndarray:
    """How often each picture is drawn, a row for each draw; none for a single group."""
    generator, count = np.random.default_rng(seed), int(groups.max()) + 1
    draws = np.zeros((bootstrap if count > 1 else 0, len(groups)), np.uint16)
    for row in draws:
        row[:] = np.bincount(generator.integers(0, count, count), minlength=count)[groups]
    return draws


def _counted(table: pd.DataFrame, thresholds: tuple[float, ...]) -> np.ndarray:
    """What is summed, a column each: true boxes, answers, overlap, found first, found at all."""
    columns = [table["truth"], table["answer"], table["first_iou"]]
    for limit in thresholds:
        columns += [table["first_iou"] >= limit, table["iou"] >= limit]
    return np.stack([column.to_numpy(float) for column in columns], axis=1)


def _sums(counted: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    sums = np.zeros((count, counted.shape[1]))
    np.add.at(sums, groups, counted)
    return sums


def _drawn(sums: np.ndarray, draws: np.ndarray) -> np.ndarray:
    parts = [draws[i : i + 64].astype(float) @ sums for i in range(0, len(draws), 64)]
    return np.concatenate(parts) if parts else np.zeros((0, sums.shape[1]))


def _overall(sums: np.ndarray, thresholds: tuple, draws: np.ndarray) -> pd.DataFrame:
    """A row for each metric: its value and its 95 % interval."""
    values, drawn = (
        _ratios(sums.sum(axis=0)[None], thresholds),
        _ratios(_drawn(sums, draws), thresholds),
    )
    rows = {name: (value[0], *_interval(drawn[name])) for name, value in values.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])


def _by(
    keys: pd.Series,
    names: list,
    counted: np.ndarray,
    pictures: np.ndarray,
    thresholds: tuple,
    draws,
) -> pd.DataFrame:
    """A row for each part: how many, its metrics, and the interval of its first accuracy."""
    groups = keys.map({name: number for number, name in enumerate(names)}).to_numpy()
    sums = _sums(counted, groups, len(names))
    table = pd.DataFrame(_ratios(sums, thresholds), index=names)
    table.insert(0, "truths", sums[:, 0].astype(int))
    table.insert(1, "answers", sums[:, 1].astype(int))
    table["low"] = table["high"] = np.nan
    if len(names) <= MOST_INTERVALS:
        first = f"accuracy@{thresholds[0]:g}"
        for number, name in enumerate(names):
            part = groups == number
            own = _drawn(_sums(counted[part], pictures[part], draws.shape[1]), draws)
            table.loc[name, ["low", "high"]] = _interval(_ratios(own, thresholds)[first])
    return table


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
    drawn = [precision.drawn(np.repeat(np.arange(len(row)), row)) for row in draws]
    each = np.array(drawn).reshape(-1, len(precision.overall)).T
    values = precision.overall.items()
    rows = {name: (v, *_interval(d)) for (name, v), d in zip(values, each, strict=True)}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])
