"""Data sets of pictures with boxes: read and written in any format, which is found by content."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from vlkit.datasets.conversations import AMBIGUOUS, SWIFT, detect_convention, json_families
from vlkit.datasets.formats.chats import read_chats, write_chats
from vlkit.datasets.formats.coco import read_coco, read_refcoco, write_coco, write_refcoco
from vlkit.datasets.formats.label_studio import read_label_studio, write_label_studio
from vlkit.datasets.formats.samples import read_samples
from vlkit.datasets.formats.voc import read_voc, write_voc
from vlkit.datasets.formats.yolo import read_yolo, write_yolo
from vlkit.datasets.pictures import Scene, picture_folder
from vlkit.errors import VlkitError
from vlkit.files import first_json, read_text, whole_folder
from vlkit.grounding.formats import FORMATS


class _Format(NamedTuple):
    """How a data set in one format is read and written."""

    read: Callable[[Path, Path | None], list[Scene]]
    write: Callable[[list[Scene], Path], None] | None = None
    is_folder: bool = False


_FORMATS = {
    "coco": _Format(read_coco, write_coco),
    "label-studio": _Format(read_label_studio, write_label_studio),
    "refcoco": _Format(read_refcoco, write_refcoco),
    "samples": _Format(read_samples),
    "yolo": _Format(read_yolo, write_yolo, is_folder=True),
    "voc": _Format(read_voc, write_voc, is_folder=True),
}
CHATS = (*FORMATS, SWIFT)  # conversations, with their coordinates in one of these conventions
NAMES = (*_FORMATS, *CHATS)


def read_scenes(
    path: str | os.PathLike,
    *,
    format: str = "auto",
    images: str | os.PathLike | None = None,
    max_image_tokens: int | None = None,
) -> list[Scene]:
    """Read a data set.

    Args:
        path: the file or folder.
        format: a name in the table of :mod:`vlkit.datasets`; ``auto`` finds it by the content.
        images: the folder with the pictures, where the data set does not contain them.
        max_image_tokens: to which a family that writes pixels of the resized picture was limited.

    Raises:
        VlkitError: something is malformed, or a picture has another size than the data set
            states, for example because its boxes were drawn before its EXIF rotation.
    """
    path = Path(path)
    name = detect_format(path) if format == "auto" else check_format(format)
    folder = picture_folder(images)
    if name in CHATS:
        return read_chats(path, name, folder, max_image_tokens)
    return _FORMATS[name].read(path, folder)


def write_scenes(
    scenes: Iterable[Scene],
    path: str | os.PathLike,
    *,
    format: str,
    max_image_tokens: int | None = None,
) -> None:
    """Write a data set, whole or not at all.

    ``yolo`` and ``voc`` copy the pictures into their folder; the others refer to them.

    Args:
        scenes: what to write.
        path: the file or folder; a folder must be new or empty.
        format: a name in the table of :mod:`vlkit.datasets`.
        max_image_tokens: to which a family that writes pixels of the resized picture is limited.

    Raises:
        VlkitError: what the format cannot hold.
    """
    name, path, rows = check_format(format), Path(path), list(scenes)
    if name in CHATS:
        return write_chats(rows, path, name, max_image_tokens)
    _, write, is_folder = _FORMATS[name]
    if write is None:
        raise VlkitError(f"{name} can only be read; write another format")
    if not is_folder:
        return write(rows, path)
    with whole_folder(path) as folder:
        write(rows, folder)


def check_format(name: str) -> str:
    """The name itself. Raises VlkitError for an unknown one."""
    if name not in NAMES:
        raise VlkitError(f"format {name!r} is unknown; formats = {list(NAMES)}")
    return name


def detect_format(path: Path) -> str:
    """The format of a file or folder.

    Raises:
        VlkitError: it does not exist, or its format cannot be determined.
    """
    if not path.exists():
        raise VlkitError(f"{path} does not exist; name a data set's file or folder")
    if path.is_dir():
        known = {"samples": "samples.json", "voc": "**/*.xml", "yolo": "labels/**/*.txt"}
        for name, pattern in known.items():
            if next(path.glob(pattern), None):
                return name
        raise VlkitError(f"{path} has no Annotations/*.xml and no labels/*.txt; pass its format")
    return _detect_rows(path)


def _detect_rows(path: Path) -> str:
    row = first_json(path)
    if isinstance(row, dict):
        if {"images", "annotations"} <= row.keys():
            return "coco"
        for key, name in (("objects", "ms-swift"), ("sent", "refcoco"), ("data", "label-studio")):
            if key in row:
                return name
        if row.keys() & {"messages", "conversations"}:
            return _detect_family(path)
    raise VlkitError(
        f"cannot tell the format of {path} from its content; pass source_format (in the shell "
        f"--from), one of {NAMES}"
    )


def _detect_family(path: Path) -> str:
    name = detect_convention({}, [read_text(path)])
    if name and name != AMBIGUOUS:
        return name
    raise VlkitError(
        f"cannot tell which family wrote the coordinates in {path}; pass one of {json_families()}"
    )
