"""Boxes, points, quads and tracks drawn on pictures, legible on any background and script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import PIL.Image
from PIL import ImageDraw

from vlkit.errors import VlkitError
from vlkit.grounding import Box, Item, Items, Point, list_items, scale_item
from vlkit.labels import (
    PALETTE,
    PATTERNS,
    bounds_of,
    label_colors,
    label_styles,
    line_width_for,
    printable,
    text_color,
)
from vlkit.legends import add_legend
from vlkit.lettering import font_families, load_font
from vlkit.media import load_image
from vlkit.strokes import draw_mark, draw_path, draw_strokes
from vlkit.video import Clip

__all__ = [
    "PALETTE", "add_legend", "draw_boxes", "draw_frames", "draw_patch_grid", "draw_strokes",
    "label_colors", "load_font",
]  # fmt: skip
_COLUMNS = 3  # of a legend
_MARKERS = "os^D"  # of the patterns, for matplotlib


def draw_boxes(
    image: Any,
    boxes: Items,
    *,
    labels: bool = True,
    line_width: int | None = None,
    legend: bool = False,
) -> PIL.Image.Image:
    """Draw boxes, points and quads with their labels on a copy of the picture.

    Labels differ in colour, from the eighth on also in their lines' pattern and points' shape.

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
    styles = label_styles(item.label for item in items)
    strokes = [(item, *styles[item.label]) for item in items]
    draw_strokes(picture, strokes, labels=labels, line_width=line_width)
    if not legend:
        return picture
    counts = Counter(item.label for item in items)
    rows = {label: f"{printable(label)} ×{counts[label]}" for label in styles if label}
    points = {rows[label] for label in _only_points(items) if label}
    return add_legend(
        picture, [(styles[n][0], text, styles[n][1]) for n, text in rows.items()], points=points
    )


def plot_boxes(axes, image: Any, boxes: Items, *, labels: bool = True, legend: bool = False):
    """Show a picture with its boxes on matplotlib axes; pixels are the data coordinates.

    Args:
        axes: a matplotlib ``Axes``.
        image, boxes, labels: as for :func:`draw_boxes`.
        legend: list the labels beside the axes, as many as go into three columns of their height.

    Returns:
        The same axes, to go on with.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Polygon, Rectangle

    picture, items = load_image(image), list_items(boxes)
    styles = label_styles(item.label for item in items)
    axes.imshow(picture, extent=(0, picture.width, picture.height, 0))
    axes.autoscale(False)
    axes.set_axis_off()
    font = FontProperties(family=font_families(map(printable, styles)), size=9)
    for item in items:
        color, pattern = styles[item.label]
        line: dict[str, Any] = {"fill": False, "edgecolor": color, "linewidth": 2}
        line |= {"linestyle": _line_style(pattern)}
        corner = bounds_of(item)[:2]
        if isinstance(item, Point):
            mark = _MARKERS[pattern]
            axes.plot(*corner, mark, color=color, markeredgecolor=text_color(color))
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
        _plot_legend(axes, styles, _only_points(items), font)
    return axes


def _plot_legend(axes, styles: dict[str, tuple[str, int]], points: set[str], font) -> None:
    from matplotlib.lines import Line2D

    axes.apply_aspect()
    room = axes.get_window_extent().height * 72 / axes.figure.dpi  # in points, as the letters are
    rows = max(1, int((room - font.get_size()) / (1.7 * font.get_size())))
    handles = []
    for label, (color, pattern) in styles.items():
        look: dict[str, Any] = {"linestyle": _line_style(pattern), "linewidth": 2}
        if label in points:
            look = {"marker": _MARKERS[pattern], "linestyle": ""}
        name = printable(label).replace("$", r"\$")
        handles.append(Line2D([], [], color=color, label=name, **look))
    if (left := len(handles) - _COLUMNS * rows) > 0:
        rest = Line2D([], [], linestyle="", label=f"and {left + 1} more")
        handles = [*handles[: -left - 1], rest]
    axes.legend(
        handles=handles, prop=font, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0,
        ncols=min(_COLUMNS, -(-len(handles) // rows)), handlelength=3,
    )  # fmt: skip


def _line_style(pattern: int) -> Any:
    return (0, PATTERNS[pattern]) if PATTERNS[pattern] else "-"


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


def _only_points(items: Sequence[Item]) -> set[str]:
    return {i.label for i in items} - {i.label for i in items if not isinstance(i, Point)}


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
    styles = label_styles(item.label for item in tracks[-1])
    width, draw = line_width_for(picture.size), ImageDraw.Draw(picture, "RGBA")
    for label, (color, pattern) in styles.items():
        middles = []
        for items in tracks:
            own = [bounds_of(item) for item in items if item.label == label]
            if len(own) == 1:  # of several alike nobody knows which went where
                middles.append(((own[0][0] + own[0][2]) / 2, (own[0][1] + own[0][3]) / 2))
        if len(middles) > 1:
            draw_path(draw, middles, width, color, 0)
        for middle in middles:
            draw_mark(draw, middle, 1.5 * width, color, pattern)
