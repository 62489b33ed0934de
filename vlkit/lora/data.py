"""``load_conversations``: rows of any format, checked and read, as ``TrainingData``; its split."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from vlkit.batch.journal import hash_medium
from vlkit.datasets import conversations
from vlkit.datasets.conversations import SWIFT, SWIFT_TAGS, is_missing, media_items
from vlkit.datasets.formats import chats
from vlkit.datasets.formats.chats import Writer
from vlkit.datasets.questions import COLUMNS
from vlkit.datasets.tables import read_table
from vlkit.errors import VlkitError, check_choice, check_whole, counted, is_number
from vlkit.files import read_text
from vlkit.grounding.boxes import Size
from vlkit.grounding.formats import FORMATS as FAMILIES
from vlkit.grounding.parse import Segment, find_numbers, group_items, span_of, to_pixels
from vlkit.media.image import Image, describe_source, load_image, picture_size, pixel_hash
from vlkit.media.sources import is_remote, is_url, local_path
from vlkit.media.video import Video, clip_name, probe_clip, sample_indices
from vlkit.messages import ROLES, CheckedMessages, as_messages, iterate_media, read_media_item

FORMATS = ("pai", "llava", "ms-swift", "messages", "table")
CONVENTIONS = (*FAMILIES, SWIFT)
SHOWN = 20  # problems that an error lists
_ANSWERS = ("answer", "answers", "response", "completion", "output", "target", "label")
_INLINE = re.compile(r"<(img|video)>((?:(?!<img>|<video>).)*?)</\1>", re.DOTALL)
_STRAY = re.compile(r"</?(?:img|video)>")
_PAI = re.compile(r"</?img>|</video>")  # a lone <video> is LLaVA's placeholder
_PLACE = re.compile(r"<(image|video)>")
_KEYS = ("image", "image_url", "video", "video_url", "url", "path", "bytes")
# what a row and a message may say, in lower case; any other key is named in a warning
_ROW_KEYS = {
    *("conversations", "messages", "objects", "history", "input", "id", "width", "height"),
    *(name for names in COLUMNS.values() for name in names), *_ANSWERS,
}  # fmt: skip
_MESSAGE_KEYS = {"role", "from", "content", "value", "loss", "weight"}
_OBJECT_KEYS = {"ref", "bbox", "bbox_type", "image_id", "width", "height"}
_NO_TEXT = {  # of a message, and lost where only its text is learnt
    "reasoning_content": "write it into the content, as <think>…</think>",
    "reasoning": "write it into the content, as <think>…</think>",
    "tool_calls": "write it into the content, as <tool_call>…</tool_call>",
    "function_call": "write it into the content, as <tool_call>…</tool_call>",
    "tool_call_id": "write the result into a question",
    "images": "put them under the row's images, and <image> into the text",
    "videos": "put them under the row's videos, and <video> into the text",
}
_UNIT = (1000, 1000)  # the size of a picture of which only shares count
_SLACK = 1.0  # pixels or shares that rounding may add
_ENCODED = (str, bytes, bytearray, memoryview)  # of these picture_size reads the header alone
_COMMON = ("JPEG", "PNG", "WEBP", "BMP", "GIF")

# --- from a source to its rows -------------------------------------------------------------------


def open_rows(meta: Any) -> tuple[Iterable[tuple[int, Any]], str, Path | None]:
    """Numbered rows (an error for a line that is not JSON), a name for messages, the folder."""
    if isinstance(meta, str | os.PathLike):
        path = Path(local_path(meta))
        if os.path.isdir(path):
            raise VlkitError(f"{os.fspath(meta)!r} is a folder; name the file with the rows")
        is_json = path.suffix.lower() in (".json", ".jsonl")
        rows = _json_rows(path) if is_json else enumerate(_records(path), 1)
        return rows, describe_source(path.name), path.parent
    if hasattr(meta, "to_dict") and hasattr(meta, "columns"):
        return enumerate(_records(meta), 1), "DataFrame", None
    if hasattr(meta, "cast_column") and hasattr(meta, "features"):
        return enumerate(_undecoded(meta), 1), "Dataset", None
    if isinstance(meta, Mapping | bytes | bytearray) or not isinstance(meta, Iterable):
        raise VlkitError(f"expected a file, a table or rows, not {type(meta).__name__}")
    return enumerate(meta, 1), "conversations", None


def _json_rows(path: Path) -> Iterable[tuple[int, Any]]:
    """The rows of a list, of one object, or one a line."""
    text, name = read_text(path), describe_source(path)
    whole, is_lines = _parse(text), path.suffix.lower() == ".jsonl"
    if isinstance(whole, list):
        messages = [row for row in whole if isinstance(row, dict) and row.keys() & {"role", "from"}]
        if not is_lines or not whole or len(messages) < len(whole):
            return enumerate(whole, 1)
    if isinstance(whole, dict):
        try:
            detect_format(whole)
        except VlkitError as error:
            why = f"is one object, not a list of rows; as a row it has {error}"
            raise VlkitError(f"{name} {why}") from None
        return [(1, whole)]
    lines = enumerate(text.split("\n"), 1)
    rows = [(number, _parse(line)) for number, line in lines if line.strip()]
    is_broken = bool(rows) and isinstance(rows[0][1], VlkitError)
    if is_broken and (not is_lines or text.lstrip().startswith("[")):
        raise VlkitError(f"{name} is neither a list of rows nor one row a line: {whole}")
    return rows


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return VlkitError(f"it is not JSON ({error})")


def _records(table: Any) -> list[dict]:
    return _lists(read_table(table)[0].to_dict("records"))


def _lists(value: Any) -> Any:
    """A table's cells with Parquet's arrays as lists; arrays of pixels stay."""
    if isinstance(value, np.ndarray) and (value.dtype == object or value.ndim == 1):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_lists(item) for item in value]
    return {key: _lists(item) for key, item in value.items()} if isinstance(value, dict) else value


def _undecoded(dataset: Any) -> Iterator[dict]:
    """Rows of a ``datasets.Dataset`` whose media stay files or bytes, decoded when needed."""
    for name, feature in (dataset.features or {}).items():  # a stream may not know its features
        inner = getattr(feature, "feature", feature)
        if type(inner).__name__ in ("Image", "Video"):
            raw = type(inner)(decode=False)
            dataset = dataset.cast_column(name, raw if inner is feature else type(feature)(raw))
    yield from dataset


# --- from a row to its turns ---------------------------------------------------------------------

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
    if _column(row, COLUMNS["prompt"]) and _column(row, _ANSWERS):
        return "table"
    for key in ("conversations", "messages"):
        if key in row:
            raise VlkitError(f'"{key}" is not a list of messages but {row[key]!r:.40}')
    missing = 'no "conversations", no "messages", and no columns for question and answer'
    raise VlkitError(f"{missing}; its columns: {list(row)!s:.100}")


def unread_keys(row: Mapping) -> set[str]:
    """The keys of a row and of its messages that :func:`read_turns` does not read."""
    keys = {str(key) for key, value in row.items() if not is_missing(value)}
    unread = {key for key in keys if key.lower() not in _ROW_KEYS}
    turns = row.get("conversations") or row.get("messages") or ()
    asked = (COLUMNS["prompt"], _ANSWERS)
    for names in (COLUMNS["image"], COLUMNS["video"], *(asked if not turns else ())):
        read = _column(row, names)  # of several columns for one thing, one
        unread |= {name for name in keys if name.lower() in names} - {read}
    if turns:  # these columns are for rows without
        unread |= {key for key in keys if key.lower() in ("history", "input", *sum(asked, ()))}
    if isinstance(objects := row.get("objects"), Mapping):
        unread |= {f"objects.{key}" for key in objects.keys() - _OBJECT_KEYS}
    for message in turns:
        if isinstance(message, Mapping):
            said = {key for key, value in message.items() if value not in (None, [], {}, "")}
            unread |= {f"messages[].{key}" for key in said - _MESSAGE_KEYS}
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
    if not isinstance(messages, list | tuple) or not messages:
        raise VlkitError(f'no list of messages under "{key}"; its columns: {list(row)!s:.100}')
    system = _column(row, COLUMNS["system"])
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
    role, shares = conversations.role_of(message), {}
    for key in ("loss", "weight"):  # ms-swift's; OpenAI's
        shares[key] = share = message.get(key)
        if share not in (None, 0, 1):
            raise VlkitError(f"{key}={share!r:.40} of a message is not supported (0 or 1)")
        if share and role != "assistant":
            raise VlkitError(
                f"{key}={share!r} on a {role} turn; only answers are learnt, remove it"
            )
    return Turn(role, list(_parts(content, name, media)), 0 not in shares.values())


def _messages_of_columns(row: Mapping) -> Iterator[dict]:
    """Columns for question and answer as messages, after the turns of ``history``.

    ``input`` follows ``instruction`` on a line of its own (https://github.com/tatsu-lab/
    stanford_alpaca), and of several accepted answers the most frequent is learnt, else the first.
    """
    history = row.get("history") or []
    pairs = [*history] if isinstance(history, list | tuple) else [history]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise VlkitError(f"its history is {history!r:.60}; expected pairs of texts")
    question, answer = _column(row, COLUMNS["prompt"]), _column(row, _ANSWERS)
    if not question or not answer:
        raise VlkitError(f"no question and answer among its columns {list(row)!s:.100}")
    asked = "\n".join(filter(None, map(_text, (row[question], row.get("input")))))
    for query, response in [*pairs, (asked, _chosen_answer(row[answer]))]:
        yield {"role": "user", "content": query}
        yield {"role": "assistant", "content": response}


def _chosen_answer(cell: Any) -> str:
    """An answer, or of a list, as of VQA and DocVQA, the most frequent one, else the first."""
    answers = cell if isinstance(cell, list | tuple) else [cell]
    texts = [_text(a.get("answer") if isinstance(a, Mapping) else a) for a in answers]
    return Counter(filter(None, texts)).most_common(1)[0][0] if any(texts) else ""


def _content(message: Any) -> Any:
    if not isinstance(message, Mapping):
        raise VlkitError(f"a message is {message!r:.40}; expected a dict of role and content")
    content = message.get("content")
    return message.get("value") if content is None else content


def _parts(content: Any, name: str, media: _Media) -> Iterator[Part]:
    if isinstance(content, list | tuple):
        yield from (_item(item, media) for item in content)
    elif not isinstance(content, str):
        if content is not None:
            raise VlkitError(f"a message has {content!r:.40}; expected text or a list of items")
    elif name == "pai":
        if stray := _STRAY.search(_INLINE.sub("", content)):
            raise VlkitError(f"unbalanced tags: {stray[0]} has no counterpart in {content!r:.60}")
        yield from _split(content, _INLINE, _inline_item)
    elif name in ("llava", "ms-swift") or (name == "table" and any(media.count.values())):
        if name == "llava" and (inline := _INLINE.search(content)):
            raise VlkitError(f'{inline[0]!r:.60} is PAI\'s; pass format="pai" or "auto"')
        yield from _split(content, _PLACE, lambda match: media.take(match[1]))
    else:
        yield content


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
    if not kind.startswith(("video", "image")):
        raise VlkitError(f"a content item of type {kind!r} is not supported: {item!r:.60}")
    kind = kind[:5]
    source = next((item[key] for key in _KEYS if key in item), None)
    if source is None:
        return media.take(kind)
    options = {key: item[key] for key in item if key not in (*_KEYS, "type")}
    return conversations.media_item(source, kind) | options


class _Media:
    """The pictures and clips in a row's columns; each placeholder in the text takes the next."""

    def __init__(self, row: Mapping):
        columns = {kind: _column(row, COLUMNS[kind]) for kind in ("image", "video")}
        self.left = {kind: media_items(row.get(name), kind) for kind, name in columns.items()}
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
        if not placed:
            question = next((turn.parts for turn in turns if turn.role == "user"), [])
            question[:0] = [*self.left["image"], *self.left["video"]]
            return
        rest = [*([] if self.is_file_name else self.left["image"]), *self.left["video"]]
        named = {_path_of(item) for item in placed} - {""}
        if without := [item["type"] for item in rest if _path_of(item) not in named]:
            count, kind = len(without), without[0]
            raise VlkitError(f"{count} of its {kind}s have no <{kind}> in the text")


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
    for is_text, neighbours in groupby(parts, lambda part: isinstance(part, str)):
        same = list(neighbours)
        joined += ["".join(map(str, same))] if is_text else same
    for i, part in enumerate(joined):
        if isinstance(part, str):
            part = part.lstrip("\n") if i else part
            joined[i] = part.rstrip("\n") if i + 1 < len(joined) else part
    return [part for part in joined if part != ""]


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
        if role == "assistant" and shown:
            yield f"turn {i}: a picture in an answer"
        elif not shown and not "".join(map(str, parts)).strip():
            yield f"turn {i}: the {'answer' if role == 'assistant' else 'question'} is empty"


# --- boxes in a row's texts ----------------------------------------------------------------------


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
            raise VlkitError(f"{family} writes pixels, but the picture of the boxes is unknown")
        return Writer(family, self.size or _UNIT, input_size)

    def write(self, segments: Iterable[Segment], writer: Writer) -> str:
        """A text for the family that the writer is for."""
        renamed = [chats.rename_segment(s, self.convention, writer.name) for s in segments]
        return writer.text(renamed)


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
        choices = f"one of {conversations.json_families()}, or None to leave the texts unchanged"
        raise VlkitError(f"cannot tell which family wrote its JSON boxes; pass boxes=, {choices}")
    if convention != SWIFT and any(tag in text for text in texts for tag in SWIFT_TAGS):
        remedy = f'pass boxes="{SWIFT}" or "auto"'
        text = f"its <bbox> and <ref-object> are ms-swift's, not {convention}'s; {remedy}"
        raise VlkitError(text)
    known_size = next(iter(sizes)) if len(sizes) == 1 else None
    if known_size is None and _needs_size(row, convention):
        which = "pictures of several sizes" if sizes else "no picture of known size"
        raise VlkitError(f"{convention} gives its boxes in pixels, but the row has {which}")
    size = known_size or _UNIT
    input_size = chats.input_size_for(convention, size, limit)
    if convention == SWIFT:
        objects = chats.SwiftObjects(dict(row), size)
        _check_boxes([], [(numbers, size) for numbers in objects.boxes])
        segments = [chats.swift_segments(text, objects) for text in texts]
        objects.check_used_up()
    else:
        segments = _family_texts(texts, convention, size, input_size)
    return Coordinates(convention, known_size, input_size), segments


def _needs_size(row: Mapping, convention: str) -> bool:
    if convention != SWIFT:
        return FAMILIES[convention].space == "resized"
    objects = row.get("objects")
    return not isinstance(objects, Mapping) or objects.get("bbox_type") != "norm1"


def _family_texts(
    texts: Sequence[str], family: str, size: Size, input_size: Size | None
) -> list[list[Segment]]:
    form = FAMILIES[family]
    span = span_of(form.space, size, input_size)
    answers = [find_numbers(text, family, rewritable=True) for text in texts]
    problems = [
        f"unbalanced tags: {opening} and {closing} in {text!r:.60}"
        for text in texts
        for opening, closing in (form.label_tags, form.box_tags, form.quad_tags)
        if opening and text.count(opening) != text.count(closing)
    ]
    problems += [problem for answer in answers for problem in (*answer.problems, *answer.notes)]
    _check_boxes(problems, [(box.numbers, span) for answer in answers for box in answer.items])
    segments = []
    for text, (boxes, *_) in zip(texts, answers, strict=True):
        placed = [(to_pixels(b.label, b.numbers, span, size), b.start, b.end) for b in boxes]
        segments.append(list(group_items(text, placed)))
    return segments


def _check_boxes(problems: list[str], boxes: Iterable[tuple[Sequence[float], Size]]) -> None:
    """Raises VlkitError for problems, and boxes that are not within (width, height)."""
    for numbers, span in boxes:
        shown = f"box [{', '.join(f'{n:g}' for n in numbers)}]"
        if not all(-_SLACK <= n <= span[i % 2] + _SLACK for i, n in enumerate(numbers)):
            problems.append(f"{shown} is outside its picture's {span}")
        elif len(numbers) == 4 and (numbers[0] > numbers[2] or numbers[1] > numbers[3]):
            problems.append(f"{shown} has its corners swapped; give the top left one first")
        elif len(numbers) == 4 and (numbers[0] == numbers[2] or numbers[1] == numbers[3]):
            problems.append(f"{shown} has no area")
    if problems:
        raise VlkitError("; ".join(problems))


# --- examples, and what is wrong with rows -------------------------------------------------------


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
        if not self.coordinates.convention:
            return self.messages
        with naming_row(self):
            size = self.coordinates.size  # of the picture that the boxes are on
            if size is not None:
                image = next((item for item in self.media if item["type"] == "image"), None)
                size = vlm.rules.image_size(size, image and read_media_item(image))
            writer = self.coordinates.writer(vlm.family, size)
            if writer is None:
                return self.messages
            texts = iter([self.coordinates.write(parts, writer) for parts in self.segments])
            messages = CheckedMessages()
            for message in self.messages:
                content = [
                    item | {"text": next(texts)} if item["type"] == "text" else item
                    for item in message["content"]
                ]
                messages.append(message | {"content": content})
            return messages


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


def source_key(source: Any) -> Hashable:
    """Equal for the same path or the same object, while that object lives; nothing is read."""
    return source if isinstance(source, str) else id(source)


def find_damaged(items: Iterable[dict]) -> list[str | None]:
    """Why a content item cannot be decoded, or None, for each; a distinct one is tried once.

    Pictures are decoded to their end, clips to their first frame; http(s) URLs are not fetched.
    """
    media = [read_media_item(item) for item in items]
    options = [repr(list(vars(medium).values())[1:]) for medium in media]
    keys = [(type(m), source_key(m.source), o) for m, o in zip(media, options, strict=True)]
    distinct = dict(zip(keys, media, strict=True))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        damage = dict(zip(distinct, pool.map(_damage, distinct.values()), strict=True))
    return [damage[key] for key in keys]


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
        self.unread: Counter[str] = Counter()  # keys that are not read, and in how many rows
        self._media: list[tuple[int, dict]] = []
        self._renamed: dict[str, dict[str, list[int]]] = {}  # file → absolute paths → rows

    def read(self, rows: Iterable[tuple[int, Any]]) -> list[Example]:
        """The examples of all rows without a problem."""
        examples = []
        for number, row in rows:
            try:
                examples.append(self._read(number, row))
            except VlkitError as error:
                self.problems.append(Problem(number, str(error)))
        damage = find_damaged(item for _, item in self._media)
        for (number, _), problem in zip(self._media, damage, strict=True):
            if problem:
                self.problems.append(Problem(number, problem))
        self._note_mixed_up()
        self.problems.sort(key=lambda problem: problem.row)
        unsound = {problem.row for problem in self.problems}
        return [example for example in examples if example and example.row not in unsound]

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
            self.problems.append(Problem(number, problem))
        before = len(self.problems)
        sizes = set(self._measure_media(number, _media_in(turns)))
        if len(self.problems) > before:  # without its pictures its boxes cannot be placed
            return None
        messages = CheckedMessages()
        if not out_of_order:
            messages = as_messages([{"role": turn.role, "content": turn.parts} for turn in turns])
            for message, turn in zip(messages, turns, strict=True):
                if not turn.trained:
                    message["loss"] = False
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
                self.problems.append(Problem(number, str(error)))

    def _find(self, number: int, source: Any, kind: str) -> Any:
        if not isinstance(source, str) or is_url(source):
            return source
        is_there = os.path.isfile if kind == "image" else os.path.exists
        name = local_path(source)
        paths = [os.fspath(place / name) for place in self.places]
        if path := next(filter(is_there, paths), None):
            return path
        # an absolute path may be of another machine
        absolute = (path for path in (PurePath(name), PureWindowsPath(name)) if path.is_absolute())
        if base := next(absolute, PurePath()).name:
            named = [os.fspath(place / base) for place in self.places]
            if path := next(filter(is_there, named), None):
                self._renamed.setdefault(path, {}).setdefault(name, []).append(number)
                return path
        advice = "; base64 needs data:image/png;base64,… before it" if len(name) > 255 else ""
        shown, looked_for = describe_source(source), describe_source(paths[0])
        raise VlkitError(f"{kind} {shown} is missing (looked for {looked_for}{advice})")

    def _note_mixed_up(self) -> None:
        """Two absolute paths must not become one file only because they share a base name."""
        for path, names in self._renamed.items():
            for name, numbers in names.items() if len(names) > 1 else ():
                other = next(path_name for path_name in names if path_name != name)
                shown, others, file = map(describe_source, (name, other, path))
                text = f"{shown} and {others} would both be read from {file}; give whole paths"
                for number in dict.fromkeys(numbers):
                    self.problems.append(Problem(number, text))


# --- training data -------------------------------------------------------------------------------


class TrainingData(Sequence[Example]):
    """Checked conversations; made by :func:`load_conversations`.

    Attributes:
        name: of the source.
        problems: of the rows that were left out (``strict=False``).
    """

    def __init__(self, name: str, examples: Sequence[Example], problems: Sequence[Problem] = ()):
        self.name, self._examples, self.problems = name, list(examples), tuple(problems)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        chosen = self._examples[index]
        return TrainingData(self.name, chosen) if isinstance(chosen, list) else chosen

    def __repr__(self) -> str:
        pictures = sum(len(example.media) for example in self)
        dropped = len({problem.row for problem in self.problems})
        left_out = f", {dropped:,} rows left out" if dropped else ""
        return f"TrainingData({self.name}: {len(self):,} rows, {pictures:,} media{left_out})"

    def split(
        self, evaluation: float | int = 0.1, *, seed: int = 0
    ) -> tuple[TrainingData, TrainingData]:
        """Rows for training and for evaluation; no picture, by its pixels, is on both sides.

        Rows that share a picture or clip stay together, so the evaluation may get fewer rows than
        asked for. Each side keeps the source's order.

        Args:
            evaluation: the share of rows, below 1, or their number.
            seed: the same one gives the same split.

        Raises:
            VlkitError: all rows share pictures, or one side would be empty.
            MediaError: a picture that cannot be read.
        """
        wanted = _count_wanted(evaluation, len(self))
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise VlkitError(f"seed={seed!r:.60} must be a whole number")
        groups = _group_rows(self)
        random.Random(seed).shuffle(groups)
        chosen: set[int] = set()
        for group in groups:
            if len(chosen) + len(group) <= wanted:
                chosen.update(group)
        if not chosen:
            smallest = f"{len(groups)} groups, the smallest of {min(map(len, groups))} rows"
            raise VlkitError(
                f"rows that share pictures cannot be split: they are {smallest}, and "
                f"evaluation={evaluation!r} allows {wanted}"
            )
        training = [example for i, example in enumerate(self) if i not in chosen]
        held_out = [example for i, example in enumerate(self) if i in chosen]
        return TrainingData(self.name, training), TrainingData(self.name, held_out)


def load_conversations(
    meta: Any,
    image_dir: str | os.PathLike | None = None,
    *,
    format: str = "auto",
    boxes: str | None = "auto",
    max_image_tokens: int | None = None,
    strict: bool = True,
) -> TrainingData:
    """Read conversations to train on.

    | format | a row |
    |---|---|
    | ``pai`` | ``conversations`` of ``from`` and ``value``, ``<img>file</img>`` in the text |
    | ``llava`` | ``conversations``, ``<image>`` in the text, files under ``image`` or ``images`` |
    | ``ms-swift`` | ``messages``, ``<image>`` in the text, ``images``, ``objects`` |
    | ``messages`` | ``messages`` of the transformers chat format |
    | ``table`` | columns for picture, question and answer |

    Every picture file is decoded once, and the first frame of each clip, so that a damaged file is
    reported here and not during training. On two shared cores this took 6 to 9 s for 20,000 PNGs
    of 64 × 64 pixels; at 640 × 480, 1 to 2 ms a JPEG and 10 to 17 ms a PNG of noise. URLs are not
    fetched.

    A ``system`` next to the turns becomes the first turn. ``instruction`` and ``input`` are a
    question, after the turns of ``history``. Of several accepted answers, as in VQA and DocVQA, the
    most frequent is learnt, else the first. An answer with ``"loss": false`` or ``"weight": 0`` is
    part of the conversation, but not learnt. A warning names the keys that are not read.

    Newlines between a picture's tag and the text are left out: :func:`vlkit.user` has none.
    Pictures without a tag come before the first question.

    Args:
        meta: a ``.json``, ``.jsonl``, ``.csv`` or ``.parquet`` file, a DataFrame, a
            ``datasets.Dataset``, or any rows (dicts, or lists of messages).
        image_dir: the folder with the pictures, by default that of the file. An absolute path that
            does not exist here (of another machine) is looked for in it by its base name.
        format: of the table above; ``auto`` detects it row by row.
        boxes: the convention of coordinates in the texts: a family, ``ms-swift``, or ``auto``,
            which detects tags and ``objects`` (for JSON pass a family, since several write it);
            None leaves the texts as they are.
        max_image_tokens: to which the source's model was limited; only ``qwen2_5_vl`` uses it.
        strict: with False, rows with problems are left out and reported as a warning.

    Returns:
        A sized sequence of :class:`Example`.

    Raises:
        DataError: every problem with its row: a picture that is missing, unbalanced tags, roles
            out of order, an empty answer, a box without area or outside its picture …
        VlkitError: a wrong argument, or a file that cannot be read.
    """
    check_choice("format", format, ("auto", *FORMATS))
    check_choice("boxes", boxes, ("auto", None, *CONVENTIONS))
    check_choice("strict", strict, (True, False))
    check_whole("max_image_tokens", max_image_tokens, 1, optional=True)
    is_path = isinstance(image_dir, str | os.PathLike)
    if image_dir is not None and not (is_path and os.path.isdir(local_path(image_dir))):
        raise VlkitError(f"image_dir={image_dir!r:.200} is not a folder; check the path")
    rows, name, folder = open_rows(meta)
    places = [Path(local_path(place)) for place in (image_dir, folder) if place is not None]
    reader = RowReader(format, boxes, max_image_tokens, places)
    examples = reader.read(rows)
    if reader.unread:
        listed = ", ".join(f"{key!r} ({counted(n, 'row')})" for key, n in reader.unread.items())
        warnings.warn(f"{name}: these keys are not read: {listed:.500}", stacklevel=2)
    if reader.problems and strict:
        raise DataError(name, reader.problems)
    if reader.problems:
        warnings.warn(f"left out of {list_problems(name, reader.problems)}", stacklevel=2)
    if not examples:
        raise VlkitError(f"{name} has no conversation that can be trained on")
    return TrainingData(name, examples, reader.problems)


def as_data(data: Any, name: str = "data", *, optional: bool = False) -> Any:
    """The data itself, or anything else that :func:`load_conversations` reads.

    Args:
        data: what was passed.
        name: of the argument.
        optional: None is allowed, and returned.

    Raises:
        VlkitError: data without a row.
    """
    if optional and data is None:
        return None
    data = data if isinstance(data, TrainingData) else load_conversations(data)
    if not len(data):
        raise VlkitError(f"{name} has no rows; pass at least one conversation")
    return data


def _count_wanted(evaluation: float | int, count: int) -> int:
    share = isinstance(evaluation, float)
    if is_number(evaluation) and 0 < evaluation < (1 if share else count):
        wanted = max(1, round(evaluation * count)) if share else int(evaluation)
        if wanted < count:
            return wanted
    choices = f"a share below 1 or a number below the {count} rows"
    raise VlkitError(f"evaluation={evaluation!r:.60} must be {choices}")


def _group_rows(data: Sequence[Example]) -> list[list[int]]:
    """Rows that share media or, without media, their texts: directly or through other rows."""
    items = [(i, item) for i, example in enumerate(data) for item in example.media]
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(_content_key, (item for _, item in items)))
    linked = [(i, key) for (i, _), key in zip(items, keys, strict=True)]
    linked += [(i, "\n".join(row.texts)) for i, row in enumerate(data) if not row.media]
    parent = list(range(len(data)))  # union-find
    first: dict[str, int] = {}
    for i, key in linked:
        parent[_root(parent, i)] = _root(parent, first.setdefault(key, i))
    groups: dict[int, list[int]] = {}
    for i in range(len(data)):
        groups.setdefault(_root(parent, i), []).append(i)
    return list(groups.values())


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = i = parent[parent[i]]
    return i


def _content_key(item: dict) -> str:
    """Equal for media with the same content: of pictures the pixels, of a clip its file."""
    medium = read_media_item(item)
    if isinstance(medium, Image) and not is_remote(medium.source):
        return pixel_hash(load_image(medium))
    return repr(hash_medium(medium.source))


def digest_rows(data: Sequence[Example]) -> str:
    """A hash of what rows say and of their media: of files the names, of others the content."""
    digest = hashlib.sha256()
    for message in (message for example in data for message in example.messages):
        content = [(item["type"], item[item["type"]]) for item in message["content"]]
        said = [value if kind == "text" else _media_name(value) for kind, value in content]
        digest.update(repr((message["role"], said, *[0] * ("loss" in message))).encode())
    return digest.hexdigest()[:16]


def _media_name(source: Any) -> Any:
    source = getattr(source, "source", source)
    if isinstance(source, str | os.PathLike):
        return Path(source).parts[-2:]
    if isinstance(source, list | tuple):
        return [_media_name(frame) for frame in source]
    return hash_medium(source)
