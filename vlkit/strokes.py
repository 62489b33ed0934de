"""Lines, points and labels drawn into a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, pairwise

import PIL.Image
from PIL import ImageDraw

from vlkit.errors import VlkitError
from vlkit.grounding import Box, Item, Point
from vlkit.labels import (
    PATTERNS,
    SHAPES,
    Stroke,
    area_of,
    font_for,
    line_width_for,
    place_labels,
    text_color,
)
from vlkit.lettering import draw_text, text_height

EDGES = {"black": "#00000070", "white": "#FFFFFFB0"}  # of a bright and of a dark line


def draw_strokes(
    picture: PIL.Image.Image,
    strokes: Sequence[Stroke],
    *,
    labels: bool = True,
    line_width: int | None = None,
) -> None:
    """Draw on the picture itself: each item with its colour and the number of its pattern."""
    if line_width is not None and not (isinstance(line_width, int) and line_width > 0):
        raise VlkitError(f"line_width={line_width!r} must be a whole number of pixels, 1 or more")
    width = line_width or line_width_for(picture.size)
    draw = ImageDraw.Draw(picture, "RGBA")  # colours with an alpha blend in
    for item, color, pattern in sorted(strokes, key=lambda s: area_of(s[0]), reverse=True):
        _draw_outline(draw, item, width, color, pattern)  # the small ones on top
    font, pad = font_for(picture.size), max(2, width)
    if labels and font:
        top, _ = text_height(font)
        for color, text, (x1, y1, x2, y2) in place_labels(strokes, picture.size, font, pad):
            draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=color)
            draw_text(draw, (x1 + pad, y1 + pad // 2 - top), text, text_color(color), font)


def draw_mark(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], radius: float, color: str, pattern: int
) -> None:
    """A point: round, or of the shape that its pattern's number has."""
    sides, turn = SHAPES[pattern]
    if sides:
        draw.regular_polygon((*place, 1.25 * radius), sides, rotation=turn, fill=color)
    else:
        draw.circle(place, radius, fill=color)


def draw_path(
    draw: ImageDraw.ImageDraw,
    points: list[tuple[float, float]],
    width: int,
    color: str,
    pattern: int,
) -> None:
    """A line from point to point; each piece of one with a pattern begins and ends with a dash."""
    if not (dashes := PATTERNS[pattern]):
        draw.line(points, fill=color, width=width, joint="curve")
        return
    for (x1, y1), (x2, y2) in pairwise(points):
        steps = _steps(dashes, max(abs(x2 - x1), abs(y2 - y1)) / max(2, width))
        for a, b in steps:
            ends = [(x1 + (x2 - x1) * t, y1 + (y2 - y1) * t) for t in (a, b)]
            draw.line(ends, fill=color, width=width)


def _steps(dashes: tuple[float, ...], length: float) -> list[tuple[float, float]]:
    """From where to where along a line there are dashes, as shares of its length."""
    repeats = max(1, round((length - dashes[0]) / sum(dashes)))
    whole = repeats * sum(dashes) + dashes[0]  # it ends with a dash
    places, at = [], 0.0
    for on, piece in zip(cycle((True, False)), [*dashes * repeats, dashes[0]], strict=False):
        if on:
            places.append((at / whole, min(1.0, (at + piece) / whole)))
        at += piece
    return places


def _draw_outline(draw: ImageDraw.ImageDraw, item: Item, width: int, color: str, pattern: int):
    """The line with a thin edge on both sides that sets it off from any background."""
    edge, edge_color = max(1, width // 3), EDGES[text_color(color)]
    if isinstance(item, Point):
        for radius, fill in ((3 * width + edge, edge_color), (3 * width, color)):
            draw_mark(draw, (item.x, item.y), radius, fill, pattern)
        return
    if isinstance(item, Box):
        x1, y1, x2, y2 = _drawn_pixels(item)
        outer = (x1 - edge, y1 - edge, x2 + edge, y2 + edge)
        draw.rectangle(outer, outline=edge_color, width=width + 2 * edge)
        if not pattern:
            draw.rectangle((x1, y1, x2, y2), outline=color, width=width)
            return
        a, b = width / 2 - 0.5, width // 2  # the line's middle: it goes inwards
        x1, y1, x2, y2 = x1 + a, y1 + a, x2 - b, y2 - b
        corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    else:
        corners = item.corners
        draw_path(draw, [*corners, corners[0]], width + 2 * edge, edge_color, 0)
    draw_path(draw, [*corners, corners[0]], width, color, pattern)


def _drawn_pixels(box: Box) -> tuple[float, float, float, float]:
    x1, y1 = round(box.x1), round(box.y1)
    return x1, y1, max(x1, round(box.x2) - 1), max(y1, round(box.y2) - 1)  # Pillow draws these too
