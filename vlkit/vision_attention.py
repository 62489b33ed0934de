"""One attention call for all pictures of a batch, where transformers loops over them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAME = "vlkit_flash_packed"  # "flash": the towers then hand over all pictures at once


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
