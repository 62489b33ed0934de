"""ms-swift: ``<ref-object>`` and ``<bbox>`` in the text, labels and boxes in the row's ``objects``.

https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html#grounding
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Box, Item, Point, Size

Segment = str | list[Item]  # text, or the items at that place in it
_TAG = re.compile("(<ref-object>|<bbox>)")
_JSON = re.compile(r"""(?:bbox|point)_2d["']\s*:\s*<bbox>""")


class _Ref(NamedTuple):
    label: str


class SwiftObjects:
    """The labels and boxes of a row, used one by one as its text refers to them."""

    def __init__(self, row: dict, size: Size):
        objects, self.size, self.label = row.get("objects") or {}, size, ""
        if not isinstance(objects, dict):
            raise VlkitError(f"its objects are {objects!r:.40}; expected a dict of ref and bbox")
        numbers = objects.get("image_id") or []
        if not isinstance(numbers, list) or any(numbers):
            raise VlkitError("some of its boxes are on another picture than its first (image_id)")
        for key in ("ref", "bbox"):
            if not isinstance(objects.get(key) or [], list):
                raise VlkitError(f"its objects have {key}={objects[key]!r:.40}; expected a list")
        self.refs = [str(ref) for ref in objects.get("ref") or []]
        kind = objects.get("bbox_type") or "real"
        if kind not in ("real", "norm1"):
            raise VlkitError(f"its objects have bbox_type={kind!r:.40}; expected 'real' or 'norm1'")
        scale = size if kind == "norm1" else (1, 1)
        self.boxes = [_numbers(box, scale) for box in objects.get("bbox") or []]

    def segments(self, text: str) -> Iterator[Segment]:
        """A text split at its tags, with boxes and points in place of them."""
        marks = [self._resolve(piece) for piece in _TAG.split(text)]
        group: list[Item] = []
        after = ""  # the text behind the group
        for i, mark in enumerate(marks):
            if isinstance(mark, Item):
                if after.strip(" ,\n") or not group:
                    yield from _nonempty(group, after)
                    group = []
                group, after = [*group, mark], ""
            elif isinstance(mark, str):
                after += mark
            elif not isinstance(_next_mark(marks[i + 1 :]), Item):
                after += mark.label  # of a label without a box
        yield from _nonempty(group, after)

    def as_json(self, text: str) -> str | None:
        """A text with JSON around its tags, the numbers filled in; None for any other text."""
        return _TAG.sub(lambda tag: self._as_json(tag[0]), text) if _JSON.search(text) else None

    def check_used_up(self) -> None:
        """Raises VlkitError where boxes are left that no tag refers to."""
        if self.boxes:
            raise VlkitError(f"it has {len(self.boxes)} more boxes than <bbox> in its text")

    def _resolve(self, piece: str) -> str | _Ref | Item:
        if piece == "<ref-object>":
            self.label = _take(self.refs, piece)
            return _Ref(self.label)
        if piece == "<bbox>":
            numbers = _take(self.boxes, piece)
            return (Point if len(numbers) == 2 else Box)(self.label, *numbers)
        return piece

    def _as_json(self, tag: str) -> str:
        if tag == "<bbox>":
            return json.dumps(_take(self.boxes, tag))
        return json.dumps(_take(self.refs, tag), ensure_ascii=False)[1:-1]


def _nonempty(group: list[Item], after: str) -> list[Segment]:
    return [group, after] if group else [after]


def _take(values: list, tag: str) -> Any:
    if not values:
        raise VlkitError(f"its text has more {tag} than its objects have")
    return values.pop(0)


def _next_mark(marks: list) -> Any:
    return next((m for m in marks if not isinstance(m, str) or m.strip(" ,\n")), None)


def _numbers(box: Any, scale: Size) -> list[float]:
    try:
        numbers = [float(n) * scale[i % 2] for i, n in enumerate(box)]
        if len(numbers) in (2, 4) and all(abs(n) < 1e9 for n in numbers):
            return numbers
    except (TypeError, ValueError, OverflowError):
        pass
    raise VlkitError(f"{box!r:.60} is neither a box [x1, y1, x2, y2] nor a point [x, y]")
