"""Files of data sets: read with errors that name the place, written whole, pictures found."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlkit.datasets.scene import Scene
from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Box, Item, Size
from vlkit.media.image import picture_size

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def picture_folder(images: str | os.PathLike | None) -> Path | None:
    """The folder that was named, or None. Raises VlkitError where it is none."""
    if images is None or Path(images).is_dir():
        return images if images is None else Path(images)
    raise VlkitError(f"images={str(images)!r} is no folder; check the path")


def find_picture(name: str, places: Iterable[Path]) -> Path:
    """Where a picture that a data set names lies; the first place where it is nowhere."""
    paths = [place / part for place in places for part in dict.fromkeys((name, Path(name).name))]
    return next((path for path in paths if os.path.isfile(path)), paths[0])


def upright_size(path: Path, stated: tuple[Any, Any] | None = None) -> Size:
    """A picture's upright (width, height), from its file or, where it is missing, as stated.

    Raises:
        VlkitError: neither is there, or they contradict each other.
    """
    known = _as_size(path, stated) if stated and None not in stated else None
    if not os.path.isfile(path):
        if known is None:
            raise VlkitError(f"{path} is missing, and the data set states no size; pass images=")
        return known
    size = picture_size(path)
    if known in (None, size):
        return size
    turned = known == size[::-1]
    why = "the boxes were made before its EXIF rotation" if turned else "the boxes are of another"
    raise VlkitError(
        f"{path} is {size[0]}×{size[1]} upright, the data set says {known[0]}×{known[1]}: {why}; "  # type: ignore[index]
        "correct the boxes, or the size where only that is wrong"
    )


def _as_size(path: Path, stated: tuple[Any, Any]) -> Size:
    try:
        width, height = (int(float(side)) for side in stated)
        if width > 0 < height:
            return width, height
    except (TypeError, ValueError, OverflowError):
        pass
    raise VlkitError(f"{path}: the data set says its size is {stated!r}; expected (width, height)")


def boxes_of(items: Iterable[Item], format: str) -> list[Box]:
    """The boxes alone, with a warning where a format cannot hold the rest."""
    items = list(items)
    boxes = [item for item in items if isinstance(item, Box)]
    if len(boxes) < len(items):
        left_out = len(items) - len(boxes)
        warnings.warn(f"{left_out} points or quads left out: {format} has none", stacklevel=4)
    return boxes


def checked_box(label: Any, numbers: Any, where: str) -> Box:
    """A box of four finite numbers, its corners in order. Raises VlkitError naming the place."""
    try:
        x1, y1, x2, y2 = (float(n) for n in numbers)
        if abs(x1) + abs(y1) + abs(x2) + abs(y2) < 1e9:
            return Box(str(label), min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    except (TypeError, ValueError, OverflowError):
        pass
    raise VlkitError(f"{where}: {numbers!r:.80} are not the four numbers of a box")


def copy_pictures(scenes: list[Scene], boxes: list[list[Box]], path: Path, folder: str):
    """Copy each picture once; its new name, the scene and its boxes (all of one picture's)."""
    rows: dict[Path, tuple[Scene, list[Box]]] = {}
    for scene, row in zip(scenes, boxes, strict=True):
        rows.setdefault(scene.image.absolute(), (scene, []))[1].extend(row)
    taken: set[str] = set()
    for image, (scene, row) in rows.items():
        name, count = image.name, 1
        while Path(name).stem in taken:  # two folders may have a 1.jpg each
            count += 1
            name = f"{image.stem}_{count}{image.suffix}"
        taken.add(Path(name).stem)
        if not image.is_file():
            raise VlkitError(f"{image} is missing; this format keeps the pictures with the labels")
        (path / folder).mkdir(exist_ok=True)
        shutil.copyfile(image, path / folder / name)
        yield name, scene, row
