"""The strip under a picture that says what its colours and patterns stand for."""

from __future__ import annotations

from collections.abc import Container, Sequence

import PIL.Image
from PIL import ImageDraw

from vlkit.labels import font_for
from vlkit.lettering import draw_text, fit_text, load_font, text_height, text_width
from vlkit.strokes import draw_mark, draw_path


def add_legend(
    picture: PIL.Image.Image, rows: Sequence[tuple[str, str, int]], *, points: Container = ()
) -> PIL.Image.Image:
    """The picture on a sheet with a strip under it, as high as the picture or a single line.

    Args:
        picture: what the legend is for.
        rows: colour, text and the number of the pattern.
        points: the texts that stand for points, whose shape is shown.
    """
    font = font_for(picture.size) or load_font(12)
    top, height = text_height(font)
    line, gap = round(height * 1.5), round(height * 0.7)
    mark = 2 * height + gap  # the piece of line before the text
    texts = [fit_text(text, font, picture.width - mark - 2 * gap) for _, text, _ in rows]
    places = _flow([mark + text_width(text, font) for text in texts], picture.width, line, gap)
    shown, left = _first_lines(places, (picture.height - gap) // line, line)
    y = max((y for _, y in shown), default=-line) + line * (1 + (left > 0))
    high = round(picture.height + gap + y if rows else picture.height)
    sheet = PIL.Image.new("RGB", (picture.width, high), "white")
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    if left:
        more = fit_text(f"and {left} more", font, picture.width - 2 * gap)
        draw_text(draw, (gap, high - line - top), more, "black", font)
    for (color, text, pattern), short, (x, y) in zip(rows, texts, shown, strict=False):
        y += picture.height + gap
        ends, width = [(x, y + height / 2), (x + 2 * height, y + height / 2)], round(height / 4)
        if text in points:
            draw_mark(draw, (x + height, y + height / 2), height / 2, color, pattern)
        else:
            draw_path(draw, ends, max(3, width), color, pattern)
        draw_text(draw, (x + mark - gap / 2, y - top), short, "black", font)
    return sheet


def _flow(widths: list[float], room: int, line: int, gap: int) -> list[tuple[float, float]]:
    """Where things of these widths stand, one after the other in lines; the first at y 0."""
    places: list[tuple[float, float]] = []
    x, y = gap, 0
    for width in widths:
        if x > gap and x + width > room:
            x, y = gap, y + line
        places.append((x, y))
        x += round(width) + 2 * gap
    return places


def _first_lines(places: list, lines: int, line: int) -> tuple[list, int]:
    """What fits into so many lines, one at least, and how many do not, told in the last line."""
    shown = [place for place in places if place[1] < max(1, lines) * line]
    if len(shown) < len(places) and lines > 1:
        shown = [place for place in shown if place[1] < (lines - 1) * line]
        return shown, len(places) - len(shown)
    return shown, 0
