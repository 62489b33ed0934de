"""The ways in which a model's numbers can be meant."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

from vlkit.grounding import Box, Size

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
    from vlkit.sizes import published_rules

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
    from vlkit.sizes import published_rules

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
