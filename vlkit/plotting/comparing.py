"""The truth against an answer on one picture, as PNG or SVG."""

from __future__ import annotations

import html
import os
from math import cos, radians, sin
from pathlib import Path
from typing import Any

import PIL.Image
from PIL import ImageDraw

from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Box, Items, Point, list_items
from vlkit.media.image import load_image
from vlkit.plotting.draw import add_legend, draw_boxes, draw_strokes
from vlkit.plotting.fonts import draw_text, fit_text, load_font, text_height
from vlkit.plotting.html import data_url
from vlkit.plotting.labels import (
    PATTERNS,
    SHAPES,
    Stroke,
    area_of,
    font_for,
    label_styles,
    line_width_for,
    place_labels,
    text_color,
)

TRUTH, ANSWER = "#0072B2", "#D55E00"  # of the palette, the two that differ most to every eye


def draw_comparison(
    image: Any, predicted: Items, truth: Items, *, labels: bool = True, legend: bool = True
) -> PIL.Image.Image:
    """The true boxes in dashed blue and the answer's in solid orange-red, on a copy.

    Args:
        image: anything that ``vlkit.Image`` takes.
        predicted, truth: in pixels of the upright original.
        labels: write each label at its box.
        legend: say which is which in a strip under the picture.

    Returns:
        A new upright RGB image, higher than the original by the legend.
    """
    picture = load_image(image)
    draw_strokes(picture, _strokes(predicted, truth), labels=labels)
    rows = [(TRUTH, "truth", 1), (ANSWER, "answer", 0)]
    return add_legend(picture, rows) if legend else picture


def save_boxes(
    path: str | os.PathLike,
    image: Any,
    boxes: Items,
    *,
    truth: Items | None = None,
    labels: bool = True,
) -> Path:
    """Write a picture with its boxes; a ``.svg`` keeps lines and letters sharp at any size.

    Args:
        path: the file; its ending says the format.
        image, boxes, labels: as for :func:`vlkit.draw_boxes`.
        truth: draws :func:`draw_comparison`.

    Raises:
        VlkitError: an ending that is no picture's, or a folder that is not there.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise VlkitError(f"{path}: the folder {path.parent} does not exist; create it")
    if path.suffix.lower() == ".svg":
        path.write_text(svg_boxes(image, boxes, truth=truth, labels=labels), encoding="utf-8")
        return path
    drawn = (
        draw_boxes(image, boxes, labels=labels)
        if truth is None
        else draw_comparison(image, boxes, truth, labels=labels)
    )
    try:
        drawn.save(path)
    except (ValueError, OSError) as error:
        raise VlkitError(f"{path} cannot be written: {error}; use .png, .jpg or .svg") from None
    return path


def svg_boxes(image: Any, boxes: Items, *, truth: Items | None = None, labels: bool = True) -> str:
    """A picture with its boxes as one SVG that holds everything."""
    picture, items = load_image(image), list_items(boxes)
    styles = label_styles(item.label for item in items)
    own = [(item, *styles[item.label]) for item in items]
    strokes = own if truth is None else _strokes(items, truth)
    width, height = picture.size
    line, font = line_width_for(picture.size), font_for(picture.size)
    parts = [f'<image width="{width}" height="{height}" href="{data_url(picture)}"/>']
    for stroke in sorted(strokes, key=lambda s: area_of(s[0]), reverse=True):
        parts += _svg_outline(stroke, line)
    if labels and font:
        pad, high = max(2, line), text_height(font)[1]
        for color, text, (x1, y1, x2, y2) in place_labels(strokes, picture.size, font, pad):
            parts.append(_rect(x1, y1, x2 - x1, y2 - y1, f'fill="{color}"'))
            parts.append(
                f'<text x="{x1 + pad}" y="{y1 + pad // 2 + high * 0.78:.1f}" '
                f'font-size="{font.size}" textLength="{x2 - x1 - 2 * pad}" '
                f'fill="{text_color(color)}">{html.escape(text)}</text>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Noto Sans SC, Noto Sans, sans-serif">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def stack_captioned(
    pictures: list[tuple[PIL.Image.Image, str]], *, columns: int = 2
) -> PIL.Image.Image:
    """Pictures on one sheet, each under its caption."""
    font, gap = load_font(16), 8
    top, high = text_height(font)
    width = max(picture.width for picture, _ in pictures)
    height = max(picture.height for picture, _ in pictures) + round(high) + 2 * gap
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = PIL.Image.new("RGB", (columns * (width + gap), rows * (height + gap)), "white")
    for index, (picture, caption) in enumerate(pictures):
        x, y = index % columns * (width + gap), index // columns * (height + gap)
        text = fit_text(caption, font, width)
        draw_text(ImageDraw.Draw(sheet), (x + 2, y + gap - top), text, "black", font)
        sheet.paste(picture, (x, y + round(high) + 2 * gap))
    return sheet


def _strokes(predicted: Items, truth: Items) -> list[Stroke]:
    return [(item, ANSWER, 0) for item in list_items(predicted)] + [
        (item, TRUTH, 1) for item in list_items(truth)
    ]


def _svg_outline(stroke: Stroke, width: int) -> list[str]:
    """The line over a wider, half transparent one that sets it off from any background."""
    item, color, pattern = stroke
    under = "#000000" if text_color(color) == "black" else "#FFFFFF"
    edge = f'fill="none" stroke="{under}" stroke-opacity="0.6" stroke-width="{1.7 * width:.1f}"'
    line = f'fill="none" stroke="{color}" stroke-width="{width}"'
    dashes = " ".join(f"{width * part:g}" for part in PATTERNS[pattern])
    line += f' stroke-dasharray="{dashes}"' if dashes else ""
    if isinstance(item, Point):
        look = f'fill="{color}" stroke="{under}" stroke-opacity="0.6"'
        return [f"{_svg_mark(item, 3 * width, *SHAPES[pattern])} {look}/>"]
    if isinstance(item, Box):
        size = (item.x2 - item.x1, item.y2 - item.y1)
        return [_rect(item.x1, item.y1, *size, style) for style in (edge, line)]
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in item.corners)
    return [f'<polygon points="{points}" {style}/>' for style in (edge, line)]


def _svg_mark(point: Point, radius: int, sides: int, turn: int) -> str:
    """As :func:`vlkit.plotting.draw.draw_mark` has it, without the end of its tag."""
    if not sides:
        return f'<circle cx="{point.x:.2f}" cy="{point.y:.2f}" r="{radius}"'
    angles = [radians(360 * (i + 0.5) / sides + 90 - turn) for i in range(sides)]
    corners = ((point.x + 1.25 * radius * cos(a), point.y + 1.25 * radius * sin(a)) for a in angles)
    return '<polygon points="' + " ".join(f"{x:.2f},{y:.2f}" for x, y in corners) + '"'


def _rect(x: float, y: float, w: float, h: float, style: str) -> str:
    return f'<rect x="{x:.2f}" y="{y:.2f}" width="{w:.2f}" height="{h:.2f}" {style}/>'
