"""Messages are the plain dicts of the transformers chat format, built and checked here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vlkit.errors import VlkitError
from vlkit.media import Image, load_image
from vlkit.sources import is_url, local_path

ROLES = ("system", "user", "assistant")
_LIMITS = ("max_tokens", "min_tokens", "strict")
_SOURCES = ("image", "image_url", "url", "path")
_PIXELS = {"min_pixels", "max_pixels", "resized_height", "resized_width"}
# every <|…|> token writes a turn, a picture or a tool call, save those of grounding, which a
# question may hold: "What is in <|box_start|>(1,2),(3,4)<|box_end|>?"
_CONTROL = re.compile(r"<(?=\|(?!object_ref_|box_|quad_)\w+\|>)")


def system(text: str) -> dict:
    """A system message."""
    return {"role": "system", "content": [_text_item(text)]}


def user(text: str, *media: Any) -> dict:
    """A user's message: pictures in the order given, then the text.

    Paths and http(s) URLs stay as they are and are read when the model is asked; PIL images,
    arrays, tensors and bytes become upright RGB PIL images at once.

    Args:
        text: the question; control tokens in it are harmless (see :func:`escape_control_tokens`).
        *media: path, ``Path``, URL, data URL, bytes, PIL image, array, tensor or ``vlkit.Image``.

    Raises:
        VlkitError: the text is not a string.
        MediaError: bytes, an array or a tensor that is no picture.
    """
    return {"role": "user", "content": [*map(_media_item, media), _text_item(text)]}


def assistant(text: str) -> dict:
    """An assistant's message: an earlier answer, or, last in the list, a prefill to go on from."""
    return {"role": "assistant", "content": [_text_item(text)]}


def as_messages(messages: str | Mapping | list) -> list[dict]:
    """One message, a list of messages or plain text as a checked list of messages.

    Raises:
        VlkitError: naming the message that is malformed.
    """
    if isinstance(messages, str):
        messages = [user(messages)]
    elif isinstance(messages, Mapping):
        messages = [dict(messages)]
    if not isinstance(messages, list | tuple) or not messages:
        raise VlkitError(
            f"expected text, a message or a non-empty list of messages, not {messages!r:.60}"
        )
    return [_check_message(i, message) for i, message in enumerate(messages)]


def iterate_media(messages: list[dict]) -> Iterator[dict]:
    """The picture items of checked messages, in the order in which the model meets them."""
    for message in messages:
        yield from (item for item in message["content"] if item["type"] == "image")


def read_media_item(item: Mapping) -> Image:
    """A content item as a :class:`vlkit.Image` with its own limits."""
    source = item["image"]
    return Image(source, **{name: item[name] for name in _LIMITS if name in item})


def escape_control_tokens(text: str) -> str:
    """Text in which ``<|im_end|>``, ``<|image_pad|>`` and their like are no tokens any more.

    A space goes in after the ``<``, so that the model reads the same letters and nothing is
    hidden. Grounding tokens stay.
    """
    return _CONTROL.sub("< ", text)


def _text_item(text: str) -> dict:
    if not isinstance(text, str):
        raise VlkitError(f"the text comes first and is a string, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise VlkitError(f"the text holds half a character ({error}); decode it again") from error
    return {"type": "text", "text": text}


def _media_item(source: Any, *, strict: bool = True) -> dict:
    if isinstance(source, Image):
        limits = {name: getattr(source, name) for name in _LIMITS}
        given = {k: v for k, v in limits.items() if v is not None and (k, v) != ("strict", True)}
        return _media_item(source.source, strict=strict and source.strict) | given
    if isinstance(source, str | os.PathLike):
        source = source if is_url(source) else local_path(source)
    else:
        source = load_image(source, strict=strict)
    return {"type": "image", "image": source}


def _check_message(i: int, message: Any) -> dict:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise VlkitError(f"message {i} needs a 'role' of {list(ROLES)}: {message!r:.80}")
    content = message.get("content")
    content = [content] if isinstance(content, str) else content
    if not isinstance(content, list | tuple):
        raise VlkitError(f"message {i} needs a 'content' of text or a list of items")
    try:
        return {"role": message["role"], "content": [_check_item(item) for item in content]}
    except VlkitError as error:
        raise type(error)(f"message {i}: {error}") from error


def _check_item(item: Any) -> dict:
    """One content item in one spelling, without keys that are None (`datasets` adds them)."""
    if isinstance(item, str):
        return _text_item(item)
    if not isinstance(item, Mapping):
        raise VlkitError(f"expected a dict with a 'type', not {item!r:.80}")
    item = {key: value for key, value in item.items() if value is not None}
    source = next((item[key] for key in _SOURCES if key in item), None)
    kind = item.get("type", "text" if source is None else "image")
    if kind == "text" and "text" in item:
        return _text_item(item["text"])
    if pixels := sorted(_PIXELS & item.keys()):
        raise VlkitError(
            f"{pixels[0]}={item[pixels[0]]!r} is not read; limit tokens with max_tokens or "
            "min_tokens (one covers 28×28 pixels; 32×32 from Qwen3-VL on)"
        )
    if isinstance(source, Mapping):  # {"image_url": {"url": "…"}}, the OpenAI spelling
        source = source.get("url")
    if source is None or kind not in ("image", "image_url"):
        raise VlkitError(f"expected an item of text or image, not {item!r:.80}")
    found = _media_item(source) if isinstance(source, Image) else {"type": "image", "image": source}
    return found | {key: item[key] for key in _LIMITS if key in item}
