"""Boxes drawn on pictures, legible on any background and in any script."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files
from typing import Any

import PIL.Image
from PIL import ImageDraw, ImageFont

from vlkit.grounding import Box, Point
from vlkit.media import load_image

# Okabe and Ito's colour-blind-safe palette without its black, https://jfly.uni-koeln.de/color/
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MAX_LABEL = 40  # characters


def draw_boxes(
    image: Any,
    boxes: Iterable[Box | Point],
    *,
    labels: bool = True,
    line_width: int | None = None,
) -> PIL.Image.Image:
    """Draw boxes and points with their labels on a copy of the picture.

    Args:
        image: anything that ``vlkit.Image`` takes.
        boxes: in pixels of the upright original, as ``reply.boxes`` gives them.
        labels: write each label at its box.
        line_width: in pixels; by default it follows the picture's size.

    Returns:
        A new upright RGB image of the original's size. A label has one colour everywhere.
    """
    picture = load_image(image)
    short = min(picture.size)
    width = line_width or max(1, round(short / 160))
    font = load_font(max(11, round(short / 24)))
    draw = ImageDraw.Draw(picture)
    boxes = list(boxes)
    for box in boxes:
        _draw_outline(draw, box, width)
    for box in boxes if labels else ():
        _draw_label(draw, box, width, font, picture.size)
    return picture


def plot_boxes(axes, image: Any, boxes: Iterable[Box | Point], *, labels: bool = True):
    """Show a picture with its boxes on matplotlib axes; pixels are the data coordinates.

    Args:
        axes: a matplotlib ``Axes``.
        image, boxes, labels: as for :func:`draw_boxes`.

    Returns:
        The same axes, to go on with.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Rectangle

    picture = load_image(image)
    font = FontProperties(fname=font_path())
    axes.imshow(picture, extent=(0, picture.width, picture.height, 0))
    axes.set_axis_off()
    for box in boxes:
        color = label_color(box.label)
        if isinstance(box, Point):
            axes.plot(box.x, box.y, "o", color=color, markeredgecolor="white")
            corner = (box.x, box.y)
        else:
            size = (box.x2 - box.x1, box.y2 - box.y1)
            axes.add_patch(Rectangle(box.xyxy[:2], *size, fill=False, edgecolor=color, linewidth=2))
            corner = box.xyxy[:2]
        if labels and box.label:
            style = {"boxstyle": "square,pad=0.15", "facecolor": color, "edgecolor": "none"}
            axes.text(
                *corner,
                _printable(box.label),
                fontproperties=font,
                fontsize=9,
                color=_text_color(color),
                bbox=style,
                verticalalignment="bottom",
                parse_math=False,
            )
    return axes


def label_color(label: str) -> str:
    """The palette's colour of a label: the same in every picture and every process."""
    return PALETTE[zlib.crc32(label.encode("utf-8", "replace")) % len(PALETTE)]


def font_path() -> str:
    """The font that vlkit brings: Latin, kana and the Chinese characters of GB 2312."""
    return str(files("vlkit") / "fonts" / "NotoSansSC-subset.otf")


@lru_cache(maxsize=16)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """vlkit's font in a size in pixels."""
    return ImageFont.truetype(font_path(), size)


def _draw_outline(draw: ImageDraw.ImageDraw, box: Box | Point, width: int) -> None:
    color = label_color(box.label)
    halo = max(1, width // 2)
    if isinstance(box, Point):
        for radius, fill in ((3 * width + halo, "white"), (3 * width, color)):
            draw.ellipse(
                (box.x - radius, box.y - radius, box.x + radius, box.y + radius), fill=fill
            )
        return
    outer = (box.x1 - halo, box.y1 - halo, max(box.x2, box.x1) + halo, max(box.y2, box.y1) + halo)
    draw.rectangle(outer, outline="white", width=width + 2 * halo)
    draw.rectangle(box.xyxy, outline=color, width=width)


def _draw_label(draw, box: Box | Point, width: int, font, size: tuple[int, int]) -> None:
    if not box.label:
        return
    text, color, pad = _printable(box.label), label_color(box.label), max(1, width)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    w, h = right - left + 2 * pad, bottom - top + 2 * pad
    x, y = (box.x, box.y) if isinstance(box, Point) else (box.x1, box.y1)
    x = max(0, min(x, size[0] - w))
    y = y - h if y >= h else min(y, size[1] - h)  # above the box, or inside it at the top edge
    draw.rectangle((x, y, x + w, y + h), fill=color)
    draw.text((x + pad - left, y + pad - top), text, font=font, fill=_text_color(color))


def _text_color(background: str) -> str:
    red, green, blue = (int(background[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _printable(label: str) -> str:
    label = "".join(c if c.isprintable() else " " for c in label)
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"
