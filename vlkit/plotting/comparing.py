"""``draw_comparison``, ``save_boxes``: truth against answer, PNG or SVG."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import PIL.Image
from PIL import ImageDraw

from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Items, list_items
from vlkit.media.image import load_image
from vlkit.plotting.draw import (
    add_legend,
    draw_boxes,
    draw_strokes,
    label_strokes,
    plot_strokes,
)
from vlkit.plotting.fonts import draw_text, fit_text, load_font, text_height
from vlkit.plotting.labels import (
    Stroke,
    area_of,
    font_for,
    line_width_for,
)

TRUTH, ANSWER = "#0072B2", "#D55E00"  # the two of the palette that are easiest to tell apart


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
        strokes = label_strokes(boxes) if truth is None else _strokes(boxes, truth)
        _save_svg(path, load_image(image), strokes, labels)
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


def _save_svg(path: Path, picture: PIL.Image.Image, strokes: list[Stroke], labels: bool) -> None:
    """One unit of the file is one pixel of the picture."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    width, height = picture.size
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    font = font_for(picture.size)
    strokes = sorted(strokes, key=lambda stroke: area_of(stroke[0]), reverse=True)
    plot_strokes(  # the small ones on top
        figure.add_axes((0, 0, 1, 1)), picture, strokes, labels=labels and font is not None,
        line_width=line_width_for(picture.size), font_size=font.size if font else 1,
    )  # fmt: skip
    with rc_context({"svg.hashsalt": "vlkit", "svg.fonttype": "none"}):  # text stays text
        figure.savefig(path, format="svg", metadata={"Date": None})


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
