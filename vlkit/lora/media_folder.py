"""A folder with the media of training data, as any reader sees them rightly."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import PIL.Image

from vlkit.errors import MediaError
from vlkit.media import load_image
from vlkit.messages import read_media_item
from vlkit.sources import is_remote, local_path
from vlkit.video import Video

_ORIENTATION = 0x0112


class MediaFolder:
    """Media gathered in a folder; the same file or object is written once.

    Args:
        folder: made when the first one is added.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._names: dict[Any, str] = {}
        self._kept: list[Any] = []  # an id is one object's only while it lives

    def add(self, item: dict) -> str:
        """A content item's file as seen from the folder's parent; a URL stays what it is.

        Raises:
            MediaError: it cannot be read.
        """
        source = item[item["type"]]
        if is_remote(source):
            return source
        key = source if isinstance(source, str) else id(source)
        if key not in self._names:
            self._kept.append(source)
            self.folder.mkdir(exist_ok=True)
            media = read_media_item(item)
            path = self.folder / f"{len(self._names) + 1:06d}"
            is_clip = isinstance(media, Video)
            file = _write_clip(media, path) if is_clip else _write_picture(media, path)
            self._names[key] = f"{self.folder.name}/{file.name}"
        return self._names[key]


def _write_picture(image: Any, path: Path) -> Path:
    source = image.source
    if isinstance(source, str | os.PathLike) and not os.fspath(source).startswith("data:"):
        file = Path(local_path(source))
        if _reads_plainly(file):
            return Path(shutil.copyfile(file, path.with_suffix(file.suffix.lower())))
    path = path.with_suffix(".png")
    load_image(image).save(path)
    return path


def _reads_plainly(file: Path) -> bool:
    """Whether every reader sees this file as vlkit does: upright, opaque, 8-bit, one frame."""
    try:
        with PIL.Image.open(file) as picture:
            plain = picture.mode in ("RGB", "L") and getattr(picture, "n_frames", 1) == 1
            turned = picture.getexif().get(_ORIENTATION, 1) != 1
            return plain and not turned and "transparency" not in picture.info
    except (OSError, SyntaxError):
        return False  # load_image says why


def _write_clip(video: Any, path: Path) -> Path:
    source = video.source
    if isinstance(source, str | os.PathLike):
        found = Path(local_path(source))
        if found.is_dir():
            return Path(shutil.copytree(found, path))
        try:
            return Path(shutil.copyfile(found, path.with_suffix(found.suffix.lower())))
        except OSError as error:
            raise MediaError(f"{found} cannot be copied: {error.strerror}") from None
    if isinstance(source, bytes):
        path = path.with_suffix(".mp4")
        path.write_bytes(source)
        return path
    path.mkdir()
    for number, frame in enumerate(source):
        load_image(frame).save(path / f"{number:05d}.png")
    return path
