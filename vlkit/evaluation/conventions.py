"""``diagnose_boxes``: which coordinate convention fits the truth."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from vlkit.errors import VlkitError, check_choice
from vlkit.evaluation.metrics import align_pictures, iou, label_key, pair_best
from vlkit.grounding.boxes import Box, Size, check_size
from vlkit.grounding.keys import SPACES, Space
from vlkit.grounding.parse import span_of
from vlkit.models.families import published_rules
from vlkit.plotting.html import frame_html

if TYPE_CHECKING:
    import pandas


SWAPPED = "swapped axes"


# by EXIF orientation: from pixels of the stored picture to pixels of the upright one
_TURNS: dict[str | int, Callable[[float, float, Size], tuple[float, float]]] = {
    3: lambda x, y, size: (size[0] - x, size[1] - y),
    6: lambda x, y, size: (size[0] - y, x),
    8: lambda x, y, size: (y, size[1] - x),
}
_SIDEWAYS = (6, 8)


def _read_all(numbers: list[list[Box]], sizes: list[Size], seen: list[Size] | None) -> dict:
    """By a reading's name, the boxes of each picture in pixels of the upright original."""
    upright, stored = _spaces(sizes, seen), _spaces([size[::-1] for size in sizes], seen)
    variants: tuple[str | int, ...] = ("", SWAPPED, *_TURNS)
    readings = {}
    for space, variant in product(upright, variants):
        name = f"unrotated EXIF ({variant})" if isinstance(variant, int) else variant
        spans = (stored if variant in _SIDEWAYS else upright)[space]
        readings[f"{space}, {name}" if name else space] = [
            [_read(box, size, span, variant) for box in boxes]
            for boxes, size, span in zip(numbers, sizes, spans, strict=True)
        ]
    return readings


def _spaces(sizes: list[Size], seen: list[Size] | None) -> dict[str, list[Size]]:
    """By a space's name, the range of coordinates in each picture of a stored size."""
    count = len(sizes)
    spaces = {"0-1000": [(1000, 1000)] * count, "0-999": [(999, 999)] * count}
    spaces["original pixels"] = sizes
    if seen:
        return spaces | {"resized pixels": seen}
    for rules in map(published_rules, ("qwen2_5_vl", "qwen3_vl")):
        spaces[f"resized pixels ({rules.side})"] = [rules.image_size(size) for size in sizes]
    return spaces


def _read(box: Box, size: Size, span: Size, variant: str | int) -> Box:
    x1, y1, x2, y2 = box.xyxy
    corners = (y1, x1, y2, x2) if variant == SWAPPED else box.xyxy
    x1, y1, x2, y2 = _scale(corners, span, size[::-1] if variant in _SIDEWAYS else size)
    if turn := _TURNS.get(variant):
        (x1, y1), (x2, y2) = turn(x1, y1, size), turn(x2, y2, size)
    return Box(box.label, min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))


def _scale(corners: Sequence[float], span: Size, size: Size) -> list[float]:
    """Corners in coordinates from 0 to ``span``, scaled to a picture of ``size``."""
    return [n * size[i % 2] / span[i % 2] for i, n in enumerate(corners)]


OFFSET = "constant offset"


_SURE, _FITS = 0.95, 0.3  # the least probability, and mean IoU, of a reading that fits


@dataclass(frozen=True, eq=False)
class BoxDiagnosis:
    """What :func:`diagnose_boxes` found; it shows itself in a notebook.

    Attributes:
        best: the reading that fits best, such as ``"0-1000"``, ``"resized pixels"``,
            ``"original pixels"`` or ``"0-999, swapped axes"``.
        probability: of ``best`` among the readings tried, 0 to 1.
        table: a row for each reading, the likeliest first: ``mean_iou``, ``probability``.
        boxes: for each reading, the boxes in pixels of each picture, as it reads them.
        verdict: the result in a sentence or two.
    """

    best: str
    probability: float
    table: "pandas.DataFrame"
    boxes: dict[str, list[list[Box]]] = field(repr=False)
    truth: list[list[Box]] = field(repr=False)
    verdict: str

    @property
    def sure(self) -> bool:
        """Whether one reading fits, and clearly better than all others."""
        return self.probability >= _SURE and self.table["mean_iou"].iloc[0] >= _FITS

    def plot(self, images: Any, picture: int = 0, *, readings: int = 4) -> PIL.Image.Image:
        """One picture under the likeliest readings, truth against answer.

        Args:
            images: as many as there were pictures; anything that ``vlkit.Image`` takes.
            picture: the number of the one to show.
            readings: how many.
        """
        from vlkit.media.image import load_image
        from vlkit.plotting import draw_comparison, stack_captioned

        original = load_image(images[picture])
        shown: list[tuple[PIL.Image.Image, str]] = []
        for name, row in self.table.head(readings).iterrows():
            boxes, truth = self.boxes[str(name)][picture], self.truth[picture]
            drawn = draw_comparison(original, boxes, truth, labels=False, legend=not shown)
            sure = f"{row['probability']:.2f}" if row["probability"] >= 0.005 else "under 0.01"
            shown.append((drawn, f"{name}: mean IoU {row['mean_iou']:.2f}, probability {sure}"))
        return stack_captioned(shown)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.verdict)}</p>{frame_html(self.table.head(8))}"


def diagnose_boxes(
    predicted: Any,
    truth: Any,
    image_sizes: Sequence[Size],
    *,
    input_sizes: Sequence[Size] | None = None,
    read_as: Space = "original",
    match_labels: bool = True,
) -> BoxDiagnosis:
    """Find the reading of the predicted numbers that fits the truth, and its probability.

    The readings are 0-1000, 0-999, pixels of the resized and of the original picture; each of them
    plain, with x and y swapped, on the picture before its EXIF rotation, and with a constant offset
    (for each box the median over the other boxes). A reading's likelihood is that of its errors
    under a Laplace distribution with the best width; a plain reading has three times the prior
    probability of the others. ``predicted`` is not changed: read the answers as the verdict says.

    Args:
        predicted: for each picture boxes that hold the model's numbers as they are.
        truth: for each picture its true boxes, in pixels of the upright original.
        image_sizes: for each picture its upright (width, height).
        input_sizes: for each picture the size at which the model saw it (``reply.input_sizes``);
            without it, the published sizes of processors with patches of 14 and of 16 are tried.
        read_as: where ``predicted`` went through :func:`vlkit.parse_grounding` already, the space
            that was assumed; what was clipped then cannot be restored.
        match_labels: as in :func:`vlkit.evaluate_grounding`.

    Raises:
        VlkitError: lists of different lengths, or no predicted box shares a label with a true one.
    """
    _, answers, truths = align_pictures(predicted, truth)
    sizes = _check_sizes("image_sizes", image_sizes, len(truths))
    seen = _check_sizes("input_sizes", input_sizes, len(truths)) if input_sizes else None
    numbers = _numbers(answers, sizes, seen, read_as)
    candidates = {
        name: (boxes, _pair_nearest(boxes, truths, match_labels))
        for name, boxes in _read_all(numbers, sizes, seen).items()
    }
    if not any(len(pairs) for _, pairs in candidates.values()):
        raise VlkitError("no predicted box has a true box of its label; pass match_labels=False")
    for name in [name for name in candidates if "," not in name]:
        if shifted := _remove_offset(*candidates[name], truths, match_labels):
            candidates[f"{name}, {OFFSET}"] = shifted
    table = _rank_readings(candidates, truths)
    best, probability = str(table.index[0]), float(table["probability"].iloc[0])
    boxes = {name: boxes for name, (boxes, _) in candidates.items()}
    return BoxDiagnosis(best, probability, table, boxes, truths, _verdict(table))


def _check_sizes(name: str, sizes: Any, count: int) -> list[Size]:
    sizes = list(sizes)
    if len(sizes) == 2 and count == 1 and not isinstance(sizes[0], Sequence):
        sizes = [tuple(sizes)]
    if len(sizes) != count:
        raise VlkitError(f"{len(sizes)} {name} for {count} pictures; give (width, height) for each")
    for size in sizes:
        check_size(name, size)
    return sizes


def _numbers(answers: list[list[Box]], sizes: list[Size], seen: Any, space: Space) -> list:
    """The boxes with the numbers that the model wrote."""
    check_choice("space", space, SPACES)
    if space == "original":
        return answers
    if space == "resized" and not seen:
        raise VlkitError('read_as="resized" needs input_sizes')
    spans = map(partial(span_of, space), sizes, seen or sizes)
    return [
        [Box(b.label, *_scale(b.xyxy, size, span)) for b in boxes]
        for boxes, size, span in zip(answers, sizes, spans, strict=True)
    ]


# --- how well they fit ----------------------------------------------------------------------------

Pair = tuple[int, int, int]  # indices of the picture, its predicted box, its true box


def _pair_nearest(
    boxes: list[list[Box]], truths: list[list[Box]], match_labels: bool
) -> list[Pair]:
    """Pairs of boxes of one label, the nearest first, no box twice; they need not overlap."""
    pairs = []
    for picture, (predicted, true) in enumerate(zip(boxes, truths, strict=True)):
        candidates = (
            (_nearness(a, b), i, k)
            for (i, a), (k, b) in product(enumerate(predicted), enumerate(true))
            if label_key(a.label, match_labels) == label_key(b.label, match_labels)
        )
        pairs += [(picture, i, k) for i, k in pair_best(candidates).items()]
    return pairs


def _nearness(a: Box, b: Box) -> float:
    """Distance-IoU, https://arxiv.org/abs/1911.08287: IoU minus the distance of the centres.

    The squared distance is divided by the squared diagonal of the box around both.
    """
    width, height = max(a.x2, b.x2) - min(a.x1, b.x1), max(a.y2, b.y2) - min(a.y1, b.y1)
    dx, dy = (a.x1 + a.x2 - b.x1 - b.x2) / 2, (a.y1 + a.y2 - b.y1 - b.y2) / 2
    diagonal = width**2 + height**2
    return iou(a, b) - ((dx**2 + dy**2) / diagonal if diagonal else 0)


def _remove_offset(boxes: list[list[Box]], pairs: list[Pair], truths: list[list[Box]], match: bool):
    """The boxes without a constant offset, and their pairs; None where there is no clear offset."""
    if len(pairs) < 4:
        return None
    corners = [(truths[n][k].xyxy, boxes[n][i].xyxy) for n, i, k in pairs]
    distances = np.array([np.subtract(true, box) for true, box in corners])
    offsets = np.median(distances.reshape(-1, 2, 2), axis=1)  # (pairs, 2): of each box in x and y
    median = np.median(offsets, axis=0)
    spread = np.median(abs(offsets - median), axis=0)
    if (abs(median) < np.maximum(1, 4 * spread / np.sqrt(len(pairs)))).all():
        return None
    moved = [list(row) for row in boxes]
    for pair, (n, i, _) in enumerate(pairs):
        # the other boxes' median: a box must not correct itself
        dx, dy = np.median(np.delete(offsets, pair, axis=0), axis=0)
        box = boxes[n][i]
        moved[n][i] = Box(box.label, box.x1 + dx, box.y1 + dy, box.x2 + dx, box.y2 + dy)
    return moved, _pair_nearest(moved, truths, match)


def _rank_readings(candidates: dict, truths: list[list[Box]]) -> "pandas.DataFrame":
    """A row for each reading with its mean IoU and probability, the likeliest first."""
    import pandas

    count = sum(map(len, truths))
    rows = {}
    for name, (boxes, pairs) in candidates.items():
        matched = [(boxes[n][i], truths[n][k]) for n, i, k in pairs]
        # the best width of a Laplace distribution is the mean error; not below 1/1000, to which
        # models round their numbers
        width = max(float(np.mean([_error(a, b) for a, b in matched])), 1e-3)
        prior = 1.0 if "," not in name else 1 / 3
        rows[name] = {
            "mean_iou": sum(iou(a, b) for a, b in matched) / count,
            # a box counts as two independent numbers, not four: its errors are correlated
            "log_posterior": -2 * len(pairs) * np.log(width) + np.log(prior),
        }
    table = pandas.DataFrame.from_dict(rows, orient="index")
    posterior = np.exp(table["log_posterior"] - table["log_posterior"].max())
    table["probability"] = posterior / posterior.sum()
    return table.drop(columns="log_posterior").sort_values(
        ["probability", "mean_iou"], ascending=False, kind="stable"
    )


def _error(answer: Box, true: Box) -> float:
    """The mean error of the four coordinates relative to the true box's size, at most 10."""
    scale = max(1.0, (true.x2 - true.x1 + true.y2 - true.y1) / 2)
    error = sum(abs(a - b) for a, b in zip(answer.xyxy, true.xyxy, strict=True)) / 4
    return min(error / scale, 10.0)


def _verdict(table: Any) -> str:
    first, second = table.iloc[0], table.iloc[1]
    best, other = table.index[0], table.index[1]
    if first["mean_iou"] < _FITS:
        found = f"the best, {best}, has a mean IoU of {first['mean_iou']:.2f}"
        return f"No reading fits: {found}. The boxes mark other objects, or are wrong."
    numbers = f"mean IoU {first['mean_iou']:.2f}"
    rival = f"{other} ({second['mean_iou']:.2f})"
    if first["probability"] >= _SURE:
        return f"{best} fits best: {numbers}, then {rival}; probability {first['probability']:.2f}."
    return (
        f"{best} fits best ({numbers}), but these boxes hardly separate it from {rival}: "
        f"probability {first['probability']:.2f} and {second['probability']:.2f}. "
        "Add boxes, or pictures of other sizes."
    )
