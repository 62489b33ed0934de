"""``token_logprobs``: how probable each token, how sure each box is."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np

from vlkit.errors import VlkitError
from vlkit.generation.generate import generation_options, run_row
from vlkit.generation.reply import Reply
from vlkit.grounding.boxes import Item, Point, Quad, Size
from vlkit.grounding.formats import GroundingFormat
from vlkit.grounding.parse import format_of, locate_grounding
from vlkit.inputs import ModelInputs, check_context, prepare_inputs
from vlkit.messages import as_messages, text_of
from vlkit.models.load import VLM

_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")


_JSON_NUMBERS = re.compile(r"""_2d["']?\s*[:=]\s*([\[(][\d\s.,\-\[\]()]*)""")


_XML_NUMBERS = re.compile(r"""\s[xy]\d*\s*=\s*["']([^"']*)""")


_QUOTE = 60  # characters of an answer in an error


@dataclass(frozen=True, eq=False)
class AnswerTokens:
    """A question and the tokens of its answer.

    Attributes:
        inputs: what the model is given; one row.
        ids: the answer's tokens.
        text: the answer with its special tokens; a prefill stands at its beginning.
        spans: where in ``text`` each token stands: from, up to.
        items: each box, point or quad of the answer with the numbers of the tokens that write its
            coordinates, in pixels of the upright original that it was read for.
    """

    inputs: ModelInputs
    ids: list[int]
    text: str
    spans: list[tuple[int, int]]
    items: list[tuple[Item, list[int]]]

    def find(self, token: int | str | Item) -> list[int]:
        """The numbers of the tokens that a number, a text or a box of the answer stands for.

        Raises:
            VlkitError: the answer has no such token.
        """
        if isinstance(token, Integral) and not isinstance(token, bool):
            if not -len(self.ids) <= token < len(self.ids):
                raise VlkitError(f"token={token} is not there; the answer has {len(self.ids)}")
            return [int(token) % len(self.ids)]
        if isinstance(token, Item):
            return self._find_item(token)
        if not isinstance(token, str) or not token:
            raise VlkitError(f"token={token!r} must be a number, a text or a box of the answer")
        start = self.text.find(token)
        found = [i for i, (a, b) in enumerate(self.spans) if a < start + len(token) and start < b]
        if start < 0 or not found:
            raise VlkitError(f"token={token!r} is not in what was generated: {self._quote()}")
        return found

    def _find_item(self, item: Item) -> list[int]:
        for known, tokens in self.items:
            if known == item and tokens:
                return tokens
        raise VlkitError(f"token={item!r} is none of the answer's boxes: {self._quote()}")

    def _quote(self) -> str:
        return repr(self.text if len(self.text) <= _QUOTE else self.text[: _QUOTE - 1] + "…")


def answer_tokens(
    vlm: VLM,
    messages: str | Mapping | list,
    answer: Reply | str | None,
    max_new_tokens: int,
    image: int = -1,
    clip: int | None = None,
) -> AnswerTokens:
    """Ask greedily, or take an answer that is there, and find its tokens.

    Args:
        vlm: from :func:`vlkit.load`.
        messages: as for :func:`vlkit.generate`.
        answer: a Reply to these messages or its ``raw`` text, which is made into tokens again;
            None asks.
        max_new_tokens: the longest answer.
        image, clip: the picture or the clip whose pixels the boxes are read in.

    Raises:
        MediaError, ModelError, VlkitError: as :func:`vlkit.generate`.
    """
    messages = as_messages(messages)
    inputs = prepare_inputs(vlm, [messages])
    begun = _prefill(messages)
    if answer is None:
        ids = run_row(vlm, inputs, generation_options(max_new_tokens, 0.0, 1.0, None), None)
    else:
        ids = _tokens_of(vlm, answer, begun)
        check_context(vlm, inputs.tensors["input_ids"].shape[1], len(ids))
    text, spans = _locate_tokens(vlm.processor.tokenizer, ids, begun)
    return AnswerTokens(inputs, ids, text, spans, _items(vlm, inputs, text, spans, image, clip))


def replay(vlm: VLM, answered: AnswerTokens, count: int, logits: int = 1) -> Any:
    """The (``logits``, vocabulary) logits at the last tokens of the prompt and ``count`` more.

    One pass over both, in which nothing is cached.
    """
    import torch

    tensors = answered.inputs.tensors.to(vlm.model.device, dtype=vlm.model.dtype)
    new = torch.tensor([answered.ids[:count]], device=vlm.model.device, dtype=torch.long)
    prompt, values = tensors["input_ids"], dict(tensors)
    values["input_ids"] = torch.cat([prompt, new], dim=1)
    values["attention_mask"] = torch.ones_like(values["input_ids"])
    if (kinds := values.get("mm_token_type_ids")) is not None:  # 0 is text
        values["mm_token_type_ids"] = torch.cat(
            [kinds, torch.zeros_like(new, dtype=kinds.dtype)], 1
        )
    with torch.inference_mode():
        return vlm.model(**values, use_cache=False, logits_to_keep=logits).logits[0]


def _prefill(messages: list[dict]) -> str:
    if messages[-1]["role"] != "assistant":
        return ""
    return text_of(messages[-1])


def _tokens_of(vlm: VLM, answer: Reply | str, begun: str) -> list[int]:
    if not isinstance(answer, Reply | str):
        raise VlkitError(f"answer={answer!r:.60} must be a Reply, its raw text or None")
    text = (answer.raw if isinstance(answer, Reply) else answer).removeprefix(begun)
    ids = vlm.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise VlkitError("the answer is empty; pass reply.raw, or None to ask")
    return ids


def _locate_tokens(tokenizer: Any, ids: list[int], begun: str) -> tuple[str, list[tuple[int, int]]]:
    """The text, and where each token stands; of a character's first bytes nothing is seen yet."""
    ends = [len(begun)]
    for count in range(1, len(ids) + 1):
        part = tokenizer.decode(ids[:count], skip_special_tokens=False)
        ends.append(len(begun) + len(part if count == len(ids) else part.rstrip("\ufffd")))
    text = begun + tokenizer.decode(ids, skip_special_tokens=False)
    return text, list(pairwise(ends))


def _items(vlm, inputs: ModelInputs, text: str, spans, image: int, clip: int | None) -> list:
    sizes = _sizes(inputs, image, clip)
    if sizes is None:
        return []
    try:
        placed, _ = locate_grounding(
            text, family=vlm.family, image_size=sizes[0], input_size=sizes[1]
        )
    except VlkitError:  # an answer whose boxes cannot be read has tokens all the same
        return []
    found: list[tuple[Item, list[int]]] = []
    seen: dict[int, int] = {}
    for item, start, end in placed:
        before = seen.get(start, 0)  # numbers of the same object that other boxes have taken
        seen[start] = before + (
            2 if isinstance(item, Point) else 8 if isinstance(item, Quad) else 4
        )
        areas = coordinate_spans(text, start, end, format_of(vlm.family))[before : seen[start]]
        near = [i for i, (a, b) in enumerate(spans) if any(a < e and s < b for s, e in areas)]
        found.append((item, near))
    return found


def _sizes(inputs: ModelInputs, image: int, clip: int | None) -> tuple[Size, Size] | None:
    pictures, clips = inputs.images[0], inputs.clips[0]
    if clip is None and pictures and -len(pictures) <= image < len(pictures):
        return pictures[image].size, inputs.input_sizes[0][image]
    if clips and -len(clips) <= (place := -1 if clip is None else clip) < len(clips):
        return clips[place].info.size, clips[place].frame_size
    return None


def coordinate_spans(
    text: str, start: int, end: int, form: GroundingFormat
) -> list[tuple[int, int]]:
    """Where the coordinates' numbers stand within a box that was found from ``start`` to ``end``.

    Returns:
        For each number from, up to; those of a label do not count.
    """
    part = text[start:end]
    if form.style == "tags":
        begin = max(part.rfind(tag) + len(tag) for tag in (form.box_tags[0], form.quad_tags[0]))
        areas = [(begin, len(part))]
    else:
        areas = [m.span(1) for m in _JSON_NUMBERS.finditer(part)]
        areas = areas or [m.span(1) for m in _XML_NUMBERS.finditer(part)]
    return [
        (start + a + m.start(), start + a + m.end())
        for a, b in areas
        for m in _NUMBERS.finditer(part[a:b])
    ]


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
