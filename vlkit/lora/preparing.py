"""Rows made ready: a picture whose features are known is not read again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from vlkit.batching.encoding import Medium
from vlkit.batching.settings import base_model
from vlkit.inputs import tokenizing
from vlkit.lora.examples import Example
from vlkit.lora.features import FrozenTower
from vlkit.lora.labels import IGNORED, PADS, Labelled, label_example, truncate
from vlkit.lora.turns import Piece, cut_turns
from vlkit.media import Image
from vlkit.messages import read_media_item
from vlkit.models import VLM

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


class Preparer:
    """Makes rows of a data set ready.

    Args:
        vlm: the model that is trained.
        data: its rows.
        max_length: the most tokens of a row, of which the end is cut.
        tower: whose features stand for pixels, or None where the tower itself is trained.
        keep: whether rows will be asked for again.
    """

    def __init__(
        self,
        vlm: VLM,
        data: Sequence[Example],
        max_length: int | None = None,
        tower: FrozenTower | None = None,
        *,
        keep: bool = True,
    ):
        self.vlm, self.data, self.max_length = vlm, data, max_length
        self.tower, self.keep = tower, keep
        self._rows: dict[int, Labelled] = {}
        self._known: dict[Hashable, Medium] = {}  # pictures by their source

    def prepare(self, index: int) -> Labelled:
        """A row, with the pixels that are needed. Raises what :func:`label_example` raises."""
        if self.tower is None:
            return label_example(self.vlm, self.data[index], max_length=self.max_length)
        row = self._rows.get(index)
        if row is None or not self.is_ready(row):
            row = self._from_known(self.data[index]) or self._read(self.data[index])
            if self.keep:
                self._rows[index] = replace(row, media=tuple(map(_without_pixels, row.media)))
        return row

    def is_ready(self, row: Labelled) -> bool:
        """Whether of each of its media the pixels are there, or features held."""
        return all(medium.pixels is not None or self._holds(medium) for medium in row.media)

    def _holds(self, medium: Medium | None) -> bool:
        return medium is not None and self.tower is not None and self.tower.holds(medium.key)

    def _read(self, example: Example) -> Labelled:
        labelled = label_example(self.vlm, example, max_length=self.max_length)
        media = tuple(_take_media(labelled.tensors))
        images = [medium for medium in media if medium.kind == "image"]
        for source, medium in zip(filter(None, _sources(example)), images, strict=True):
            self._known[source] = _without_pixels(medium)
        tensors = {n: t for n, t in labelled.tensors.items() if n not in PIXELS.values()}
        return replace(labelled, tensors=tensors, media=media)

    def _from_known(self, example: Example) -> Labelled | None:
        """A row of which all pictures' features are held: its texts are all that is read."""
        found = [self._known.get(source) if source else None for source in _sources(example)]
        media = [medium for medium in found if medium is not None]
        if len(media) < len(found) or not all(map(self._holds, media)):
            return None
        return self._tokenize(cut_turns(self.vlm.processor, example.messages_for(self.vlm)), media)

    def _tokenize(self, pieces: Sequence[Piece], media: Sequence[Medium]) -> Labelled:
        import torch

        merged = self.vlm.processor.image_processor.merge_size**2
        counts = iter([int(medium.grid.prod()) // merged for medium in media])
        texts = [_expand(piece.text, counts) for piece in pieces]
        encode = self.vlm.processor.tokenizer.backend_tokenizer.encode
        with tokenizing:  # one by one: a few short texts are not worth threads
            tokens = [encode(text, add_special_tokens=False).ids for text in texts]
        ids = torch.tensor([[token for each in tokens for token in each]])
        trained = [piece.trained for piece, its in zip(pieces, tokens, strict=True) for _ in its]
        tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        pad = base_model(self.vlm).config.image_token_id
        tensors["mm_token_type_ids"] = (ids == pad).to(ids.dtype)
        if media:
            tensors["image_grid_thw"] = torch.cat([medium.grid for medium in media])
        labels = ids.masked_fill(~torch.tensor([trained]), IGNORED)
        labelled = Labelled(tensors, labels, media=tuple(media))
        return truncate(self.vlm, labelled, self.max_length)


def _take_media(tensors: dict[str, Any]) -> Iterator[Medium]:
    """A row's pictures, then its clips, each by its content."""
    for kind, name in PIXELS.items():
        if name in tensors:
            grids = tensors[f"{kind}_grid_thw"]
            parts = tensors[name].split(grids.prod(-1).tolist())
            for pixels, grid in zip(parts, grids.split(1), strict=True):
                digest = hashlib.sha256(pixels.numpy()).digest()
                yield Medium(kind, (kind, digest, *grid[0].tolist()), pixels, grid)


def _without_pixels(medium: Medium) -> Medium:
    return replace(medium, pixels=None)


def _sources(example: Example) -> Iterable[Hashable]:
    """Of each picture what tells it from others; a file is not read for that. None of clips."""
    for item in example.media:
        media = read_media_item(item)
        yield _identify(media) if isinstance(media, Image) else None


def _identify(image: Image) -> Hashable:
    source = image.source
    limits = (image.max_tokens, image.min_tokens, image.max_pixels, image.min_pixels, image.strict)
    if not isinstance(source, str | os.PathLike):
        picture = image.load()
        return (hashlib.sha256(picture.tobytes()).digest(), picture.size, *limits)
    try:
        status = os.stat(source)
        return (os.fspath(source), status.st_mtime_ns, status.st_size, *limits)
    except (OSError, ValueError):  # a URL
        return (os.fspath(source), *limits)


def _expand(text: str, counts: Iterator[int]) -> str:
    """A text with as many placeholders for each picture as it has tokens."""
    first, *rest = text.split(PADS["image"])
    return first + "".join(PADS["image"] * next(counts) + each for each in rest)
