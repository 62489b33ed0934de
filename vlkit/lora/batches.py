"""Training rows prepared, ordered, collated; a frozen encoder's cache."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

from vlkit.engine.vision import Encoder, Medium
from vlkit.inputs import tokenizing
from vlkit.lora.example import Example, naming_row
from vlkit.lora.networks import temporary_forwards
from vlkit.lora.token_labels import (
    IGNORED,
    PADS,
    PER_TOKEN,
    Labelled,
    Piece,
    cut_turns,
    label_example,
    read_example,
    tokenize_pieces,
    truncate,
)
from vlkit.media.image import Image, pixel_hash
from vlkit.media.sources import file_hash, is_url
from vlkit.messages import read_media_item
from vlkit.models.load import VLM, base_model

SHARE = 0.25  # of the free main memory that features may take
AHEAD = 32  # rows that are read while the model is busy
SORTED = 32  # batches whose rows are sorted by length together
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


class FrozenTower:
    """Features of pictures and clips from a vision encoder that is not trained, each computed once.

    They are kept in main memory; beyond the budget they are computed again each time.

    Args:
        model: the transformers model, without an adapter's wrapper.
        budget: bytes that features may take; by default a quarter of the free main memory.
    """

    def __init__(self, model: Any, budget: int | None = None):
        import psutil

        self.visual = model.model.visual
        self.width = model.config.get_text_config().hidden_size
        self.encoder = Encoder(model)
        self.left = int(SHARE * psutil.virtual_memory().available) if budget is None else budget
        self._kept: dict[Hashable, Any] = {}

    def holds(self, key: Hashable) -> bool:
        """Whether the features of this content are kept, so that its pixels are not needed."""
        return key in self._kept

    def encode(self, media: Sequence[Medium]) -> list[Any]:
        """For each medium (tokens, width × (1 + deeper layers)) on the tower's device.

        Args:
            media: with pixels where no features are kept.
        """
        import torch

        new = {medium.key: medium for medium in media if medium.key not in self._kept}
        features = {}
        with torch.no_grad():
            for key, layers in zip(new, self.encoder.encode(list(new.values())), strict=True):
                features[key] = torch.cat(layers, -1)
                self._keep(key, features[key])
        self.encoder.forget()
        device = self.visual.device
        for key in {medium.key for medium in media} - features.keys():
            features[key] = self._kept[key].to(device, non_blocking=True)
        return [features[medium.key] for medium in media]

    def _keep(self, key: Hashable, features: Any) -> None:
        import torch

        if features.nbytes > self.left:
            return
        self.left -= features.nbytes
        on_gpu = features.is_cuda  # then copies in both directions need not wait for the GPU
        copy = torch.empty(features.shape, dtype=features.dtype, pin_memory=on_gpu)
        self._kept[key] = copy.copy_(features, non_blocking=on_gpu)

    def replaced(self) -> AbstractContextManager[None]:
        """The model takes features in place of ``pixel_values``; restored on exit."""
        return temporary_forwards({self.visual: partial(_split_layers, self.width)})


def _split_layers(width: int, features: Any, grid_thw: Any, **_) -> Any:
    """The encoder's output, from its features followed by those of deeper layers."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    first, *deeper = features.split(width, -1)
    return BaseModelOutputWithDeepstackFeatures(pooler_output=first, deepstack_features=deeper)


class Preparer:
    """Prepares rows of a data set for training.

    Args:
        vlm: the model that is trained.
        data: the rows.
        max_length: the most tokens of a row; a longer one is cut at its end.
        tower: whose features replace pixels, or None where the vision encoder is trained.
        keep: whether rows will be needed again.
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
        """A row, with the pixels that are needed. Raises as :func:`label_example`."""
        if self.tower is None:
            return label_example(self.vlm, self.data[index], max_length=self.max_length)
        row = self._rows.get(index)
        if row is None or not self.is_ready(row):
            row = self._from_known(self.data[index]) or self._read(self.data[index])
            if self.keep:
                self._rows[index] = replace(row, media=tuple(map(_without_pixels, row.media)))
        return row

    def is_ready(self, row: Labelled) -> bool:
        """Whether each of its media has pixels, or features that are kept."""
        return all(medium.pixels is not None or self._holds(medium) for medium in row.media)

    def _holds(self, medium: Medium) -> bool:
        return self.tower is not None and self.tower.holds(medium.key)

    def _read(self, example: Example) -> Labelled:
        with naming_row(example):
            pieces, loaded = read_example(self.vlm, example)
            row = truncate(self.vlm, tokenize_pieces(self.vlm, pieces, loaded), self.max_length)
        contents = [pixel_hash(image) for image in loaded.images]
        contents += [file_hash(clip.frames.tobytes()) for clip in loaded.clips]
        media = tuple(_split_media(row.tensors, contents))
        for picture, medium in zip(loaded.pictures, media, strict=False):  # pictures come first
            self._known[_identify(picture)] = _without_pixels(medium)
        tensors = {n: t for n, t in row.tensors.items() if n not in PIXELS.values()}
        return replace(row, tensors=tensors, media=media)

    def _from_known(self, example: Example) -> Labelled | None:
        """A row without reading its pictures, where the features of all of them are kept."""
        media = []
        for item in example.media:
            source = read_media_item(item)
            medium = self._known.get(_identify(source)) if isinstance(source, Image) else None
            if medium is None or not self._holds(medium):
                return None
            media.append(medium)
        return self._tokenize(cut_turns(self.vlm.processor, example.messages_for(self.vlm)), media)

    def _tokenize(self, pieces: Sequence[Piece], media: Sequence[Medium]) -> Labelled:
        import torch

        merged = self.vlm.processor.image_processor.merge_size**2
        counts = iter([int(medium.grid.prod()) // merged for medium in media])
        texts = [_expand(piece.text, counts) for piece in pieces]
        encode = self.vlm.processor.tokenizer.backend_tokenizer.encode
        with tokenizing:  # one by one: a few short texts are not worth threads
            tokens = [encode(text, add_special_tokens=False).ids for text in texts]
        ids = torch.tensor([[token for part in tokens for token in part]])
        trained = [piece.trained for piece, part in zip(pieces, tokens, strict=True) for _ in part]
        tensors = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        pad = base_model(self.vlm).config.image_token_id
        tensors["mm_token_type_ids"] = (ids == pad).to(ids.dtype)
        if media:
            tensors["image_grid_thw"] = torch.cat([medium.grid for medium in media])
        labels = ids.masked_fill(~torch.tensor([trained]), IGNORED)
        labelled = Labelled(tensors, labels, media=tuple(media))
        return truncate(self.vlm, labelled, self.max_length)


def _split_media(tensors: dict[str, Any], contents: Iterable[str]) -> Iterator[Medium]:
    """A row's pictures, then its clips, each with its content's hash and its grid as its key."""
    hashes = iter(contents)
    for kind, name in PIXELS.items():
        if name in tensors:
            grids = tensors[f"{kind}_grid_thw"]
            parts = tensors[name].split(grids.prod(-1).tolist())
            for pixels, grid in zip(parts, grids.split(1), strict=True):
                yield Medium(kind, (kind, next(hashes), *grid[0].tolist()), pixels, grid)


def _without_pixels(medium: Medium) -> Medium:
    return replace(medium, pixels=None)


def _identify(image: Image) -> Hashable:
    """Equal for pictures that the model sees alike; a file that has not changed is not decoded."""
    source = image.source
    limits = (image.max_tokens, image.min_tokens, image.max_pixels, image.min_pixels, image.strict)
    if not isinstance(source, str | os.PathLike):
        return (pixel_hash(image.load()), *limits)
    try:
        return (source if is_url(source) else file_hash(source), *limits)
    except (OSError, ValueError):  # reading it will say why
        return (os.fspath(source), *limits)


def _expand(text: str, counts: Iterator[int]) -> str:
    """A text with one placeholder for each token of each picture."""
    first, *rest = text.split(PADS["image"])
    return first + "".join(PADS["image"] * next(counts) + text for text in rest)


class Examples(Sequence[Labelled]):
    """The rows of a data set, each prepared when it is needed or shortly before.

    Args:
        preparer: which prepares a row.
        workers: threads that read rows ahead; 0 for none.
    """

    def __init__(self, preparer: Preparer, workers: int = 0):
        self.preparer, self.workers = preparer, workers
        self._pool = ThreadPoolExecutor(workers, "vlkit-rows") if workers else None
        self._coming: OrderedDict[int, Future[Labelled]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.preparer.data)

    def __getitem__(self, index):
        if index >= len(self):  # a row of padding, without labels
            row = self[index % len(self)]
            return replace(row, labels=row.labels.clone().fill_(IGNORED))
        coming = self._coming.pop(index, None)
        if coming is None or coming.cancelled():
            return self.preparer.prepare(index)
        row = coming.result()
        return row if self.preparer.is_ready(row) else self.preparer.prepare(index)

    def expect(self, index: int) -> None:
        """Start to prepare a row that will be needed soon."""
        if self._pool is None or index in self._coming or index >= len(self):
            return
        while len(self._coming) >= 2 * AHEAD:  # of batches that a resumed run skips
            self._coming.popitem(last=False)[1].cancel()
        self._coming[index] = self._pool.submit(self.preparer.prepare, index)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


class LengthSampler:
    """All rows in random order; those of one update of the weights have similar lengths.

    The order depends on seed and epoch alone, so that a resumed run, or one that takes an update's
    rows in smaller batches or on several processes, trains on the same rows.

    Args:
        examples: the rows.
        lengths: of the rows.
        rows: of one update, on all processes together.
        seed: of the order.
        share: rows that all processes take at once; an epoch is padded to a multiple of it with
            rows without labels, where accelerate would repeat some.
    """

    def __init__(
        self,
        examples: Examples,
        lengths: Sequence[float],
        rows: int,
        seed: int,
        *,
        share: int = 1,
    ):
        self.examples, self.lengths, self.rows, self.seed = examples, lengths, rows, seed
        self.share, self.epoch = share, 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.share) * self.share

    def set_epoch(self, epoch: int) -> None:
        """Which pass over the data comes next."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """The rows' indices in this epoch; an update that is not full comes last."""
        import numpy as np

        random = np.random.default_rng((self.seed, self.epoch))
        shuffled = random.permutation(len(self.lengths))
        span = self.rows * SORTED
        groups: list[Any] = []
        for start in range(0, len(self.lengths), span):
            some = shuffled[start : start + span]
            some = some[np.argsort([self.lengths[i] for i in some], kind="stable")]
            full = len(some) - len(some) % self.rows
            rest = random.permutation(len(some))[full:]  # at random: not always the longest
            kept = np.delete(some, rest)
            groups += [kept[i : i + self.rows] for i in range(0, full, self.rows)]
            last = some[rest]
        ordered = [groups[i] for i in random.permutation(len(groups))]
        return [int(i) for group in [*ordered, last] for i in group]

    def __iter__(self) -> Iterator[int]:
        order = [*self.order(), *range(len(self.lengths), len(self))]
        for index in order[:AHEAD]:
            self.examples.expect(index)
        for place, index in enumerate(order):
            if place + AHEAD < len(order):
                self.examples.expect(order[place + AHEAD])
            yield index


class Collator:
    """Collates labelled rows to one batch.

    Besides the processor's tensors it has ``labels`` (rows, length), and, so that logits are
    computed only where there are labels, ``logits_to_keep`` (positions) and ``shift_labels``
    (rows, positions), as transformers' models take them. Rows are padded on the left, so that
    their answers are mostly at the same positions.

    Args:
        pad_token_id: of the padding.
        tower: with it, ``pixel_values`` are its features of the rows' ``media``.
        rope: the model's ``get_rope_index``; with it, positions are computed here, and the GPU
            does not wait for them.
    """

    def __init__(
        self,
        pad_token_id: int,
        tower: FrozenTower | None = None,
        rope: Callable[..., tuple] | None = None,
    ):
        self.pad_token_id, self.tower, self.rope = pad_token_id, tower, rope

    def __call__(self, rows: Sequence[Labelled]) -> dict[str, Any]:
        import torch

        batch: dict[str, Any] = {}
        for name in PER_TOKEN:
            if name in rows[0].tensors:
                filler = self.pad_token_id if name == "input_ids" else 0
                batch[name] = _pad([row.tensors[name][0] for row in rows], filler)
        names = {name for row in rows for name in row.tensors} - set(PER_TOKEN)
        for name in sorted(names):
            batch[name] = torch.cat(
                [torch.as_tensor(row.tensors[name]) for row in rows if name in row.tensors]
            )
        batch |= self._positions(batch)
        batch |= self._features([medium for row in rows for medium in row.media])
        batch["labels"] = _pad([row.labels[0] for row in rows], IGNORED)
        following = batch["labels"][:, 1:]
        kept = (following != IGNORED).any(0).nonzero()[:, 0]
        return batch | {"logits_to_keep": kept, "shift_labels": following[:, kept].contiguous()}

    def _positions(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.rope is None or not any(name.endswith("_grid_thw") for name in batch):
            return {}
        known = signature(self.rope).parameters
        return {"position_ids": self.rope(**{n: v for n, v in batch.items() if n in known})[0]}

    def _features(self, media: Sequence[Medium]) -> dict[str, Any]:
        import torch

        pairs = list(zip(media, self.tower.encode(media) if self.tower else (), strict=True))
        return {
            name: torch.cat([features for medium, features in pairs if medium.kind == kind])
            for kind, name in PIXELS.items()
            if any(medium.kind == kind for medium in media)
        }


def _pad(rows: list, value: int):
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")
