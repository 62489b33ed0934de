"""Messages are the plain dicts of the transformers chat format, built and checked here."""

from __future__ import annotations

import os
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from vlkit.errors import VlkitError
from vlkit.media import Image, load_image

ROLES = ("system", "user", "assistant")
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
    if isinstance(source, Image):
        return source
    limits = {name: item[name] for name in ("max_tokens", "min_tokens") if item.get(name)}
    return Image(source, strict=item.get("strict", True), **limits)


def escape_control_tokens(text: str) -> str:
    """Text in which ``<|im_end|>``, ``<|image_pad|>`` and their like are no tokens any more.

    A space goes in after the ``<``, so that the model reads the same letters and nothing is
    hidden. Grounding tokens stay.
    """
    return _CONTROL.sub("< ", text)


def _text_item(text: str) -> dict:
    if not isinstance(text, str):
        raise VlkitError(f"the text comes first and is a string, not {type(text).__name__}")
    return {"type": "text", "text": text}


def _media_item(source: Any) -> dict:
    if isinstance(source, Image):
        item = _media_item(source.source)
        limits = {name: getattr(source, name) for name in ("max_tokens", "min_tokens")}
        item |= {name: value for name, value in limits.items() if value is not None}
        return item if source.strict else item | {"strict": False}
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    elif isinstance(source, str) and source[:7].lower() == "file://":
        source = urllib.request.url2pathname(urllib.parse.urlsplit(source).path)
    elif not isinstance(source, str):
        source = load_image(source)
    return {"type": "image", "image": source}


def _check_message(i: int, message: Any) -> dict:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise VlkitError(f"message {i} needs a 'role' of {list(ROLES)}: {message!r:.80}")
    content = message.get("content")
    if isinstance(content, str):
        content = [_text_item(content)]
    if not isinstance(content, list | tuple):
        raise VlkitError(f"message {i} needs a 'content' of text or a list of items")
    return {"role": message["role"], "content": [_check_item(i, item) for item in content]}


def _check_item(i: int, item: Any) -> dict:
    """One content item in one spelling, without keys that are None (`datasets` adds them)."""
    if isinstance(item, str):
        return _text_item(item)
    if not isinstance(item, Mapping):
        raise VlkitError(f"message {i} holds {item!r:.80}; expected a dict with a 'type'")
    item = {key: value for key, value in item.items() if value is not None}
    if "text" in item:
        return _text_item(item["text"])
    source = next((item[k] for k in ("image", "image_url", "url", "path") if k in item), None)
    if source is None:
        raise VlkitError(f"message {i} holds an item that is neither text nor image: {item!r:.80}")
    if isinstance(source, Mapping):  # {"image_url": {"url": "…"}}, the OpenAI spelling
        source = source.get("url")
    kept = {key: item[key] for key in ("max_tokens", "min_tokens", "strict") if key in item}
    return {"type": "image", "image": source, **kept}
