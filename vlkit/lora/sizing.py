"""How many rows at a time: as the memory allows, without a change of what is learnt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlkit.lora.costs import estimate_training
from vlkit.lora.modules import Part
from vlkit.models import VLM

AUTO = 8  # rows of an update
CHECKPOINTS = 10  # of a run, or as many as it has epochs
_USED = 0.9  # of the free memory


@dataclass(frozen=True)
class BatchSize:
    """Rows at a time.

    Attributes:
        batch: rows of a batch.
        accumulation: batches of an update of the weights.
        auto: whether it may be divided otherwise.
    """

    batch: int
    accumulation: int
    auto: bool = False

    @property
    def rows(self) -> int:
        """Of an update."""
        return self.batch * self.accumulation

    def smaller(self) -> BatchSize | None:
        """As many rows in batches half the size; None where that cannot be."""
        if not self.auto or self.batch % 2:
            return None
        return replace(self, batch=self.batch // 2, accumulation=2 * self.accumulation)


def choose_batch(
    vlm: VLM,
    parts: Sequence[Part],
    lengths: Sequence[float],
    *,
    rank: int | None,
    batch_size: int | str,
    accumulation: int,
    gradient_checkpointing: bool,
    quantize: str | None = None,
) -> BatchSize:
    """The rows at a time; ``auto`` takes eight an update, in batches that a GPU's memory holds."""
    if batch_size != "auto":
        return BatchSize(int(batch_size), accumulation)
    size = BatchSize(AUTO, accumulation, auto=True)
    longest = sorted(lengths)[-AUTO:]
    while vlm.model.device.type == "cuda" and (smaller := size.smaller()):
        tokens = int(longest[-1] * size.batch)
        memory = estimate_training(
            vlm, parts, rank=rank, tokens=tokens, learnt=tokens // 4, patches=4 * tokens,
            gradient_checkpointing=gradient_checkpointing, quantize=quantize,
        )  # fmt: skip
        if memory.total <= _USED * memory.available:
            break
        size = smaller
    return size


def count_steps(rows: int, batch_size: int, gradient_accumulation: int, epochs: float) -> int:
    """Updates of the weights, as the Trainer counts them."""
    batches = math.ceil(rows / batch_size)
    return math.ceil(math.ceil(batches / gradient_accumulation) * epochs)


def checkpoint_every(steps: int, epochs: float) -> int:
    """Steps from one checkpoint, and from one look at the held-out rows, to the next."""
    return min(math.ceil(steps / CHECKPOINTS), math.ceil(steps / max(epochs, 1)))
