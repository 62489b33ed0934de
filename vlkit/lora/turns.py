"""Where the answers stand in a rendered conversation, whatever its template marks or does not."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from vlkit.errors import VlkitError
from vlkit.inputs import render_prompt

_HEAD = "<|im_start|>assistant\n"
_ANSWER = re.compile(re.escape(_HEAD) + r".*?<\|im_end\|>", re.DOTALL)


class Piece(NamedTuple):
    """A part of the rendered text, and whether the model learns to write it."""

    text: str
    trained: bool


def cut_turns(processor: Any, messages: list[dict]) -> list[Piece]:
    """The rendered conversation in pieces: prompts, and answers with their end token.

    What the template writes when it asks for an answer (``<think>`` in some generations) is of the
    prompt. Texts cannot spell ``<|im_start|>``: :func:`vlkit.inputs.render_prompt` escapes it.

    Args:
        processor: whose chat template it is.
        messages: checked; the last one is an answer.

    Raises:
        VlkitError: the template does not write every answer as this family does.
    """
    if messages[-1]["role"] != "assistant":
        raise VlkitError("the last message must be the assistant's: an answer to learn")
    text = render_prompt(processor, messages, finished=True)
    asking = _generation_prompt(processor, messages[:-1])
    found = list(_ANSWER.finditer(text))
    answers = sum(message["role"] == "assistant" for message in messages)
    if len(found) != answers:
        raise VlkitError(
            f"the chat template shows {len(found)} of {answers} answers between {_HEAD!r} and "
            "<|im_end|>, so what to learn cannot be told; use the template of the original model"
        )
    pieces, end = [], 0
    for match in found:
        head = asking if text.startswith(asking, match.start()) else _HEAD
        start = match.start() + len(head)
        pieces += [Piece(text[end:start], False), Piece(text[start : match.end()], True)]
        end = match.end()
    return [piece for piece in (*pieces, Piece(text[end:], False)) if piece.text]


def _generation_prompt(processor: Any, question: list[dict]) -> str:
    """What the template adds to a question to ask for its answer."""
    asked = render_prompt(processor, question)
    return asked.removeprefix(render_prompt(processor, question, finished=True))
