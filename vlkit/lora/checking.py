"""A row as an example, or all that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlkit.datasets.files import find_picture
from vlkit.errors import VlkitError
from vlkit.grounding import Size
from vlkit.headers import picture_size
from vlkit.lora.coordinates import Coordinates, Text, detect_convention, place_coordinates
from vlkit.lora.examples import Example
from vlkit.lora.problems import Problem
from vlkit.lora.readers import Turn, detect_format, read_turns
from vlkit.media import Image
from vlkit.messages import as_messages, read_media_item
from vlkit.sources import is_url, local_path
from vlkit.table_files import is_missing

_ROLES = ("system", "user", "assistant")


class RowReader:
    """Turns rows into examples; ``problems`` gathers what is wrong with any of them."""

    def __init__(self, format: str, boxes: str | None, limit: int | None, places: list[Path]):
        self.format, self.boxes, self.limit, self.places = format, boxes, limit, places
        self.problems: list[Problem] = []

    def read(self, number: int, row: Any) -> Example | None:
        """A row as an example; None, and its problems noted, where it is not sound."""
        before = len(self.problems)
        try:
            example = self._read(number, row)
        except VlkitError as error:
            self._note(number, str(error))
        return example if len(self.problems) == before else None

    def _note(self, number: int, text: str) -> None:
        self.problems.append(Problem(number, text))

    def _read(self, number: int, row: Any) -> Example:
        if isinstance(row, VlkitError):
            raise row
        row = {"messages": row} if isinstance(row, list | tuple) else row
        if not isinstance(row, Mapping):
            raise VlkitError(f"expected an object, not {row!r:.40}")
        row = {key: value for key, value in row.items() if not is_missing(value)}
        turns = read_turns(row, detect_format(row) if self.format == "auto" else self.format)
        for problem in _order_problems(turns):
            self._note(number, problem)
        before = len(self.problems)
        sizes = {size for turn in turns for size in self._find_media(number, turn)}
        if len(self.problems) > before:  # without its pictures its boxes cannot be placed
            return Example(number, (), Coordinates())
        example = self._place(number, row, turns, sizes)
        as_messages(example.messages)
        return example

    def _find_media(self, number: int, turn: Turn) -> Iterator[Size]:
        """Give each picture its whole path; the sizes of those that are there."""
        for item in (part for part in turn.parts if isinstance(part, dict)):
            kind = item["type"]
            try:
                item[kind] = self._find(item[kind], kind)
                media = read_media_item(item)
                if isinstance(media, Image) and not is_url(media.source):
                    yield picture_size(media)
            except (VlkitError, TypeError) as error:
                self._note(number, str(error))

    def _find(self, source: Any, kind: str) -> Any:
        if not isinstance(source, str) or is_url(source):
            return source
        name = local_path(source)
        path = find_picture(name, self.places or [Path()])
        if path.is_file() or (kind == "video" and path.is_dir()):
            return os.fspath(path)
        raise VlkitError(f"{kind} {source} is missing (looked for {path})")

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
