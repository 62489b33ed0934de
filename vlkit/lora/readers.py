"""The formats of a training row: PAI, LLaVA, ms-swift, messages, tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vlkit.datasets.conversations import media_item, media_items, role_of
from vlkit.datasets.questions import COLUMNS
from vlkit.datasets.tables import is_missing
from vlkit.errors import VlkitError

FORMATS = ("pai", "llava", "ms-swift", "messages", "table")
ANSWERS = ("answer", "answers", "response", "completion", "output", "target", "label")
_INLINE = re.compile(r"<(img|video)>((?:(?!<img>|<video>).)*?)</\1>", re.DOTALL)
_STRAY = re.compile(r"</?(?:img|video)>")
_PAI = re.compile(r"</?img>|</video>")  # a lone <video> is LLaVA's placeholder
_PLACE = re.compile(r"<(image|video)>")
_KEYS = ("image", "image_url", "video", "video_url", "url", "path", "bytes")
_PROMPTS, _SYSTEM = COLUMNS["prompt"], COLUMNS["system"]
# what a row and a message may say, in lower case; any other key is named in a warning
_ROW_KEYS = {
    *("conversations", "messages", "objects", "history", "input", "id", "width", "height"),
    *(name for names in COLUMNS.values() for name in names), *ANSWERS,
}  # fmt: skip
_MESSAGE_KEYS = {"role", "from", "content", "value", "loss", "weight"}
_NO_TEXT = {  # of a message, and lost where only its text is learnt
    "reasoning_content": "write it into the content, as <think>…</think>",
    "reasoning": "write it into the content, as <think>…</think>",
    "tool_calls": "write it into the content, as <tool_call>…</tool_call>",
    "function_call": "write it into the content, as <tool_call>…</tool_call>",
    "tool_call_id": "write the result into a question",
    "images": "put them under the row's images, and <image> into the text",
    "videos": "put them under the row's videos, and <video> into the text",
}


Part = str | dict  # a text, or the content item of a picture or clip


class Turn(NamedTuple):
    """Who speaks, what it says and shows, and whether it is learnt where it is an answer."""

    role: str
    parts: list[Part]
    trained: bool = True


def detect_format(row: Mapping) -> str:
    """The format of one row. Raises VlkitError where it is of none."""
    if isinstance(messages := row.get("conversations"), list):
        texts = [str(_content(message)) for message in messages]
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


def unread_keys(row: Mapping) -> set[str]:
    """The keys of a row and of its messages that :func:`read_turns` does not read."""
    keys = {str(key) for key, value in row.items() if not is_missing(value)}
    unread = {key for key in keys if key.lower() not in _ROW_KEYS}
    for kind in ("image", "video", "prompt"):  # of several columns for one thing, one is read
        names = [name for name in keys if name.lower() in COLUMNS[kind]]
        unread |= {*names} - {_column(row, COLUMNS[kind])}
    for message in row.get("conversations") or row.get("messages") or ():
        if isinstance(message, Mapping):
            unread |= {f"messages[].{key}" for key in message.keys() - _MESSAGE_KEYS}
    return unread


def read_turns(row: Mapping, name: str) -> list[Turn]:
    """The turns of a row.

    Raises:
        VlkitError: why it cannot be read.
    """
    key = "messages" if name in ("ms-swift", "messages") else "conversations"
    messages = row.get(key)
    if name == "table" or (not messages and name == "ms-swift" and "query" in row):
        messages = list(_messages_of_columns(row))
    if not isinstance(messages, list | tuple) or not len(messages):
        raise VlkitError(f'no list of messages under "{key}"; its columns: {list(row)!s:.100}')
    system = _column(row, _SYSTEM)
    if system and not is_missing(row[system]):  # beside the turns
        if role_of(messages[0]) == "system":
            raise VlkitError(f'it has a system message and "{system}"; leave one of them out')
        messages = [{"role": "system", "content": row[system]}, *messages]
    media = _Media(row)
    turns = [_turn(message, name, media) for message in messages]
    media.place_rest(turns)
    return [turn._replace(parts=_tidy(turn.parts)) for turn in turns]


def _turn(message: Any, name: str, media: _Media) -> Turn:
    content = _content(message)
    for key, remedy in _NO_TEXT.items():
        if message.get(key):
            raise VlkitError(f"a message has {key!r}, which is not supported; {remedy}")
    for key in ("loss", "weight"):  # of ms-swift, and of OpenAI's and axolotl's rows
        if message.get(key) not in (None, 0, 1):
            raise VlkitError(f"{key}={message[key]!r:.40} of a message is not supported (0 or 1)")
    trained = all(message.get(key) != 0 for key in ("loss", "weight"))
    return Turn(role_of(message), list(_parts(content, name, media)), trained)


def _messages_of_columns(row: Mapping) -> Iterator[dict]:
    """Columns for question and answer as messages, after the turns of ``history``.

    ``input`` follows ``instruction`` on a line of its own (https://github.com/tatsu-lab/
    stanford_alpaca), and of several accepted answers the most frequent is learnt, else the first.
    """
    history = row.get("history") or []
    pairs = [*history] if isinstance(history, list | tuple) else [history]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise VlkitError(f"its history is {history!r:.60}; expected pairs of texts")
    question, answer = _column(row, _PROMPTS), _column(row, ANSWERS)
    if not question or not answer:
        raise VlkitError(f"no question and answer among its columns {list(row)!s:.100}")
    asked = _text(row[question])
    if _text(row.get("input")):
        asked = f"{asked}\n{_text(row['input'])}" if asked else _text(row["input"])
    for query, response in [*pairs, (asked, _chosen_answer(row[answer]))]:
        yield {"role": "user", "content": query}
        yield {"role": "assistant", "content": response}


def _chosen_answer(cell: Any) -> str:
    """An answer, or of a list, as of VQA and DocVQA, the most frequent one, else the first."""
    answers = cell if isinstance(cell, list | tuple) else [cell]
    texts = [_text(a.get("answer") if isinstance(a, Mapping) else a) for a in answers]
    return Counter(text for text in texts if text).most_common(1)[0][0] if any(texts) else ""


def _content(message: Any) -> Any:
    if not isinstance(message, Mapping):
        raise VlkitError(f"a message is {message!r:.40}; expected a dict of role and content")
    content = message.get("content")
    return message.get("value") if content is None else content


def _parts(content: Any, name: str, media: _Media) -> Iterator[Part]:
    if isinstance(content, str):
        if name == "pai":
            if stray := _STRAY.search(_INLINE.sub("", content)):
                raise VlkitError(
                    f"unbalanced tags: {stray[0]} has no counterpart in {content!r:.60}"
                )
            yield from _split(content, _INLINE, _inline_item)
        elif name in ("llava", "ms-swift") or (name == "table" and any(media.count.values())):
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


class _Media:
    """The pictures and clips in a row's columns; each placeholder in the text takes the next."""

    def __init__(self, row: Mapping):
        columns = {kind: _column(row, COLUMNS[kind]) for kind in ("image", "video")}
        self.left = {kind: media_items(row.get(name), kind) for kind, name in columns.items()}
        self.count = {kind: len(items) for kind, items in self.left.items()}
        # beside pictures in the text it is metadata: the name of some file
        self.is_file_name = columns["image"] in ("file_name", "filename")

    def take(self, kind: str) -> dict:
        if not self.left[kind]:
            raise VlkitError(f"its text has more <{kind}> than its {self.count[kind]} {kind}s")
        return self.left[kind].pop(0)

    def place_rest(self, turns: list[Turn]) -> None:
        """Put media without a placeholder before the first question, if no other has one."""
        placed = [part for turn in turns for part in turn.parts if isinstance(part, dict)]
        if placed and self.is_file_name:
            self.left["image"] = []
        rest = [*self.left["image"], *self.left["video"]]
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
        question = next((turn.parts for turn in turns if turn.role == "user"), None)
        if not placed and question is not None:
            question[:0] = rest


def _column(row: Mapping, names: Sequence[str]) -> str | None:
    """The first of these columns with a value in this row, else the first of them."""
    lower = {str(name).lower(): name for name in row}
    columns = [lower[name] for name in names if name in lower]
    return next((name for name in columns if not is_missing(row[name])), next(iter(columns), None))


def _text(cell: Any) -> str:
    if isinstance(cell, list | tuple | Mapping):
        raise VlkitError(f"a question or answer is {cell!r:.60}; expected text")
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
