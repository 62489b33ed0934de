"""``Example``: a conversation to learn from, boxes in the model's format."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vlkit.datasets import conversations
from vlkit.datasets.conversations import AMBIGUOUS, SWIFT, SWIFT_TAGS, json_families
from vlkit.datasets.formats.chats import (
    Segment,
    SwiftObjects,
    Writer,
    group_items,
    input_size_for,
    rename_segment,
    swift_segments,
)
from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Size
from vlkit.grounding.formats import FORMATS
from vlkit.grounding.parse import find_numbers, span_of, to_pixels
from vlkit.media.image import Image
from vlkit.messages import as_messages, read_media_item

CONVENTIONS = (*FORMATS, SWIFT)
UNIT = (1000, 1000)  # the size of a picture of which only shares count
_SLACK = 1.0  # pixels or shares that rounding may add


@dataclass(frozen=True)
class Text:
    """A text, also split at its boxes.

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
        resized = FORMATS[family].space == "resized"
        if self.convention == family and not (resized and input_size != self.input_size):
            return None
        if resized and self.size is None:
            raise VlkitError(
                f"{family} writes pixels, but it is unknown on which picture the boxes are"
            )
        return Writer(family, self.size or UNIT, input_size)

    def write(self, text: Text, writer: Writer | None) -> str:
        """A text for the family that the writer is for."""
        if writer is None:
            return text.raw
        target = writer.name
        return writer.text([rename_segment(s, self.convention, target) for s in text.segments])


def detect_convention(row: Mapping, texts: Sequence[str]) -> str:
    """The convention of a row's coordinates, or "" where it has none.

    Raises:
        VlkitError: several families write such JSON.
    """
    convention = conversations.detect_convention(row, texts)
    if convention == AMBIGUOUS:
        raise VlkitError(
            "cannot tell which family wrote its JSON boxes; pass boxes=, one of "
            f"{json_families()} (or boxes=None to leave the texts as they are)"
        )
    return convention


def place_coordinates(
    row: Mapping, texts: Sequence[str], convention: str, sizes: set[Size], limit: int | None
) -> tuple[Coordinates, list[Text]]:
    """A row's texts, each split at its boxes.

    Args:
        row: with its ``objects``, for ms-swift.
        texts: in order.
        convention: of ``CONVENTIONS``, or "" for texts without coordinates.
        sizes: of the row's pictures, upright.
        limit: the most image tokens to which the source's model was limited.

    Raises:
        VlkitError: unbalanced tags; boxes that cannot be read, are outside the picture, have no
            area or their corners swapped; ms-swift's tags under another convention.
    """
    if not convention:
        return Coordinates(), [Text(text, (text,)) for text in texts]
    if convention != SWIFT and any(tag in text for text in texts for tag in SWIFT_TAGS):
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
    input_size = input_size_for(convention, size or UNIT, limit)
    if convention == SWIFT:
        segments = _swift_texts(row, texts, size or UNIT)
    else:
        segments = _family_texts(texts, convention, size or UNIT, input_size)
    read = [Text(text, tuple(parts)) for text, parts in zip(texts, segments, strict=True)]
    return Coordinates(convention, size, input_size), read


def _needs_size(row: Mapping, convention: str) -> bool:
    if convention != SWIFT:
        return FORMATS[convention].space == "resized"
    objects = row.get("objects")
    return not isinstance(objects, Mapping) or objects.get("bbox_type") != "norm1"


def _swift_texts(row: Mapping, texts: Sequence[str], size: Size) -> list[list[Segment]]:
    objects = SwiftObjects(dict(row), size)
    _raise_all(_misplaced(numbers, size) for numbers in objects.boxes)
    segments = [swift_segments(text, objects) for text in texts]
    objects.check_used_up()
    return segments


def _family_texts(
    texts: Sequence[str], family: str, size: Size, input_size: Size | None
) -> list[list[Segment]]:
    form = FORMATS[family]
    span = span_of(form.space, size, input_size)
    answers = [find_numbers(text, form) for text in texts]
    problems: list[str] = []
    for text, (boxes, unread) in zip(texts, answers, strict=True):
        for opening, closing in (form.label_tags, form.box_tags, form.quad_tags):
            if opening and text.count(opening) != text.count(closing):
                problems.append(f"unbalanced tags: {opening} and {closing} in {text!r:.60}")
        problems += [*unread, *(_misplaced(box.numbers, span) for box in boxes)]
    _raise_all(problems)
    segments = []
    for text, (boxes, _) in zip(texts, answers, strict=True):
        placed = [(to_pixels(b.label, b.numbers, span, size), b.start, b.end) for b in boxes]
        segments.append(list(group_items(text, placed)))
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
        row = getattr(example, "row", None)
        if row is None or str(error).startswith(f"row {row}: "):
            raise
        raise type(error)(f"row {row}: {error}") from error


@dataclass(frozen=True, eq=False)
class Example:
    """One conversation to learn from.

    Attributes:
        row: its number in the source, from 1.
        turns: for each message its role, and its texts and content items of media in order.
        coordinates: what the numbers in its texts mean.
        untrained: which turns are answers that are not learnt (``"loss": false`` in the source).
    """

    row: int
    turns: tuple[tuple[str, tuple[Text | dict, ...]], ...]
    coordinates: Coordinates
    untrained: frozenset[int] = frozenset()

    @property
    def media(self) -> list[dict]:
        """The content items of its pictures and clips, in order."""
        return [part for _, parts in self.turns for part in parts if isinstance(part, dict)]

    @property
    def texts(self) -> list[Text]:
        """Its texts, in order."""
        return [part for _, parts in self.turns for part in parts if isinstance(part, Text)]

    @property
    def messages(self) -> list[dict]:
        """Plain messages with their texts as the source has them."""
        return self._marked([self._message(role, parts, None) for role, parts in self.turns])

    def messages_for(self, vlm: Any) -> list[dict]:
        """Plain messages, the last one the answer; boxes as this model writes them.

        An answer that is not learnt has ``"loss": False``.

        Args:
            vlm: from :func:`vlkit.load`.

        Raises:
            VlkitError: the model's convention cannot hold these boxes.
        """
        with naming_row(self):
            writer = self.coordinates.writer(vlm.family, self._input_size(vlm))
            turns = [self._message(role, parts, writer) for role, parts in self.turns]
            return self._marked(as_messages(turns))

    def _marked(self, messages: list[dict]) -> list[dict]:
        for i in self.untrained:
            messages[i]["loss"] = False
        return messages

    def _message(self, role: str, parts: Iterable[Text | dict], writer: Any) -> dict:
        write = self.coordinates.write
        content = [
            dict(part) if isinstance(part, dict) else {"type": "text", "text": write(part, writer)}
            for part in parts
        ]
        return {"role": role, "content": content}

    def _input_size(self, vlm: Any) -> Size | None:
        """The size at which the model sees the picture that the boxes are on."""
        if self.coordinates.size is None:
            return None
        media = map(read_media_item, self.media)
        image = next((medium for medium in media if isinstance(medium, Image)), None)
        return vlm.rules.image_size(self.coordinates.size, image)


def source_key(source: Any) -> Hashable:
    """Equal for the same path or the same object, while that object lives; nothing is read."""
    return source if isinstance(source, str) else id(source)
