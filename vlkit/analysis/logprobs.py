"""``token_logprobs``: how probable each token, how sure each box is."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np

from vlkit.errors import VlkitError
from vlkit.generation.generate import generation_options
from vlkit.generation.reply import Reply
from vlkit.grounding.boxes import Item, Size, coordinates_of
from vlkit.grounding.formats import GroundingFormat
from vlkit.grounding.parse import format_of, locate_grounding
from vlkit.inputs import ModelInputs, check_context, prepare_inputs
from vlkit.messages import as_messages, opened_thought, prefill_of
from vlkit.models.load import VLM
from vlkit.plotting.html import fill_template
from vlkit.settings import MAX_NEW_TOKENS

_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")
_JSON_NUMBERS = re.compile(r"""[\w"']\s*[:=]\s*([\[(][\d\s.,\-\[\]()]*)""")
_XML_NUMBERS = re.compile(r"""\s(?:[xy]\d*|data-bbox)\s*=\s*["']([^"']*)""")
_QUOTE = 60  # characters of an answer in an error


@dataclass(frozen=True, eq=False)
class AnswerTokens:
    """A question and the tokens of its answer.

    Attributes:
        inputs: the model's input; one row.
        ids: the answer's tokens.
        text: the answer with its special tokens; it begins with the prefill, if there is one.
        spans: the start and end of each token in ``text``.
        items: each box, point or quad of the answer, in pixels of the upright original, with the
            numbers of the tokens that write its coordinates.
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
                raise VlkitError(f"token={token} does not exist; the answer has {len(self.ids)}")
            return [int(token) % len(self.ids)]
        if isinstance(token, Item):
            numbers = next((tokens for item, tokens in self.items if item == token), [])
            where = "one of the answer's boxes"
        elif isinstance(token, str) and token:
            start = self.text.find(token)
            numbers = _overlapping(self.spans, [(start, start + len(token))]) if start >= 0 else []
            where = "in the generated text"
        else:
            raise VlkitError(f"token={token!r} must be a number, a text or a box of the answer")
        if not numbers:
            text = self.text if len(self.text) <= _QUOTE else self.text[: _QUOTE - 1] + "…"
            raise VlkitError(f"token={token!r} is not {where}: {text!r}")
        return numbers


def _overlapping(spans: list[tuple[int, int]], areas: list[tuple[int, int]]) -> list[int]:
    """The numbers of the spans that overlap one of the areas."""
    return [
        number
        for number, (start, end) in enumerate(spans)
        if any(start < area_end and area_start < end for area_start, area_end in areas)
    ]


def answer_tokens(
    vlm: VLM,
    messages: str | Mapping | list,
    answer: Reply | str | None,
    max_new_tokens: int,
    image: int = -1,
    clip: int | None = None,
) -> AnswerTokens:
    """Ask greedily, or take an existing answer, and find its tokens.

    Args:
        vlm: from :func:`vlkit.load`.
        messages: as for :func:`vlkit.generate`.
        answer: a Reply to these messages or its ``raw`` text, which is tokenized again; None asks.
        max_new_tokens: the longest answer.
        image, clip: the picture or the clip whose pixels the boxes are read in.

    Raises:
        MediaError, ModelError, VlkitError: as :func:`vlkit.generate`.
    """
    messages = as_messages(messages)
    inputs = prepare_inputs(vlm, [messages])
    prefill = opened_thought(inputs.prompts[0]) or prefill_of(messages)
    if answer is None:
        greedy = generation_options(max_new_tokens, 0.0, 1.0, None)
        ids = list(vlm.answer(messages, greedy, None).tokens)
    else:
        ids = _tokens_of(vlm, answer, prefill)
        check_context(vlm, inputs.tensors["input_ids"].shape[1], len(ids))
    text, spans = _locate_tokens(vlm.processor.tokenizer, ids, prefill)
    return AnswerTokens(inputs, ids, text, spans, _items(vlm, inputs, text, spans, image, clip))


def replay(vlm: VLM, answered: AnswerTokens, count: int, logits: int = 1) -> Any:
    """The (``logits``, vocabulary) logits at the end of the prompt and ``count`` answer tokens.

    One pass over both, without a cache.
    """
    import torch

    tensors = answered.inputs.tensors.to(vlm.model.device, dtype=vlm.model.dtype)
    new = torch.tensor([answered.ids[:count]], device=vlm.model.device, dtype=torch.long)
    prompt, values = tensors["input_ids"], dict(tensors)
    values["input_ids"] = torch.cat([prompt, new], dim=1)
    values["attention_mask"] = torch.ones_like(values["input_ids"])
    if (kinds := values.get("mm_token_type_ids")) is not None:  # 0 is text
        values["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(new.shape)], dim=1)
    with torch.inference_mode():
        return vlm.model(**values, use_cache=False, logits_to_keep=logits).logits[0]


def _tokens_of(vlm: VLM, answer: Reply | str, prefill: str) -> list[int]:
    if not isinstance(answer, Reply | str):
        raise VlkitError(f"answer={answer!r:.60} must be a Reply, its raw text or None")
    text = (answer.raw if isinstance(answer, Reply) else answer).removeprefix(prefill)
    ids = vlm.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise VlkitError("the answer is empty; pass reply.raw, or None to ask")
    return ids


def _locate_tokens(tokenizer: Any, ids: list[int], prefill: str) -> tuple[str, list]:
    """The text, and each token's start and end; a character belongs to its last byte's token."""
    text, ends = "", [len(prefill)]
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], skip_special_tokens=False)
        ends.append(len(prefill) + len(text if count == len(ids) else text.rstrip("\ufffd")))
    return prefill + text, list(pairwise(ends))


def _items(vlm, inputs: ModelInputs, text: str, spans, image: int, clip: int | None) -> list:
    sizes = _sizes(inputs, image, clip)
    if sizes is None:
        return []
    try:
        placed, _ = locate_grounding(text, vlm.family, *sizes)
    except VlkitError:  # an answer whose boxes cannot be read still has tokens
        return []
    located: list[tuple[Item, list[int]]] = []
    used: Counter[int] = Counter()  # by an object's start: its numbers that belong to other boxes
    for item, start, end in placed:
        first, count = used[start], len(coordinates_of(item))
        used[start] += count
        areas = coordinate_spans(text, start, end, format_of(vlm.family))[first : first + count]
        located.append((item, _overlapping(spans, areas)))
    return located


def _sizes(inputs: ModelInputs, image: int, clip: int | None) -> tuple[Size, Size] | None:
    pictures, clips = inputs.images[0], inputs.clips[0]
    if clip is None and pictures and -len(pictures) <= image < len(pictures):
        return pictures[image].size, inputs.input_sizes[0][image]
    number = -1 if clip is None else clip
    if clips and -len(clips) <= number < len(clips):
        return clips[number].info.size, clips[number].frame_size
    return None


def coordinate_spans(
    text: str, start: int, end: int, form: GroundingFormat
) -> list[tuple[int, int]]:
    """Where the coordinates' numbers are in a box that was read from ``start`` to ``end``.

    Returns:
        The start and end of each number; those in a label do not count.
    """
    part = text[start:end]
    if form.style == "tags":
        begin = max(part.rfind(tag) + len(tag) for tag in (form.box_tags[0], form.quad_tags[0]))
        areas = [(begin, len(part))]
    else:
        areas = [m.span(1) for m in _JSON_NUMBERS.finditer(part)]
        areas = areas or [m.span(1) for m in _XML_NUMBERS.finditer(part)] or [(0, len(part))]
    return [
        (start + a + m.start(), start + a + m.end())
        for a, b in areas
        for m in _NUMBERS.finditer(part[a:b])
    ]


@dataclass(frozen=True, eq=False)
class AnswerLogprobs:
    """How sure the model was of its answer; it shows itself in a notebook.

    Attributes:
        tokens: the text of each token; empty for the first bytes of a character.
        ids: their numbers in the vocabulary.
        logprobs: (tokens,) natural logarithms of their probabilities, from the logits, so before
            temperature and top_p.
        text: the whole answer with its special tokens.
        confidences: each box, point or quad of the answer with its confidence, 0 to 1: the
            geometric mean of its coordinate tokens' probabilities.
    """

    tokens: tuple[str, ...] = field(repr=False)
    ids: tuple[int, ...] = field(repr=False)
    logprobs: np.ndarray = field(repr=False)
    text: str
    confidences: tuple[tuple[Item, float], ...]

    def confidence(self, item: Item) -> float:
        """The confidence of one of the answer's boxes, 0 to 1.

        Raises:
            VlkitError: the answer has no such box.
        """
        for known, value in self.confidences:
            if known == item:
                return value
        raise VlkitError(f"{item!r} is not one of the answer's {len(self.confidences)} boxes")

    @property
    def characters(self) -> list[tuple[str, float]]:
        """The text of each token with its probability; bytes of one character are one token."""
        characters, logprob_so_far = [], 0.0
        for token, logprob in zip(self.tokens, self.logprobs.tolist(), strict=True):
            logprob_so_far += logprob  # of the tokens that make up one character
            if token:
                characters.append((token, float(np.exp(logprob_so_far))))
                logprob_so_far = 0.0
        return characters

    def _repr_html_(self) -> str:
        return fill_template("vlkit.analysis", "logprobs.html.jinja", tokens=self.characters)


def token_logprobs(
    vlm: VLM,
    messages: str | Mapping | list,
    *,
    answer: Reply | str | None = None,
    image: int = -1,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> AnswerLogprobs:
    """The probability of each token of an answer, and the confidence of each of its boxes.

    One pass over prompt and answer; the logits are the model's, however the answer was sampled.

    Args:
        vlm: from :func:`vlkit.load`.
        messages: as for :func:`vlkit.generate`.
        answer: the Reply to these messages, or any raw text; None asks, greedily.
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
    confidences = tuple(
        (item, float(np.exp(logprobs[tokens].mean()))) for item, tokens in answered.items if tokens
    )
    texts = tuple(answered.text[start:end] for start, end in answered.spans)
    return AnswerLogprobs(texts, tuple(answered.ids), logprobs, answered.text, confidences)
