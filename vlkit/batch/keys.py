"""A row's key: a hash of model, options and content of the question."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlkit.errors import VlkitError
from vlkit.media.image import Image, describe_source, load_image, pictures_of, pixel_hash
from vlkit.media.sources import file_hash, is_url, local_path
from vlkit.messages import as_messages
from vlkit.models.adapters import digest


def row_key(vlm: Any, messages: Any, options: Mapping[str, Any]) -> str:
    """A sha256 in hex that changes with anything that the answer depends on.

    It covers the weights as they are in memory (so also an adapter, or training since they were
    loaded), their dtypes, the model's configuration and revision, the chat template, the limits of
    pictures and clips, the options, and the conversation: roles, texts, the media's bytes or
    pixels and their options. A URL counts by its address. Paths do not count, so files may
    move; a file that cannot be read counts by its name. Of a hosted model its name, address,
    family and fields count, never its API key.

    Args:
        vlm: from :func:`vlkit.load`.
        messages: text, one message or a list of messages; malformed ones get a key as well.
        options: of the generation, those that change answers; values for JSON.
    """
    return row_keys(vlm, [messages], options)[0]


def row_keys(
    vlm: Any, conversations: Sequence[Any], options: Mapping[str, Any], *, seed: int | None = None
) -> list[str]:
    """:func:`row_key` of every conversation; equal ones are numbered, so that all keys differ.

    Args:
        vlm, options: as for :func:`row_key`.
        conversations: all rows, also those that another process answers.
        seed: of row 0 where answers are sampled; that of row ``i`` is ``seed + i``.
    """
    common = [digest(vlm.identity), dict(options)]
    seen: Counter[str] = Counter()
    keys = []
    for index, messages in enumerate(conversations):
        key = _key_of_row(common, messages, None if seed is None else seed + index)
        seen[key] += 1
        keys.append(key if seen[key] == 1 else digest([key, seen[key]]))
    return keys


def _key_of_row(common: list, messages: Any, seed: int | None) -> str:
    """The key; for content that cannot be read a new one at each call."""
    try:
        return digest([*common, _conversation(messages), seed])
    except Exception:  # media may be any object
        return digest([*common, uuid.uuid4().hex, seed])


# --- the conversation ----------------------------------------------------------------------------


def _conversation(messages: Any) -> Any:
    try:
        checked = as_messages(messages)
    except VlkitError:
        return repr(messages)
    return [[message["role"], [_item(item) for item in message["content"]]] for message in checked]


def _item(item: dict) -> Any:
    kind = item["type"]
    if kind == "text":
        return item["text"]
    options = {key: item[key] for key in item if key not in ("type", kind)}
    return [kind, options, hash_medium(item[kind])]


def hash_medium(source: Any) -> Any:
    """The content of a picture or clip, or of each of a clip's frames."""
    if isinstance(source, Image):
        return [hash_medium(source.source), source.strict]
    if isinstance(source, list | tuple):
        return [hash_medium(frame) for frame in source]
    if isinstance(source, bytes | bytearray | memoryview):
        return file_hash(bytes(source))
    if isinstance(source, str | os.PathLike):
        return ["url", source] if is_url(source) else _file(local_path(source))
    if getattr(source, "ndim", 0) == 4:
        return [hash_medium(frame) for frame in source]
    try:
        picture = load_image(source)
    except VlkitError as error:
        return ["unreadable", str(error)]
    return ["pixels", pixel_hash(picture)]


def _file(path: str) -> Any:
    try:
        if os.path.isdir(path):
            return [_file(str(file)) for file in pictures_of(Path(path), describe_source(path))]
        return file_hash(path)
    except (OSError, ValueError, VlkitError):
        return ["unreadable", path]
