"""What holds for all rows of a batch, and what is counted on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from vlkit.models import VLM

MOST_ROWS = {"cuda": 128, "cpu": 64}  # more rows at a time give little
PREFILL_TOKENS = {"cuda": 32_768, "cpu": 2048}
AHEAD_TOKENS = 4096  # on a CPU, of rows whose pictures are encoded together


@dataclass(frozen=True)
class Settings:
    """What holds for all rows.

    Attributes:
        options: for transformers' generate.
        seed: of row 0, or None.
        batch_size: the most rows at a time, or None.
        path: ``"fast"``, ``"library"`` or ``"remote"``.
        note: why it is not the fast one.
        stopped: set when it is to end.
    """

    options: dict[str, Any]
    seed: int | None
    batch_size: int | None
    path: str
    note: str
    stopped: Event | None = None

    def check_stopped(self) -> None:
        """End as Ctrl-C does, if that is asked for."""
        if self.stopped is not None and self.stopped.is_set():
            raise KeyboardInterrupt


@dataclass
class Tally:
    """Counted while the rows are answered."""

    new_tokens: int = 0
    computed: int = 0  # prompt tokens, padding included
    padded: int = 0
    batch_size: int = 0
    cost: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def padding(self) -> float:
        """Share of the computed prompt tokens that were padding."""
        return self.padded / self.computed if self.computed else 0.0

    def count_group(self, lengths: Sequence[int]) -> None:
        """Count a group of prompts that are computed together."""
        self.computed += max(lengths) * len(lengths)
        self.padded += max(lengths) * len(lengths) - sum(lengths)


def base_model(vlm: VLM) -> Any:
    """The transformers model, out of an adapter's wrapper; its layers keep the adapter."""
    return vlm.model.get_base_model() if hasattr(vlm.model, "get_base_model") else vlm.model
