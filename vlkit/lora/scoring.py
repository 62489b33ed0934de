"""How well a model answers held-out data: exact answers, and boxes at IoU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlkit.batch import answer_all
from vlkit.errors import GroundingParseError
from vlkit.grounding import Box
from vlkit.lora.data import as_data
from vlkit.lora.examples import Example
from vlkit.metrics import Evaluation, evaluate_grounding
from vlkit.models import VLM
from vlkit.replies import Failure

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Scores:
    """Answers beside the truth; made by :func:`evaluate`.

    Attributes:
        table: a row for each example: ``row``, ``question``, ``truth``, ``answer`` (None where it
            failed), ``exact``, ``boxes`` (how many true ones).
        accuracy: share of exact answers, case and blanks at the ends aside, among the rows whose
            truth holds no box; None where all do.
        grounding: of the rows whose truth holds boxes; None where none does.
    """

    table: pandas.DataFrame = field(repr=False)
    accuracy: float | None
    grounding: Evaluation | None = field(repr=False)


def evaluate(
    vlm: VLM,
    data: Any,
    *,
    max_new_tokens: int = 128,
    match_labels: bool = True,
    batch_size: int | str = "auto",
    progress: bool = True,
) -> Scores:
    """Ask the last question of each conversation, greedily, and compare with its answer.

    Args:
        vlm: from :func:`vlkit.load`, with or without an adapter.
        data: from :func:`vlkit.lora.load_conversations`, or what that reads.
        max_new_tokens: the longest answer.
        match_labels: compare only boxes of one label; as for :func:`vlkit.evaluate_grounding`.
        batch_size, progress: as for :func:`vlkit.generate_batch`.

    Raises:
        VlkitError: data that cannot be used; a row that cannot be answered counts as wrong.
    """
    import pandas

    data = as_data(data)
    told = [example.messages_for(vlm) for example in data]
    replies = answer_all(
        vlm,
        [messages[:-1] for messages in told],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    truths = [_boxes(example) for example in data]
    answers = [None if isinstance(reply, Failure) else reply.text for reply in replies]
    rows = [
        {"row": example.row, "question": _text(messages[-2]), "truth": _text(messages[-1]),
         "answer": answer, "exact": _plain(answer) == _plain(_text(messages[-1])),
         "boxes": len(boxes)}
        for example, messages, answer, boxes in zip(data, told, answers, truths, strict=True)
    ]  # fmt: skip
    boxed = [i for i, boxes in enumerate(truths) if boxes]
    exact = [row["exact"] for i, row in enumerate(rows) if not truths[i]]
    grounding = None
    if boxed:
        found = [_answered(replies[i]) for i in boxed]
        true = [truths[i] for i in boxed]
        grounding = evaluate_grounding(found, true, match_labels=match_labels, coco=False)
    accuracy = sum(exact) / len(exact) if exact else None
    return Scores(pandas.DataFrame(rows), accuracy, grounding)


def _text(message: dict) -> str:
    return "".join(item["text"] for item in message["content"] if item["type"] == "text")


def _plain(answer: str | None) -> str | None:
    return None if answer is None else answer.strip().casefold()


def _boxes(example: Example) -> list[Box]:
    """The boxes of the last answer, where their place on the picture is known."""
    if example.coordinates.size is None:
        return []
    texts = [part for part in example.turns[-1][1] if not isinstance(part, dict)]
    groups = [each for text in texts for each in text.segments if not isinstance(each, str)]
    return [item for group in groups for item in group if isinstance(item, Box)]


def _answered(reply: Any) -> list[Box] | None:
    try:
        return None if isinstance(reply, Failure) else reply.boxes
    except GroundingParseError:
        return None
