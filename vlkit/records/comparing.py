"""Several models, adapters or settings over the same rows."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import vlkit
from vlkit.batch import answer_all, check_conversations
from vlkit.comparison import draw_comparison
from vlkit.errors import VlkitError
from vlkit.grounding import Item
from vlkit.inputs import check_model
from vlkit.messages import as_messages
from vlkit.metrics import Evaluation, evaluate_grounding
from vlkit.recording import as_kind
from vlkit.replies import Failure, Reply, image_html

if TYPE_CHECKING:
    import pandas

SHOWN = 30  # rows that are drawn
_CELL = "padding:6px 14px 6px 0;text-align:left;vertical-align:top;border:none;max-width:320px"


@dataclass(frozen=True, eq=False)
class ModelComparison:
    """What :func:`compare` found; in a notebook it is one table with pictures.

    Attributes:
        frame: a row for each conversation: ``question``, and each one's answer under its name.
        summary: a row for each: ``failures``, ``seconds`` of the batch for each row, the mean
            ``image_tokens`` and ``new_tokens``; with ``truth`` also metrics with 95 % intervals.
        answers: each one's Replies and Failures, in order.
        evaluations: with ``truth``, each one's Evaluation.
    """

    frame: pandas.DataFrame
    summary: pandas.DataFrame
    answers: dict[str, list[Reply | Failure]]
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    truth: Sequence[Sequence[Item]] | None = field(default=None, repr=False)

    def _repr_html_(self) -> str:
        heads = ("question", *self.answers)
        head = "".join(f'<th style="{_CELL}">{html.escape(each)}</th>' for each in heads)
        rows = "".join(map(self._row, range(min(SHOWN, len(self.frame)))))
        more = len(self.frame) - SHOWN
        note = f"<p>and {more:,} more rows in .frame</p>" if more > 0 else ""
        summary = self.summary.to_html(escape=True, na_rep="–", float_format="{:.3g}".format)
        return f"{summary}<table><tr>{head}</tr>{rows}</table>{note}"

    def _row(self, index: int) -> str:
        cells = [html.escape(self.frame["question"].iloc[index])]
        truth = self.truth[index] if self.truth else None
        cells += [_answer_html(answers[index], truth) for answers in self.answers.values()]
        return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"


def compare(
    vlms: Any,
    conversations: Sequence[Any],
    *,
    truth: Sequence[Sequence[Item]] | None = None,
    match_labels: bool = True,
    bootstrap: int = 1000,
    groups: Sequence[Any] | None = None,
    **options: Any,
) -> ModelComparison:
    """Ask several models, adapters or settings the same.

    Args:
        vlms: a list of models, or a mapping of names to models; in place of a model also
            ``(model, options)``, where options may hold ``max_image_tokens`` beside those of
            :func:`vlkit.generate_batch`.
        conversations: as for :func:`vlkit.generate_batch`.
        truth: for each conversation its true boxes, in pixels of the upright original.
        match_labels, bootstrap, groups: as for :func:`vlkit.evaluate_grounding`.
        **options: for all of them, as for :func:`vlkit.generate_batch`.

    Raises:
        VlkitError: nothing to compare, or lists of different lengths.
    """
    import pandas

    asked = check_conversations(conversations)
    if truth is not None and len(truth) != len(asked):
        raise VlkitError(f"{len(truth)} lists of true boxes for {len(asked)} conversations")
    answers, evaluations, rows = {}, {}, {}
    for name, (vlm, own) in _settings(vlms).items():
        with as_kind(name):
            answers[name] = _ask(vlm, asked, {"progress": False, **options, **own})
            rows[name] = _summarise(answers[name])
            if truth is None:
                continue
            boxes = [_boxes(each) for each in answers[name]]
            evaluations[name] = evaluate_grounding(
                boxes, truth, match_labels=match_labels, coco=False, bootstrap=bootstrap,
                groups=groups,
            )  # fmt: skip
            rows[name] |= _metrics(evaluations[name])
    questions = [_text(messages) for messages in asked]
    texts = {name: [str(each) for each in own] for name, own in answers.items()}
    frame = pandas.DataFrame({"question": questions, **texts})
    summary = pandas.DataFrame.from_dict(rows, orient="index")
    return ModelComparison(frame, summary, answers, evaluations, truth)


def _settings(vlms: Any) -> dict[str, tuple[Any, dict]]:
    if isinstance(vlms, Mapping):
        named = list(vlms.items())
    elif isinstance(vlms, list | tuple):
        named = [(_name(each), each) for each in vlms]
    else:
        raise VlkitError(f"vlms is a {type(vlms).__name__}; pass a list or mapping of models")
    if not named:
        raise VlkitError("there is no model to compare; pass at least one")
    found: dict[str, tuple[Any, dict]] = {}
    for _, each in named:  # all of them, before the first is asked for hours
        check_model(each[0] if isinstance(each, tuple) else each)
    for label, each in named:
        name, number = str(label), 2
        while name in found:
            name, number = f"{label} ({number})", number + 1
        found[name] = (each[0], dict(each[1])) if isinstance(each, tuple) else (each, {})
    return found


def _name(each: Any) -> str:
    vlm, options = each if isinstance(each, tuple) else (each, {})
    if not hasattr(vlm, "name"):
        return str(vlm)  # no model, as is said next
    adapter = [f"+ {vlm.adapter}"] if getattr(vlm, "adapter", None) else []
    return " ".join([vlm.name, *adapter, *(f"{key}={value}" for key, value in options.items())])


def _ask(vlm: Any, asked: list, options: dict) -> Any:
    if "max_image_tokens" in options:
        vlm = _limited(vlm, options.pop("max_image_tokens"))
    return answer_all(vlm, asked, **options)


def _limited(vlm: Any, tokens: int | None) -> Any:
    if hasattr(vlm, "rules"):  # a hosted model's
        return replace(vlm, rules=replace(vlm.rules, max_image_tokens=tokens))
    return replace(vlm, max_image_tokens=tokens)


def _summarise(answers: Any) -> dict[str, Any]:
    usages = [each.usage for each in answers if isinstance(each, Reply)]
    row: dict[str, Any] = {"failures": len(answers) - len(usages)}
    row["seconds"] = answers.report.seconds / max(1, len(answers))
    for name in ("image_tokens", "new_tokens"):
        row[name] = sum(getattr(usage, name) for usage in usages) / max(1, len(usages))
    return row


def _metrics(evaluation: Evaluation) -> dict[str, Any]:
    chosen = [f"accuracy@{evaluation.thresholds[0]:g}", "mean_iou"]
    rows = evaluation.overall.loc[chosen]
    return {
        name if key == "value" else f"{name} {key}": row[key]
        for name, row in rows.iterrows()
        for key in ("value", "low", "high")
        if key in row
    }


def _boxes(answer: Reply | Failure) -> list | None:
    try:
        return answer.read_grounding()[0] if isinstance(answer, Reply) else None
    except VlkitError:
        return None


def _text(messages: Any) -> str:
    try:
        last = as_messages(messages)[-1]["content"]
    except VlkitError:
        return f"{messages!r:.80}"
    return " ".join(item["text"] for item in last if item["type"] == "text")


def _answer_html(answer: Reply | Failure, truth: Sequence[Item] | None) -> str:
    if isinstance(answer, Failure):
        return answer._repr_html_()
    text = html.escape(answer.text).replace("\n", "<br>")
    if not answer.images:
        return text
    items = _boxes(answer) or []
    picture = draw_comparison(answer.images[-1], items, truth) if truth else answer.images[-1]
    if not truth:
        picture = vlkit.draw_boxes(picture, items)
    return f"{image_html(picture, width=320, alt=answer.text)}<br>{text}"
