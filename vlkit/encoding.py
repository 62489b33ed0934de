"""Pictures and clips through the vision tower: many at once, and each only once.

transformers loops over the pictures in every layer's attention; here one call attends within all of
them. A picture that several rows ask about is encoded for the first of them.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PATCHES = {"cuda": 200_000, "cpu": 4096}  # at once; on a CPU no more than its caches hold
KEPT_BYTES = 2**28  # of features, for the next rows that ask about the same picture
NAME = "vlkit_flash_packed"  # "flash": the towers then hand over all pictures at once


@dataclass(frozen=True, eq=False)
class Medium:
    """A picture or clip as the processor left it.

    Attributes:
        kind: ``"image"`` or ``"video"``.
        key: the same for the same content.
        pixels: (patches, values of a patch).
        grid: (1, 3), its patches along time, height and width.
    """

    kind: str
    key: Hashable
    pixels: Any
    grid: Any


class Encoder:
    """A vision tower that remembers what it saw last.

    Args:
        model: the transformers model.
    """

    def __init__(self, model: Any):
        self.visual = model.model.visual
        self._kept: OrderedDict[Hashable, tuple] = OrderedDict()

    def encode(self, media: Sequence[Medium]) -> list[tuple]:
        """For each medium its features, (tokens, width), those of deeper layers behind them."""
        found = {}
        new: dict[Hashable, Medium] = {}
        for medium in media:
            if medium.key in self._kept:
                self._kept.move_to_end(medium.key)
                found[medium.key] = self._kept[medium.key]
            else:
                new[medium.key] = medium
        for group in _groups(list(new.values()), PATCHES[self._place]):
            for medium, features in zip(group, self._run(group), strict=True):
                found[medium.key] = self._kept[medium.key] = features
        self._forget()
        return [found[medium.key] for medium in media]

    @property
    def _place(self) -> str:
        return "cuda" if self.visual.device.type == "cuda" else "cpu"

    def _run(self, media: Sequence[Medium]) -> list[tuple]:
        import torch

        device, dtype = self.visual.device, self.visual.dtype
        pixels = torch.cat([medium.pixels for medium in media]).to(device, dtype)
        grid = torch.cat([medium.grid for medium in media])
        with packed_attention(self.visual):
            output = self.visual(pixels, grid_thw=grid.to(device), return_dict=True)
        layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
        sizes = (grid.prod(-1) // self.visual.spatial_merge_size**2).tolist()
        return list(zip(*(layer.split(sizes) for layer in layers), strict=True))

    def _forget(self) -> None:
        """Let go what was used longest ago, over the limit."""
        total = 0
        for key in reversed(list(self._kept)):
            total += sum(layer.nbytes for layer in self._kept[key])
            if total > KEPT_BYTES:
                del self._kept[key]


def _groups(media: list[Medium], most: int) -> Iterator[list[Medium]]:
    """Runs of media with at most so many patches together."""
    group: list[Medium] = []
    patches = 0
    for medium in media:
        if group and patches + len(medium.pixels) > most:
            yield group
            group, patches = [], 0
        group.append(medium)
        patches += len(medium.pixels)
    if group:
        yield group


@contextmanager
def packed_attention(visual: Any) -> Iterator[None]:
    """Let a vision tower attend within all of its pictures at once; restored afterwards."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    config, before = visual.config, visual.config._attn_implementation
    if before != "sdpa":  # eager was asked for to look inside; flash attention packs by itself
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(module, query, key, value, attention_mask=None, *, scaling=None, **kwargs):
    """Attention within segments.

    Args:
        module: whose attention it is.
        query, key, value: (1, heads, patches, head size), of all segments one after the other.
        attention_mask: unused; the segments say it all.
        scaling: of the scores.
        **kwargs: ``cu_seq_lens_q``, the segments' borders.

    Returns:
        (1, patches, heads, head size), and None for the weights.
    """
    borders, longest = kwargs["cu_seq_lens_q"], kwargs["max_length_q"]
    if query.is_cuda and query.element_size() == 2 and (kernel := _varlen_kernel()):
        packed = [each[0].transpose(0, 1).contiguous() for each in (query, key, value)]
        output = kernel(*packed, borders, borders, longest, longest, scale=scaling)
        return output[None], None
    query, key, value = (each[0] for each in (query, key, value))
    output = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
    for rows in _same_length_segments(borders):
        _attend_equal(query, key, value, rows, scaling, output)
    return output[None], None


def _attend_equal(query, key, value, rows, scaling, output) -> None:
    """Attention of segments of one length; ``rows`` is (segments, length) indices of patches."""
    import torch

    count, length = rows.shape
    heads, patches, size = query.shape
    if count * length == patches:  # all of them, in order
        parts = [x.view(heads, count, length, size).transpose(0, 1) for x in (query, key, value)]
    else:
        parts = [
            x[:, rows.flatten()].view(heads, count, length, size).transpose(0, 1)
            for x in (query, key, value)
        ]
    result = torch.nn.functional.scaled_dot_product_attention(*parts, scale=scaling)
    output[rows.flatten()] = result.transpose(1, 2).reshape(count * length, heads, size)


def _same_length_segments(borders) -> list:
    """Indices of patches, (segments, length), for each length there is; kept with the borders."""
    import torch

    if not hasattr(borders, "vlkit_segments"):  # the same tensor goes through every block
        groups = defaultdict(list)
        ends = borders.tolist()
        for start, end in itertools.pairwise(ends):
            groups[end - start].append(start)
        borders.vlkit_segments = [
            torch.tensor(starts, device=borders.device)[:, None]
            + torch.arange(length, device=borders.device)
            for length, starts in groups.items()
        ]
    return borders.vlkit_segments


def _varlen_kernel():
    """torch's attention over packed sequences (from 2.10 on), or None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn
