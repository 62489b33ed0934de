"""Boxes, points, quads and tracks drawn on pictures, legible on any background and script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import PIL.Image
from PIL import ImageDraw

from vlkit.errors import VlkitError
from vlkit.grounding import Box, Item, Items, Point, list_items, scale_item
from vlkit.labels import (
    PALETTE,
    Stroke,
    area_of,
    bounds_of,
    font_for,
    font_path,
    label_colors,
    line_width_for,
    load_font,
    place_labels,
    printable,
    text_color,
    text_height,
)
from vlkit.media import load_image
from vlkit.video import Clip

__all__ = ["PALETTE", "draw_boxes", "draw_frames", "draw_patch_grid", "label_colors", "load_font"]
EDGES = {"black": "#00000070", "white": "#FFFFFFB0"}  # of a bright and of a dark line


def draw_boxes(
    image: Any,
    boxes: Items,
    *,
    labels: bool = True,
    line_width: int | None = None,
    legend: bool = False,
) -> PIL.Image.Image:
    """Draw boxes, points and quads with their labels on a copy of the picture.

    Args:
        image: anything that ``vlkit.Image`` takes.
        boxes: in pixels of the upright original, as ``reply.boxes`` gives them.
        labels: write each label at its box; left out where the picture is too small for letters.
        line_width: in pixels, 1 or more; by default it follows the picture's size.
        legend: list the labels with their colours and counts in a strip under the picture, as
            many as go into a strip of the picture's height.

    Returns:
        A new upright RGB image of the original's size, higher by the legend.
    """
    picture, items = load_image(image), list_items(boxes)
    colors = label_colors(item.label for item in items)
    strokes = [(item, colors[item.label], False) for item in items]
    draw_strokes(picture, strokes, labels=labels, line_width=line_width)
    if not legend:
        return picture
    counts = Counter(printable(item.label) for item in items)
    names = {printable(label): color for label, color in colors.items() if label}
    rows = [(color, f"{name} ×{counts[name]}", False) for name, color in names.items()]
    return add_legend(picture, rows)


def draw_strokes(
    picture: PIL.Image.Image,
    strokes: list[Stroke],
    *,
    labels: bool = True,
    line_width: int | None = None,
) -> None:
    """Draw on the picture itself: each item with its colour, and whether its line is dashed."""
    if line_width is not None and not (isinstance(line_width, int) and line_width > 0):
        raise VlkitError(f"line_width={line_width!r} must be a whole number of pixels, 1 or more")
    width = line_width or line_width_for(picture.size)
    draw = ImageDraw.Draw(picture, "RGBA")  # colours with an alpha blend in
    for item, color, dashed in sorted(strokes, key=lambda s: area_of(s[0]), reverse=True):
        _draw_outline(draw, item, width, color, dashed)  # the small ones on top
    font, pad = font_for(picture.size), max(2, width)
    if labels and font:
        top, _ = text_height(font)
        for color, text, (x1, y1, x2, y2) in place_labels(strokes, picture.size, font, pad):
            draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=color)
            draw.text((x1 + pad, y1 + pad // 2 - top), text, font=font, fill=text_color(color))


def add_legend(picture: PIL.Image.Image, rows: list[tuple[str, str, bool]]) -> PIL.Image.Image:
    """The picture on a sheet with a strip under it: colour, text and whether dashed, in lines."""
    font = font_for(picture.size) or load_font(12)
    top, height = text_height(font)
    line, gap = round(height * 1.5), round(height * 0.7)
    places, x, y = [], gap, picture.height + gap
    for _, text, _ in rows:
        w = 2 * height + gap + font.getlength(text)
        if x > gap and x + w > picture.width:
            x, y = gap, y + line
        places.append((x, y))
        x += round(w) + 2 * gap
    shown = [place for place in places if place[1] + 2 * line <= 2 * picture.height] or places[:1]
    if left := len(places) - len(shown):
        y = shown[-1][1] + line
    sheet = PIL.Image.new("RGB", (picture.width, y + line if rows else picture.height), "white")
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    if left:
        draw.text((gap, y - top), f"and {left} more", "black", font)
    for (color, text, dashed), (x, y) in zip(rows, shown, strict=False):
        middle, end = y + height / 2, x + 2 * height
        _draw_path(draw, [(x, middle), (end, middle)], max(3, round(height / 4)), color, dashed)
        draw.text((end + gap / 2, y - top), text, "black", font)
    return sheet


def plot_boxes(axes, image: Any, boxes: Items, *, labels: bool = True, legend: bool = False):
    """Show a picture with its boxes on matplotlib axes; pixels are the data coordinates.

    Args:
        axes: a matplotlib ``Axes``.
        image, boxes, labels: as for :func:`draw_boxes`.
        legend: list the labels beside the axes.

    Returns:
        The same axes, to go on with.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Patch, Polygon, Rectangle

    picture, items = load_image(image), list_items(boxes)
    colors = label_colors(item.label for item in items)
    axes.imshow(picture, extent=(0, picture.width, picture.height, 0))
    axes.autoscale(False)
    axes.set_axis_off()
    font = FontProperties(fname=font_path(), size=9)
    for item in items:
        color = colors[item.label]
        line: dict[str, Any] = {"fill": False, "edgecolor": color, "linewidth": 2}
        corner = bounds_of(item)[:2]
        if isinstance(item, Point):
            axes.plot(*corner, "o", color=color, markeredgecolor=text_color(color))
        elif isinstance(item, Box):
            size = (item.x2 - item.x1, item.y2 - item.y1)
            axes.add_patch(Rectangle(corner, *size, **line))
        else:
            axes.add_patch(Polygon(item.corners, **line))
        if labels and item.label:
            axes.text(
                *corner,
                printable(item.label),
                font=font,
                color=text_color(color),
                bbox={"boxstyle": "square,pad=0.15", "facecolor": color, "edgecolor": "none"},
                verticalalignment="bottom",
                parse_math=False,
            )
    if legend:
        names = [Patch(color=c, label=printable(n).replace("$", r"\$")) for n, c in colors.items()]
        axes.legend(handles=names, prop=font, loc="upper left", bbox_to_anchor=(1.01, 1))
    return axes


def draw_frames(
    clip: Clip, boxes: Items | Sequence[Sequence[Item]] = (), *, columns: int = 4
) -> PIL.Image.Image:
    """A clip's sampled frames on one sheet, each with its time and its boxes.

    Args:
        clip: from ``vlkit.Video(…).load()`` or ``reply.clips``.
        boxes: in pixels of the clip's upright original frames: the same for every frame, or one
            list for each. Then those of one label are a track, and a line shows the way that its
            middle has come.
        columns: frames in a row.

    Raises:
        VlkitError: lists for another number of frames than the clip has.
    """
    columns = min(columns, len(clip.frames))
    width = 800 // columns
    scale = width / clip.info.size[0]
    height = max(1, round(clip.info.size[1] * scale))
    font, rows, gap = load_font(18), -(-len(clip.frames) // columns), 6
    sheet = PIL.Image.new("RGB", (columns * (width + gap), rows * (height + 24 + gap)), "white")
    tracks = [[scale_item(i, scale) for i in each] for each in _per_frame(boxes, len(clip.frames))]
    for index, (frame, time) in enumerate(zip(clip.pictures, clip.timestamps, strict=True)):
        x, y = index % columns * (width + gap), index // columns * (height + 24 + gap)
        drawn = draw_boxes(frame.resize((width, height)), tracks[index])
        if _are_tracks(boxes):
            _draw_trails(drawn, tracks[: index + 1])
        sheet.paste(drawn, (x, y))
        ImageDraw.Draw(sheet).text((x + 2, y + height), f"{time:.2f} s", "#333333", font)
    return sheet


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


# --- tracks --------------------------------------------------------------------------------------


def _are_tracks(boxes: Any) -> bool:
    return isinstance(boxes, list | tuple) and any(isinstance(b, list | tuple) for b in boxes)


def _per_frame(boxes: Any, count: int) -> list[list[Item]]:
    if not _are_tracks(boxes):
        return [list_items(boxes)] * count
    if len(boxes) != count:
        raise VlkitError(f"{len(boxes)} lists of boxes for {count} frames; give one for each frame")
    return [list_items(each) for each in boxes]


def _draw_trails(picture: PIL.Image.Image, tracks: list[list[Item]]) -> None:
    colors = label_colors(item.label for item in tracks[-1])
    width, draw = line_width_for(picture.size), ImageDraw.Draw(picture, "RGBA")
    for label, color in colors.items():
        middles = []
        for items in tracks:
            own = [bounds_of(item) for item in items if item.label == label]
            if len(own) == 1:  # of several alike nobody knows which went where
                middles.append(((own[0][0] + own[0][2]) / 2, (own[0][1] + own[0][3]) / 2))
        if len(middles) > 1:
            _draw_path(draw, middles, width, color, False)
        for middle in middles:
            draw.circle(middle, 1.5 * width, fill=color)


# --- lines ---------------------------------------------------------------------------------------


def _draw_outline(draw: ImageDraw.ImageDraw, item: Item, width: int, color: str, dashed: bool):
    """The line with a thin edge on both sides that sets it off from any background."""
    edge, edge_color = max(1, width // 3), EDGES[text_color(color)]
    if isinstance(item, Point):
        for radius, fill in ((3 * width + edge, edge_color), (3 * width, color)):
            draw.circle((item.x, item.y), radius, fill=fill)
        return
    if isinstance(item, Box):
        x1, y1, x2, y2 = _drawn_pixels(item)
        outer = (x1 - edge, y1 - edge, x2 + edge, y2 + edge)
        draw.rectangle(outer, outline=edge_color, width=width + 2 * edge)
        if not dashed:
            draw.rectangle((x1, y1, x2, y2), outline=color, width=width)
            return
        a, b = width / 2 - 0.5, width // 2  # the line's middle: it goes inwards
        x1, y1, x2, y2 = x1 + a, y1 + a, x2 - b, y2 - b
        corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    else:
        corners = item.corners
        _draw_path(draw, [*corners, corners[0]], width + 2 * edge, edge_color, False)
    _draw_path(draw, [*corners, corners[0]], width, color, dashed)


def _drawn_pixels(box: Box) -> tuple[float, float, float, float]:
    x1, y1 = round(box.x1), round(box.y1)
    return x1, y1, max(x1, round(box.x2) - 1), max(y1, round(box.y2) - 1)  # Pillow draws these too


def _draw_path(draw, points: list[tuple[float, float]], width: int, color: str, dashed: bool):
    if not dashed:
        draw.line(points, fill=color, width=width, joint="curve")
        return
    for (x1, y1), (x2, y2) in pairwise(points):
        length = max(abs(x2 - x1), abs(y2 - y1))
        steps = round(length / (4 * width)) | 1  # odd: a dash at either end
        for step in range(0, steps, 2):
            a, b = step / steps, min(1, (step + 1) / steps)
            ends = [(x1 + (x2 - x1) * t, y1 + (y2 - y1) * t) for t in (a, b)]
            draw.line(ends, fill=color, width=width)
