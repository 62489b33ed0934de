"""A split by content: rows that share a picture, whatever its file is called, stay together."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vlkit.errors import VlkitError
from vlkit.media.image import Image, load_image
from vlkit.media.sources import is_remote, is_url, local_path
from vlkit.media.video import Video, pictures_of
from vlkit.messages import read_media_item


def split_rows(
    media: Sequence[Iterable[dict]], evaluation: float | int, seed: int, texts: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Numbers of rows for training and for evaluation, each in order.

    Args:
        media: of each row, the content items of its pictures and clips.
        evaluation: the share of rows, or their number.
        seed: of the shuffle.
        texts: of each row; rows without media stay together by these.

    Raises:
        VlkitError: nothing would be left on one side.
        MediaError: a picture that cannot be read.
    """
    count = len(media)
    wanted = _wanted(evaluation, count)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise VlkitError(f"seed={seed!r:.60} must be a whole number")
    groups = _groups([list(row) for row in media], texts)
    random.Random(seed).shuffle(groups)
    chosen: list[int] = []
    for group in groups:
        if len(chosen) + len(group) <= wanted:
            chosen += group
    if not chosen:
        raise VlkitError(
            f"rows that share pictures cannot be parted: the smallest of {len(groups)} groups has "
            f"{min(map(len, groups))} of {count} rows, evaluation={evaluation!r} allows {wanted}"
        )
    taken = set(chosen)
    return [i for i in range(count) if i not in taken], sorted(chosen)


def _wanted(evaluation: float | int, count: int) -> int:
    share = isinstance(evaluation, float)
    sound = isinstance(evaluation, int | float) and not isinstance(evaluation, bool)
    wanted: float = 0
    if sound and 0 < evaluation < (1 if share else count):  # also refuses NaN
        wanted = max(1, round(evaluation * count)) if share else evaluation
    if not 0 < wanted < count:
        raise VlkitError(
            f"evaluation={evaluation!r:.60} must be a share below 1 or a number below the "
            f"{count} rows"
        )
    return int(wanted)


def _groups(media: list[list[dict]], texts: Sequence[str]) -> list[list[int]]:
    """Rows linked by common pictures, directly or through others."""
    items = [(i, item) for i, row in enumerate(media) for item in row]
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(_content_key, (item for _, item in items)))
    linked = [(i, key) for (i, _), key in zip(items, keys, strict=True)]
    linked += [(i, text) for i, text in enumerate(texts) if not media[i]]
    parent = list(range(len(media)))
    first: dict[str, int] = {}
    for i, key in linked:
        parent[_root(parent, i)] = _root(parent, first.setdefault(key, i))
    groups: dict[int, list[int]] = {}
    for i in range(len(media)):
        groups.setdefault(_root(parent, i), []).append(i)
    return list(groups.values())


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = i = parent[parent[i]]
    return i


def _content_key(item: dict) -> str:
    media = read_media_item(item)
    if isinstance(media, Video):
        return _hash("clip", *_clip_bytes(media.source))
    if is_remote(media.source):
        return _hash("url", media.source.encode())
    return _picture_key(media)


def _picture_key(image: Image) -> str:
    picture = load_image(image)
    return _hash("picture", str(picture.size).encode(), picture.tobytes())


def _clip_bytes(source: Any) -> list[bytes]:
    if isinstance(source, list | tuple):
        return [_picture_key(Image(frame)).encode() for frame in source]
    if isinstance(source, np.ndarray):
        return [source.tobytes()]
    if isinstance(source, bytes):
        return [source]
    if is_url(source):
        return [source.encode()]
    path = Path(local_path(source))
    files = pictures_of(path, os.fspath(path)) if path.is_dir() else [path]
    return [file.read_bytes() for file in files]


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8) + data)
    return digest.hexdigest()
