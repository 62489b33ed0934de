"""One call from any data set's format, or any generation's convention, to any other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vlkit.datasets.formats.chats import pictures_of, rewrite_row
from vlkit.datasets.pictures import picture_folder
from vlkit.datasets.scenes import CHATS, check_format, detect_format, read_scenes, write_scenes
from vlkit.errors import VlkitError
from vlkit.files import read_rows, relative, write_rows


@dataclass(frozen=True)
class Conversion:
    """What was converted: from which format, to which, rows or pictures, boxes and points."""

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
        source_format: the source's, where its content does not tell.
        images: the folder with the pictures, where the source does not lead to them.
        max_image_tokens: what the training or the model that wrote the source limits pictures to;
            it counts for ``qwen2_5_vl``, whose coordinates are pixels of the resized picture.

    Raises:
        VlkitError: naming the row that is malformed, or whose picture has another size; ``images``
            is no folder.
    """
    if max_image_tokens is not None and max_image_tokens < 1:
        raise VlkitError(f"max_image_tokens={max_image_tokens!r} must be 1 or more")
    source, target = Path(source), Path(target)
    known = detect_format(source) if source_format == "auto" else check_format(source_format)
    if known in CHATS and check_format(to) in CHATS:
        rows, items = _convert_chats(source, target, known, to, images, max_image_tokens)
        return Conversion(known, to, rows, items)
    limit = max_image_tokens
    scenes = read_scenes(source, format=known, images=images, max_image_tokens=limit)
    write_scenes(scenes, target, format=to, max_image_tokens=limit)
    return Conversion(known, to, len(scenes), sum(len(scene.items) for scene in scenes))


def _convert_chats(source: Path, target: Path, known: str, to: str, images, limit) -> tuple:
    folder = picture_folder(images) or source.parent
    rows, total = [], 0
    for number, row in enumerate(read_rows(source), start=1):
        try:
            pictures, size = pictures_of(row, folder)
            new, count = rewrite_row(row, known, to, size, limit)
        except VlkitError as error:
            raise VlkitError(f"{source}, row {number}: {error}") from None
        names = [relative(picture, target) for picture in pictures]
        key = "images" if "images" in row else "image"
        rows.append(
            new | ({key: names[0] if isinstance(row[key], str) else names} if names else {})
        )
        total += count
    write_rows(target, rows)
    return len(rows), total
