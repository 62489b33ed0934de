"""Boxes in the texts of training data: read in one convention, written as the model writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vlkit.datasets.formats.chats import SWIFT, Writer, input_size_for, rename_segment, row_segments
from vlkit.datasets.formats.swift import Segment, SwiftObjects
from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Size
from vlkit.grounding.formats import FORMATS, read_answer
from vlkit.grounding.parse import span_of
from vlkit.media.image import Image
from vlkit.messages import as_messages, read_media_item

CONVENTIONS = (*FORMATS, SWIFT)


UNIT = (1000, 1000)  # stands for the picture's size where shares of it are all that counts


_JSON = re.compile(r"""["'](?:bbox|point)_2d["']\s*:""")


_SLACK = 1.0  # pixels or shares that rounding may add


@dataclass(frozen=True)
class Text:
    """A text with its boxes told apart.

    Attributes:
        raw: as the source has it.
        segments: texts, and lists of boxes and points in pixels of the upright picture.
    """

    raw: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Coordinates:
    """What the numbers in a row's texts mean.

    Attributes:
        convention: of ``CONVENTIONS``, or "" where there are none.
        size: (width, height) of the upright picture that they lie on; None where only their share
            of it is known.
        input_size: at which the source's own model saw it, for ``qwen2_5_vl``.
    """

    convention: str = ""
    size: Size | None = None
    input_size: Size | None = None

    def writer(self, family: str, input_size: Size | None) -> Writer | None:
        """What writes the boxes for a family; None where they are right as they are."""
        if not self.convention:
            return None
        resized = FORMATS[family].space == "resized"
        if self.convention == family and not (resized and input_size != self.input_size):
            return None
        if resized and self.size is None:
            raise VlkitError(
                f"{family} writes pixels, but which of several pictures the boxes lie on is unknown"
            )
        return Writer(family, self.size or UNIT, input_size)

    def write(self, text: Text, writer: Writer | None) -> str:
        """A text for the family that the writer is for."""
        if writer is None:
            return text.raw
        target = writer.name
        return writer.text([rename_segment(s, self.convention, target) for s in text.segments])


def detect_convention(row: Mapping, texts: Sequence[str]) -> str:
    """Whose coordinates a row holds, or "".

    Raises:
        VlkitError: they may be of any family that writes JSON.
    """
    objects = row.get("objects")
    boxes = objects.get("bbox") if isinstance(objects, Mapping) else objects
    if boxes or _has_swift_tags(texts):
        return SWIFT
    for name, form in FORMATS.items():
        if form.style == "tags" and any(form.box_tags[0] in text for text in texts):
            return name
    if any(_JSON.search(text) for text in texts):
        known = [name for name, form in FORMATS.items() if form.style == "json"]
        raise VlkitError(
            f"its boxes may be of any family that writes JSON; pass boxes=, one of {known} (or "
            "boxes=None to leave the texts as they are)"
        )
    return ""


def _has_swift_tags(texts: Sequence[str]) -> bool:
    return any("<bbox>" in text or "<ref-object>" in text for text in texts)


def place_coordinates(
    row: Mapping, texts: Sequence[str], convention: str, sizes: set[Size], limit: int | None
) -> tuple[Coordinates, list[Text]]:
    """A row's texts with their boxes told apart.

    Args:
        row: with its ``objects``, for ms-swift.
        texts: in order.
        convention: of ``CONVENTIONS``.
        sizes: of the row's pictures, upright.
        limit: the most image tokens to which the source's own model was limited.

    Raises:
        VlkitError: unbalanced tags; boxes that cannot be read, lie outside the picture, have no
            area or their corners swapped; ms-swift's tags under another convention.
    """
    if convention != SWIFT and _has_swift_tags(texts):
        raise VlkitError(
            f"its <bbox> and <ref-object> are ms-swift's, not {convention}'s; pass "
            f'boxes="{SWIFT}" or "auto"'
        )
    size = next(iter(sizes)) if len(sizes) == 1 else None
    if size is None and _needs_size(row, convention):
        raise VlkitError(
            f"{convention} gives pixels, but the row has {'several' if sizes else 'no'} "
            "sizes of pictures, so its boxes cannot be placed"
        )
    over = size or UNIT
    input_size = input_size_for(convention, over, limit)
    if problems := list(_problems(row, texts, convention, over, input_size)):
        raise VlkitError("; ".join(problems))
    turns = [{"role": "user", "content": text} for text in texts]
    told = {"messages": turns, "objects": row.get("objects")}
    segments = [tuple(parts) for _, parts in row_segments(told, convention, over, input_size)]
    read = [Text(text, parts) for text, parts in zip(texts, segments, strict=True)]
    return Coordinates(convention, size, input_size), read


def _needs_size(row: Mapping, convention: str) -> bool:
    if convention != SWIFT:
        return FORMATS[convention].space == "resized"
    objects = row.get("objects")
    return not isinstance(objects, Mapping) or objects.get("bbox_type") != "norm1"


def _problems(
    row: Mapping, texts: Sequence[str], convention: str, size: Size, input_size: Size | None
) -> Iterator[str]:
    if convention == SWIFT:
        boxes = SwiftObjects(dict(row), size).boxes
        yield from filter(None, (_misplaced(numbers, size) for numbers in boxes))
        return
    form = FORMATS[convention]
    span = span_of(form.space, size, input_size)
    for text in texts:
        for tags in (form.label_tags, form.box_tags, form.quad_tags):
            if tags[0] and text.count(tags[0]) != text.count(tags[1]):
                yield f"unbalanced tags: {tags[0]} and {tags[1]} in {text!r:.60}"
        found, unread = read_answer(text, form)
        yield from unread
        yield from filter(None, (_misplaced(each.numbers, span) for each in found))


def _misplaced(numbers: Sequence[float], span: Size) -> str:
    shown = f"box [{', '.join(f'{n:g}' for n in numbers)}]"
    if not all(-_SLACK <= n <= span[i % 2] + _SLACK for i, n in enumerate(numbers)):
        return f"{shown} lies outside its picture's {span}"
    if len(numbers) != 4 or (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        return ""
    if numbers[0] > numbers[2] or numbers[1] > numbers[3]:
        return f"{shown} has its corners swapped; give the top left one, then the bottom right one"
    return f"{shown} has no area"


@contextmanager
def naming_row(example: Any) -> Iterator[None]:
    """Errors say which row of its source an example is."""
    try:
        yield
    except VlkitError as error:
        row = getattr(example, "row", None)
        if row is None or str(error).startswith(f"row {row}: "):
            raise
        raise type(error)(f"row {row}: {error}") from error


@dataclass(frozen=True, eq=False)
class Example:
    """One conversation to learn from.

    Attributes:
        row: where it stood in its source, from 1.
        turns: who speaks, and texts and content items of media in their order.
        coordinates: what the numbers in its texts mean.
    """

    row: int
    turns: tuple[tuple[str, tuple[Text | dict, ...]], ...]
    coordinates: Coordinates

    @property
    def media(self) -> list[dict]:
        """The content items of its pictures and clips, in order."""
        return [part for _, parts in self.turns for part in parts if isinstance(part, dict)]

    @property
    def messages(self) -> list[dict]:
        """Plain messages with their texts as the source has them."""
        return [self._message(role, parts, None) for role, parts in self.turns]

    def messages_for(self, vlm: Any) -> list[dict]:
        """Plain messages, the last one the answer; boxes as this model writes them.

        Args:
            vlm: from :func:`vlkit.load`.

        Raises:
            VlkitError: the model's convention cannot hold these boxes.
        """
        with naming_row(self):
            writer = self.coordinates.writer(vlm.family, self._input_size(vlm))
            return as_messages([self._message(role, parts, writer) for role, parts in self.turns])

    def _message(self, role: str, parts: Iterable[Text | dict], writer: Any) -> dict:
        content: list[dict] = []
        for part in parts:
            if isinstance(part, dict):
                content.append(dict(part))
            else:
                content.append({"type": "text", "text": self.coordinates.write(part, writer)})
        return {"role": role, "content": content}

    def _input_size(self, vlm: Any) -> Size | None:
        """The size at which the model sees the picture that the boxes lie on."""
        if self.coordinates.size is None:
            return None

        media = map(read_media_item, self.media)
        image = next((each for each in media if isinstance(each, Image)), None)
        return vlm.rules.image_size(self.coordinates.size, image)
