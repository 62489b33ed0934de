"""Rows checked and made to examples; all problems (``DataError``)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import PIL.Image

from vlkit.datasets.tables import is_missing
from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Size
from vlkit.lora.example import Example, detect_convention, place_coordinates, source_key
from vlkit.lora.readers import Turn, detect_format, read_turns, unread_keys
from vlkit.media.image import Image, describe_source, load_image, picture_size
from vlkit.media.sources import is_remote, is_url, local_path
from vlkit.media.video import Video, clip_name, probe_clip, sample_indices
from vlkit.messages import as_messages, read_media_item

_ROLES = ("system", "user", "assistant")
_ENCODED = (str, bytes, bytearray, memoryview)  # of these picture_size reads the header alone
_COMMON = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
SHOWN = 20  # problems that an error lists


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
        format: of ``vlkit.lora.readers.FORMATS``, or ``auto``.
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
        order_problems = list(_order_problems(turns))
        for problem in order_problems:
            self._note(number, problem)
        before = len(self.problems)
        items = [part for turn in turns for part in turn.parts if isinstance(part, dict)]
        sizes = set(self._measure_media(number, items))
        if len(self.problems) > before:  # without its pictures its boxes cannot be placed
            return None
        turns = turns if order_problems else _checked(turns)
        texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
        convention = detect_convention(row, texts) if self.boxes == "auto" else self.boxes or ""
        coordinates, placed = place_coordinates(row, texts, convention, sizes, self.limit)
        rest = iter(placed)
        return Example(
            number,
            tuple(
                (role, tuple(p if isinstance(p, dict) else next(rest) for p in parts))
                for role, parts, _ in turns
            ),
            coordinates,
            frozenset(i for i, turn in enumerate(turns) if not turn.trained),
        )

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


def _checked(turns: list[Turn]) -> list[Turn]:
    messages = as_messages([{"role": turn.role, "content": turn.parts} for turn in turns])
    contents = [[item.get("text", item) for item in message["content"]] for message in messages]
    return [turn._replace(parts=parts) for turn, parts in zip(turns, contents, strict=True)]


def _order_problems(turns: list[Turn]) -> Iterator[str]:
    spoken = turns[1:] if turns[0].role == "system" else turns
    for i, (role, *_) in enumerate(spoken):
        expected = ("user", "assistant")[i % 2]
        if role != expected:
            unknown = "" if role in _ROLES else ", which is not a role"
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
