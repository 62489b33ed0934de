"""Boxes and points in pixels of the upright original, read from a model's answer and written."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from vlkit.errors import GroundingParseError, VlkitError
from vlkit.formats import FORMATS, GroundingFormat, read_answer, write_answer

Size = tuple[int, int]  # (width, height) in pixels


@dataclass(frozen=True)
class Box:
    """A box in float pixels of the upright original: ``(x1, y1)`` is its top left corner."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """``(x1, y1, x2, y2)``."""
        return (self.x1, self.y1, self.x2, self.y2)

    @property
    def area(self) -> float:
        """Square pixels."""
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)


@dataclass(frozen=True)
class Point:
    """A point in float pixels of the upright original."""

    label: str
    x: float
    y: float


def parse_grounding(
    text: str, *, family: str, image_size: Size, input_size: Size | None = None
) -> list[Box | Point]:
    """Read the boxes and points of a model's raw answer.

    Args:
        text: the answer with its special tokens (``reply.raw``).
        family: ``qwen_vl``, ``qwen2_vl``, ``qwen2_5_vl``, ``qwen3_vl`` or ``qwen3_5``.
        image_size: (width, height) of the upright original, in pixels.
        input_size: (width, height) of the picture as the model saw it; needed for
            ``qwen2_5_vl`` alone, whose coordinates are pixels of that size.

    Returns:
        Boxes and points in pixels of the upright original, clipped to it, corners in order; an
        empty list where the answer holds none. Of an answer that is cut off or spoilt in places,
        what is whole is returned and the rest reported as a warning.

    Raises:
        GroundingParseError: the text holds coordinates, but none that this format can read.
    """
    items, left_out = read_grounding(
        text, family=family, image_size=image_size, input_size=input_size
    )
    if left_out:
        warnings.warn(left_out, stacklevel=2)
    return items


def read_grounding(
    text: str, *, family: str, image_size: Size, input_size: Size | None = None
) -> tuple[list[Box | Point], str]:
    """:func:`parse_grounding` with its warning as a second value, empty where all was read."""
    if not isinstance(text, str):
        raise VlkitError(f"expected the raw answer (reply.raw), not {type(text).__name__}")
    form = _format_of(family)
    span = _span(form, image_size, input_size)
    answer = text.rpartition("</think>")[2]
    found, problems = read_answer(answer, form)
    if problems and not found:
        advice = f"check family={family!r}, and max_new_tokens if the answer was cut off"
        raise GroundingParseError(f"{problems[0]}; {advice} (the answer is in .text)", text)
    left_out = f"{len(found)} read, {len(problems)} left out: " + "; ".join(problems[:3])
    left_out = left_out if problems else ""
    return [_to_pixels(label, numbers, span, image_size) for label, numbers in found], left_out


def format_grounding(
    boxes: Box | Point | Iterable[Box | Point],
    *,
    family: str,
    image_size: Size,
    input_size: Size | None = None,
) -> str:
    """Write boxes and points as the family writes them; the inverse of :func:`parse_grounding`.

    Coordinates are rounded to the format's whole numbers. Boxes of one label that follow each
    other share its tag.

    Args:
        boxes: boxes or points in pixels of the upright original, one or many.
        family, image_size, input_size: as in :func:`parse_grounding`.

    Raises:
        VlkitError: a coordinate that is not finite, or a label that the format cannot hold.
    """
    form = _format_of(family)
    span = _span(form, image_size, input_size)
    pairs = [(str(each.label), _from_pixels(each, span, image_size)) for each in list_items(boxes)]
    return write_answer(pairs, form)


def list_items(boxes: Box | Point | Iterable[Box | Point]) -> list[Box | Point]:
    """One or many boxes and points as a list. Raises VlkitError for anything else."""
    items = list(boxes) if isinstance(boxes, Iterable) else [boxes]
    for item in items:
        if not isinstance(item, Box | Point):
            raise VlkitError(f"expected vlkit.Box or vlkit.Point, not {item!r:.60}")
        if not all(isinstance(v, Real) and math.isfinite(v) for v in _coordinates(item)):
            raise VlkitError(f"{item} has a coordinate that is no finite number; give pixels")
    return items


def scale_item(item: Box | Point, scale: float) -> Box | Point:
    """A box or point on a picture that is ``scale`` times as large."""
    return type(item)(item.label, *(value * scale for value in _coordinates(item)))


def _coordinates(item: Box | Point) -> tuple[float, ...]:
    return item.xyxy if isinstance(item, Box) else (item.x, item.y)


def _format_of(family: str) -> GroundingFormat:
    if family not in FORMATS:
        raise VlkitError(f"family {family!r} is unknown; families = {list(FORMATS)}")
    return FORMATS[family]


def _span(form: GroundingFormat, image_size: Size, input_size: Size | None) -> Size:
    """The (width, height) that the format's coordinates run over."""
    _check_size("image_size", image_size)
    if form.space == "thousand":
        return (1000, 1000)
    if input_size is None:
        raise VlkitError(
            "this family writes pixels of the resized picture; pass input_size=(width, height), "
            "which is image_grid_thw[2] and [1] times the patch size (reply.input_sizes)"
        )
    _check_size("input_size", input_size)
    return input_size


def _check_size(name: str, size: Any) -> None:
    try:
        width, height = size
        valid = 0 < width < math.inf and 0 < height < math.inf
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise VlkitError(f"{name}={size!r} must be (width, height) in pixels, both positive")


def _to_pixels(label: str, numbers: Sequence[float], span: Size, size: Size) -> Box | Point:
    pixels = [
        min(max(value * size[i % 2] / span[i % 2], 0.0), float(size[i % 2]))
        for i, value in enumerate(numbers)
    ]
    if len(pixels) == 2:
        return Point(label, *pixels)
    x1, y1, x2, y2 = pixels
    return Box(label, min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))


def _from_pixels(item: Box | Point, span: Size, size: Size) -> list[int]:
    numbers = enumerate(_coordinates(item))
    scaled = [round(value * span[i % 2] / size[i % 2]) for i, value in numbers]
    return [min(max(value, 0), span[i % 2]) for i, value in enumerate(scaled)]
