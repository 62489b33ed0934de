"""A run's pictures and clips: content hashes, thumbnails, copies."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image

from vlkit.batch.journal import hash_medium
from vlkit.bundled import bundled_path
from vlkit.errors import VlkitError, warn_user
from vlkit.files import relative, write_whole
from vlkit.media.image import describe_source, load_image, pictures_of, pixel_hash
from vlkit.media.sources import clean_url, is_url, local_path
from vlkit.plotting.draw import stack_captioned

THUMBNAILS, KEPT = "thumbnails", "media"
SIDE = 400  # pixels of a thumbnail
FRAMES = 4  # of a clip's thumbnail
_SAMPLES = "vlkit:"


def content_of(source: Any, picture: PIL.Image.Image | None = None) -> tuple[str, str]:
    """The identity of a picture's or clip's content.

    Args:
        source: from a message.
        picture: the upright picture, if it is loaded; it identifies a URL's content.

    Returns:
        What is hashed (``"file"``, ``"pixels"``, ``"frames"`` or ``"url"``), and its sha256 in hex;
        ``"unreadable"`` and "".
    """
    if picture is not None and not _is_file(source):
        return "pixels", pixel_hash(picture)
    medium = hash_medium(source)
    if isinstance(medium, str):
        return "file", medium
    kind = medium[0] if medium[0] in ("unreadable", "url", "pixels") else "frames"
    if kind in ("unreadable", "pixels"):
        return kind, medium[1] if kind == "pixels" else ""
    text = clean_url(medium[1]) if kind == "url" else json.dumps(medium)
    return kind, hashlib.sha256(text.encode()).hexdigest()


def _is_file(source: Any) -> bool:
    if isinstance(source, bytes | bytearray | memoryview):
        return True
    return isinstance(source, str | os.PathLike) and not is_url(source)


def inside(folder: Path, name: str | None) -> Path | None:
    """A file of a run; None where it does not exist or is outside of the run's folder.

    A run that somebody else made must not embed other files of this machine in its report.
    """
    path = (folder / (name or "")).resolve()
    is_inside = path.is_relative_to(folder.resolve()) and path != folder.resolve()
    return path if is_inside and path.exists() else None


class MediaStore:
    """The thumbnails and originals of a run.

    Args:
        path: the run's folder.
        keep: which originals to copy: all (True), none (False), or, up to so many megabytes, those
            that have no file to come back to (PIL images, arrays, bytes, data URLs).
    """

    def __init__(self, path: Path, keep: bool | int):
        self.path, self.keep = path, keep
        self._left = math.inf if keep is True else keep * 2**20 - _size(path / KEPT)  # bytes

    def describe(self, item: dict, media: Sequence[Any], index: int) -> dict[str, Any]:
        """The facts that a run records of a picture or clip in a message.

        Args:
            item: a checked content item.
            media: the reply's upright pictures, or its clips; empty if there is no reply.
            index: of the item among them.
        """
        kind = item["type"]
        source = item[kind]
        load = (lambda: media[index]) if index < len(media) else None
        picture = load() if load and kind == "image" and not _is_file(source) else None
        of, digest = content_of(source, picture)
        options = {key: item[key] for key in item if key not in ("type", kind)}
        place = getattr(source, "filename", "") or source  # of a picture that was read from one
        facts = {"kind": kind, "name": _name(place), "of": of, "sha256": digest}
        facts |= {"options": options} if options else {}
        if path := self._relative_path(place):
            facts["path"] = path
        if digest and load:
            view = _view if kind == "image" else _strip
            facts["thumbnail"] = self._thumbnail(digest, lambda: view(load()))
        if digest and (self.keep is True or (self.keep and _is_object(source))):
            kept = self._keep(source, digest, load)
            facts |= {"kept": kept} if kept else {}
        return facts

    def find(self, facts: dict) -> tuple[Any, str]:
        """A source with the recorded content and "", or None and the reason."""
        problem = "no longer exists"
        try:
            for source in self._candidates(facts):
                picture = load_image(source) if facts["of"] == "pixels" else None  # a copy of it
                content = content_of(source) if picture is None else ("pixels", pixel_hash(picture))
                if content == (facts["of"], facts["sha256"]):
                    return source, ""
                problem = "has other content now"
        except VlkitError as error:
            problem = f"cannot be read ({error})"
        if facts.get("path"):
            return None, f"{facts['name']} {problem}"
        hint = "it was not a file; record with keep_media=True"
        return None, f"{facts['name']} was not kept ({hint})"

    def _candidates(self, facts: dict) -> Iterator[Any]:
        """Where the recorded content may still be: the run's copy, then the original file."""
        if copy := inside(self.path, facts.get("kept")):
            frames = pictures_of(copy, str(copy)) if copy.is_dir() else []
            yield list(map(load_image, frames)) if frames else str(copy)
        if name := facts.get("path"):
            folder = bundled_path("samples") if name.startswith(_SAMPLES) else self.path
            original = os.path.normpath(folder / name.removeprefix(_SAMPLES))
            if os.path.exists(original):
                yield original

    def _relative_path(self, source: Any) -> str:
        """A file's path relative to the run's folder, so that both can be moved together; or ""."""
        if not isinstance(source, str | os.PathLike) or not source or is_url(source):
            return ""
        path = Path(local_path(source)).absolute()
        if path.parent == bundled_path("samples"):
            return _SAMPLES + path.name
        return relative(path, self.path.absolute() / "records.jsonl")

    def _thumbnail(self, digest: str, view: Callable[[], PIL.Image.Image]) -> str | None:
        name = f"{THUMBNAILS}/{digest[:20]}.jpg"
        if not (self.path / name).exists():
            try:
                picture = view()
            except VlkitError:  # deleted since the answer
                return None
            write_whole(self.path / name, lambda file: picture.save(file, "JPEG", quality=85))
        return name

    def _keep(self, source: Any, digest: str, load: Callable[[], Any] | None) -> str | None:
        """Copy an original, once; its name, or None where it is not kept."""
        name = f"{KEPT}/{digest[:20]}"
        if isinstance(source, list | tuple) or getattr(source, "ndim", 0) == 4:
            write: Callable[[Path], None] = partial(_write_frames, source)
        elif _is_file(source):
            is_path = isinstance(source, str | os.PathLike)
            if is_path and os.path.isdir(local_path(source)):
                return None  # a folder of frames stays where it is
            name += Path(source).suffix.lower() if is_path else ""
            write = partial(write_whole, content=partial(_copy, source))
        elif load is not None:
            name += ".png"
            write = partial(write_whole, content=partial(load().save, format="PNG"))
        else:
            return None
        path = self.path / name
        if path.exists():
            return name
        if self._left < 0:
            return None
        write(path)
        self._left -= _size(path)
        if self._left >= 0:
            return name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        warn_user(
            f"the run {self.path.name} has kept {self.keep} MB of pictures and clips that are not "
            "files; further ones are not kept, so that their answers cannot be replayed: raise "
            "keep_media="
        )
        return None


def _write_frames(frames: Any, folder: Path) -> None:
    for index, frame in enumerate(frames):
        write_whole(folder / f"{index:05d}.png", partial(load_image(frame).save, format="PNG"))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path] if path.exists() else []
    return sum(file.stat().st_size for file in files)


def _is_object(source: Any) -> bool:
    """Whether a medium has no file or address to come back to."""
    if isinstance(source, list | tuple):
        return any(map(_is_object, source))
    return not isinstance(source, str | os.PathLike) or str(source)[:5].lower() == "data:"


def _copy(source: Any, file: Any) -> None:
    if isinstance(source, str | os.PathLike):
        with open(local_path(source), "rb") as original:
            shutil.copyfileobj(original, file)
    else:
        file.write(source)


def _name(source: Any) -> str:
    """A short name for people; of a path only the file's name."""
    if isinstance(source, list | tuple):
        return f"{len(source)} frames"
    if isinstance(source, str) and is_url(source):
        return describe_source(source) if source[:5].lower() == "data:" else clean_url(source)
    name = describe_source(source)
    return Path(name).name if isinstance(source, str | os.PathLike) else name


def _view(picture: PIL.Image.Image, side: int = SIDE) -> PIL.Image.Image:
    shown = picture.convert("RGB")
    shown.thumbnail((side, side))
    return shown


def _strip(clip: Any) -> PIL.Image.Image:
    """A few frames of a clip side by side, with their times."""
    count = len(clip.frames)
    chosen = sorted({round(i * (count - 1) / (FRAMES - 1)) for i in range(FRAMES)})
    frames = [(_view(clip.pictures[i], SIDE // 2), f"{clip.timestamps[i]:.2f} s") for i in chosen]
    return stack_captioned(frames, columns=FRAMES)
