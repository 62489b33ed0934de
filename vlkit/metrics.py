"""How well boxes agree: accuracy as RefCOCO counts it, precision and recall, COCO's mAP."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlkit.errors import VlkitError
from vlkit.grounding import Box, Item, list_items
from vlkit.recording import measured

if TYPE_CHECKING:
    import pandas

# COCO's sizes by area in square pixels, https://cocodataset.org/#detection-eval
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
_MOST_WORK = 3_000_000  # labels times pictures
Pictures = Sequence[Sequence[Item] | None] | Mapping[Any, Sequence[Item] | None] | Sequence[Item]


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0 to 1; 0 where both are empty.

    Raises:
        VlkitError: one is no Box.
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
    """What :func:`evaluate_grounding` found; it shows itself in a notebook.

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
        """Share of true boxes that were found at the first threshold; see the function."""
        return self[f"accuracy@{self.thresholds[0]:g}"]

    @property
    def mean_iou(self) -> float:
        """Over the true boxes; a missed one counts 0."""
        return self["mean_iou"]

    def worst(self, count: int = 12) -> list[Any]:
        """The pictures with the lowest mean IoU, further boxes counting 0, worst first."""
        means = self.rows.groupby("picture", sort=False)["first_iou"].mean()
        return means.sort_values(kind="stable").index[:count].tolist()

    def to_dict(self) -> dict:
        """Everything but the rows, for JSON; what cannot be counted is None."""
        tables = {"overall": self.overall, "by_label": self.by_label, "by_size": self.by_size}
        return {name: _records(table) for name, table in tables.items()}

    def _repr_html_(self) -> str:
        parts = []
        for name in ("overall", "by_label", "by_size"):
            table = getattr(self, name)
            parts.append(f"<h4>{html.escape(name.replace('_', ' '))}</h4>")
            parts.append(table.to_html(escape=True, na_rep="–", float_format="{:.3f}".format))
        return "".join(parts)


@measured
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
    """Compare boxes with the truth.

    Accuracy is what the RefCOCO papers count: a true box is found where the answer's box has at
    least that IoU with it. Where one box is asked for, the first that the answer gives counts, as
    in their scripts; where several are, each true box has the answer's that overlaps it most, no
    box twice. Precision and recall count the best pairs in both cases. Points and quads do not
    count.

    Args:
        predicted: a list of boxes for each picture (or question), in pixels of the upright
            original; one flat list for a single picture; or a mapping, as of file names. None
            stands for an answer that could not be read, and counts as one without boxes.
        truth: the same pictures.
        iou: the thresholds.
        scores: for each box of ``predicted`` how sure the model was, for mAP; else all are alike.
        match_labels: compare only boxes of one label, case and blanks at its ends aside. False
            for referring expressions, where the label is the question.
        coco: count COCO's mAP, with pycocotools.
        bootstrap: how often pictures are drawn again for the 95 % intervals; 0 for none. mAP is
            counted again a tenth as often.
        seed: of that draw.
        groups: for each picture what it belongs to, as several questions to one image; those of
            one group are drawn together.

    Raises:
        VlkitError: lists of different lengths, wrong thresholds or bootstrap, pycocotools is
            missing, or so many labels that COCO's evaluator would run for hours.
    """
    thresholds = check_thresholds(iou)
    if not isinstance(bootstrap, int) or bootstrap < 0:
        raise VlkitError(f"bootstrap={bootstrap!r} must be a whole number, 0 for no intervals")
    names, answers, truths = align_pictures(predicted, truth)
    if not any(truths) and not any(answers):
        raise VlkitError("there is no box at all; pass the boxes of each picture")
    labels = {label_key(box.label, match_labels) for own in truths for box in own}
    if coco and len(labels) * len(truths) > _MOST_WORK:
        raise VlkitError(
            f"mAP over {len(labels):,} labels in {len(truths):,} pictures takes hours; pass "
            "match_labels=False, as for referring expressions, or coco=False"
        )
    rows = [
        {"picture": name, **row}
        for name, own, true in zip(names, answers, truths, strict=True)
        for row in _match(own, true, match_labels)
    ]
    from vlkit.tabulate import tabulate

    precision = None
    if coco:
        from vlkit.coco import AveragePrecision

        precision = AveragePrecision(answers, truths, _check_scores(scores, answers), match_labels)
    groups = names if groups is None else list(groups)
    if len(groups) != len(names):
        raise VlkitError(f"{len(groups)} groups for {len(names)} pictures; give one for each")
    return tabulate(rows, names, thresholds, precision, bootstrap, seed, groups)


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
            raise VlkitError("one of predicted and truth is a mapping; pass both by the same names")
        if unknown := predicted.keys() - truth.keys():
            raise VlkitError(f"predicted has pictures without truth: {sorted(map(str, unknown))}")
        names = list(truth)
        pairs = [(predicted.get(name), truth[name]) for name in names]
    else:
        if not isinstance(predicted, Iterable) or not isinstance(truth, Iterable):
            raise VlkitError("predicted and truth must be lists; give one list for each picture")
        predicted, truth = list(predicted), list(truth)
        if any(isinstance(each, Item) for each in (*predicted, *truth)):
            predicted, truth = [predicted], [truth]
        if len(predicted) != len(truth):
            raise VlkitError(
                f"{len(predicted)} answers for {len(truth)} pictures; give one list for each"
            )
        names, pairs = list(range(len(truth))), list(zip(predicted, truth, strict=True))
    return names, [_boxes(own) for own, _ in pairs], [_boxes(true) for _, true in pairs]


def _boxes(items: Any) -> list[Box]:
    return [item for item in list_items(items or []) if isinstance(item, Box)]


def _check_scores(scores: Any, answers: list[list[Box]]) -> list[list[float]]:
    if scores is None:
        return [[1.0] * len(own) for own in answers]
    given = [list(each) for each in scores]
    if [len(each) for each in given] != [len(own) for own in answers]:
        raise VlkitError("scores must have one number for each box of predicted")
    return given


# --- which box answers which ----------------------------------------------------------------------


def label_key(label: str, match_labels: bool) -> str:
    """What two labels must share to be compared."""
    return label.strip().casefold() if match_labels else ""


def _match(own: list[Box], truth: list[Box], match_labels: bool) -> Iterable[dict]:
    groups: dict[str, tuple[list[Box], list[Box]]] = defaultdict(lambda: ([], []))
    for index, boxes in enumerate((own, truth)):
        for box in boxes:
            groups[label_key(box.label, match_labels)][index].append(box)
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
    """For true boxes the one that answers, by number: the best pairs first, no box twice."""
    overlaps = [
        (-overlap, t, a)
        for t, true in enumerate(truths)
        for a, answer in enumerate(answers)
        if (overlap := iou(answer, true)) > 0
    ]
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for _, t, a in sorted(overlaps):
        if t not in pairs and a not in taken:
            pairs[t] = a
            taken.add(a)
    return pairs


def _row(label: str, true: Box | None, answer: Box | None, best: float, first: float) -> dict:
    corners = [f"{name}_{key}" for name in ("true", "answer") for key in ("x1", "y1", "x2", "y2")]
    values = [v for box in (true, answer) for v in (box.xyxy if box else (None,) * 4)]
    area = (true or answer).area  # type: ignore[union-attr]
    size = next(name for name, (low, high) in SIZES.items() if low <= area < high)
    return {
        "label": label,
        "size": size,
        "truth": true is not None,
        "answer": answer is not None,
        "iou": best,
        "first_iou": first,
        **dict(zip(corners, values, strict=True)),
    }


def _records(table: pandas.DataFrame) -> dict:
    return {
        str(index): {
            key: None if value != value else (value.item() if hasattr(value, "item") else value)
            for key, value in row.items()
        }
        for index, row in table.iterrows()
    }
