"""The figures of spaces.md, drawn from the samples' known boxes: ``python docs/figures.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import PIL.Image

import vlkit
from vlkit.models.families import published_rules
from vlkit.plotting import draw_comparison, stack_captioned
from vlkit.plotting.draw import draw_boxes, draw_patch_grid

FOLDER = Path(__file__).resolve().parent / "figures"


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for figure in (conventions, resizing, rotation):
        figure().quantize(128).save(folder / f"{figure.__name__}.png", optimize=True)


def conventions() -> PIL.Image.Image:
    """One answer of Qwen2.5-VL, in four readings."""
    large = vlkit.samples()["large"]
    truth, size = large.boxes[:5], (1600, 1200)
    sizes = {"family": "qwen2_5_vl", "image_size": size, "input_size": seen_size(1376)}
    text = vlkit.format_grounding(truth, **sizes)
    sheet = []
    for space in ("resized", "0-1000", "0-999", "original"):
        read = vlkit.parse_grounding(text, space=space, **sizes)
        drawn = draw_comparison(large.path, read, truth, labels=False, legend=False)
        sheet.append((drawn.resize((400, 300)), f"read as {space}"))
    return stack_captioned(sheet)


def resizing() -> PIL.Image.Image:
    """The original with a box, and what the model sees of it under a limit of 64 tokens."""
    large = vlkit.samples()["large"]
    (star, size) = large.boxes[0], seen_size(64)
    original = draw_boxes(large.path, [star]).resize((504, 378))
    small = vlkit.load_image(large.path).resize(size)
    x, y = size[0] / 1600, size[1] / 1200
    shrunk = vlkit.Box(star.label, star.x1 * x, star.y1 * y, star.x2 * x, star.y2 * y)
    grid = draw_patch_grid(draw_boxes(small, [shrunk], labels=False), 14)
    seen = grid.resize((504, 378), PIL.Image.Resampling.NEAREST)
    columns, rows = size[0] // 28, size[1] // 28
    captions = (
        f"1600×1200, star at ({star.x1:.0f}, {star.y1:.0f})",
        f"seen at {size[0]}×{size[1]}: {columns} × {rows} = {columns * rows} tokens",
    )
    return stack_captioned(list(zip((original, seen), captions, strict=True)))


def rotation() -> PIL.Image.Image:
    """A box on the upright picture, on the array that lost its EXIF note, and mixed up."""
    rotated = vlkit.samples()["rotated"]
    lying = PIL.Image.fromarray(numpy.asarray(PIL.Image.open(rotated.path)))
    star = rotated.boxes[0]
    height = lying.height  # turned a quarter: x of the upright is height - y of the lying
    turned = vlkit.Box(star.label, star.y1, height - star.x2, star.y2, height - star.x1)
    shown = [
        (draw_boxes(rotated.path, [star]), "upright, as you see it"),
        (draw_boxes(lying, [turned]), "as it is stored"),
        (draw_boxes(rotated.path, [turned]), "mixed up"),
    ]
    return stack_captioned(shown, columns=3)


def seen_size(tokens: int) -> tuple[int, int]:
    """(width, height) at which Qwen2.5-VL sees 1600×1200 pixels under a limit."""
    limit = vlkit.Image("", max_tokens=tokens)
    return published_rules("qwen2_5_vl").image_size((1600, 1200), limit)


if __name__ == "__main__":
    sys.exit(main())
