"""``draw_comparison``, ``save_boxes``: truth against answer, PNG or SVG."""

import os
from pathlib import Path
from typing import Any

import PIL.Image

from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Items, list_items
from vlkit.media.image import load_image
from vlkit.plotting.draw import add_legend, draw_boxes, draw_strokes, label_strokes, plot_strokes
from vlkit.plotting.labels import Stroke, area_of, font_for, line_width_for

TRUTH, ANSWER = "#0072B2", "#D55E00"  # the two of the palette that are easiest to tell apart


def draw_comparison(
    image: Any,
    predicted: Items,
    truth: Items,
    *,
    labels: bool = True,
    legend: bool = True,
    names: tuple[str, str] = ("answer", "truth"),
) -> PIL.Image.Image:
    """The true boxes in dashed blue and the answer's in solid orange-red, on a copy.

    Args:
        image: anything that ``vlkit.Image`` takes.
        predicted, truth: in pixels of the upright original.
        labels: write each label at its box.
        legend: say which is which in a strip under the picture.
        names: of the two in the legend.

    Returns:
        A new upright RGB image, higher than the original by the legend.
    """
    picture = load_image(image)
    draw_strokes(picture, _strokes(predicted, truth), labels=labels)
    rows = [(TRUTH, names[1], 1, False), (ANSWER, names[0], 0, False)]
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
        VlkitError: an unknown file ending, or a folder that does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise VlkitError(f"{path}: the folder {path.parent} does not exist; create it")
    if path.suffix.lower() == ".svg":
        strokes = label_strokes(boxes) if truth is None else _strokes(boxes, truth)
        _save_svg(path, load_image(image), strokes, labels)
        return path
    if truth is None:
        drawn = draw_boxes(image, boxes, labels=labels)
    else:
        drawn = draw_comparison(image, boxes, truth, labels=labels)
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


def _strokes(predicted: Items, truth: Items) -> list[Stroke]:
    return [(item, ANSWER, 0) for item in list_items(predicted)] + [
        (item, TRUTH, 1) for item in list_items(truth)
    ]
