"""One call from any data set's format, or any generation's convention, to any other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vlkit.datasets.formats.chats import pictures_of, rewrite_row
from vlkit.datasets.pictures import picture_folder
from vlkit.datasets.scenes import CHATS, check_format, detect_format, read_scenes, write_scenes
from vlkit.errors import VlkitError, check_whole
from vlkit.files import read_rows, relative, write_rows


@dataclass(frozen=True)
class Conversion:
    """What was converted: both formats, the number of rows (or pictures), of boxes and points."""

    source_format: str
    target_format: str
    rows: int
    items: int

    def __str__(self) -> str:
        way = f"{self.source_format} → {self.target_format}"
        return f"{way}: {self.rows:,} rows, {self.items:,} boxes and points"


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    to: str,
    source_format: str = "auto",
    images: str | os.PathLike | None = None,
    max_image_tokens: int | None = None,
) -> Conversion:
    """Convert a data set with boxes.

    Between two generations' conventions, or from and to ms-swift's, the conversations stay as they
    are and only the coordinates in them are rewritten, in questions as in answers.

    Args:
        source: a file or folder in one of the formats of :mod:`vlkit.datasets`.
        target: the file or folder to write; a file is replaced at once, a folder must be new.
        to: the target's format: ``coco``, ``yolo``, ``voc``, ``refcoco``, ``label-studio``,
            ``ms-swift``, or a family such as ``qwen2_5_vl``.
        source_format: the source's, where it cannot be found by the content.
        images: the folder with the pictures, where the source's paths do not lead to them.
        max_image_tokens: to which pictures are limited in training, or by the model that wrote the
            source; used for ``qwen2_5_vl``, whose coordinates are pixels of the resized picture.

    Raises:
        VlkitError: naming the row that is malformed or whose picture has another size; or
            ``images`` is not a folder.
    """
    check_whole("max_image_tokens", max_image_tokens, 1, optional=True)
    source, target = Path(source), Path(target)
    name = detect_format(source) if source_format == "auto" else check_format(source_format)
    if name in CHATS and check_format(to) in CHATS:
        folder = picture_folder(images) or source.parent
        rows, items = _rewrite_rows(source, target, name, to, folder, max_image_tokens)
        write_rows(target, rows)
        return Conversion(name, to, len(rows), items)
    limit = max_image_tokens
    scenes = read_scenes(source, format=name, images=images, max_image_tokens=limit)
    write_scenes(scenes, target, format=to, max_image_tokens=limit)
    return Conversion(name, to, len(scenes), sum(len(scene.items) for scene in scenes))


def _rewrite_rows(
    source: Path, target: Path, name: str, to: str, folder: Path, max_image_tokens: int | None
) -> tuple[list[dict], int]:
    """Rows with their coordinates and paths for the target, and how many boxes and points."""
    rows, items = [], 0
    for number, row in enumerate(read_rows(source), start=1):
        try:
            pictures, size = pictures_of(row, folder)
            new, count = rewrite_row(row, name, to, size, max_image_tokens)
        except VlkitError as error:
            raise VlkitError(f"{source}, row {number}: {error}") from None
        if pictures:
            key = "images" if "images" in row else "image"
            names = [relative(picture, target) for picture in pictures]
            new = new | {key: names[0] if isinstance(row[key], str) else names}
        rows.append(new)
        items += count
    return rows, items
