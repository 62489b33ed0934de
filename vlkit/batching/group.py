"""Rows on their way through the engine, and a group of them as one set of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vlkit.batching.encoding import Medium


@dataclass(eq=False)
class Row:
    """One conversation on its way.

    Attributes:
        index: its place in the batch.
        tensors: the processor's output for it alone, ``input_ids`` of shape (1, length); no pixels.
        media: its pictures, then its clips.
        limit: the most new tokens.
        seed: of its sampling.
        sampling: temperature and top_p of its own, or None for the engine's.
        tokens: the new tokens so far.
        payload: whatever the caller wants back with it.
    """

    index: int
    tensors: dict[str, Any]
    media: list[Medium]
    limit: int
    seed: int | None = None
    sampling: tuple[float, float] | None = None
    tokens: list[int] = field(default_factory=list)
    payload: Any = None
    generator: Any = None

    @property
    def length(self) -> int:
        """Prompt tokens."""
        return self.tensors["input_ids"].shape[1]

    @cached_property
    def shared(self) -> int:
        """Prompt tokens up to the last picture's or clip's end."""
        seen = self.tensors["mm_token_type_ids"][0].nonzero()
        return int(seen[-1]) + 1 if len(seen) else 0

    @cached_property
    def beginning(self) -> tuple:
        """The same for rows that begin with the same text and the same pictures."""
        ids = self.tensors["input_ids"][0, : self.shared]
        return tuple(ids.tolist()), *(medium.key for medium in self.media)


def share_beginnings(rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """The rows whose beginning is new, then the others; of these, who leads them."""
    first: dict[tuple, int] = {}
    leading: list[Row] = []
    others: list[tuple[Row, int]] = []
    for row in rows:
        if row.shared and row.beginning in first:
            others.append((row, first[row.beginning]))
        else:
            first[row.beginning] = len(leading)
            leading.append(row)
    return [*leading, *(row for row, _ in others)], [leader for _, leader in others]


def collate(rows: Sequence[Row], config: Any) -> dict[str, Any]:
    """The tensors of several rows as one, padded on the right."""
    import torch

    padding = getattr(config.get_text_config(), "pad_token_id", None) or 0
    longest = max(row.length for row in rows)
    batch: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row.tensors):
        parts = [row.tensors[name] for row in rows if name in row.tensors]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            value = padding if name == "input_ids" else 0
            parts = [_pad(part, longest, value) for part in parts]
        batch[name] = torch.cat([torch.as_tensor(part) for part in parts])
    return batch


def _pad(tensor, length: int, value: int):
    import torch

    return torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=value)


def rope_index(model: Any, inputs: dict):
    """The library's rotary positions (3, rows, length), and deltas (rows,), on the CPU."""
    import torch

    kinds, mask = inputs["mm_token_type_ids"], inputs["attention_mask"]
    if kinds.any():
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        extra = {name: inputs[name] for name in names if name in inputs}
        positions, deltas = model.get_rope_index(
            inputs["input_ids"], mm_token_type_ids=kinds, attention_mask=mask, **extra
        )
        return positions, deltas.flatten()
    positions = torch.arange(mask.shape[1]).expand(3, len(mask), -1)
    return positions, torch.zeros(len(mask), dtype=torch.long)
