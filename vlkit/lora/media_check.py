"""Whether pictures and clips can be decoded, each distinct one tried once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import PIL.Image

from vlkit.errors import VlkitError
from vlkit.media import Image, load_image
from vlkit.messages import read_media_item
from vlkit.sources import is_remote, is_url, local_path
from vlkit.video import Video, clip_name, probe_clip, sample_indices

_COMMON = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


def find_damaged(items: Iterable[dict]) -> list[str | None]:
    """What keeps each content item from being decoded, or None.

    Pictures are decoded to their end, clips to their first frame; http(s) URLs are not fetched.
    """
    media = [read_media_item(item) for item in items]
    keys = [_key(each) for each in media]
    distinct = dict(zip(keys, media, strict=True))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = dict(zip(distinct, pool.map(_damage, distinct.values()), strict=True))
    return [found[key] for key in keys]


def _key(media: Image | Video) -> tuple:
    source, *options = vars(media).values()
    return type(media), source if isinstance(source, str) else id(source), repr(options)


def _damage(media: Image | Video) -> str | None:
    source = media.source
    if is_remote(source):
        return None
    try:
        if isinstance(media, Video):
            sample_indices(media, probe_clip(media), clip_name(source))
        elif not _is_whole_file(source):
            load_image(media)
    except (VlkitError, OSError) as error:
        return str(error)
    return None


def _is_whole_file(source: Any) -> bool:
    """Whether it is a file that decodes to its end; of a JPEG an eighth of the size shows that."""
    if not isinstance(source, str | os.PathLike) or is_url(source):
        return False
    try:
        with PIL.Image.open(local_path(source), formats=_COMMON) as picture:
            picture.draft(None, (1, 1))
            picture.load()
    except Exception:  # a decoder may raise anything; load_image then says what is wrong
        return False
    return True
