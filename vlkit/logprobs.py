"""How sure the model was of each token of its answer, and of each box."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vlkit.answer_tokens import answer_tokens, replay
from vlkit.errors import VlkitError
from vlkit.grounding import Item
from vlkit.models import VLM
from vlkit.replies import Reply


@dataclass(frozen=True, eq=False)
class AnswerLogprobs:
    """How sure the model was of what it wrote; it shows itself in a notebook.

    Attributes:
        tokens: the text of each token; that of a character's first bytes is empty.
        ids: their numbers in the vocabulary.
        logprobs: (tokens,) natural logarithms of their probabilities, from the logits, so before
            temperature and top_p.
        text: the whole answer with its special tokens.
        confidences: each box, point or quad of the answer with how sure the model was of its
            coordinates, 0 to 1: the geometric mean of the probabilities of their tokens.
    """

    tokens: tuple[str, ...] = field(repr=False)
    ids: tuple[int, ...] = field(repr=False)
    logprobs: np.ndarray = field(repr=False)
    text: str
    confidences: tuple[tuple[Item, float], ...]

    def confidence(self, item: Item) -> float:
        """How sure the model was of the coordinates of one of the answer's boxes, 0 to 1.

        Raises:
            VlkitError: the answer has no such box.
        """
        for known, value in self.confidences:
            if known == item:
                return value
        raise VlkitError(f"{item!r} is none of the answer's {len(self.confidences)} boxes")

    def _repr_html_(self) -> str:
        parts, waiting = [], 0.0
        for token, logprob in zip(self.tokens, self.logprobs.tolist(), strict=True):
            waiting += logprob  # of the tokens that make up one character
            if token:
                parts.append(_mark(token, float(np.exp(waiting))))
                waiting = 0.0
        legend = " ".join(_mark(f"{p:.0%}", p) for p in (1.0, 0.75, 0.5, 0.25))
        return (
            '<div style="max-width:640px"><p style="white-space:pre-wrap;overflow-wrap:anywhere;'
            f'line-height:1.7;margin:4px 0">{"".join(parts)}</p>'
            f'<p style="font-size:.85em;margin:4px 0">probability: {legend}</p></div>'
        )


def token_logprobs(
    vlm: VLM,
    messages: str | Mapping | list,
    *,
    answer: Reply | str | None = None,
    image: int = -1,
    max_new_tokens: int = 256,
) -> AnswerLogprobs:
    """Say how probable the model held each token of its answer, and how sure it was of each box.

    One pass over prompt and answer; the logits are the model's own, whatever the answer was
    sampled with.

    Args:
        vlm: from :func:`vlkit.load`.
        messages: as for :func:`vlkit.generate`.
        answer: the Reply to these messages, or any raw text to be judged; None asks, greedily.
        image: the picture whose pixels the boxes are read in, by default the last.
        max_new_tokens: the longest answer.

    Raises:
        VlkitError: malformed messages, or an empty answer.
    """
    import torch

    answered = answer_tokens(vlm, messages, answer, max_new_tokens, image)
    logits = replay(vlm, answered, len(answered.ids), len(answered.ids) + 1)[:-1].float()
    chosen = torch.tensor(answered.ids, device=logits.device)[:, None]
    logprobs = logits.log_softmax(-1).gather(1, chosen)[:, 0].cpu().numpy()
    sure = tuple(
        (item, float(np.exp(logprobs[tokens].mean()))) for item, tokens in answered.items if tokens
    )
    texts = tuple(answered.text[start:end] for start, end in answered.spans)
    return AnswerLogprobs(texts, tuple(answered.ids), logprobs, answered.text, sure)


def _mark(token: str, probability: float) -> str:
    shade = f"background:rgba(213,94,0,{0.85 * (1 - probability):.2f})"
    shown = html.escape(token).replace("\n", "⏎\n")
    return f'<span style="{shade};border-radius:2px" title="{probability:.3f}">{shown}</span>'
