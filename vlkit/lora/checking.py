"""Whether pictures and clips can be decoded, each distinct one tried once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import PIL.Image

from vlkit.datasets.tables import is_missing
from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Size
from vlkit.lora.example import Coordinates, Example, Text, detect_convention, place_coordinates
from vlkit.lora.readers import Turn, detect_format, read_turns
from vlkit.media.image import Image, describe_source, load_image, picture_size
from vlkit.media.sources import is_remote, is_url, local_path
from vlkit.media.video import Video, clip_name, probe_clip, sample_indices
from vlkit.messages import as_messages, read_media_item

_COMMON = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


def find_damaged(items: Iterable[dict]) -> list[str | None]:
    """What keeps each content item from being decoded, or None.

    Pictures are decoded to their end, clips to their first frame; http(s) URLs are not fetched.
    """
    media = [read_media_item(item) for item in items]
    keys = [_key(each) for each in media]
    distinct = dict(zip(keys, media, strict=True))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = dict(zip(distinct, pool.map(_damage, distinct.values()), strict=True))
    return [found[key] for key in keys]


def _key(media: Image | Video) -> tuple:
    source, *options = vars(media).values()
    return type(media), source if isinstance(source, str) else id(source), repr(options)


def _damage(media: Image | Video) -> str | None:
    source = media.source
    if is_remote(source):
        return None
    try:
        if isinstance(media, Video):
            sample_indices(media, probe_clip(media), clip_name(source))
        elif not _is_whole_file(source):
            load_image(media)
    except (VlkitError, OSError) as error:
        return str(error)
    return None


def _is_whole_file(source: Any) -> bool:
    """Whether it is a file that decodes to its end; of a JPEG an eighth of the size shows that."""
    if not isinstance(source, str | os.PathLike) or is_url(source):
        return False
    try:
        with PIL.Image.open(local_path(source), formats=_COMMON) as picture:
            picture.draft(None, (1, 1))
            picture.load()
    except Exception:  # a decoder may raise anything; load_image then says what is wrong
        return False
    return True


SHOWN = 20  # problems that an error spells out


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
        advice = "mend them, or pass strict=False to leave these rows out"
        super().__init__(f"{list_problems(name, problems)}; {advice}")
        self.problems = tuple(problems)


def list_problems(name: str, problems: Sequence[Problem]) -> str:
    """All problems of a source in one line."""
    rows = len({problem.row for problem in problems})
    more = len(problems) - SHOWN
    listed = "; ".join(map(str, problems[:SHOWN]))
    listed += f"; and {more:,} more (in .problems)" if more > 0 else ""
    return f"{name}: {rows:,} {'row has' if rows == 1 else 'rows have'} problems: {listed}"


_ENCODED = (str, bytes, bytearray, memoryview)  # of these picture_size reads the header alone


_ROLES = ("system", "user", "assistant")


class RowReader:
    """Turns rows into examples; ``problems`` gathers what is wrong with any of them."""

    def __init__(self, format: str, boxes: str | None, limit: int | None, places: list[Path]):
        self.format, self.boxes, self.limit = format, boxes, limit
        self.places = places or [Path()]
        self.problems: list[Problem] = []
        self._media: list[tuple[int, dict]] = []
        self._renamed: dict[str, dict[str, list[int]]] = {}  # file → absolute paths → rows

    def read(self, rows: Iterable[tuple[int, Any]]) -> list[Example]:
        """The rows as examples, save those that are not sound; their problems are noted."""
        examples = [each for number, row in rows if (each := self._try(number, row))]
        damaged = find_damaged(item for _, item in self._media)
        for (number, _), problem in zip(self._media, damaged, strict=True):
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
        before = len(self.problems)
        for problem in _order_problems(turns):
            self._note(number, problem)
        ordered, found = len(self.problems) == before, len(self.problems)
        sizes = {size for turn in turns for size in self._find_media(number, turn)}
        if len(self.problems) > found:  # without its pictures its boxes cannot be placed
            return None
        example = self._place(number, row, turns, sizes)
        if ordered:
            as_messages(example.messages)
        return example

    def _find_media(self, number: int, turn: Turn) -> Iterator[Size]:
        """Give each picture its whole path; the sizes of those that are there."""
        for item in (part for part in turn.parts if isinstance(part, dict)):
            kind = item["type"]
            try:
                item[kind] = self._find(number, item[kind], kind)
                media = read_media_item(item)
                if isinstance(media, Image) and not is_remote(media.source):
                    yield picture_size(media)
                if isinstance(media, Video) or isinstance(media.source, _ENCODED):
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
        shown = describe_source(source), describe_source(paths[0])
        raise VlkitError(f"{kind} {shown[0]} is missing (looked for {shown[1]}{advice})")

    def _note_mixed_up(self) -> None:
        """Two files of another machine that only share their base name are not one here."""
        for path, names in self._renamed.items():
            for name, numbers in names.items() if len(names) > 1 else ():
                other = next(each for each in names if each != name)
                for number in dict.fromkeys(numbers):
                    self._note(
                        number,
                        f"{describe_source(name)} and {describe_source(other)} would both be read "
                        f"from {describe_source(path)}; give paths with their folders",
                    )

    def _place(self, number: int, row: Mapping, turns: list[Turn], sizes: set[Size]) -> Example:
        texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
        convention = detect_convention(row, texts) if self.boxes == "auto" else self.boxes
        read = [Text(text, (text,)) for text in texts]
        coordinates = Coordinates()
        if convention:
            coordinates, read = place_coordinates(row, texts, convention, sizes, self.limit)
        left = iter(read)
        told = tuple(
            (turn.role, tuple(p if isinstance(p, dict) else next(left) for p in turn.parts))
            for turn in turns
        )
        return Example(number, told, coordinates)


def _base_of_absolute(name: str) -> str:
    """The base name of an absolute path, as of another machine; of a relative one nothing."""
    paths = PurePath(name), PureWindowsPath(name)
    return next((path.name for path in paths if path.is_absolute()), "")


def _order_problems(turns: list[Turn]) -> Iterator[str]:
    spoken = turns[1:] if turns[0].role == "system" else turns
    for i, turn in enumerate(spoken):
        expected = ("user", "assistant")[i % 2]
        if turn.role != expected:
            known = "" if turn.role in _ROLES else ", which is no role"
            yield f"roles out of order: turn {i + 1} is {turn.role!r}{known}, expected {expected!r}"
            return
    if not spoken or spoken[-1].role != "assistant":
        yield "it ends without an answer"
    for i, turn in enumerate(spoken):
        if turn.role == "assistant":
            yield from _answer_problems(i + 1, turn)
        elif not turn.parts or not any(isinstance(p, dict) or p.strip() for p in turn.parts):
            yield f"turn {i + 1}: the question is empty"


def _answer_problems(number: int, turn: Turn) -> Iterator[str]:
    if any(isinstance(part, dict) for part in turn.parts):
        yield f"turn {number}: a picture in an answer"
    elif not "".join(map(str, turn.parts)).strip():
        yield f"turn {number}: the answer is empty"
