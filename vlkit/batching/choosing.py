"""The next token of each row, from its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlkit.batching.group import Row


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen from the logits.

    Attributes:
        endings: tokens that end an answer.
        temperature: 0 for the likeliest token.
        top_p: share of probability to sample from.
        repetition_penalty: of what the prompt or the answer holds already; 1 for none.
    """

    endings: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


def choose_tokens(choice: Choice, logits: Any, rows: Sequence[Row], seen: Any = None) -> Any:
    """The next tokens, shape (rows,).

    Args:
        choice: how.
        logits: (rows, vocabulary).
        rows: whose they are.
        seen: (rows, vocabulary), what each row holds already; the chosen tokens are added.
    """
    logits = logits.float()
    if seen is not None:
        penalty = choice.repetition_penalty
        scaled = logits.where(logits < 0, logits / penalty).where(logits > 0, logits * penalty)
        logits = scaled.where(seen, logits)
    tokens = _sample(choice, logits, rows) if samples(choice, rows) else logits.argmax(-1)
    if seen is not None:
        seen.scatter_(1, tokens[:, None], True)
    return tokens


def samples(choice: Choice, rows: Sequence[Row]) -> bool:
    """Whether any row's tokens are drawn at random."""
    return any(_sampling(choice, row)[0] > 0 for row in rows)


def _sampling(choice: Choice, row: Row) -> tuple[float, float]:
    """Temperature and top_p of a row."""
    return row.sampling or (choice.temperature, choice.top_p)


def _sample(choice: Choice, logits: Any, rows: Sequence[Row]) -> Any:
    """As transformers samples, each row from a random sequence of its own."""
    import torch

    tokens = logits.argmax(-1)
    kinds = [_sampling(choice, row) for row in rows]
    for kind in set(kinds):
        if kind[0] > 0:
            those = [place for place, each in enumerate(kinds) if each == kind]
            drawn = _draw(*kind, logits[those], [rows[place] for place in those])
            tokens[those] = torch.cat(drawn)
    return tokens


def _draw(temperature: float, top_p: float, logits: Any, rows: Sequence[Row]) -> list:
    import torch
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    logits = TemperatureLogitsWarper(temperature)(None, logits)
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(None, logits)
    return [
        torch.multinomial(share, 1, generator=_generator(row, logits.device))
        for share, row in zip(logits.softmax(-1), rows, strict=True)
    ]


def _generator(row: Row, device):
    import torch

    if row.generator is None:
        row.generator = torch.Generator(device)
        row.generator.seed() if row.seed is None else row.generator.manual_seed(row.seed)
    return row.generator
