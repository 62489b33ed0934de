"""``Box``, ``Point`` and ``Quad``, and checks of their coordinates."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from vlkit.errors import VlkitError

Size = tuple[int, int]  # (width, height) in pixels

INF = math.inf
_ORDER = (("x1", "x2", "left of"), ("y1", "y2", "above"))


def check_values(item: Any, *, ordered: bool = False) -> None:
    """Raises VlkitError for a label that is not text or a number that is not finite.

    Args:
        item: a box, point or quad.
        ordered: the second corner must also lie to the right of the first and below it.
    """
    kind, label = type(item).__name__, item.label
    if not isinstance(label, str):
        raise VlkitError(
            f"{kind}({label!r:.60}, …): the label comes first and is text, as in "
            f'vlkit.{kind}("cat", …); "" is none'
        )
    for name, value in vars(item).items():
        if name != "label" and not (isinstance(value, Real) and math.isfinite(value)):
            raise VlkitError(
                f"the {kind.lower()} {label!r:.60} has {name}={value!r:.60}, which is not a finite "
                "number; give pixels of the upright picture"
            )
    for low, high, where in _ORDER if ordered else ():
        first, last = getattr(item, low), getattr(item, high)
        if last < first:
            raise VlkitError(
                f"the {kind.lower()} {label!r:.60} has {high}={last:g} {where} {low}={first:g}; "
                "give its top left corner, then its bottom right one: x1, y1, x2, y2"
            )


@dataclass(frozen=True)
class Box:
    """A box in float pixels of the upright original: ``(x1, y1)`` is its top left corner.

    It may reach outside the picture, and be without area.

    Raises:
        VlkitError: a label that is not text, a number that is not finite, corners out of order.
    """

    label: str
    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self):
        label, x1, y1, x2, y2 = vars(self).values()
        plain = type(label) is str and type(x1) is float is type(y1) is type(x2) is type(y2)
        if not (plain and -INF < x1 <= x2 < INF and -INF < y1 <= y2 < INF):
            check_values(self, ordered=True)  # slower; answers hold many boxes

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """``(x1, y1, x2, y2)``."""
        return (self.x1, self.y1, self.x2, self.y2)

    @property
    def area(self) -> float:
        """Square pixels."""
        return (self.x2 - self.x1) * (self.y2 - self.y1)


@dataclass(frozen=True)
class Point:
    """A point in float pixels of the upright original."""

    label: str
    x: float
    y: float

    def __post_init__(self):
        check_values(self)


@dataclass(frozen=True)
class Quad:
    """Four corners in order, in float pixels of the upright original; may stand at an angle."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float
    x3: float
    y3: float
    x4: float
    y4: float

    def __post_init__(self):
        check_values(self)

    @property
    def corners(self) -> list[tuple[float, float]]:
        """The four ``(x, y)``."""
        values = coordinates_of(self)
        return list(zip(values[::2], values[1::2], strict=True))

    @property
    def bounds(self) -> Box:
        """The upright box around it."""
        xs, ys = zip(*self.corners, strict=True)
        return Box(self.label, min(xs), min(ys), max(xs), max(ys))


Item = Box | Point | Quad
Items = Item | Iterable[Item]  # one or many


def list_items(boxes: Items) -> list[Item]:
    """One or many boxes, points and quads as a list. Raises VlkitError for anything else."""
    items: list[Any] = list(boxes) if isinstance(boxes, Iterable) else [boxes]
    for item in items:
        if not isinstance(item, Item):
            raise VlkitError(f"expected vlkit.Box or vlkit.Point, not {item!r:.60}")
    return items


def scale_item(item: Item, scale: float) -> Item:
    """A box, point or quad on a picture that is ``scale`` times as large."""
    return type(item)(item.label, *(value * scale for value in coordinates_of(item)))


def is_share(numbers: Sequence[float]) -> bool:
    """Whether coordinates are fractions of the picture, out of which they may reach a little."""
    return max(map(abs, numbers[:4])) < 2 and not all(n == int(n) for n in numbers[:4])


def coordinates_of(item: Item) -> tuple[float, ...]:
    return tuple(vars(item).values())[1:]


def check_size(name: str, size: Any) -> None:
    """Raises VlkitError where ``size`` is not (width, height)."""
    try:
        width, height = size
        valid = 0 < width < INF and 0 < height < INF
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise VlkitError(f"{name}={size!r} must be (width, height) in pixels, both positive")
