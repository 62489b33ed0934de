"""How the next tokens are chosen from the logits: the likeliest, or drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlkit.errors import ModelError


@dataclass(frozen=True)
class Sampling:
    """What holds for the tokens of all rows.

    Attributes:
        endings: tokens that end an answer.
        repetition_penalty: for tokens that the prompt or the answer contains; 1 for none.
    """

    endings: frozenset[int]
    repetition_penalty: float = 1.0


def is_random(rows: Sequence[Any]) -> bool:
    """Whether any row's tokens are drawn at random; see :class:`vlkit.engine.slots.Row`."""
    return any(row.sampling[0] > 0 for row in rows)


def draw_tokens(logits: Any, rows: Sequence[Any]) -> Any:
    """Sample as transformers does, each row with its own random numbers; shape (rows,)."""
    tokens = logits.argmax(-1)
    settings = [row.sampling for row in rows]
    for temperature, top_p in set(settings):
        if temperature > 0:
            places = [i for i, setting in enumerate(settings) if setting == (temperature, top_p)]
            shares = _share(temperature, top_p, logits[places])
            spoilt = shares.isnan().any(-1).tolist()  # drawing from NaN would end a GPU's process
            for place, share, is_nan in zip(places, shares, spoilt, strict=True):
                if is_nan:
                    rows[place].error = not_a_number()
                else:
                    tokens[place] = _draw(share, rows[place], tokens[place])
    return tokens


def _share(temperature: float, top_p: float, logits: Any) -> Any:
    """Probabilities, (rows, vocabulary)."""
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    logits = TemperatureLogitsWarper(temperature)(None, logits)
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(None, logits)
    return logits.softmax(-1)


def _draw(share: Any, row: Any, otherwise: Any) -> Any:
    """A token of one row; whatever is raised becomes this row's error."""
    import torch

    try:
        if row.generator is None and row.seed is not None:
            row.generator = torch.Generator(share.device).manual_seed(row.seed)
        return torch.multinomial(share, 1, generator=row.generator)[0]
    except Exception as error:
        row.error = error
        return otherwise


def not_a_number() -> ModelError:
    """What ends a row whose logits are NaN."""
    return ModelError(
        "the model's logits are NaN for this row; load it in another dtype (float16 overflows), or "
        "check its weights"
    )
