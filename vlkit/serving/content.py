"""A request's messages as vlkit's: media as bytes, within limits, from where it is allowed."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image

from vlkit.errors import MediaError, VlkitError
from vlkit.media import describe_source
from vlkit.serving.limits import Limits, RequestError
from vlkit.serving.schema import ClipPart, FramesPart, ImagePart, Message, TextPart
from vlkit.sources import local_path, read_bytes
from vlkit.video import Video, probe_clip

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF")  # fewer decoders, fewer surprises
_FRAMES = "data:video/jpeg;base64,"  # vLLM's spelling of frames: JPEGs with commas between
_CLIP_SECONDS = 600.0


class Budget:
    """What a request may still spend on media."""

    def __init__(self, limits: Limits):
        self.limits, self._pictures, self.pixels = limits, 0, 0

    def count_medium(self) -> None:
        """One picture or clip more."""
        self._pictures += 1
        if self._pictures > self.limits.pictures:
            raise RequestError(f"a request may hold {self.limits.pictures} pictures and clips")

    def count_pixels(self, width: int, height: int) -> None:
        """One decoded picture or frame more."""
        self.pixels += width * height
        if self.pixels > self.limits.pixels:
            raise RequestError(
                f"pictures of more than {self.limits.pixels:,} pixels together; send smaller ones"
            )


def read_messages(messages: list[Message], limits: Limits) -> tuple[list[dict], int]:
    """Checked messages that hold their media as bytes, and how many pixels those have.

    Raises:
        RequestError: naming the field.
    """
    budget = Budget(limits)
    return [_read(i, message, budget) for i, message in enumerate(messages)], budget.pixels


def _read(i: int, message: Message, budget: Budget) -> dict:
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return {"role": role, "content": [{"type": "text", "text": message.content}]}
    content = []
    for place, part in enumerate(message.content):
        where = f"messages.{i}.content.{place}"
        if role != "user" and not isinstance(part, TextPart):
            raise RequestError(f"{where}: media belong to the user, not the {role}", param=where)
        try:
            content.append(_read_part(part, budget))
        except VlkitError as error:
            raise RequestError(f"{where}: {error}", param=where) from error
    return {"role": role, "content": content}


def _read_part(part: Any, budget: Budget) -> dict:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    budget.count_medium()
    if isinstance(part, ImagePart):
        limits = {name: getattr(part, name) for name in ("min_pixels", "max_pixels")}
        data = _read_picture(_url(part.image_url), budget)
        return {"type": "image", "image": data, **{k: v for k, v in limits.items() if v}}
    source = _url(part.video_url) if isinstance(part, ClipPart) else part.video
    return {"type": "video", "video": _read_clip(source, part, budget)}


def _url(given: Any) -> str:
    return given if isinstance(given, str) else given.url


def _read_picture(url: str, budget: Budget) -> bytes:
    data = _fetch(url, budget.limits)
    name = describe_source(data)
    try:
        with PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            size = picture.size
    except PIL.Image.DecompressionBombError as error:
        raise MediaError(f"{name} has too many pixels; send a smaller one") from error
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise MediaError(
            f"{name}, beginning with {data[:12]!r}, is no whole PNG, JPEG, WebP, GIF, BMP or TIFF"
        ) from error
    budget.count_pixels(*size)
    return data


def _read_clip(source: list[str] | str, part: ClipPart | FramesPart, budget: Budget) -> Video:
    """A clip whose frames are taken already is seen whole, at the rate that is said."""
    most = min(part.max_frames or budget.limits.frames, budget.limits.frames)
    if isinstance(source, str) and source[: len(_FRAMES)].lower() == _FRAMES:
        source = list(_split_frames(source))
    rate = part.fps or 2.0
    if isinstance(source, str):
        video = Video(_fetch(source, budget.limits), fps=rate, max_frames=most)
        info = probe_clip(video)
        if info.duration > _CLIP_SECONDS:
            raise MediaError(f"a clip of {info.duration:,.0f} s; send {_CLIP_SECONDS:,.0f} s")
        Budget(budget.limits).count_pixels(*info.size)
        return video
    if not 1 <= len(source) <= budget.limits.frames:
        raise MediaError(f"{len(source)} frames; send 1 to {budget.limits.frames}")
    frames = [_read_picture(each, budget) for each in source]
    return Video(frames, fps=rate, source_fps=rate, max_frames=most)


def _split_frames(url: str) -> Iterator[str]:
    return (f"data:image/jpeg;base64,{each}" for each in url[len(_FRAMES) :].split(","))


def _fetch(url: str, limits: Limits) -> bytes:
    """The bytes of a data URL; of a file or an address only where the server allows them."""
    scheme = url[:8].lower()
    if scheme.startswith("data:"):
        return read_bytes(url, "the data URL")
    if scheme.startswith(("http://", "https://")):
        if not limits.urls:
            raise MediaError("this server fetches no URLs (--allow-urls); send a data URL")
        return read_bytes(url, describe_source(url))
    if limits.local is None:
        raise MediaError("this server reads no files (--allow-local FOLDER); send a data URL")
    return _read_file(url, limits.local, limits.body_bytes)


def _read_file(url: str, folder: Path, most: int) -> bytes:
    """A file in the folder; what lies outside is refused alike, whether it is there or not."""
    refused = MediaError(f"{describe_source(url)} is no file in the folder that requests may read")
    try:
        path = os.path.realpath(os.path.join(folder, local_path(url)))
        inside = Path(path).is_relative_to(folder.resolve()) and os.path.isfile(path)
    except (OSError, ValueError) as error:  # a null character, a name too long
        raise refused from error
    if not inside:
        raise refused
    if os.path.getsize(path) > most:
        raise MediaError(f"{describe_source(url)} has more than {most:,} bytes; shrink it")
    return read_bytes(path, describe_source(url))
