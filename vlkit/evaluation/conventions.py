"""The ways in which a model's numbers can be meant."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import PIL.Image

from vlkit.errors import VlkitError
from vlkit.evaluation.metrics import align_pictures, iou, label_key
from vlkit.grounding.boxes import Box, Size, check_size
from vlkit.grounding.formats import Space
from vlkit.grounding.parse import check_space

if TYPE_CHECKING:
    import pandas


Corners = tuple[float, float, float, float]


SWAPPED = "swapped axes"


# of EXIF orientations that turn a picture: from pixels of the stored one to the upright one's
_TURNS: dict[int, Callable[[float, float, Size], tuple[float, float]]] = {
    3: lambda x, y, size: (size[0] - x, size[1] - y),
    6: lambda x, y, size: (size[0] - y, x),
    8: lambda x, y, size: (y, size[1] - x),
}


def readings_of(sizes: list[Size], seen: list[Size] | None) -> dict[str, Callable]:
    """From a box's numbers and its picture's number to pixels of the upright original."""
    readings = {}
    twists: tuple[str | int, ...] = ("", SWAPPED, *_TURNS)
    for (space, span), twist in product(_spaces(seen).items(), twists):
        name = f"unrotated EXIF ({twist})" if isinstance(twist, int) else twist
        readings[f"{space}, {name}" if name else space] = _reading(sizes, span, twist)
    return readings


def _spaces(seen: list[Size] | None) -> dict[str, Callable[[Size, int], Size]]:
    """From the size of a picture as stored, and its number, to what the numbers run over."""
    from vlkit.models.families import published_rules

    spaces: dict[str, Callable[[Size, int], Size]] = {
        "0-1000": lambda size, i: (1000, 1000),
        "0-999": lambda size, i: (999, 999),
        "original pixels": lambda size, i: size,
    }
    if seen:
        spaces["resized pixels"] = lambda size, i: seen[i]
        return spaces
    for family in ("qwen2_5_vl", "qwen3_vl"):
        side = published_rules(family).side
        spaces[f"resized pixels ({side})"] = partial(_published_size, family)
    return spaces


def _published_size(family: str, size: Size, picture: int) -> Size:
    from vlkit.models.families import published_rules

    return published_rules(family).image_size(size)


def _reading(sizes: list[Size], span: Callable, twist: str | int) -> Callable:
    def read(numbers: Corners, picture: int) -> Corners:
        size = sizes[picture]
        if twist == SWAPPED:
            numbers = numbers[1], numbers[0], numbers[3], numbers[2]
        stored = size[::-1] if twist in (6, 8) else size
        x1, y1, x2, y2 = scale_corners(numbers, span(stored, picture), stored)
        if isinstance(twist, int):
            (x1, y1), (x2, y2) = (_TURNS[twist](*corner, size) for corner in ((x1, y1), (x2, y2)))
        return x1, y1, x2, y2

    return read


def scale_corners(numbers: Corners, span: Size, size: Size) -> Corners:
    """Corners over ``span`` as corners on a picture of ``size``."""
    x1, y1, x2, y2 = (n * size[i % 2] / span[i % 2] for i, n in enumerate(numbers))
    return x1, y1, x2, y2


def box_of(label: str, corners: Corners, sort: bool = True) -> Box:
    """A box, its corners put in order."""
    x1, y1, x2, y2 = corners
    if not sort:
        return Box(label, *corners)
    return Box(label, min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))


OFFSET = "constant offset"


_SURE, _FITS = 0.95, 0.3  # a probability, and a mean IoU under which nothing fits


@dataclass(frozen=True, eq=False)
class BoxDiagnosis:
    """What :func:`diagnose_boxes` found; it shows itself in a notebook.

    Attributes:
        best: the reading that fits best, such as ``"0-1000"``, ``"resized pixels"``,
            ``"original pixels"`` or ``"0-999, swapped axes"``.
        probability: of ``best`` among the readings tried, 0 to 1.
        table: a row for each reading, the likeliest first: ``mean_iou``, ``probability``.
        boxes: for each reading, the boxes in pixels of each picture, as it reads them.
        verdict: all this in a sentence.
    """

    best: str
    probability: float
    table: pandas.DataFrame
    boxes: dict[str, list[list[Box]]] = field(repr=False)
    truth: list[list[Box]] = field(repr=False)
    verdict: str

    @property
    def sure(self) -> bool:
        """One reading fits, and the others do not fit as well."""
        return self.probability >= _SURE and self.table["mean_iou"].iloc[0] >= _FITS

    def plot(self, images: Any, picture: int = 0, *, readings: int = 4) -> PIL.Image.Image:
        """One picture under the likeliest readings, truth against answer.

        Args:
            images: as many as there were pictures; anything that ``vlkit.Image`` takes.
            picture: the number of the one to show.
            readings: how many.
        """
        from vlkit.media.image import load_image
        from vlkit.plotting.comparing import draw_comparison, stack_captioned

        original = load_image(images[picture])
        shown: list[tuple[PIL.Image.Image, str]] = []
        for name, row in self.table.head(readings).iterrows():
            boxes, truth = self.boxes[str(name)][picture], self.truth[picture]
            drawn = draw_comparison(original, boxes, truth, labels=False, legend=not shown)
            sure = f"{row['probability']:.2f}" if row["probability"] >= 0.005 else "under 0.01"
            shown.append((drawn, f"{name}: mean IoU {row['mean_iou']:.2f}, probability {sure}"))
        return stack_captioned(shown)

    def _repr_html_(self) -> str:
        table = self.table.head(8).to_html(float_format="{:.3f}".format)
        return f"<p>{html.escape(self.verdict)}</p>{table}"


def diagnose_boxes(
    predicted: Any,
    truth: Any,
    image_sizes: Sequence[Size],
    *,
    input_sizes: Sequence[Size] | None = None,
    read_as: Space = "original",
    match_labels: bool = True,
) -> BoxDiagnosis:
    """Say which reading of the predicted numbers fits the truth, and how sure that is.

    Tried are 0-1000, 0-999, pixels of the resized and of the original picture, each of them plain,
    with x and y swapped, on the picture before its EXIF rotation, and with a constant offset (from
    the other boxes' median, so that no box judges itself). The probability is that of errors
    that follow a Laplace distribution, whose width each reading may choose; plain readings count
    three times as likely beforehand. Nothing is changed: read the answers as the verdict says.

    Args:
        predicted: for each picture boxes that hold the model's numbers as they are.
        truth: for each picture its true boxes, in pixels of the upright original.
        image_sizes: for each picture its upright (width, height).
        input_sizes: for each picture the size at which the model saw it (``reply.input_sizes``);
            without it, the published sizes of processors with patches of 14 and of 16 are tried.
        read_as: where ``predicted`` went through :func:`vlkit.parse_grounding` already, the space
            that it read; what was clipped there stays lost.
        match_labels: as in :func:`vlkit.evaluate_grounding`.

    Raises:
        VlkitError: lists of different lengths, or no box that a true one could be compared with.
    """
    _, answers, truths = align_pictures(predicted, truth)
    sizes = _check_sizes("image_sizes", image_sizes, len(truths))
    seen = _check_sizes("input_sizes", input_sizes, len(truths)) if input_sizes else None
    numbers = _numbers(answers, sizes, seen, read_as)
    found = {}
    for name, read in readings_of(sizes, seen).items():
        boxes = [[box_of(b.label, read(b.xyxy, i)) for b in own] for i, own in enumerate(numbers)]
        found[name] = (boxes, _compare(boxes, truths, match_labels))
    if not any(len(pairs) for _, pairs in found.values()):
        raise VlkitError("no predicted box has a true box of its label; pass match_labels=False")
    for name in [name for name in found if "," not in name]:
        if shifted := _shifted(*found[name], truths, match_labels):
            found[f"{name}, {OFFSET}"] = shifted
    return _conclude(found, truths, sum(map(len, truths)))


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
    check_space(space)
    if space == "original":
        return answers
    if space == "resized" and not seen:
        raise VlkitError('read_as="resized" needs input_sizes')
    spans = {"0-1000": [(1000, 1000)] * len(sizes), "0-999": [(999, 999)] * len(sizes)}
    own = spans.get(space) or seen
    return [
        [box_of(b.label, scale_corners(b.xyxy, size, span), sort=False) for b in boxes]
        for boxes, size, span in zip(answers, sizes, own, strict=True)
    ]


# --- how well they fit ----------------------------------------------------------------------------

Pair = tuple[int, int, int]  # the picture, its predicted box, its true box


def _compare(boxes: list[list[Box]], truths: list[list[Box]], match_labels: bool) -> list[Pair]:
    """The pairs of boxes of one label that lie best, also where they do not overlap."""
    pairs = []
    for picture, (own, true) in enumerate(zip(boxes, truths, strict=True)):
        close = sorted(
            (-_nearness(a, b), i, k)
            for i, a in enumerate(own)
            for k, b in enumerate(true)
            if label_key(a.label, match_labels) == label_key(b.label, match_labels)
        )
        left, right = set(range(len(own))), set(range(len(true)))
        for _, i, k in close:
            if i in left and k in right:
                pairs.append((picture, i, k))
                left.remove(i)
                right.remove(k)
    return pairs


def _nearness(a: Box, b: Box) -> float:
    """Distance-IoU, https://arxiv.org/abs/1911.08287: IoU, less the middles' distance."""
    across = max(a.x2, b.x2) - min(a.x1, b.x1), max(a.y2, b.y2) - min(a.y1, b.y1)
    apart = (a.x1 + a.x2 - b.x1 - b.x2) / 2, (a.y1 + a.y2 - b.y1 - b.y2) / 2
    diagonal = across[0] ** 2 + across[1] ** 2
    return iou(a, b) - ((apart[0] ** 2 + apart[1] ** 2) / diagonal if diagonal else 0)


def _shifted(boxes: list[list[Box]], pairs: list[Pair], truths: list[list[Box]], match: bool):
    """The boxes moved by what the others' medians say; None without a shift worth the name."""
    import numpy as np

    if len(pairs) < 4:
        return None
    edges = [(truths[n][k].xyxy, boxes[n][i].xyxy) for n, i, k in pairs]
    off = np.array([np.subtract(true, own) for true, own in edges])
    shift = np.median(off.reshape(-1, 2, 2), axis=1)  # of each box, in x and in y
    spread = np.median(abs(shift - np.median(shift, axis=0)), axis=0)
    if (abs(np.median(shift, axis=0)) < np.maximum(1, 4 * spread / np.sqrt(len(pairs)))).all():
        return None
    moved = [list(own) for own in boxes]
    for place, (n, i, _) in enumerate(pairs):
        dx, dy = np.median(np.delete(shift, place, axis=0), axis=0)
        box = boxes[n][i]
        moved[n][i] = Box(box.label, box.x1 + dx, box.y1 + dy, box.x2 + dx, box.y2 + dy)
    return moved, _compare(moved, truths, match)


def _conclude(found: dict, truths: list[list[Box]], count: int) -> BoxDiagnosis:
    import numpy as np
    import pandas as pd

    rows = {}
    for name, (boxes, pairs) in found.items():
        matched = [(boxes[n][i], truths[n][k]) for n, i, k in pairs]
        errors = [_error(a, b) for a, b in matched]
        width = max(float(np.mean(errors)), 1e-3)  # as fine as whole numbers to 1000 can be
        rows[name] = {
            "mean_iou": sum(iou(a, b) for a, b in matched) / count,
            # two of a box's four numbers count: they err together
            "evidence": -2 * len(pairs) * np.log(width) + np.log(1.0 if "," not in name else 1 / 3),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    likelihood = np.exp(table["evidence"] - table["evidence"].max())
    table["probability"] = likelihood / likelihood.sum()
    table = table.drop(columns="evidence").sort_values(
        ["probability", "mean_iou"], ascending=False, kind="stable"
    )
    best = str(table.index[0])
    boxes = {name: own for name, (own, _) in found.items()}
    probability = float(table["probability"].iloc[0])
    return BoxDiagnosis(best, probability, table, boxes, truths, _verdict(table))


def _error(answer: Box, true: Box) -> float:
    """The mean distance of the four numbers, as a share of the true box's size, at most 10."""
    scale = max(1.0, (true.x2 - true.x1 + true.y2 - true.y1) / 2)
    off = sum(abs(a - b) for a, b in zip(answer.xyxy, true.xyxy, strict=True)) / 4
    return min(off / scale, 10.0)


def _verdict(table: Any) -> str:
    first, second = table.iloc[0], table.iloc[1]
    best, other = table.index[0], table.index[1]
    if first["mean_iou"] < _FITS:
        return (
            f"No reading fits: the best, {best}, has a mean IoU of {first['mean_iou']:.2f}. "
            "The boxes are of other things, or wrong."
        )
    numbers = f"mean IoU {first['mean_iou']:.2f}"
    rival = f"{other} ({second['mean_iou']:.2f})"
    if first["probability"] >= _SURE:
        return f"{best} fits best: {numbers}, then {rival}; probability {first['probability']:.2f}."
    return (
        f"{best} fits best ({numbers}), but these boxes hardly tell it from {rival}: probability "
        f"{first['probability']:.2f} and {second['probability']:.2f}. More boxes, or pictures of "
        "other sizes, would."
    )
