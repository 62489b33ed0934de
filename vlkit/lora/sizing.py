"""How many rows at a time: as the memory allows, without a change of what is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlkit.lora.costs import estimate_training
from vlkit.lora.modules import Part
from vlkit.models import VLM

AUTO = 8  # rows of an update
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
            gradient_checkpointing=gradient_checkpointing,
        )  # fmt: skip
        if memory.total <= _USED * memory.available:
            break
        size = smaller
    return size
