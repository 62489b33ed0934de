"""Messages, plain dicts of the chat format: built, and checked once."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vlkit.errors import VlkitError
from vlkit.media.image import Image, load_image
from vlkit.media.sources import is_url, local_path
from vlkit.media.video import ClipStore, Video, is_frames

ROLES = ("system", "user", "assistant")
_LIMITS = ("max_tokens", "min_tokens", "max_pixels", "min_pixels", "strict")
_SOURCES = ("image", "image_url", "video", "video_url", "url", "path")
# a clip's options: the key in a content item (qwen-vl-utils' where it has one), the Video's field
_CLIP_OPTIONS = {
    "fps": "fps",
    "nframes": "frames",
    "max_frames": "max_frames",
    "video_start": "start",
    "video_end": "end",
    "max_frame_tokens": "max_frame_tokens",
    "source_fps": "source_fps",
}
_CLIP_SUFFIXES = (".mp4", ".webm", ".mov", ".avi", ".mkv", ".m4v", ".mpg", ".mpeg", ".ogv")
# other spellings in qwen-vl-utils, transformers and ms-swift; the first that is there counts
_SPELLINGS = {"nframes": ("num_frames",), "source_fps": ("sample_fps", "raw_fps")}
_CLIP_KEYS = {"type", *_CLIP_OPTIONS, *(key for keys in _SPELLINGS.values() for key in keys)}
_SIDES = {"resized_height", "resized_width"}
# every <|…|> token writes a turn, a picture or a tool call, except those of grounding, which a
# question may contain: "What is in <|box_start|>(1,2),(3,4)<|box_end|>?"
_CONTROL = re.compile(r"<(?=\|(?!object_ref_|box_|quad_)\w+\|>)")


class CheckedMessages(list):
    """Messages that :func:`as_messages` has checked; it returns such a list unchanged.

    The messages in it are plain dicts. A slice of it, or a list made from it, is a plain list and
    is checked again.

    Attributes:
        clips: a cache of their sampled clips, or None.
    """

    clips: ClipStore | None = None


def system(text: str) -> dict:
    """A system message."""
    return {"role": "system", "content": [_text_item(text)]}


def user(text: str, *media: Any) -> dict:
    """A user's message: pictures and clips in the order given, then the text.

    Paths and http(s) URLs stay as they are and are read when the model is asked; PIL images,
    arrays, tensors and bytes become upright RGB PIL images at once. A path or URL with a clip's
    suffix (.mp4, .webm …) is a clip; pass any other clip as a ``vlkit.Video``.

    Args:
        text: the question; control tokens in it are escaped (see :func:`escape_control_tokens`).
        *media: path, ``Path``, URL, data URL, bytes, PIL image, array, tensor, ``vlkit.Image`` or
            ``vlkit.Video``.

    Raises:
        VlkitError: the text is not a string.
        MediaError: bytes, an array or a tensor that is not a picture.
    """
    return {"role": "user", "content": [*map(_media_item, media), _text_item(text)]}


def assistant(text: str) -> dict:
    """An assistant's message: an earlier answer, or, last in the list, a prefill to continue."""
    return {"role": "assistant", "content": [_text_item(text)]}


def as_messages(messages: str | Mapping | list) -> CheckedMessages:
    """One message, a list of messages or plain text as a checked list of messages.

    A list that was checked before is returned unchanged, so a second call costs nothing.

    Raises:
        VlkitError: naming the message that is malformed.
    """
    if isinstance(messages, CheckedMessages):
        return messages
    if isinstance(messages, str):
        messages = [user(messages)]
    elif isinstance(messages, Mapping):
        messages = [dict(messages)]
    if not isinstance(messages, list | tuple) or not messages:
        text = f"expected text, a message or a non-empty list of messages, not {messages!r:.60}"
        raise VlkitError(text)
    return CheckedMessages(_check_message(i, message) for i, message in enumerate(messages))


def iterate_media(messages: list[dict]) -> Iterator[dict]:
    """The content items of pictures and clips in checked messages, in order."""
    for message in messages:
        yield from (item for item in message["content"] if item["type"] != "text")


def text_of(message: Mapping, between: str = "") -> str:
    """The texts of a checked message, joined."""
    return between.join(item["text"] for item in message["content"] if item["type"] == "text")


def prefill_of(messages: list[dict]) -> str:
    """The beginning of the answer that the model continues; "" where there is none."""
    return text_of(messages[-1]) if messages[-1]["role"] == "assistant" else ""


def opened_thought(prompt: str) -> str:
    """The beginning of an answer's thinking that ends the prompt; ``""`` where there is none.

    Templates end in ``<think>`` to make a model think, or in ``<think></think>`` so that it
    does not; a prefill may follow.
    """
    begun = prompt.rpartition("<|im_start|>assistant\n")[2]
    return begun if begun.startswith("<think>") and "</think>" not in begun else ""


def media_of(messages: list[dict]) -> tuple[list[Image], list[Video]]:
    """The pictures and the clips of checked messages, each in order."""
    media = [read_media_item(item) for item in iterate_media(messages)]
    pictures = [medium for medium in media if isinstance(medium, Image)]
    return pictures, [medium for medium in media if isinstance(medium, Video)]


def read_media_item(item: Mapping) -> Image | Video:
    """A content item as a :class:`vlkit.Image` or :class:`vlkit.Video` with its options."""
    if item["type"] == "video":
        options = {field: item[key] for key, field in _CLIP_OPTIONS.items() if key in item}
        return Video(item["video"], **options)
    return Image(item["image"], **{name: item[name] for name in _LIMITS if name in item})


def escape_control_tokens(text: str) -> str:
    """Text in which ``<|im_end|>``, ``<|image_pad|>`` and similar control tokens are plain text.

    A space after the ``<`` keeps the tokenizer from reading a token; the model still reads the
    same letters. Grounding tokens stay.
    """
    return _CONTROL.sub("< ", text)


def _text_item(text: str) -> dict:
    if not isinstance(text, str):
        raise VlkitError(f"the text comes first and is a string, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        why = f"the text contains a lone surrogate ({error}); decode it again"
        raise VlkitError(why) from error
    return {"type": "text", "text": text}


def _media_item(source: Any, *, strict: bool = True) -> dict:
    if isinstance(source, list | tuple):
        raise VlkitError("pass pictures one by one, user(text, a, b); frames as vlkit.Video([…])")
    if isinstance(source, Video):
        return _clip_item(source)
    if isinstance(source, str | os.PathLike) and looks_like_clip(os.fspath(source)):
        return _clip_item(Video(source))
    if isinstance(source, Image):
        limits = {name: getattr(source, name) for name in _LIMITS}
        changed = {k: v for k, v in limits.items() if v is not None and (k, v) != ("strict", True)}
        return _media_item(source.source, strict=strict and source.strict) | changed
    if not isinstance(source, str | os.PathLike):
        source = load_image(source, strict=strict)
    return {"type": "image", "image": _plain_source(source)}


def _clip_item(video: Video) -> dict:
    defaults = Video(None)
    options = {key: getattr(video, field) for key, field in _CLIP_OPTIONS.items()}
    changed = {k: v for k, v in options.items() if v != getattr(defaults, _CLIP_OPTIONS[k])}
    if "fps" in changed and is_frames(video.source):  # alone it would be the frames' own rate
        changed["source_fps"] = video.source_fps
    return {"type": "video", "video": _plain_source(video.source), **changed}


def _options_of_clip(item: Mapping, source: Any) -> dict:
    """A clip's options in the spelling of :func:`read_media_item`. Raises VlkitError."""
    if unread := sorted(item.keys() - _CLIP_KEYS - {*_SOURCES}):
        raise VlkitError(
            f"{unread[0]}={item[unread[0]]!r:.60} of a clip is not supported; a clip's options are "
            f"{sorted(_CLIP_KEYS - {'type'})}"
        )
    options = {key: item[key] for key in _CLIP_OPTIONS if key in item}
    for key, spellings in _SPELLINGS.items():
        for spelling in filter(item.__contains__, spellings):
            options.setdefault(key, item[spelling])
    if is_frames(source):  # sampled at the one rate that other tools give, and used whole
        sampled = options.keys() & {"fps", "source_fps"}
        if "source_fps" not in item and len(sampled) == 1:
            options["fps"] = options["source_fps"] = options[sampled.pop()]
    return {key: _as_number(value) for key, value in options.items()}


def _as_number(value: Any) -> Any:
    """A number in a text, as the model cards write ``"sample_fps": "1"``; else the value."""
    if not isinstance(value, str):
        return value
    try:
        return float(value) if "." in value else int(value)
    except ValueError:
        return value


def _plain_source(source: Any) -> Any:
    """A path as text, ``~`` and ``file://`` resolved; anything else unchanged."""
    is_path = isinstance(source, str | os.PathLike) and not is_url(source)
    return local_path(source) if is_path else source


def looks_like_clip(source: str | bytes) -> bool:
    """Whether a path or URL has a clip's suffix."""
    if isinstance(source, bytes):
        return False
    return source.partition("?")[0].lower().endswith(_CLIP_SUFFIXES)


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
    kind = item.get("type", _guess_type(item))
    if kind == "text" and "text" in item:
        return _text_item(item["text"])
    pixels = {"min_pixels", "max_pixels", "total_pixels"}
    unsupported = _SIDES | (pixels if kind.startswith("video") else {"total_pixels"})
    if unread := sorted(unsupported & item.keys()):
        raise VlkitError(
            f"{unread[0]}={item[unread[0]]!r} is not supported; limit tokens with max_tokens "
            "(a clip's with max_frame_tokens); a token covers 28×28 pixels, 32×32 from Qwen3-VL on"
        )
    if isinstance(source, Mapping):  # {"image_url": {"url": "…"}}, the OpenAI spelling
        source = source.get("url")
    if source is not None and kind in ("video", "video_url"):
        clip = _clip_item(source) if isinstance(source, Video) else {"video": source}
        return {"type": "video", **clip} | _options_of_clip(item, clip["video"])
    if source is None or kind not in ("image", "image_url"):
        raise VlkitError(f"expected an item of text, image or video, not {item!r:.80}")
    image = _media_item(source) if isinstance(source, Image) else {"type": "image", "image": source}
    return image | {key: item[key] for key in _LIMITS if key in item}


def _guess_type(item: Mapping) -> str:
    if "video" in item or "video_url" in item:
        return "video"
    return "image" if any(key in item for key in _SOURCES) else "text"
