"""How the next tokens are chosen from the logits: the likeliest, or drawn at random."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from vlkit.errors import ModelError, VlkitError, needs_package
from vlkit.messages import opened_thought


@dataclass(frozen=True)
class Sampling:
    """What holds for the tokens of all rows.

    Attributes:
        endings: tokens that end an answer.
        repetition_penalty: for tokens that the prompt or the answer contains; 1 for none.
    """

    endings: frozenset[int]
    repetition_penalty: float = 1.0


def has_own_choice(rows: Sequence[Any]) -> bool:
    """Whether any row's tokens are drawn, or its logits processed: one step at a time."""
    return any(row.sampling[0] > 0 or row.processors for row in rows)


def _process(logits: Any, rows: Sequence[Any]) -> Any:
    """Apply each row's processors; whatever one raises becomes this row's error."""
    if not any(row.processors for row in rows):
        return logits
    logits = logits.clone()
    for place, row in enumerate(rows):
        ids = torch.cat([row.tensors["input_ids"], torch.tensor([row.tokens]).long()], 1)
        ids, scores = ids.to(logits.device), logits[place : place + 1]
        try:
            for process in row.processors:
                scores = process(ids, scores)
            logits[place] = scores[0]
        except Exception as error:
            row.error = error
    return logits


def choose_tokens(logits: Any, rows: Sequence[Any]) -> Any:
    """The likeliest tokens, or, as transformers samples, with each row's own random numbers.

    Args:
        logits: (at least ``rows``, vocabulary), to which the rows' processors are applied first.
        rows: see :class:`vlkit.engine.slots.Row`; one for which none can be drawn gets an error.

    Returns:
        A token for each row of the logits.
    """
    logits = _process(logits, rows)
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


# --- answers that follow a schema -----------------------------------------------------------------

_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_tokenizers: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # a second each to make


class SchemaProcessor:
    """A logits processor for one answer: JSON on one line that follows a schema, then the end.

    An object has no other properties than those that the schema names, unless it says
    ``"additionalProperties": true``. An answer that reaches its limit of tokens is cut off, so not
    valid JSON. A prompt that opens ``<think>`` is answered freely up to ``</think>``.

    Args:
        tokenizer: the model's, of transformers.
        endings: tokens that end an answer.
        schema: a JSON schema as llguidance supports it
            (https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md).
        prompt: the rendered chat template.

    Attributes:
        start_after: the token behind which the schema holds; None for the beginning.

    Raises:
        VlkitError: the schema is not supported, or llguidance is not installed.
    """

    def __init__(
        self, tokenizer: Any, endings: Iterable[int], schema: Mapping | str, prompt: str = ""
    ):
        with needs_package("a JSON schema needs llguidance", "schema"):
            import llguidance
            import llguidance.hf
        if tokenizer not in _tokenizers:
            _tokenizers[tokenizer] = llguidance.hf.from_tokenizer(
                tokenizer, eos_token=sorted(endings) or None
            )
        try:
            schema = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(_close(schema))
            grammar = llguidance.LLMatcher.grammar_from_json_schema(text, overrides=_STYLE)
            self._matcher = llguidance.LLMatcher(_tokenizers[tokenizer], grammar, log_level=0)
            # a text without end is found where it begins
            self._matcher.consume_tokens(self._matcher.compute_ff_tokens()[:1])
        except (TypeError, ValueError, RecursionError) as error:
            raise _refused(str(error)) from error
        self._check()
        self._matcher.reset()
        thought = opened_thought(prompt)
        self.start_after = tokenizer.convert_tokens_to_ids("</think>") if thought else None
        self._prompt_length: int | None = None
        self._read = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Logits (1, vocabulary), -inf where the schema does not allow the token."""
        import numpy as np

        if self._prompt_length is None:
            self._prompt_length = input_ids.shape[1]
        tokens = input_ids[0, self._prompt_length :].tolist()
        if self.start_after is not None:
            if self.start_after not in tokens:
                return scores
            tokens = tokens[tokens.index(self.start_after) + 1 :]
        if len(tokens) < self._read:  # the answer has started again
            self._matcher.reset()
            self._read = 0
        self._matcher.consume_tokens(tokens[self._read :])
        self._read = len(tokens)
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = torch.from_numpy(np.unpackbits(mask, bitorder="little")).bool()
        allowed = torch.nn.functional.pad(allowed, (0, scores.shape[1] - len(allowed)))
        return scores.masked_fill(~allowed.to(scores.device), float("-inf"))

    def _check(self) -> None:
        if problem := self._matcher.get_error():
            raise _refused(problem)


def _close(schema: Any) -> Any:
    """The schema, allowing no property without a name: small models would not stop to invent."""
    if isinstance(schema, list):
        return [_close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = ("const", "enum", "default", "examples", "allOf")
    closed = {key: value if key in kept else _close(value) for key, value in schema.items()}
    if "properties" in schema and not {"allOf", "anyOf", "oneOf", "$ref"} & set(schema):
        closed.setdefault("additionalProperties", False)
    return closed


def _refused(problem: str) -> VlkitError:
    problem = " ".join(problem.split())[:200]
    return VlkitError(f"the JSON schema is not supported: {problem}; change the schema")
