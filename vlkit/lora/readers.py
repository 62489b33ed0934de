"""The formats of a training row: PAI, LLaVA, ms-swift, messages, tables."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vlkit.datasets.conversations import media_source, role_of
from vlkit.datasets.questions import COLUMNS
from vlkit.datasets.tables import is_missing
from vlkit.errors import VlkitError
from vlkit.media.video import Video
from vlkit.messages import looks_like_clip

FORMATS = ("pai", "llava", "ms-swift", "messages", "table")
ANSWERS = ("answer", "answers", "response", "completion", "output", "target", "label")
_INLINE = re.compile(r"<(img|video)>((?:(?!<img>|<video>).)*?)</\1>", re.DOTALL)
_STRAY = re.compile(r"</?(?:img|video)>")
_PAI = re.compile(r"</?img>|</video>")  # a lone <video> is LLaVA's placeholder
_PLACE = re.compile(r"<(image|video)>")
_MEDIA_COLUMNS = ("image", "images", "video", "videos")
_KEYS = ("image", "image_url", "video", "video_url", "url", "path", "bytes")
_PROMPTS, _SYSTEM = COLUMNS["prompt"], COLUMNS["system"]


Part = str | dict  # a text, or the content item of a picture or clip
Turn = tuple[str, list[Part]]  # a role, and what it says and shows


def detect_format(row: Mapping) -> str:
    """The format of one row. Raises VlkitError where it is of none."""
    if isinstance(messages := row.get("conversations"), list):
        texts = [str(_role_and_content(message)[1]) for message in messages]
        return "pai" if any(_PAI.search(text) for text in texts) else "llava"
    if isinstance(messages := row.get("messages"), list):
        contents = [m.get("content") for m in messages if isinstance(m, Mapping)]
        placed = any(isinstance(text, str) and _PLACE.search(text) for text in contents)
        return "ms-swift" if placed or row.get("objects") else "messages"
    if row.get("query") is not None and row.get("response") is not None:
        return "ms-swift"
    if _column(row, _PROMPTS) and _column(row, ANSWERS):
        return "table"
    for key in ("conversations", "messages"):
        if key in row:
            raise VlkitError(f'"{key}" is not a list of messages but {row[key]!r:.40}')
    raise VlkitError(
        'no "conversations", no "messages", and no columns for question and answer; its columns: '
        f"{list(row)!s:.100}"
    )


def read_turns(row: Mapping, name: str) -> list[Turn]:
    """The turns of a row.

    Raises:
        VlkitError: why it cannot be read.
    """
    if name == "table":
        return list(_table_turns(row))
    key = "messages" if name in ("ms-swift", "messages") else "conversations"
    messages = row.get(key)
    if not messages and name == "ms-swift" and {"query", "response"} & row.keys():
        messages = _swift_messages(row)
    if not isinstance(messages, list | tuple) or not len(messages):
        raise VlkitError(f'no list of messages under "{key}"; its columns: {list(row)!s:.100}')
    media = _Media(row)
    turns = [
        (role, list(_parts(content, name, media)))
        for role, content in map(_role_and_content, messages)
    ]
    media.place_rest(turns)
    return [(role, _tidy(parts)) for role, parts in turns]


def _swift_messages(row: Mapping) -> list[dict]:
    """ms-swift's ``query`` and ``response``, with ``history`` and ``system``, as messages."""
    history = row.get("history") or []
    pairs = [*history] if isinstance(history, list | tuple) else [history]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise VlkitError(f"its history is {history!r:.60}; expected pairs of texts")
    pairs.append((row.get("query", ""), row.get("response", "")))
    turns = [("system", row["system"])] if row.get("system") else []
    for query, response in pairs:
        turns += [("user", query), ("assistant", response)]
    return [{"role": role, "content": text} for role, text in turns]


def _role_and_content(message: Any) -> tuple[str, Any]:
    if not isinstance(message, Mapping):
        raise VlkitError(f"a message is {message!r:.40}; expected a dict of role and content")
    content = message.get("content")
    return role_of(message), message.get("value") if content is None else content


def _parts(content: Any, name: str, media: _Media) -> Iterator[Part]:
    if isinstance(content, str):
        if name == "pai":
            if stray := _STRAY.search(_INLINE.sub("", content)):
                raise VlkitError(
                    f"unbalanced tags: {stray[0]} has no counterpart in {content!r:.60}"
                )
            yield from _split(content, _INLINE, _inline_item)
        elif name in ("llava", "ms-swift"):
            if name == "llava" and (inline := _INLINE.search(content)):
                raise VlkitError(f'{inline[0]!r:.60} is PAI\'s; pass format="pai" or "auto"')
            yield from _split(content, _PLACE, lambda match: media.take(match[1]))
        else:
            yield content
    elif isinstance(content, list | tuple):
        for item in content:
            yield _item(item, media)
    elif content is not None:
        raise VlkitError(f"a message has {content!r:.40}; expected text or a list of items")


def _inline_item(match: re.Match) -> dict:
    """``<img>file</img>`` anywhere: https://github.com/QwenLM/Qwen-VL#finetuning."""
    return media_item(match[2].strip(), "video" if match[1] == "video" else "image")


def _split(text: str, pattern: re.Pattern, medium_of: Callable[[re.Match], dict]) -> Iterator[Part]:
    end = 0
    for match in pattern.finditer(text):
        yield text[end : match.start()]
        yield medium_of(match)
        end = match.end()
    yield text[end:]


def _item(item: Any, media: _Media) -> Part:
    if isinstance(item, str):
        return item
    if not isinstance(item, Mapping):
        raise VlkitError(f"a content item is {item!r:.40}; expected a dict with a type")
    item = {key: value for key, value in item.items() if not is_missing(value)}
    kind = str(item.get("type", "text" if "text" in item else "image"))
    if kind == "text":
        if not isinstance(item.get("text"), str):
            raise VlkitError(f"a text item without text: {item!r:.60}")
        return item["text"]
    kind = "video" if kind.startswith("video") else "image"
    source = next((item[key] for key in _KEYS if key in item), None)
    if source is None:
        return media.take(kind)
    options = {key: item[key] for key in item if key not in (*_KEYS, "type")}
    return media_item(source, kind) | options


def media_item(source: Any, kind: str) -> dict:
    """A picture or clip as a content item."""
    source = media_source(source)
    if isinstance(source, str | os.PathLike):
        source = os.fspath(source)
        kind = "video" if looks_like_clip(source) else kind
    if source is None or (isinstance(source, str) and not source):
        raise VlkitError(f"{'an image' if kind == 'image' else 'a video'} without a file")
    kind = "video" if isinstance(source, Video) else kind
    return {"type": kind, kind: source}


class _Media:
    """The pictures and clips in a row's columns; each placeholder in the text takes the next."""

    def __init__(self, row: Mapping):
        row = {key: row[key] for key in _MEDIA_COLUMNS if key in row}
        self.left = {kind: list(_cells(row, kind)) for kind in ("image", "video")}
        self.count = {kind: len(items) for kind, items in self.left.items()}

    def take(self, kind: str) -> dict:
        if not self.left[kind]:
            raise VlkitError(f"its text has more <{kind}> than its {self.count[kind]} {kind}s")
        return self.left[kind].pop(0)

    def place_rest(self, turns: list[Turn]) -> None:
        """Put media without a placeholder before the first question, if no other has one."""
        rest = [*self.left["image"], *self.left["video"]]
        placed = [part for _, parts in turns for part in parts if isinstance(part, dict)]
        named = {source for item in placed if isinstance(source := item[item["type"]], str)}
        without = [
            item["type"]
            for item in rest
            if not (isinstance(source := item[item["type"]], str) and source in named)
        ]
        if placed and without:
            raise VlkitError(
                f"{len(without)} of its {without[0]}s have no <{without[0]}> in the text"
            )
        question = next((parts for role, parts in turns if role == "user"), None)
        if not placed and question is not None:
            question[:0] = rest


def _cells(row: Mapping, kind: str) -> Iterator[dict]:
    column = _column(row, COLUMNS[kind])
    cell: Any = row[column] if column else None
    for source in cell if isinstance(cell, list | tuple) else [cell]:
        if not is_missing(source):
            yield media_item(source, kind)


def _column(row: Mapping, names: Sequence[str]) -> str | None:
    """The first of these columns with a value in this row, else the first of them."""
    lower = {str(name).lower(): name for name in row}
    columns = [lower[name] for name in names if name in lower]
    return next((name for name in columns if not is_missing(row[name])), next(iter(columns), None))


def _table_turns(row: Mapping) -> Iterator[Turn]:
    question, answer = _column(row, _PROMPTS), _column(row, ANSWERS)
    if not question or not answer:
        raise VlkitError(f"no question and answer among its columns {list(row)!s:.100}")
    system = _column(row, _SYSTEM)
    if system and not is_missing(row[system]):
        yield "system", [str(row[system])]
    media = [item for kind in ("image", "video") for item in _cells(row, kind)]
    yield "user", [*media, _text(row[question])]
    yield "assistant", [_text(row[answer])]


def _text(cell: Any) -> str:
    return "" if is_missing(cell) else str(cell)


def _tidy(parts: list[Part]) -> list[Part]:
    """Adjacent texts as one, without the newlines between a picture's tag and the text."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    for i, part in enumerate(joined):
        if isinstance(part, str):
            part = part.lstrip("\n") if i else part
            joined[i] = part.rstrip("\n") if i + 1 < len(joined) else part
    return [part for part in joined if part != ""]
