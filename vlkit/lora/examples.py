"""One conversation to learn from, whose boxes are written as each model writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vlkit.errors import VlkitError
from vlkit.grounding import Size
from vlkit.lora.coordinates import Coordinates, Text
from vlkit.media import Image
from vlkit.messages import as_messages, read_media_item


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
        from vlkit.inputs import size_rules

        media = map(read_media_item, self.media)
        image = next((each for each in media if isinstance(each, Image)), None)
        return size_rules(vlm).image_size(self.coordinates.size, image)
