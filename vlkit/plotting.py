"""Boxes drawn on pictures, legible on any background and in any script."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files
from typing import Any

import PIL.Image
from PIL import ImageDraw, ImageFont

from vlkit.grounding import Box, Point, list_items, scale_item
from vlkit.media import load_image
from vlkit.video import Clip

# Okabe and Ito's colour-blind-safe palette without its black, https://jfly.uni-koeln.de/color/
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
EDGES = {"black": "#00000070", "white": "#FFFFFFB0"}  # of a bright and of a dark line
MAX_LABEL = 40  # characters
MIN_FONT_SIZE = 12  # pixels; smaller letters cannot be read

Area = tuple[float, float, float, float]  # x1, y1, x2, y2


def draw_boxes(
    image: Any,
    boxes: Box | Point | Iterable[Box | Point],
    *,
    labels: bool = True,
    line_width: int | None = None,
) -> PIL.Image.Image:
    """Draw boxes and points with their labels on a copy of the picture.

    Args:
        image: anything that ``vlkit.Image`` takes.
        boxes: in pixels of the upright original, as ``reply.boxes`` gives them.
        labels: write each label at its box; left out where the picture is too small for letters.
        line_width: in pixels; by default it follows the picture's size.

    Returns:
        A new upright RGB image of the original's size.
    """
    picture, items = load_image(image), list_items(boxes)
    short = min(picture.size)
    width = line_width or max(1, round(short / 140))
    colors = label_colors(item.label for item in items)
    draw = ImageDraw.Draw(picture, "RGBA")  # colours with an alpha blend in
    for item in sorted(items, key=_area, reverse=True):  # the small ones on top
        _draw_outline(draw, item, width, colors[item.label])
    font = load_font(max(MIN_FONT_SIZE, round(short / 22)))
    if labels and short >= 4 * MIN_FONT_SIZE:
        taken: list[Area] = []
        for item in items:
            _draw_label(draw, item, width, font, colors[item.label], taken)
    return picture


def plot_boxes(axes, image: Any, boxes: Box | Point | Iterable[Box | Point], *, labels=True):
    """Show a picture with its boxes on matplotlib axes; pixels are the data coordinates.

    Args:
        axes: a matplotlib ``Axes``.
        image, boxes, labels: as for :func:`draw_boxes`.

    Returns:
        The same axes, to go on with.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Rectangle

    picture, items = load_image(image), list_items(boxes)
    colors = label_colors(item.label for item in items)
    axes.imshow(picture, extent=(0, picture.width, picture.height, 0))
    axes.autoscale(False)
    axes.set_axis_off()
    for item in items:
        color = colors[item.label]
        corner = _bounds(item)[:2]
        if isinstance(item, Point):
            axes.plot(*corner, "o", color=color, markeredgecolor=_text_color(color))
        else:
            size = (item.x2 - item.x1, item.y2 - item.y1)
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=2))
        if labels and item.label:
            axes.text(
                *corner,
                _printable(item.label),
                font=FontProperties(fname=font_path(), size=9),
                color=_text_color(color),
                bbox={"boxstyle": "square,pad=0.15", "facecolor": color, "edgecolor": "none"},
                verticalalignment="bottom",
                parse_math=False,
            )
    return axes


def draw_frames(
    clip: Clip, boxes: Box | Point | Iterable[Box | Point] = (), *, columns: int = 4
) -> PIL.Image.Image:
    """A clip's sampled frames on one sheet, each with its time and the same boxes.

    Args:
        clip: from ``vlkit.Video(…).load()`` or ``reply.clips``.
        boxes: in pixels of the clip's upright original frames.
        columns: frames in a row.
    """
    columns = min(columns, len(clip.frames))
    width = 800 // columns
    scale = width / clip.info.size[0]
    height = max(1, round(clip.info.size[1] * scale))
    font, rows, gap = load_font(18), -(-len(clip.frames) // columns), 6
    sheet = PIL.Image.new("RGB", (columns * (width + gap), rows * (height + 24 + gap)), "white")
    items = [scale_item(item, scale) for item in list_items(boxes)]
    for index, (frame, time) in enumerate(zip(clip.pictures, clip.timestamps, strict=True)):
        x, y = index % columns * (width + gap), index // columns * (height + 24 + gap)
        sheet.paste(draw_boxes(frame.resize((width, height)), items), (x, y))
        ImageDraw.Draw(sheet).text((x + 2, y + height), f"{time:.2f} s", "#333333", font)
    return sheet


def label_colors(labels: Iterable[str]) -> dict[str, str]:
    """A palette colour for each label of a picture.

    A label prefers the same colour in every picture; different labels get different ones as far
    as the palette goes.
    """
    colors: dict[str, str] = {}
    for label in sorted(set(labels), key=str):
        first = zlib.crc32(str(label).encode("utf-8", "replace")) % len(PALETTE)
        order = PALETTE[first:] + PALETTE[:first]
        used = list(colors.values())
        colors[label] = min(order, key=used.count)
    return colors


def font_path() -> str:
    """The font that vlkit brings: Latin, kana and the Chinese characters of GB 2312."""
    return str(files("vlkit") / "fonts" / "NotoSansSC-subset.otf")


@lru_cache(maxsize=16)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """vlkit's font in a size in pixels."""
    return ImageFont.truetype(font_path(), size)


def _area(item: Box | Point) -> float:
    return item.area if isinstance(item, Box) else 0.0


def _draw_outline(draw: ImageDraw.ImageDraw, item: Box | Point, width: int, color: str) -> None:
    """The line with a thin edge on both sides that sets it off from any background."""
    edge, edge_color = max(1, width // 3), EDGES[_text_color(color)]
    if isinstance(item, Point):
        for radius, fill in ((3 * width + edge, edge_color), (3 * width, color)):
            draw.circle((item.x, item.y), radius, fill=fill)
        return
    (x1, x2), (y1, y2) = sorted((item.x1, item.x2)), sorted((item.y1, item.y2))
    x1, y1 = round(x1), round(y1)
    x2, y2 = max(x1, round(x2) - 1), max(y1, round(y2) - 1)  # Pillow draws these pixels too
    outer = (x1 - edge, y1 - edge, x2 + edge, y2 + edge)
    draw.rectangle(outer, outline=edge_color, width=width + 2 * edge)
    draw.rectangle((x1, y1, x2, y2), outline=color, width=width)


def _draw_label(draw, item: Box | Point, width: int, font, color: str, taken: list[Area]) -> None:
    size = draw.im.size
    if not item.label or not _overlap(_bounds(item), (0, 0, *size)):
        return
    pad = max(2, width)
    text = _fit(_printable(item.label), font, size[0] - 2 * pad)
    _, top, _, bottom = font.getbbox("Åg国")  # the same height for every label
    w, h = font.getlength(text) + 2 * pad, bottom - top + 2 * (pad // 2)
    areas = [_clamp(place, w, h, size) for place in _places(item, w, h)]
    area = min(areas, key=lambda area: sum(_overlap(area, other) for other in taken))
    taken.append(area)
    draw.rectangle((area[0], area[1], area[2] - 1, area[3] - 1), fill=color)
    draw.text((area[0] + pad, area[1] + pad // 2 - top), text, font=font, fill=_text_color(color))


def _bounds(item: Box | Point) -> Area:
    return item.xyxy if isinstance(item, Box) else (item.x, item.y, item.x, item.y)


def _places(item: Box | Point, w: float, h: float) -> list[tuple[float, float]]:
    """Where a label may begin, the best first: above the box, inside it, under it."""
    x1, y1, x2, y2 = _bounds(item)
    lefts = (x1, x2 - w)
    return [(x, y) for y in (y1 - h, y1, y2, y2 - h) for x in lefts]


def _clamp(place: tuple[float, float], w: float, h: float, size: tuple[int, int]) -> Area:
    x = round(max(0, min(place[0], size[0] - w)))
    y = round(max(0, min(place[1], size[1] - h)))
    return (x, y, x + round(w), y + round(h))


def _overlap(a: Area, b: Area) -> float:
    """The common area in square pixels, 1 at least where they touch at all."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(1.0, width * height) if width >= 0 and height >= 0 else 0.0


def _fit(text: str, font, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _text_color(background: str) -> str:
    """Black or white, whichever contrasts more by WCAG 2.2's relative luminance."""
    channels = [int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


def _printable(label: str) -> str:
    label = "".join(c if c.isprintable() else " " for c in str(label))
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"


def draw_patch_grid(image: Any, patch_size: int) -> PIL.Image.Image:
    """A copy of a resized picture with the model's patches in fine lines, its tokens in strong.

    Args:
        image: anything that ``vlkit.Image`` takes; its sides are multiples of two patches.
        patch_size: in pixels; a token covers two by two patches.
    """
    picture = load_image(image)
    draw = ImageDraw.Draw(picture, "RGBA")
    for axis, length in enumerate(picture.size):
        for place in range(0, length + 1, patch_size):
            at, strong = min(place, length - 1), place % (2 * patch_size) == 0
            ends = [(at, 0), (at, picture.height)] if axis == 0 else [(0, at), (picture.width, at)]
            draw.line(ends, fill="#E69F00C0" if strong else "#80808080")
    return picture
