"""What readers of rows share: empty cells, roles, texts, media, conventions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vlkit.errors import VlkitError
from vlkit.grounding.formats import FORMATS

SWIFT = "ms-swift"  # its coordinates are in a row's "objects", see vlkit.datasets.formats.swift
SWIFT_TAGS = ("<bbox>", "<ref-object>")
AMBIGUOUS = "json"  # several families write the same JSON
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}
_JSON_BOX = re.compile(r"""["'](?:bbox|point)_2d\\?["']\s*:""")  # the backslash: in a file of JSON


def is_missing(cell: Any) -> bool:
    """Whether a cell is empty, None, NaN or another of pandas' missing values."""
    if isinstance(cell, float):
        return math.isnan(cell)
    kind = type(cell).__name__
    return cell is None or kind in ("NAType", "NaTType") or (kind == "str" and not cell)


def role_of(message: Mapping) -> str:
    """Who speaks: ``user``, ``assistant`` or ``system``; "" where a message does not say."""
    role = str(message.get("role") or message.get("from") or "")
    return _ROLES.get(role, role)


def texts_of(row: dict) -> Iterator[tuple[str, dict, str]]:
    """A row's texts in order: who speaks, the dict that contains the text, and its key there.

    Raises:
        VlkitError: the row has no list of messages, or a message without text.
    """
    messages = row.get("messages", row.get("conversations"))
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise VlkitError('it has no list of messages under "messages" or "conversations"')
    for message in messages:
        role, key = role_of(message), "content" if "content" in message else "value"
        content = message.get(key)
        if isinstance(content, str):
            yield role, message, key
        elif isinstance(content, list):
            items = [i for i in content if isinstance(i, dict) and isinstance(i.get("text"), str)]
            yield from ((role, item, "text") for item in items)
        elif content is not None:
            raise VlkitError(f"the content of a message is {content!r:.40}; expected text")


def media_source(medium: Any) -> Any:
    """The path, URL or bytes in the dicts of Hugging Face ``datasets`` and of OpenAI's format."""
    if not isinstance(medium, Mapping):
        return medium
    return next((medium[k] for k in ("bytes", "path", "url", "image") if medium.get(k)), None)


def picture_names(row: Mapping) -> list[str]:
    """The pictures that a row names under ``images`` or ``image``. Raises VlkitError."""
    pictures = row.get("images") or row.get("image") or []
    names = [media_source(p) for p in (pictures if isinstance(pictures, list) else [pictures])]
    for name in names:
        if not isinstance(name, str) or not name:
            raise VlkitError(f"its picture is {name!r:.60}; expected a path")
    return names


def detect_convention(row: Mapping, texts: Iterable[str]) -> str:
    """In which convention a row's coordinates are written.

    Args:
        row: with its ``objects``, where it has any.
        texts: of its messages, or of a whole file of rows.

    Returns:
        A family, ``SWIFT``, ``AMBIGUOUS``, or "" where there are no coordinates.
    """
    objects, texts = row.get("objects"), list(texts)
    boxes = objects.get("bbox") if isinstance(objects, Mapping) else objects
    if boxes or any(tag in text for text in texts for tag in SWIFT_TAGS):
        return SWIFT
    for name, form in FORMATS.items():
        if form.style == "tags" and any(form.box_tags[0] in text for text in texts):
            return name
    return AMBIGUOUS if any(_JSON_BOX.search(text) for text in texts) else ""


def json_families() -> list[str]:
    """The families that write their coordinates as JSON."""
    return [name for name, form in FORMATS.items() if form.style == "json"]
