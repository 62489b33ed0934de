"""Boxes, points and quads, and how each model generation writes them."""

from vlkit.grounding.boxes import Box, Item, Items, Point, Quad, Size
from vlkit.grounding.formats import FORMATS, GroundingFormat
from vlkit.grounding.keys import Space
from vlkit.grounding.parse import format_grounding, parse_grounding

__all__ = [
    "FORMATS",
    "Box",
    "GroundingFormat",
    "Item",
    "Items",
    "Point",
    "Quad",
    "Size",
    "Space",
    "format_grounding",
    "parse_grounding",
]
