"""A picture with what is in it; which format a file or folder has."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from vlkit.datasets.pictures import picture_folder
from vlkit.datasets.scene import Scene
from vlkit.errors import VlkitError
from vlkit.files import first_json, read_text, whole_folder
from vlkit.grounding.formats import FORMATS

_HOME = {
    "coco": "coco",
    "label-studio": "label_studio",
    "refcoco": "coco",
    "samples": "samples",
    "yolo": "yolo",
    "voc": "voc",
}


CHATS = (*FORMATS, "ms-swift")


_FOLDERS = ("yolo", "voc")
NAMES = (*_HOME, *CHATS)


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
        format: a name of the table above; ``auto`` tells it from the content.
        images: the folder with the pictures, where it is not the data set's own.
        max_image_tokens: to which a family that writes pixels of the resized picture was limited.

    Raises:
        VlkitError: what is malformed, or a picture whose size the data set states wrongly, as
            where boxes were drawn on a picture that its EXIF orientation turns.
    """
    path = Path(path)
    name = detect_format(path) if format == "auto" else check_format(format)
    folder = picture_folder(images)
    if name in CHATS:
        from vlkit.datasets.formats.chats import read_chats

        return read_chats(path, name, folder, max_image_tokens)
    return _functions(name)[0](path, folder)


def write_scenes(
    scenes: Iterable[Scene],
    path: str | os.PathLike,
    *,
    format: str,
    max_image_tokens: int | None = None,
) -> None:
    """Write a data set, whole or not at all.

    ``yolo`` and ``voc`` copy the pictures into their folder, the others name them where they are.

    Args:
        scenes: what to write.
        path: the file or folder; a folder must be new or empty.
        format: a name of the table above.
        max_image_tokens: to which a family that writes pixels of the resized picture is limited.

    Raises:
        VlkitError: what the format cannot hold.
    """
    name = check_format(format)
    if name == "samples":
        raise VlkitError("samples is read only; write another format")
    if name in CHATS:
        from vlkit.datasets.formats.chats import write_chats

        write_chats(list(scenes), Path(path), name, max_image_tokens)
    elif name in _FOLDERS:
        with whole_folder(Path(path)) as folder:
            _functions(name)[1](list(scenes), folder)
    else:
        _functions(name)[1](list(scenes), Path(path))


def check_format(name: str) -> str:
    """The name itself. Raises VlkitError for an unknown one."""
    if name not in NAMES:
        raise VlkitError(f"format {name!r} is unknown; formats = {list(NAMES)}")
    return name


def detect_format(path: Path) -> str:
    """The format of a file or folder.

    Raises:
        VlkitError: it is missing, or cannot be told.
    """
    if not path.exists():
        raise VlkitError(f"{path} does not exist; name a data set's file or folder")
    if path.is_dir():
        known = {"samples": "samples.json", "voc": "**/*.xml", "yolo": "labels/**/*.txt"}
        for name, pattern in known.items():
            if next(path.glob(pattern), None):
                return name
        raise VlkitError(f"{path} holds no Annotations/*.xml and no labels/*.txt; pass its format")
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
        f"the format of {path} cannot be told from its content; pass source_format (in the shell "
        f"--from), of {NAMES}"
    )


def _detect_family(path: Path) -> str:
    text = read_text(path)
    for name, form in FORMATS.items():
        if form.style == "tags" and form.box_tags[0] in text:
            return name
    if "<bbox>" in text:
        return "ms-swift"
    known = [name for name, form in FORMATS.items() if form.style == "json"]
    raise VlkitError(
        f"{path} holds conversations whose coordinates may be of any family that writes JSON; "
        f"pass the one, of {known}"
    )


def _functions(name: str) -> tuple[Any, Any]:
    module = import_module(f"vlkit.datasets.formats.{_HOME[name]}")
    name = name.replace("-", "_")
    return getattr(module, f"read_{name}"), getattr(module, f"write_{name}", None)
