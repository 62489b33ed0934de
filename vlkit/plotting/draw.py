"""``draw_boxes``, ``plot_boxes``, ``draw_frames``: boxes, tracks, legends."""

from collections import Counter
from collections.abc import Sequence
from itertools import cycle, pairwise
from typing import Any

import PIL.Image
from PIL import ImageDraw

from vlkit.errors import VlkitError, check_whole
from vlkit.grounding.boxes import Box, Item, Items, Point, list_items, scale_item
from vlkit.media.image import load_image
from vlkit.media.video import Clip
from vlkit.plotting import fonts
from vlkit.plotting.labels import (
    PATTERNS,
    SHAPES,
    Stroke,
    area_of,
    bounds_of,
    font_for,
    label_styles,
    line_width_for,
    place_labels,
    printable,
    text_color,
)

EDGES = {"black": "#00000070", "white": "#FFFFFFB0"}  # of a bright and of a dark line


def draw_strokes(
    picture: PIL.Image.Image,
    strokes: Sequence[Stroke],
    *,
    labels: bool = True,
    line_width: int | None = None,
) -> None:
    """Draw items on the picture itself, in place."""
    check_whole("line_width", line_width, 1, optional=True)
    width = line_width or line_width_for(picture.size)
    draw = ImageDraw.Draw(picture, "RGBA")  # colours with an alpha blend in
    for item, color, pattern in sorted(strokes, key=lambda s: area_of(s[0]), reverse=True):
        _draw_outline(draw, item, width, color, pattern)  # the small ones on top
    font, pad = font_for(picture.size), max(2, width)
    if labels and font:
        top, _ = fonts.text_height(font)
        for color, text, (x1, y1, x2, y2) in place_labels(strokes, picture.size, font, pad):
            draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=color)
            fonts.draw_text(draw, (x1 + pad, y1 + pad // 2 - top), text, text_color(color), font)


def label_strokes(boxes: Items) -> list[Stroke]:
    """Each item in the colour and pattern of its label."""
    items = list_items(boxes)
    styles = label_styles(item.label for item in items)
    return [(item, *styles[item.label]) for item in items]


def draw_mark(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], radius: float, color: str, pattern: int
) -> None:
    """A point: a disc, or the shape that belongs to its pattern."""
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
    """A line from point to point; each segment of a dashed line begins and ends with a dash."""
    if not (dashes := PATTERNS[pattern]):
        draw.line(points, fill=color, width=width, joint="curve")
        return
    for (x1, y1), (x2, y2) in pairwise(points):
        length = max(abs(x2 - x1), abs(y2 - y1)) / max(2, width)
        for start, end in _dash_spans(dashes, length):
            ends = [(x1 + (x2 - x1) * t, y1 + (y2 - y1) * t) for t in (start, end)]
            draw.line(ends, fill=color, width=width)


def _dash_spans(dashes: tuple[float, ...], length: float) -> list[tuple[float, float]]:
    """(start, end) of each dash along a line, as shares of its length."""
    repeats = max(1, round((length - dashes[0]) / sum(dashes)))
    whole = repeats * sum(dashes) + dashes[0]  # it ends with a dash
    spans, start = [], 0.0
    for is_dash, piece in zip(cycle((True, False)), [*dashes * repeats, dashes[0]], strict=False):
        if is_dash:
            spans.append((start / whole, min(1.0, (start + piece) / whole)))
        start += piece
    return spans


def _draw_outline(draw: ImageDraw.ImageDraw, item: Item, width: int, color: str, pattern: int):
    """The line, with a thin edge on both sides so that it shows on any background."""
    edge, edge_color = max(1, width // 3), EDGES[text_color(color)]
    if isinstance(item, Point):
        for radius, fill in ((3 * width + edge, edge_color), (3 * width, color)):
            draw_mark(draw, (item.x, item.y), radius, fill, pattern)
        return
    if isinstance(item, Box):
        x1, y1 = round(item.x1), round(item.y1)  # Pillow includes the last pixel
        x2, y2 = max(x1, round(item.x2) - 1), max(y1, round(item.y2) - 1)
        outer = (x1 - edge, y1 - edge, x2 + edge, y2 + edge)
        draw.rectangle(outer, outline=edge_color, width=width + 2 * edge)
        if not pattern:
            draw.rectangle((x1, y1, x2, y2), outline=color, width=width)
            return
        low, high = width / 2 - 0.5, width // 2  # to the line's middle: it is drawn inwards
        left, top, right, bottom = x1 + low, y1 + low, x2 - high, y2 - high
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    else:
        corners = item.corners
        draw_path(draw, [*corners, corners[0]], width + 2 * edge, edge_color, 0)
    draw_path(draw, [*corners, corners[0]], width, color, pattern)


LegendRow = tuple[str, str, int, bool]  # colour, text, number of the pattern, for points or lines


def add_legend(picture: PIL.Image.Image, rows: Sequence[LegendRow]) -> PIL.Image.Image:
    """The picture with a legend under it, at most as high as the picture, but at least a line.

    Args:
        picture: what the legend is for.
        rows: its entries.
    """
    font = font_for(picture.size) or fonts.load_font(12)
    top, height = fonts.text_height(font)
    line, gap = round(height * 1.5), round(height * 0.7)
    mark = 2 * height + gap  # the piece of line before the text
    lines: list[list[tuple[float, str, LegendRow]]] = [[]]  # (x, short text, entry)
    x: float = gap
    for row in rows:
        text = fonts.fit_text(row[1], font, picture.width - mark - 2 * gap)
        width = mark + fonts.text_width(text, font)
        if lines[-1] and x + width > picture.width:
            lines.append([])
            x = gap
        lines[-1].append((x, text, row))
        x += round(width) + 2 * gap
    most = max(1, (picture.height - gap) // line)
    shown = lines if len(lines) <= most else lines[: max(1, most - 1)]
    left = len(rows) - sum(map(len, shown))
    high = picture.height + (gap + line * (len(shown) + (left > 0)) if rows else 0)
    sheet = PIL.Image.new("RGB", (picture.width, high), "white")
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    if left:
        more = fonts.fit_text(f"and {left} more", font, picture.width - 2 * gap)
        fonts.draw_text(draw, (gap, high - line - top), more, "black", font)
    for number, entries in enumerate(shown):
        y = picture.height + gap + line * number
        for x, short, (color, _, pattern, is_point) in entries:
            middle = y + height / 2
            if is_point:
                draw_mark(draw, (x + height, middle), height / 2, color, pattern)
            else:
                ends = [(x, middle), (x + 2 * height, middle)]
                draw_path(draw, ends, max(3, round(height / 4)), color, pattern)
            fonts.draw_text(draw, (x + mark - gap / 2, y - top), short, "black", font)
    return sheet


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
    draw_strokes(picture, label_strokes(items), labels=labels, line_width=line_width)
    if not legend:
        return picture
    counts, points = Counter(item.label for item in items), _only_points(items)
    rows = [
        (color, f"{printable(label)} ×{counts[label]}", pattern, label in points)
        for label, (color, pattern) in label_styles(counts).items()
        if label
    ]
    return add_legend(picture, rows)


def plot_boxes(axes, image: Any, boxes: Items, *, labels: bool = True, legend: bool = False):
    """Show a picture with its boxes on matplotlib axes; pixels are the data coordinates.

    Args:
        axes: a matplotlib ``Axes``.
        image, boxes, labels: as for :func:`draw_boxes`.
        legend: list the labels next to the axes, as many as go into three columns of their height.

    Returns:
        The same axes.
    """
    items = list_items(boxes)
    font = plot_strokes(axes, load_image(image), label_strokes(items), labels=labels)
    if legend:
        _plot_legend(axes, label_styles(item.label for item in items), _only_points(items), font)
    return axes


def plot_strokes(
    axes: Any,
    picture: PIL.Image.Image,
    strokes: Sequence[Stroke],
    *,
    labels: bool = True,
    line_width: float = 2,
    font_size: float = 9,
) -> Any:
    """Show a picture and its items on matplotlib axes; sizes are in points. Returns the font."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Polygon, Rectangle

    axes.imshow(picture, extent=(0, picture.width, picture.height, 0))
    axes.autoscale(False)
    axes.set_axis_off()
    families = fonts.font_families(printable(item.label) for item, _, _ in strokes)
    font = FontProperties(family=families, size=font_size)
    for item, color, pattern in strokes:
        line = {"edgecolor": color, "linewidth": line_width, "linestyle": _line_style(pattern)}
        corner = bounds_of(item)[:2]
        if isinstance(item, Point):
            look = {"markersize": 3 * line_width, "markeredgecolor": text_color(color)}
            axes.plot(*corner, _MARKERS[pattern], color=color, **look)
        elif isinstance(item, Box):
            size = (item.x2 - item.x1, item.y2 - item.y1)
            axes.add_patch(Rectangle(corner, *size, fill=False, **line))
        else:
            axes.add_patch(Polygon(item.corners, fill=False, **line))
        if labels and item.label:
            frame = {"boxstyle": "square,pad=0.15", "facecolor": color, "edgecolor": "none"}
            look = {"color": text_color(color), "verticalalignment": "bottom", "parse_math": False}
            axes.text(*corner, printable(item.label), font=font, bbox=frame, **look)
    return font


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
            list for each. With a list for each, the boxes of one label are a track, and a line
            shows the path of its middle so far.
        columns: frames in a row.

    Raises:
        VlkitError: lists for another number of frames than the clip has.
    """
    per_frame: Any = boxes
    count = len(clip.frames)
    are_tracks = isinstance(boxes, list | tuple) and any(isinstance(b, list | tuple) for b in boxes)
    if not are_tracks:
        per_frame = [list_items(per_frame)] * count
    elif len(per_frame) != count:
        text = f"{len(per_frame)} lists of boxes for {count} frames; give one for each frame"
        raise VlkitError(text)
    columns = min(columns, count)
    scale = 800 // columns / clip.info.size[0]
    size = (800 // columns, max(1, round(clip.info.size[1] * scale)))
    tracks = [[scale_item(item, scale) for item in list_items(items)] for items in per_frame]
    frames = []
    for index, (frame, time) in enumerate(zip(clip.pictures, clip.timestamps, strict=True)):
        drawn = draw_boxes(frame.resize(size), tracks[index])
        if are_tracks:
            _draw_trails(drawn, tracks[: index + 1])
        frames.append((drawn, f"{time:.2f} s"))
    return stack_captioned(frames, columns=columns)


def stack_captioned(
    pictures: list[tuple[PIL.Image.Image, str]], *, columns: int = 2
) -> PIL.Image.Image:
    """Pictures on one sheet, each under its caption."""
    font, gap = fonts.load_font(16), 8
    top, high = fonts.text_height(font)
    width = max(picture.width for picture, _ in pictures)
    height = max(picture.height for picture, _ in pictures) + round(high) + 2 * gap
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = PIL.Image.new("RGB", (columns * (width + gap), rows * (height + gap)), "white")
    for index, (picture, caption) in enumerate(pictures):
        x, y = index % columns * (width + gap), index // columns * (height + gap)
        text = fonts.fit_text(caption, font, width)
        fonts.draw_text(ImageDraw.Draw(sheet), (x + 2, y + gap - top), text, "black", font)
        sheet.paste(picture, (x, y + round(high) + 2 * gap))
    return sheet


def draw_patch_grid(image: Any, patch_size: int) -> PIL.Image.Image:
    """A copy of a resized picture with the borders of patches (thin) and of tokens (strong).

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


def _draw_trails(picture: PIL.Image.Image, tracks: list[list[Item]]) -> None:
    """The path of each label's middle, from frame to frame."""
    styles = label_styles(item.label for item in tracks[-1])
    width, draw = line_width_for(picture.size), ImageDraw.Draw(picture, "RGBA")
    for label, (color, pattern) in styles.items():
        middles = []
        for items in tracks:
            areas = [bounds_of(item) for item in items if item.label == label]
            if len(areas) == 1:  # with two of one label it is not known which moved where
                x1, y1, x2, y2 = areas[0]
                middles.append(((x1 + x2) / 2, (y1 + y2) / 2))
        if len(middles) > 1:
            draw_path(draw, middles, width, color, 0)
        for middle in middles:
            draw_mark(draw, middle, 1.5 * width, color, pattern)
