"""Sizes of pictures from their headers, without a pixel decoded."""

from __future__ import annotations

import io
import os
import struct
from typing import Any

import PIL.Image
from PIL.ExifTags import Base as ExifTag

from vlkit.grounding import Size
from vlkit.media import Image, check_shape, describe_source, load_image
from vlkit.sources import is_url, local_path, read_bytes

_PLAIN = ("JPEG", "MPO", "WEBP", "BMP", "PNG", "GIF")
_EXIF_TEXT = (b"Raw profile type exif", b"XML:com.adobe.xmp")


def picture_size(source: Any) -> Size:
    """The (width, height) that ``load_image(source)`` would have, upright.

    Of files only the header is read, so one that is damaged further on goes unnoticed; formats
    whose header does not suffice are loaded.

    Raises:
        MediaError: as :func:`vlkit.load_image`.
    """
    image = source if isinstance(source, Image) else Image(source)
    source, name = image.source, describe_source(image.source)
    if isinstance(source, bytes | bytearray | memoryview) or is_url(source):
        source = read_bytes(source, name)  # of a URL, what it holds: it is not asked twice
        opened = _header_size(io.BytesIO(source))
    elif isinstance(source, str | os.PathLike) and os.path.isfile(local_path(source)):
        with open(local_path(source), "rb") as stream:
            opened = _header_size(stream)
    else:
        opened = None
    if opened is None:
        return load_image(source, strict=image.strict).size
    size, picture = opened
    check_shape(picture, name)
    return size


def _header_size(stream: Any) -> tuple[Size, PIL.Image.Image] | None:
    """The upright size and the unread picture; None where only loading tells."""
    try:
        picture = PIL.Image.open(stream)
        if picture.format == "TIFF":  # Pillow gives its size upright
            return picture.size, picture
        if picture.format not in _PLAIN or (picture.format == "PNG" and _has_late_exif(stream)):
            return None
        # PNG's own getexif decodes the picture first
        turned = PIL.Image.Image.getexif(picture).get(ExifTag.Orientation, 1) in (5, 6, 7, 8)
        return (picture.size[::-1] if turned else picture.size), picture
    except Exception:  # a decoder may raise anything; load_image then says what is wrong
        return None


def _has_late_exif(stream: Any) -> bool:
    """Whether a PNG says its orientation behind its pixels."""
    place, next_chunk, behind = stream.tell(), 8, False
    try:
        while True:
            stream.seek(next_chunk)
            head = stream.read(8)
            if len(head) < 8:
                return False
            length, kind = struct.unpack(">I4s", head)
            behind = behind or kind == b"IDAT"
            if behind and kind != b"IDAT":
                if kind == b"eXIf" or stream.read(min(length, 24)).startswith(_EXIF_TEXT):
                    return True
            next_chunk += 12 + length
    finally:
        stream.seek(place)
