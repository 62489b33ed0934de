"""How boxes and labels look: colours, sizes, and where a label goes."""

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from vlkit.grounding.boxes import Box, Item, Point, Size
from vlkit.plotting.fonts import Font, fit_text, load_font, text_height, text_width

# Okabe and Ito's colour-blind-safe palette without its black, https://jfly.uni-koeln.de/color/
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")


# of lines, in line widths: on, off, on, off …
PATTERNS: tuple[tuple[float, ...], ...] = ((), (4, 4), (1, 1.5), (5, 1.5, 1, 1.5))
SHAPES = ((0, 0), (4, 0), (3, 0), (4, 45))  # of points: sides (0 is round) and degrees
MAX_LABEL = 40  # characters
MIN_FONT_SIZE = 12  # pixels; smaller letters cannot be read


Area = tuple[float, float, float, float]  # x1, y1, x2, y2


Stroke = tuple[Item, str, int]  # an item, its colour, the number of its pattern


def label_styles(labels: Iterable[str]) -> dict[str, tuple[str, int]]:
    """A palette colour and the number of a pattern for each label of a picture.

    A label has the same colour in every picture where that is free. Up to 7 labels differ in
    colour, up to 28 in colour or pattern.
    """
    styles: dict[str, tuple[str, int]] = {}
    used: Counter[str] = Counter()
    for label in sorted(set(labels)):
        first = zlib.crc32(label.encode("utf-8", "replace")) % len(PALETTE)
        color = min(PALETTE[first:] + PALETTE[:first], key=used.__getitem__)
        styles[label] = color, used[color] % len(PATTERNS)
        used[color] += 1
    return styles


def label_colors(labels: Iterable[str]) -> dict[str, str]:
    """Only the colours of :func:`label_styles`."""
    return {label: color for label, (color, _) in label_styles(labels).items()}


def text_color(background: str) -> str:
    """Black or white, whichever contrasts more by WCAG 2.2's relative luminance."""
    channels = [int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


def printable(label: str) -> str:
    """The label on one line, at most ``MAX_LABEL`` characters."""
    letters = (c for c in label if not "\ufe00" <= c <= "\ufe0f")  # variation selectors
    label = "".join(c if c.isprintable() else " " for c in letters)
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"


def font_for(size: Size) -> Font | None:
    """The font for a picture of this size; None where letters would fill it."""
    short = min(size)
    return load_font(max(MIN_FONT_SIZE, round(short / 22))) if short >= 4 * MIN_FONT_SIZE else None


def line_width_for(size: Size) -> int:
    """Pixels: thin on small pictures."""
    return max(1, round(min(size) / 140))


def bounds_of(item: Item) -> Area:
    """The box around a box, point or quad."""
    if isinstance(item, Point):
        return (item.x, item.y, item.x, item.y)
    return (item if isinstance(item, Box) else item.bounds).xyxy


def area_of(item: Item) -> float:
    """Square pixels of the box around it."""
    x1, y1, x2, y2 = bounds_of(item)
    return abs(x2 - x1) * abs(y2 - y1)


def place_labels(
    strokes: Sequence[Stroke], size: Size, font: Font, pad: int
) -> list[tuple[str, str, Area]]:
    """(colour, text, area) of the label of each item that is on the picture.

    A label is above its item, inside, below or next to it, or further away where many items are
    close together: at the first place where it covers least of the labels placed before.
    """
    placed: list[tuple[str, str, Area]] = []
    r = 2 * pad  # labels keep off points, which they would hide
    taken = [(i.x - r, i.y - r, i.x + r, i.y + r) for i, _, _ in strokes if isinstance(i, Point)]
    for item, color, _ in strokes:
        bounds = np.array([bounds_of(item)])
        if not item.label or not _overlaps(bounds, np.array([(0, 0, *size)])).any():
            continue
        text = fit_text(printable(item.label), font, size[0] - 2 * pad)
        w, h = text_width(text, font) + 2 * pad, text_height(font)[1] + 2 * (pad // 2)
        areas = [_clamp(place, w, h, size) for place in _places(bounds_of(item), w, h)]
        covered = _overlaps(np.array(areas), np.array(taken).reshape(-1, 4)).sum(axis=1)
        placed.append((color, text, areas[int(covered.argmin())]))  # the first of the best
        taken.append(placed[-1][2])
    return placed


def _places(area: Area, w: float, h: float) -> list[tuple[float, float]]:
    x1, y1, x2, y2 = area
    lefts = (x1, x2 - w, (x1 + x2 - w) / 2)
    near = [(x, y) for y in (y1 - h, y1, y2, y2 - h) for x in lefts]
    near += [(x, y) for y in (y1 - 1.6 * h, y2 + 0.6 * h) for x in lefts]
    sides = [(x, y) for y in (y1, y2 - h) for x in (x2, x1 - w)]
    far = [(x1 + dx, y1 + dy * h) for dy in (-2, 1, 2, -3, 3, 4, -4, 5) for dx in (0, -w, w)]
    return near + sides + far


def _clamp(place: tuple[float, float], w: float, h: float, size: Size) -> Area:
    x = round(max(0, min(place[0], size[0] - w)))
    y = round(max(0, min(place[1], size[1] - h)))
    return (x, y, x + round(w), y + round(h))


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The common areas of n and m boxes, (n, m), in square pixels; 1 at least where they touch."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - low
    return np.where((sides >= 0).all(axis=2), np.maximum(1.0, sides.prod(axis=2)), 0.0)
