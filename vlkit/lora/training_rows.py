"""A row of any format (PAI, LLaVA, ms-swift, messages, tables) checked and read: ``Example``."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, NamedTuple

import PIL.Image

from vlkit.datasets import conversations
from vlkit.datasets.conversations import SWIFT, is_missing
from vlkit.datasets.formats import chats
from vlkit.datasets.formats.chats import Segment, Writer
from vlkit.datasets.questions import COLUMNS
from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Size
from vlkit.grounding.formats import FORMATS as FAMILIES
from vlkit.grounding.parse import find_numbers, span_of, to_pixels
from vlkit.media.image import Image, describe_source, load_image, picture_size
from vlkit.media.sources import is_remote, is_url, local_path
from vlkit.media.video import Video, clip_name, probe_clip, sample_indices
from vlkit.messages import (
    ROLES,
    CheckedMessages,
    as_messages,
    iterate_media,
    read_media_item,
)

FORMATS = ("pai", "llava", "ms-swift", "messages", "table")
CONVENTIONS = (*FAMILIES, SWIFT)
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
UNIT = (1000, 1000)  # the size of a picture of which only shares count
_SLACK = 1.0  # pixels or shares that rounding may add
_ENCODED = (str, bytes, bytearray, memoryview)  # of these picture_size reads the header alone
_COMMON = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
SHOWN = 20  # problems that an error lists

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
    if system and not is_missing(row[system]):  # next to the turns
        if conversations.role_of(messages[0]) == "system":
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
    return Turn(conversations.role_of(message), list(_parts(content, name, media)), trained)


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
    return conversations.media_item(match[2].strip(), "video" if match[1] == "video" else "image")


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
    return conversations.media_item(source, kind) | options


class _Media:
    """The pictures and clips in a row's columns; each placeholder in the text takes the next."""

    def __init__(self, row: Mapping):
        columns = {kind: _column(row, COLUMNS[kind]) for kind in ("image", "video")}
        self.left = {
            kind: conversations.media_items(row.get(name), kind) for kind, name in columns.items()
        }
        self.count = {kind: len(items) for kind, items in self.left.items()}
        # next to pictures in the text it is metadata: the name of some file
        self.is_file_name = columns["image"] in ("file_name", "filename")

    def take(self, kind: str) -> dict:
        if not self.left[kind]:
            raise VlkitError(f"its text has more <{kind}> than its {self.count[kind]} {kind}s")
        return self.left[kind].pop(0)

    def place_rest(self, turns: list[Turn]) -> None:
        """Put media without a placeholder before the first question, if no other has one."""
        placed = _media_in(turns)
        if placed and self.is_file_name:
            self.left["image"] = []
        rest = [*self.left["image"], *self.left["video"]]
        question = next((turn.parts for turn in turns if turn.role == "user"), [])
        if not placed:
            question[:0] = rest
            return
        named = set(map(_path_of, placed))
        without = [i["type"] for i in rest if not _path_of(i) or _path_of(i) not in named]
        if without:
            raise VlkitError(
                f"{len(without)} of its {without[0]}s have no <{without[0]}> in the text"
            )


def _path_of(item: dict) -> str:
    source = item[item["type"]]
    return source if isinstance(source, str) else ""


def _media_in(turns: list[Turn]) -> list[dict]:
    return [part for turn in turns for part in turn.parts if isinstance(part, dict)]


def _column(row: Mapping, names: Sequence[str]) -> str | None:
    """The first of these columns with a value in this row, else the first of them."""
    lower = {str(name).lower(): name for name in row}
    columns = [lower[name] for name in names if name in lower]
    return next((name for name in columns if row[name] is not None), next(iter(columns), None))


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


@dataclass(frozen=True)
class Coordinates:
    """What the numbers in a row's texts mean.

    Attributes:
        convention: of ``CONVENTIONS``, or "" where there are none.
        size: (width, height) of the upright picture that they are on; None where only shares of it
            are known.
        input_size: at which the source's model saw it, for ``qwen2_5_vl``.
    """

    convention: str = ""
    size: Size | None = None
    input_size: Size | None = None

    def writer(self, family: str, input_size: Size | None) -> Writer | None:
        """What writes the boxes for a family; None where the source already has them so."""
        if not self.convention:
            return None
        resized = FAMILIES[family].space == "resized"
        if self.convention == family and not (resized and input_size != self.input_size):
            return None
        if resized and self.size is None:
            raise VlkitError(
                f"{family} writes pixels, but it is unknown on which picture the boxes are"
            )
        return Writer(family, self.size or UNIT, input_size)

    def write(self, segments: Iterable[Segment], writer: Writer) -> str:
        """A text for the family that the writer is for."""
        return writer.text(
            [chats.rename_segment(s, self.convention, writer.name) for s in segments]
        )


def place_coordinates(
    row: Mapping, texts: Sequence[str], convention: str, sizes: set[Size], limit: int | None
) -> tuple[Coordinates, list[list[Segment]]]:
    """Each of a row's texts split at its boxes.

    Args:
        row: with its ``objects``, for ms-swift.
        texts: in order.
        convention: of ``CONVENTIONS``, or "" for texts without coordinates.
        sizes: of the row's pictures, upright.
        limit: the most image tokens to which the source's model was limited.

    Raises:
        VlkitError: several families write such JSON; unbalanced tags; boxes that cannot be read,
            are outside the picture, have no area or their corners swapped; ms-swift's tags under
            another convention.
    """
    if not convention:
        return Coordinates(), [[text] for text in texts]
    if convention == conversations.AMBIGUOUS:
        raise VlkitError(
            "cannot tell which family wrote its JSON boxes; pass boxes=, one of "
            f"{conversations.json_families()} (or boxes=None to leave the texts as they are)"
        )
    if convention != SWIFT and any(
        tag in text for text in texts for tag in conversations.SWIFT_TAGS
    ):
        raise VlkitError(
            f"its <bbox> and <ref-object> are ms-swift's, not {convention}'s; pass "
            f'boxes="{SWIFT}" or "auto"'
        )
    size = next(iter(sizes)) if len(sizes) == 1 else None
    if size is None and _needs_size(row, convention):
        raise VlkitError(
            f"{convention} gives pixels, but the row has "
            f"{'pictures of several sizes' if sizes else 'no picture of known size'}, so its boxes "
            "cannot be placed"
        )
    input_size = chats.input_size_for(convention, size or UNIT, limit)
    if convention == SWIFT:
        segments = _swift_texts(row, texts, size or UNIT)
    else:
        segments = _family_texts(texts, convention, size or UNIT, input_size)
    return Coordinates(convention, size, input_size), segments


def _needs_size(row: Mapping, convention: str) -> bool:
    if convention != SWIFT:
        return FAMILIES[convention].space == "resized"
    objects = row.get("objects")
    return not isinstance(objects, Mapping) or objects.get("bbox_type") != "norm1"


def _swift_texts(row: Mapping, texts: Sequence[str], size: Size) -> list[list[Segment]]:
    objects = chats.SwiftObjects(dict(row), size)
    _raise_all(_misplaced(numbers, size) for numbers in objects.boxes)
    segments = [chats.swift_segments(text, objects) for text in texts]
    objects.check_used_up()
    return segments


def _family_texts(
    texts: Sequence[str], family: str, size: Size, input_size: Size | None
) -> list[list[Segment]]:
    form = FAMILIES[family]
    span = span_of(form.space, size, input_size)
    answers = [find_numbers(text, family, rewritable=True) for text in texts]
    problems: list[str] = []
    for text, (boxes, unread, notes) in zip(texts, answers, strict=True):
        for opening, closing in (form.label_tags, form.box_tags, form.quad_tags):
            if opening and text.count(opening) != text.count(closing):
                problems.append(f"unbalanced tags: {opening} and {closing} in {text!r:.60}")
        problems += [*unread, *notes, *(_misplaced(box.numbers, span) for box in boxes)]
    _raise_all(problems)
    segments = []
    for text, (boxes, _, _) in zip(texts, answers, strict=True):
        placed = [(to_pixels(b.label, b.numbers, span, size), b.start, b.end) for b in boxes]
        segments.append(list(chats.group_items(text, placed)))
    return segments


def _raise_all(problems: Iterable[str]) -> None:
    if text := "; ".join(filter(None, problems)):
        raise VlkitError(text)


def _misplaced(numbers: Sequence[float], span: Size) -> str:
    shown = f"box [{', '.join(f'{n:g}' for n in numbers)}]"
    if not all(-_SLACK <= n <= span[i % 2] + _SLACK for i, n in enumerate(numbers)):
        return f"{shown} is outside its picture's {span}"
    if len(numbers) != 4 or (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        return ""
    if numbers[0] > numbers[2] or numbers[1] > numbers[3]:
        return f"{shown} has its corners swapped; give the top left one, then the bottom right one"
    return f"{shown} has no area"


@contextmanager
def naming_row(example: Any) -> Iterator[None]:
    """Errors inside begin with the example's row in its source."""
    try:
        yield
    except VlkitError as error:
        row = getattr(example, "row", 0)
        if not row or str(error).startswith(f"row {row}: "):
            raise
        raise type(error)(f"row {row}: {error}") from error


@dataclass(frozen=True, eq=False)
class Example:
    """One conversation to learn from.

    Attributes:
        row: its number in the source, from 1.
        messages: checked, the last one the answer; texts as the source has them. An answer that is
            not learnt has ``"loss": False``.
        coordinates: what the numbers in its texts mean.
        segments: of each text in order: texts, and lists of boxes and points in pixels of the
            upright picture.
    """

    row: int
    messages: CheckedMessages
    coordinates: Coordinates
    segments: Sequence[Sequence[Segment]]

    @property
    def media(self) -> list[dict]:
        """The content items of its pictures and clips, in order."""
        return list(iterate_media(self.messages))

    @property
    def texts(self) -> list[str]:
        """Its texts, in order, as the source has them."""
        items = (item for message in self.messages for item in message["content"])
        return [item["text"] for item in items if item["type"] == "text"]

    def messages_for(self, vlm: Any) -> CheckedMessages:
        """Messages, the last one the answer; boxes as this model writes them.

        Args:
            vlm: from :func:`vlkit.load`.

        Raises:
            VlkitError: the model's convention cannot hold these boxes.
        """
        with naming_row(self):
            writer = self.coordinates.writer(vlm.family, self._input_size(vlm))
            if writer is None:
                return self.messages
            texts = iter([self.coordinates.write(parts, writer) for parts in self.segments])
            messages = as_messages([_replace_texts(message, texts) for message in self.messages])
            return _mark(messages, [i for i, m in enumerate(self.messages) if "loss" in m])

    def _input_size(self, vlm: Any) -> Size | None:
        """The size at which the model sees the picture that the boxes are on."""
        if self.coordinates.size is None:
            return None
        image = next((item for item in self.media if item["type"] == "image"), None)
        return vlm.rules.image_size(self.coordinates.size, image and read_media_item(image))


def _mark(messages: CheckedMessages, untrained: Iterable[int]) -> CheckedMessages:
    for i in untrained:
        messages[i]["loss"] = False
    return messages


def _replace_texts(message: dict, texts: Iterator[str]) -> dict:
    content = [next(texts) if item["type"] == "text" else item for item in message["content"]]
    return message | {"content": content}


def source_key(source: Any) -> Hashable:
    """Equal for the same path or the same object, while that object lives; nothing is read."""
    return source if isinstance(source, str) else id(source)


def find_damaged(items: Iterable[dict]) -> list[str | None]:
    """Why a content item cannot be decoded, or None, for each; a distinct one is tried once.

    Pictures are decoded to their end, clips to their first frame; http(s) URLs are not fetched.
    """
    media = [read_media_item(item) for item in items]
    keys = [_key(medium) for medium in media]
    distinct = dict(zip(keys, media, strict=True))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        damage = dict(zip(distinct, pool.map(_damage, distinct.values()), strict=True))
    return [damage[key] for key in keys]


def _key(medium: Image | Video) -> tuple:
    source, *options = vars(medium).values()
    return type(medium), source_key(source), repr(options)


def _damage(medium: Image | Video) -> str | None:
    source = medium.source
    if is_remote(source):
        return None
    try:
        if isinstance(medium, Video):
            sample_indices(medium, probe_clip(medium), clip_name(source))
        elif not _is_whole_file(source):
            load_image(medium)
    except (VlkitError, OSError) as error:
        return str(error)
    return None


def _is_whole_file(source: Any) -> bool:
    """Whether it is a file that decodes to its end, at an eighth of its size if it is a JPEG."""
    if not isinstance(source, str | os.PathLike) or is_url(source):
        return False
    try:
        with PIL.Image.open(local_path(source), formats=_COMMON) as picture:
            picture.draft(None, (1, 1))
            picture.load()
    except Exception:  # a decoder may raise anything; load_image then says what is wrong
        return False
    return True


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one row; a ``.jsonl`` counts its lines, from 1."""

    row: int
    text: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.text}"


class DataError(VlkitError):
    """Training data with rows that cannot be learnt from.

    Attributes:
        problems: all of them, in order.
    """

    def __init__(self, name: str, problems: Sequence[Problem]):
        advice = "fix them, or pass strict=False to leave these rows out"
        super().__init__(f"{list_problems(name, problems)}; {advice}")
        self.problems = tuple(problems)


def list_problems(name: str, problems: Sequence[Problem]) -> str:
    """All problems of a source in one line."""
    rows = len({problem.row for problem in problems})
    more = len(problems) - SHOWN
    listed = "; ".join(map(str, problems[:SHOWN]))
    listed += f"; and {more:,} more (in .problems)" if more > 0 else ""
    return f"{name}: {rows:,} {'row has' if rows == 1 else 'rows have'} problems: {listed}"


class RowReader:
    """Reads rows as examples; ``problems`` collects what is wrong with any of them.

    Args:
        format: of ``FORMATS``, or ``auto``.
        boxes: the convention of coordinates, ``auto`` or None.
        limit: the most image tokens to which the source's model was limited.
        places: folders in which pictures are looked for.
    """

    def __init__(self, format: str, boxes: str | None, limit: int | None, places: list[Path]):
        self.format, self.boxes, self.limit = format, boxes, limit
        self.places = places or [Path()]
        self.problems: list[Problem] = []
        self._media: list[tuple[int, dict]] = []
        self._renamed: dict[str, dict[str, list[int]]] = {}  # file → absolute paths → rows
        self.unread: Counter[str] = Counter()  # keys that are not read, and in how many rows

    def read(self, rows: Iterable[tuple[int, Any]]) -> list[Example]:
        """The examples of all rows without a problem."""
        examples = [example for number, row in rows if (example := self._try(number, row))]
        damage = find_damaged(item for _, item in self._media)
        for (number, _), problem in zip(self._media, damage, strict=True):
            if problem:
                self._note(number, problem)
        self._note_mixed_up()
        self.problems.sort(key=lambda problem: problem.row)
        unsound = {problem.row for problem in self.problems}
        return [example for example in examples if example.row not in unsound]

    def _note(self, number: int, text: str) -> None:
        self.problems.append(Problem(number, text))

    def _try(self, number: int, row: Any) -> Example | None:
        try:
            return self._read(number, row)
        except VlkitError as error:
            self._note(number, str(error))
        return None

    def _read(self, number: int, row: Any) -> Example | None:
        if isinstance(row, VlkitError):
            raise row
        row = {"messages": row} if isinstance(row, list | tuple) else row
        if not isinstance(row, Mapping):
            raise VlkitError(f"expected an object, not {row!r:.40}")
        row = {key: None if is_missing(value) else value for key, value in row.items()}
        turns = read_turns(row, detect_format(row) if self.format == "auto" else self.format)
        self.unread.update(unread_keys(row))
        out_of_order = list(_order_problems(turns))
        for problem in out_of_order:
            self._note(number, problem)
        before = len(self.problems)
        sizes = set(self._measure_media(number, _media_in(turns)))
        if len(self.problems) > before:  # without its pictures its boxes cannot be placed
            return None
        messages = CheckedMessages()
        if not out_of_order:
            said = as_messages([{"role": turn.role, "content": turn.parts} for turn in turns])
            messages = _mark(said, [i for i, turn in enumerate(turns) if not turn.trained])
        texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
        detected = self.boxes == "auto"
        convention = conversations.detect_convention(row, texts) if detected else self.boxes or ""
        coordinates, segments = place_coordinates(row, texts, convention, sizes, self.limit)
        return Example(number, messages, coordinates, segments)

    def _measure_media(self, number: int, items: Iterable[dict]) -> Iterator[Size]:
        """Complete the path of each item; the sizes of the pictures that exist."""
        for item in items:
            kind = item["type"]
            try:
                source = item[kind]
                frames = isinstance(source, list | tuple)
                find = partial(self._find, number, kind="image" if frames else kind)
                item[kind] = list(map(find, source)) if frames else find(source)
                medium = read_media_item(item)
                if isinstance(medium, Image) and not is_remote(medium.source):
                    yield picture_size(medium)
                if isinstance(medium, Video) or isinstance(medium.source, _ENCODED):
                    self._media.append((number, item))
            except (VlkitError, TypeError) as error:
                self._note(number, str(error))

    def _find(self, number: int, source: Any, kind: str) -> Any:
        if not isinstance(source, str) or is_url(source):
            return source
        is_there = os.path.isfile if kind == "image" else os.path.exists
        name = local_path(source)
        paths = [os.fspath(place / name) for place in self.places]
        if path := next(filter(is_there, paths), None):
            return path
        if base := _base_of_absolute(name):
            for path in (os.fspath(place / base) for place in self.places):
                if is_there(path):
                    self._renamed.setdefault(path, {}).setdefault(name, []).append(number)
                    return path
        advice = "; base64 needs data:image/png;base64,… before it" if len(name) > 255 else ""
        raise VlkitError(
            f"{kind} {describe_source(source)} is missing (looked for "
            f"{describe_source(paths[0])}{advice})"
        )

    def _note_mixed_up(self) -> None:
        """Two absolute paths must not become one file only because they share a base name."""
        for path, names in self._renamed.items():
            for name, numbers in names.items() if len(names) > 1 else ():
                other = next(path_name for path_name in names if path_name != name)
                for number in dict.fromkeys(numbers):
                    self._note(
                        number,
                        f"{describe_source(name)} and {describe_source(other)} would both be read "
                        f"from {describe_source(path)}; give paths with their folders",
                    )


def _base_of_absolute(name: str) -> str:
    """The base name of an absolute path, perhaps of another machine; "" of a relative one."""
    paths = PurePath(name), PureWindowsPath(name)
    return next((path.name for path in paths if path.is_absolute()), "")


def _order_problems(turns: list[Turn]) -> Iterator[str]:
    spoken = turns[1:] if turns[0].role == "system" else turns
    for i, (role, *_) in enumerate(spoken):
        expected = ("user", "assistant")[i % 2]
        if role != expected:
            unknown = "" if role in ROLES else ", which is not a role"
            yield f"roles out of order: turn {i + 1} is {role!r}{unknown}, expected {expected!r}"
            return
    if not spoken or spoken[-1].role != "assistant":
        yield "it ends without an answer"
    elif not any(turn.trained for turn in spoken if turn.role == "assistant"):
        yield "its loss or weight leaves no answer to learn"
    for i, (role, parts, _) in enumerate(spoken, 1):
        shown = any(isinstance(part, dict) for part in parts)
        blank = not shown and not "".join(map(str, parts)).strip()
        if role == "assistant" and shown:
            yield f"turn {i}: a picture in an answer"
        elif blank:
            yield f"turn {i}: the {'answer' if role == 'assistant' else 'question'} is empty"
