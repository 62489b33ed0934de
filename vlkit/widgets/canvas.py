"""A picture on which a user draws a box, with the boxes of an answer and a list of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import PIL.Image
import traitlets

from vlkit.grounding.boxes import Box, Item, Point
from vlkit.plotting.comparing import TRUTH
from vlkit.plotting.html import data_url
from vlkit.plotting.labels import label_colors, text_color

_HERE = Path(__file__).parent
_LARGEST = 1600  # pixels of the longer side that go to the browser


class BoxCanvas(anywidget.AnyWidget):
    """A picture to draw a box on with mouse or keys; all numbers are pixels of the original.

    Attributes:
        drawn: ``[x1, y1, x2, y2]``, or empty.
        highlighted: the index of the item under the mouse or the focus; -1 is none.
        threshold: items with a lower confidence are hidden.
        show_truth: whether the true boxes are shown, dashed.
        busy: while True, drawing is disabled.
    """

    _esm = _HERE / "canvas.js"
    _css = _HERE / "canvas.css"
    picture = traitlets.Unicode("").tag(sync=True)
    picture_size = traitlets.List(traitlets.Int(), [1, 1]).tag(sync=True)
    about = traitlets.Unicode("").tag(sync=True)
    items: traitlets.List = traitlets.List().tag(sync=True)
    truth: traitlets.List = traitlets.List().tag(sync=True)
    drawn = traitlets.List(traitlets.Float()).tag(sync=True)
    highlighted = traitlets.Int(-1).tag(sync=True)
    threshold = traitlets.Float(0.0).tag(sync=True)
    show_truth = traitlets.Bool(False).tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)

    def show_picture(self, picture: PIL.Image.Image | None, about: str = "") -> None:
        """Show another picture, or none; the boxes on the last one are removed."""
        self.drawn, self.items, self.truth, self.highlighted = [], [], [], -1
        self.about = about
        if picture is None:
            self.picture = ""
            return
        small = picture.copy()
        small.thumbnail((_LARGEST, _LARGEST))
        self.picture_size = list(picture.size)
        self.picture = data_url(small)

    def show_items(self, items: list[Item], confidences: Mapping[Item, float]) -> None:
        """Show the boxes, points and quads of an answer, each with its confidence."""
        colors = label_colors(item.label for item in items)
        self.highlighted = -1
        self.items = [_record(i, colors[i.label], confidences.get(i)) for i in items]

    def show_true(self, boxes: list[Item]) -> None:
        """The true boxes, visible while ``show_truth`` is on."""
        self.truth = [_record(box, TRUTH, None) | {"truth": True} for box in boxes]


def _record(item: Item, color: str, confidence: float | None) -> dict[str, Any]:
    if isinstance(item, Point):
        points = [(item.x, item.y)]
    elif isinstance(item, Box):
        points = [(item.x1, item.y1), (item.x2, item.y2)]
    else:
        points = item.corners
    return {
        "label": item.label,
        "points": [list(point) for point in points],
        "color": color,
        "text_color": text_color(color),
        "confidence": confidence,
    }
