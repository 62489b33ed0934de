"""A heat map over a picture, with its colour bar."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageDraw

from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Items, list_items, scale_item
from vlkit.media.image import load_image
from vlkit.plotting.draw import draw_strokes
from vlkit.plotting.fonts import fit_text, load_font, text_height

_SIDES = 480, 960  # fewest and most pixels of the longer side, so that letters have room


_BOX = "#FFFFFF"


def draw_heat(image: Any, values: np.ndarray, boxes: Items = ()) -> PIL.Image.Image:
    """The picture in grey under the cells of a heat map; a bar says what the colours mean.

    Args:
        image: anything that ``vlkit.Image`` takes.
        values: (rows, columns), not negative; each cell covers the same part of the picture.
        boxes: to draw over it in white, in pixels of the upright original.

    Returns:
        A new picture of 480 to 960 pixels, higher by the bar.
    """
    values = np.asarray(values, dtype=np.float32)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all() or values.min() < 0:
        raise VlkitError(f"values of shape {values.shape} must be (rows, columns), 0 or more")
    picture = load_image(image)
    longer = max(picture.size)
    scale = min(max(longer, _SIDES[0]), _SIDES[1]) / longer
    size = (round(picture.width * scale), round(picture.height * scale))
    most = float(values.max())
    shares = values / most if most else values
    base = picture.convert("L").convert("RGB").resize(size, PIL.Image.Resampling.LANCZOS)
    heat = PIL.Image.fromarray(_colors(shares)).resize(size, PIL.Image.Resampling.NEAREST)
    alpha = PIL.Image.fromarray(np.round(220 * np.sqrt(shares)).astype(np.uint8))
    base.paste(heat, mask=alpha.resize(size, PIL.Image.Resampling.NEAREST))
    draw_strokes(base, [(scale_item(item, scale), _BOX, 0) for item in list_items(boxes)])
    return _add_bar(base, f"{most:.2%} of all attention" if most else "no attention")


def _colors(shares: np.ndarray) -> np.ndarray:
    """(rows, columns, 3) uint8: the colours of matplotlib's inferno, which every eye can order."""
    import matplotlib

    return np.round(255 * matplotlib.colormaps["inferno"](shares)[..., :3]).astype(np.uint8)


def _add_bar(picture: PIL.Image.Image, most: str) -> PIL.Image.Image:
    font, gap = load_font(15), 8
    top, high = text_height(font)
    sheet = PIL.Image.new("RGB", (picture.width, picture.height + round(high) + 2 * gap), "white")
    sheet.paste(picture)
    draw, y = ImageDraw.Draw(sheet), picture.height + gap
    text = fit_text(f"{most} in the brightest cell", font, max(40, picture.width - 140))
    bar = PIL.Image.fromarray(_colors(np.linspace(0, 1, 90)[None])).resize((90, round(high)))
    draw.text((gap, y - top), "0", "black", font)
    sheet.paste(bar, (gap + 14, y))
    draw.text((gap + 112, y - top), text, "black", font)
    return sheet
