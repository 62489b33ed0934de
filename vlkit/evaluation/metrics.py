"""``evaluate_grounding``: IoU, accuracy, precision, recall, mAP."""

from __future__ import annotations

import contextlib
import copy
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from vlkit import hooks
from vlkit.errors import VlkitError, check_whole
from vlkit.grounding.boxes import Box, Item, list_items
from vlkit.plotting.html import frame_html

if TYPE_CHECKING:
    import pandas


# COCO's sizes by area in square pixels, https://cocodataset.org/#detection-eval
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}


_MOST_WORK = 3_000_000  # labels times pictures


Pictures = Sequence[Sequence[Item] | None] | Mapping[Any, Sequence[Item] | None] | Sequence[Item]


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0 to 1; 0 where both are empty.

    Raises:
        VlkitError: one is not a Box.
    """
    for box in (a, b):
        if not isinstance(box, Box):
            raise VlkitError(f"expected vlkit.Box, not {box!r:.80}")
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    shared = max(0.0, width) * max(0.0, height)
    union = a.area + b.area - shared
    return shared / union if union else 0.0


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of :func:`evaluate_grounding`; it shows itself in a notebook.

    Attributes:
        overall: a row for each metric: ``value``, and ``low`` and ``high`` of its 95 % interval.
        by_label, by_size: a row for each label, and for each of COCO's sizes: ``truths``,
            ``answers``, the metrics, and the interval of the first accuracy.
        rows: a row for each true box with the one that answers it, and for each further box of
            an answer: ``picture``, ``label``, ``size``, ``kind`` (``found``: at the first
            threshold; ``missed``; ``extra``), ``iou``, ``first_iou`` and both boxes' corners.
        thresholds: of IoU.
    """

    overall: pandas.DataFrame
    by_label: pandas.DataFrame
    by_size: pandas.DataFrame
    rows: pandas.DataFrame
    thresholds: tuple[float, ...]

    def __getitem__(self, metric: str) -> float:
        """A metric's value, such as ``evaluation["accuracy@0.5"]``."""
        if metric not in self.overall.index:
            raise VlkitError(f"metric {metric!r} is unknown; metrics = {list(self.overall.index)}")
        return float(self.overall.loc[metric, "value"])

    @property
    def accuracy(self) -> float:
        """Share of true boxes found at the first threshold; see :func:`evaluate_grounding`."""
        return self[f"accuracy@{self.thresholds[0]:g}"]

    @property
    def mean_iou(self) -> float:
        """Mean over the true boxes; a missed one counts 0."""
        return self["mean_iou"]

    def worst(self, count: int = 12) -> list[Any]:
        """The pictures with the lowest mean IoU, worst first; extra boxes count 0."""
        means = self.rows.groupby("picture", sort=False)["first_iou"].mean()
        return means.sort_values(kind="stable").index[:count].tolist()

    def to_dict(self) -> dict:
        """All tables but ``rows``, for JSON; None where a metric is undefined."""
        return {name: _records(getattr(self, name)) for name in ("overall", "by_label", "by_size")}

    def _repr_html_(self) -> str:
        tables = {"overall": self.overall, "by label": self.by_label, "by size": self.by_size}
        return "".join(frame_html(table, name) for name, table in tables.items())


def evaluate_grounding(
    predicted: Pictures,
    truth: Pictures,
    iou: Sequence[float] = (0.5, 0.75),
    *,
    scores: Sequence[Sequence[float]] | None = None,
    match_labels: bool = True,
    coco: bool = True,
    bootstrap: int = 1000,
    seed: int = 0,
    groups: Sequence[Any] | None = None,
) -> Evaluation:
    """Compare predicted boxes with the true ones.

    Accuracy is that of the RefCOCO papers: a true box is found where the answer's box has at least
    that IoU with it. For one true box the first box of the answer counts, as in their scripts; for
    several, each is paired with the answer's box that overlaps it most, no box twice. Precision and
    recall always count the best pairs. Points and quads are ignored.

    Args:
        predicted: a list of boxes for each picture (or question), in pixels of the upright
            original; one flat list for a single picture; or a mapping, such as from file names.
            None is an answer that could not be parsed; it counts as one without boxes.
        truth: the true boxes of the same pictures.
        iou: the thresholds.
        scores: for mAP, the confidence of each box of ``predicted``; by default all are equal.
        match_labels: compare only boxes of the same label, ignoring case and surrounding spaces.
            False for referring expressions, where the label is the question.
        coco: compute COCO's mAP, with pycocotools.
        bootstrap: samples for the 95 % bootstrap intervals over pictures; 0 for none. For mAP a
            tenth of them.
        seed: of the bootstrap.
        groups: for each picture the group it belongs to, such as the image of several questions;
            the bootstrap draws whole groups.

    Raises:
        VlkitError: lists of different lengths, wrong thresholds or bootstrap, pycocotools is
            missing, or so many labels that COCO's evaluator would run for hours.
    """
    thresholds = check_thresholds(iou)
    check_whole("bootstrap", bootstrap)
    names, answers, truths = align_pictures(predicted, truth)
    if not any(truths) and not any(answers):
        raise VlkitError("there are no boxes; pass the boxes of each picture")
    labels = {label_key(box.label, match_labels) for boxes in truths for box in boxes}
    if coco and len(labels) * len(truths) > _MOST_WORK:
        what = f"mAP over {len(labels):,} labels in {len(truths):,} pictures"
        remedy = "match_labels=False, as for referring expressions, or coco=False"
        raise VlkitError(f"{what} takes hours; pass {remedy}")
    rows = [
        {"picture": name, **row}
        for name, predicted_boxes, true_boxes in zip(names, answers, truths, strict=True)
        for row in _match(predicted_boxes, true_boxes, match_labels)
    ]
    precision = None
    if coco:
        precision = AveragePrecision(answers, truths, _check_scores(scores, answers), match_labels)
    groups = names if groups is None else list(groups)
    if len(groups) != len(names):
        raise VlkitError(f"{len(groups)} groups for {len(names)} pictures; give one for each")
    evaluation = tabulate(rows, names, thresholds, precision, bootstrap, seed, groups)
    hooks.record_evaluation(evaluation)
    return evaluation


def check_thresholds(iou: Any) -> tuple[float, ...]:
    """The thresholds as numbers. Raises VlkitError."""
    try:
        thresholds = tuple(float(value) for value in iou)
    except (TypeError, ValueError):
        thresholds = ()
    if not thresholds or not all(0 < value <= 1 for value in thresholds):
        raise VlkitError(f"iou={iou!r} must be thresholds above 0 and at most 1, as (0.5, 0.75)")
    return thresholds


def align_pictures(
    predicted: Any, truth: Any
) -> tuple[list[Any], list[list[Box]], list[list[Box]]]:
    """The pictures' keys, and for each its predicted and its true boxes. Raises VlkitError."""
    if isinstance(predicted, Mapping) or isinstance(truth, Mapping):
        if not isinstance(predicted, Mapping) or not isinstance(truth, Mapping):
            raise VlkitError("only one of predicted and truth is a mapping; pass two mappings")
        if unknown := predicted.keys() - truth.keys():
            raise VlkitError(f"predicted has pictures without truth: {sorted(map(str, unknown))}")
        names = list(truth)
        pairs = [(predicted.get(name), truth[name]) for name in names]
    else:
        if not isinstance(predicted, Iterable) or not isinstance(truth, Iterable):
            raise VlkitError("predicted and truth must be lists; give one list for each picture")
        predicted, truth = list(predicted), list(truth)
        if any(isinstance(item, Item) for item in (*predicted, *truth)):
            predicted, truth = [predicted], [truth]
        if len(predicted) != len(truth):
            counts = f"{len(predicted)} answers for {len(truth)} pictures"
            raise VlkitError(f"{counts}; give one list for each")
        names, pairs = list(range(len(truth))), list(zip(predicted, truth, strict=True))
    return names, [_boxes(items) for items, _ in pairs], [_boxes(items) for _, items in pairs]


def _boxes(items: Any) -> list[Box]:
    return [item for item in list_items(items or []) if isinstance(item, Box)]


def _check_scores(scores: Any, answers: list[list[Box]]) -> list[list[float]]:
    if scores is None:
        return [[1.0] * len(boxes) for boxes in answers]
    checked = [list(row) for row in scores]
    if [len(row) for row in checked] != [len(boxes) for boxes in answers]:
        raise VlkitError("scores must have one number for each box of predicted")
    return checked


# --- which box answers which ----------------------------------------------------------------------


def label_key(label: str, match_labels: bool) -> str:
    """A key that is equal for labels whose boxes are compared."""
    return label.strip().casefold() if match_labels else ""


def _match(predicted: list[Box], truth: list[Box], match_labels: bool) -> Iterable[dict]:
    """A row for each true box of a picture, and for each box of the answer that has none."""
    groups: dict[str, tuple[list[Box], list[Box]]] = defaultdict(lambda: ([], []))
    for side, boxes in enumerate((predicted, truth)):
        for box in boxes:
            groups[label_key(box.label, match_labels)][side].append(box)
    for answers, truths in groups.values():
        pairs = pair_boxes(answers, truths)
        for index, true in enumerate(truths):
            answer = answers[pairs[index]] if index in pairs else None
            best = iou(answer, true) if answer else 0.0
            first = iou(answers[0], true) if answers and len(truths) == 1 else best
            yield _row(true.label, true, answer, best, first)
        for index in sorted(set(range(len(answers))) - set(pairs.values())):
            yield _row(answers[index].label, None, answers[index], 0.0, 0.0)


def pair_boxes(answers: Sequence[Box], truths: Sequence[Box]) -> dict[int, int]:
    """The index of the answer's box for each paired true box: by IoU, each box once."""
    couples = product(enumerate(truths), enumerate(answers))
    overlaps = ((iou(answer, true), t, a) for (t, true), (a, answer) in couples)
    return pair_best(overlap for overlap in overlaps if overlap[0] > 0)


def pair_best(candidates: Iterable[tuple[float, int, int]]) -> dict[int, int]:
    """Greedy pairs of indices from (score, index, index): highest scores first, each index once."""
    pairs: dict[int, int] = {}
    used: set[int] = set()
    for _, first, second in sorted(candidates, key=lambda pair: (-pair[0], *pair[1:])):
        if first not in pairs and second not in used:
            pairs[first] = second
            used.add(second)
    return pairs


def _row(label: str, true: Box | None, answer: Box | None, best: float, first: float) -> dict:
    corners = [v for box in (true, answer) for v in (box.xyxy if box else (None,) * 4)]
    area = (true or answer).area  # type: ignore[union-attr]
    size = next(name for name, (low, high) in SIZES.items() if low <= area < high)
    row = {"label": label, "size": size, "truth": true is not None, "answer": answer is not None}
    return {**row, "iou": best, "first_iou": first, **dict(zip(_CORNERS, corners, strict=True))}


def _records(table: pandas.DataFrame) -> dict:
    """The values of each row, for JSON; None where one is undefined."""
    rows = table.astype(object).where(table.notna(), None).to_dict("index")
    return {str(name): row for name, row in rows.items()}


NAMES = ("map", "map@0.5", "map@0.75")  # over IoU 0.5 to 0.95 in steps of 0.05, and at two


class AveragePrecision:
    """mAP of boxes in pictures.

    Attributes:
        overall: ``map``, ``map@0.5`` and ``map@0.75``, at most 100 boxes a picture, as COCO has it.
        by_label: the first of them for each label, where labels are compared.
        by_size: the first of them for COCO's sizes, by the area of the true box.
    """

    def __init__(
        self, answers: list[list[Box]], truths: list[list[Box]], scores: list[list[float]],
        match_labels: bool = True,
    ):  # fmt: skip
        keys = {label_key(box.label, match_labels) for boxes in truths for box in boxes}
        numbers = {key: number for number, key in enumerate(sorted(keys), start=1)}
        truth = _dataset(truths, [[1.0] * len(boxes) for boxes in truths], numbers, match_labels)
        answer = _dataset(answers, scores, numbers, match_labels)
        self._evaluator = _evaluate(truth, answer, [(0, 1e10)])
        precision = self._accumulate(self._evaluator)[:, :, :, 0]
        self.overall = dict(zip(NAMES, _means(precision), strict=True))
        means = [_means(precision[:, :, k])[0] for k in range(len(numbers))]
        self.by_label = dict(zip(sorted(keys), means, strict=True)) if match_labels else {}
        areas = [(low, min(high, 1e10)) for low, high in SIZES.values()]
        sized = self._accumulate(_evaluate(truth, answer, areas))
        self.by_size = {name: _means(sized[..., i])[0] for i, name in enumerate(SIZES)}

    def resampled(self, pictures: np.ndarray) -> list[float]:
        """The values of ``overall`` for a bootstrap sample: indices of pictures, with repeats."""
        evaluator = copy.copy(self._evaluator)
        count = len(evaluator.params.imgIds)
        blocks = len(evaluator.evalImgs) // count
        order = (np.arange(blocks)[:, None] * count + pictures[None]).ravel()
        evaluator.evalImgs = [self._evaluator.evalImgs[i] for i in order]
        evaluator.params = copy.copy(evaluator.params)
        evaluator.params.imgIds = list(range(len(pictures)))
        evaluator._paramsEval = evaluator.params
        return _means(self._accumulate(evaluator)[..., 0])

    @staticmethod
    def _accumulate(evaluator: Any) -> np.ndarray:
        """Precision of shape (10 IoUs, 101 recalls, labels, areas)."""
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.accumulate()
        return evaluator.eval["precision"][..., -1]


def _means(precision: np.ndarray) -> list[float]:
    """map, map@0.5, map@0.75; pycocotools writes -1 for a label without a true box."""
    parts = (precision, precision[0], precision[5])
    return [float(p[p > -1].mean()) if (p > -1).any() else float("nan") for p in parts]


def _dataset(boxes: Sequence, scores: Sequence, numbers: dict, match_labels: bool) -> dict:
    annotations: list[dict] = []
    for picture, (row, row_scores) in enumerate(zip(boxes, scores, strict=True)):
        for box, score in zip(row, row_scores, strict=True):
            if (key := label_key(box.label, match_labels)) in numbers:
                corners = [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": picture, "category_id": numbers[key],
                     "bbox": corners, "area": box.area, "iscrowd": 0, "score": score}
                )  # fmt: skip
    return {
        "images": [{"id": picture} for picture in range(len(boxes))],
        "categories": [{"id": number} for number in numbers.values()],
        "annotations": annotations,
    }


def _evaluate(truth: dict, answer: dict, areas: list[tuple[float, float]]) -> Any:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        remedy = "pip install 'vlkit[eval]', or pass coco=False"
        raise VlkitError(f"mAP needs pycocotools: {remedy}") from None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        sides = []
        for dataset in (truth, answer):
            side = COCO()
            side.dataset = dataset
            side.createIndex()
            sides.append(side)
        evaluator = COCOeval(*sides, "bbox")
        evaluator.params.areaRng = areas
        evaluator.params.areaRngLbl = [str(area) for area in areas]
        evaluator.params.maxDets = [100]
        evaluator.evaluate()
    return evaluator


MOST_INTERVALS = 200  # labels; with more, as in referring expressions, each has too few boxes


_CORNERS = [f"{who}_{key}" for who in ("true", "answer") for key in ("x1", "y1", "x2", "y2")]


_ORDER = ["picture", "label", "size", "kind", "iou", "first_iou", *_CORNERS]


def tabulate(
    rows: list[dict], names: Sequence[Any], thresholds: tuple[float, ...],
    precision: AveragePrecision | None, bootstrap: int, seed: int, groups: Sequence[Any],
) -> Evaluation:  # fmt: skip
    """The tables of matched rows."""
    import pandas

    table = pandas.DataFrame(rows)
    table["kind"] = np.where(table["iou"] >= thresholds[0], "found", "missed")
    table.loc[~table["truth"], "kind"] = "extra"
    pictures = table["picture"].map({name: i for i, name in enumerate(names)}).to_numpy()
    draws = _draw(pandas.factorize(pandas.Series(list(groups), dtype=object))[0], bootstrap, seed)
    counts = _counts(table, thresholds)
    sums = _sums(counts, pictures, len(names))
    values = {name: v[0] for name, v in _ratios(sums.sum(axis=0)[None], thresholds).items()}
    samples = _ratios(_resample(sums, draws), thresholds)
    if precision:
        values |= precision.overall
        few = draws[: bootstrap // 10]
        maps = [precision.resampled(np.repeat(np.arange(len(draw)), draw)) for draw in few]
        samples |= dict(zip(NAMES, np.array(maps).reshape(-1, len(NAMES)).T, strict=True))
    intervals = {name: (value, *_interval(samples[name])) for name, value in values.items()}
    overall = pandas.DataFrame(intervals, index=["value", "low", "high"]).T
    keys = table["label"].map(lambda label: label_key(label, True))
    shown = keys.map(table["label"].groupby(keys).first())
    by_label = _by(shown, sorted(set(shown)), counts, pictures, thresholds, draws)
    by_size = _by(table["size"], list(SIZES), counts, pictures, thresholds, draws)
    if precision:
        by_size["ap"] = [precision.by_size[name] for name in by_size.index]
    if precision and precision.by_label:
        known = precision.by_label
        by_label["ap"] = [known.get(label_key(name, True), np.nan) for name in by_label.index]
    return Evaluation(overall, by_label, by_size, table[_ORDER], thresholds)


def _draw(groups: np.ndarray, bootstrap: int, seed: int) -> np.ndarray:
    """(draws, pictures): how often a bootstrap sample has each picture; no rows for one group."""
    generator, count = np.random.default_rng(seed), int(groups.max()) + 1
    draws = np.zeros((bootstrap if count > 1 else 0, len(groups)), np.uint16)
    for row in draws:
        row[:] = np.bincount(generator.integers(0, count, count), minlength=count)[groups]
    return draws


def _counts(table: pandas.DataFrame, thresholds: tuple[float, ...]) -> np.ndarray:
    """(rows, 3 + 2 a threshold), to be summed: is a true box, is an answer, IoU as RefCOCO pairs
    them; for each threshold whether RefCOCO's pair and the best pair reach it."""
    columns = [table["truth"], table["answer"], table["first_iou"]]
    for limit in thresholds:
        columns += [table["first_iou"] >= limit, table["iou"] >= limit]
    return np.stack([column.to_numpy(float) for column in columns], axis=1)


def _sums(counts: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """(groups, columns)"""
    sums = np.zeros((count, counts.shape[1]))
    np.add.at(sums, groups, counts)
    return sums


def _resample(sums: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """(draws, columns): the sums over each bootstrap sample, in parts that fit the memory."""
    parts = [draws[i : i + 64].astype(float) @ sums for i in range(0, len(draws), 64)]
    return np.concatenate(parts) if parts else np.zeros((0, sums.shape[1]))


def _by(
    keys: pandas.Series, names: list, counts: np.ndarray, pictures: np.ndarray,
    thresholds: tuple, draws: np.ndarray,
) -> pandas.DataFrame:  # fmt: skip
    """A row for each label or size: counts, metrics, and the interval of the first accuracy."""
    import pandas

    groups = pandas.Index(names).get_indexer(keys)
    sums = _sums(counts, groups, len(names))
    table = pandas.DataFrame(_ratios(sums, thresholds), index=names)
    table.insert(0, "truths", sums[:, 0].astype(int))
    table.insert(1, "answers", sums[:, 1].astype(int))
    table["low"] = table["high"] = np.nan
    if len(names) <= MOST_INTERVALS:
        first = f"accuracy@{thresholds[0]:g}"
        for number, name in enumerate(names):
            part = groups == number
            samples = _resample(_sums(counts[part], pictures[part], draws.shape[1]), draws)
            table.loc[name, ["low", "high"]] = _interval(_ratios(samples, thresholds)[first])
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
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return float(low), float(high)
