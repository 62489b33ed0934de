"""What the values of a box, point or quad must be."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from vlkit.errors import VlkitError

INF = math.inf
_ORDER = (("x1", "x2", "left of"), ("y1", "y2", "above"))


def check_values(item: Any, *, ordered: bool = False) -> None:
    """Raises VlkitError for a label that is no text or a number that is not finite.

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
                f"the {kind.lower()} {label!r:.60} has {name}={value!r:.60}, which is no finite "
                "number; give pixels of the upright picture"
            )
    for low, high, where in _ORDER if ordered else ():
        first, last = getattr(item, low), getattr(item, high)
        if last < first:
            raise VlkitError(
                f"the {kind.lower()} {label!r:.60} has {high}={last:g} {where} {low}={first:g}; "
                "give its top left corner, then its bottom right one: x1, y1, x2, y2"
            )
