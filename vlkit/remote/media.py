"""Pictures and frames as data URLs: of the size that the model sees, not too many bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import PIL.Image

from vlkit.errors import RemoteError
from vlkit.grounding import Size

MOST_BYTES = 7_000_000  # of a file: DashScope takes data URLs of under 10 MB
MOST_PNG_PIXELS = 700_000  # larger pictures go as JPEG at once: PNG takes long, and much room
_JPEGS: tuple[dict, ...] = (
    {"quality": 95, "subsampling": 0},
    {"quality": 85},
    {"quality": 60},
    {"quality": 30},
)


def picture_url(picture: PIL.Image.Image, size: Size) -> str:
    """A data URL of an upright RGB picture resized to ``size``; PNG where it is small, else JPEG.

    Raises:
        RemoteError: it has too many bytes for any service.
    """
    if picture.size != size:
        picture = picture.resize(size, PIL.Image.Resampling.BICUBIC)
    kind, data = next(_encodings(picture), ("", b""))
    if not kind:
        raise RemoteError(
            f"a picture of {size[0]}×{size[1]} has over {MOST_BYTES:,} bytes even as JPEG; lower "
            "max_image_tokens"
        )
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def frame_base64(frame: PIL.Image.Image) -> str:
    """A clip's frame as JPEG in base64."""
    return base64.b64encode(_encode(frame, "jpeg", **_JPEGS[0])).decode()


def _encodings(picture: PIL.Image.Image) -> Iterator[tuple[str, bytes]]:
    """Ways to write it that are small enough, the best one first."""
    if picture.width * picture.height <= MOST_PNG_PIXELS:
        yield "png", _encode(picture, "png", compress_level=3)
    for options in _JPEGS:
        data = _encode(picture, "jpeg", **options)
        if len(data) <= MOST_BYTES:
            yield "jpeg", data


def _encode(picture: PIL.Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
