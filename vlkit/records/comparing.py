"""``compare``: models on the same rows. ``diff``: two recorded runs."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlkit.batch.answering import answer_all, check_conversations
from vlkit.errors import VlkitError, counted
from vlkit.evaluation.metrics import Evaluation, evaluate_grounding, iou, pair_boxes
from vlkit.generation.reply import Failure, Reply, attempt
from vlkit.grounding.boxes import Box, Item
from vlkit.hooks import as_kind
from vlkit.inputs import check_model
from vlkit.messages import as_messages, text_of
from vlkit.plotting.comparing import draw_comparison
from vlkit.plotting.html import frame_html, image_html, table_html
from vlkit.records import reading
from vlkit.records.reading import Record, answer_of, items_of, question_of, read_run

if TYPE_CHECKING:
    import pandas


SHOWN = 30  # rows with pictures in a notebook


@dataclass(frozen=True, eq=False)
class ModelComparison:
    """The result of :func:`compare`; in a notebook it is one table with pictures.

    Attributes:
        frame: a row for each conversation: ``question``, and a column of answers for each model.
        summary: a row for each model: ``failures``, mean ``seconds`` a row, mean ``image_tokens``
            and ``new_tokens``; with ``truth`` also metrics with 95 % intervals.
        answers: for each model its Replies and Failures, in order.
        evaluations: with ``truth``, for each model its Evaluation.
    """

    frame: pandas.DataFrame
    summary: pandas.DataFrame
    answers: dict[str, list[Reply | Failure]]
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    truth: Sequence[Sequence[Item]] | None = field(default=None, repr=False)

    def _repr_html_(self) -> str:
        rows = map(self._cells, range(min(SHOWN, len(self.frame))))
        table = table_html(("question", *self.answers), rows, cell="max-width:320px")
        more = len(self.frame) - SHOWN
        note = f"<p>and {more:,} more rows in .frame</p>" if more > 0 else ""
        return frame_html(self.summary) + table + note

    def _cells(self, index: int) -> list[str]:
        question = html.escape(self.frame["question"].iloc[index])
        truth = self.truth[index] if self.truth else None
        return [question, *(_answer_html(row[index], truth) for row in self.answers.values())]


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
    """Ask several models, adapters or settings the same questions.

    Args:
        vlms: a list of models, or a mapping of names to models. Instead of a model also
            ``(model, options)``, with options of :func:`vlkit.generate_batch` and
            ``max_image_tokens``.
        conversations: as for :func:`vlkit.generate_batch`.
        truth: for each conversation its true boxes, in pixels of the upright original.
        match_labels, bootstrap, groups: as for :func:`vlkit.evaluate_grounding`.
        **options: for all of them, as for :func:`vlkit.generate_batch`.

    Raises:
        VlkitError: nothing to compare, or lists of different lengths.
    """
    import pandas

    conversations = check_conversations(conversations)
    if truth is not None and len(truth) != len(conversations):
        raise VlkitError(f"{len(truth)} lists of true boxes for {len(conversations)} conversations")
    answers: dict[str, Any] = {}
    evaluations, rows = {}, {}
    for name, (vlm, own_options) in _settings(vlms).items():
        with as_kind(name):
            asked = {"progress": False, **options, **own_options}
            if "max_image_tokens" in asked:
                vlm = vlm.with_limit(asked.pop("max_image_tokens"))
            answers[name] = answer_all(vlm, conversations, **asked)
            rows[name] = _summarise(answers[name])
            if truth is None:
                continue
            boxes = [_boxes(answer) for answer in answers[name]]
            evaluations[name] = evaluate_grounding(
                boxes, truth, match_labels=match_labels, coco=False, bootstrap=bootstrap,
                groups=groups,
            )  # fmt: skip
            rows[name] |= _metrics(evaluations[name])
    questions = [_text(messages) for messages in conversations]
    texts = {name: list(map(str, replies)) for name, replies in answers.items()}
    frame = pandas.DataFrame({"question": questions, **texts})
    summary = pandas.DataFrame.from_dict(rows, orient="index")
    return ModelComparison(frame, summary, answers, evaluations, truth)


def _settings(vlms: Any) -> dict[str, tuple[Any, dict]]:
    """The models and their options by name."""
    if not isinstance(vlms, Mapping | list | tuple):
        raise VlkitError(f"vlms is a {type(vlms).__name__}; pass a list or mapping of models")
    if not vlms:
        raise VlkitError("there is no model to compare; pass at least one")
    named = vlms.items() if isinstance(vlms, Mapping) else ((None, setting) for setting in vlms)
    settings: dict[str, tuple[Any, dict]] = {}
    for label, setting in named:
        vlm, options = setting if isinstance(setting, tuple) else (setting, {})
        check_model(vlm)
        label = _name(vlm, options) if label is None else str(label)
        name, number = label, 2
        while name in settings:
            name, number = f"{label} ({number})", number + 1
        settings[name] = (vlm, dict(options))
    return settings


def _name(vlm: Any, options: Mapping) -> str:
    adapter = [f"+ {vlm.adapter}"] if getattr(vlm, "adapter", None) else []
    return " ".join([vlm.name, *adapter, *(f"{key}={value}" for key, value in options.items())])


def _summarise(answers: Any) -> dict[str, Any]:
    usages = [answer.usage for answer in answers if isinstance(answer, Reply)]
    return {
        "failures": len(answers) - len(usages),
        "seconds": answers.report.seconds / max(1, len(answers)),
        "image_tokens": sum(usage.image_tokens for usage in usages) / max(1, len(usages)),
        "new_tokens": sum(usage.new_tokens for usage in usages) / max(1, len(usages)),
    }


def _metrics(evaluation: Evaluation) -> dict[str, Any]:
    chosen = [f"accuracy@{evaluation.thresholds[0]:g}", "mean_iou"]
    return {
        f"{name} {key}".removesuffix(" value"): value
        for name, row in evaluation.overall.loc[chosen].iterrows()
        for key, value in row.items()
    }


def _boxes(answer: Reply | Failure) -> list | None:
    """None where they cannot be read."""
    read = attempt(answer.read_grounding) if isinstance(answer, Reply) else answer
    return None if isinstance(read, Failure) else read[0]


def _text(messages: Any) -> str:
    checked = attempt(as_messages, messages)
    return f"{messages!r:.80}" if isinstance(checked, Failure) else text_of(checked[-1], " ")


def _answer_html(answer: Reply | Failure, truth: Sequence[Item] | None) -> str:
    if isinstance(answer, Failure) or not truth or not answer.images:
        return answer._repr_html_()
    drawn = draw_comparison(answer.images[-1], _boxes(answer) or [], truth)
    text = html.escape(answer.text).replace("\n", "<br>")
    return f"{image_html(drawn, width=320, alt=answer.text)}<br>{text}"


MOST_SHOWN = 40  # rows with pictures in a notebook


@dataclass(frozen=True, eq=False)
class RunDiff:
    """Two runs side by side; it shows itself in a notebook.

    Attributes:
        rows: a row for each question of both runs: the ``question``, its ``media``, the answers
            ``a`` and ``b``, whether they are the ``same``, the index of the first different token
            (``at``), the mean ``iou`` of their boxes (an unpaired box counts 0; missing if there
            are no boxes), boxes, new tokens and seconds of each.
        metrics: logged and evaluated numbers: ``a``, ``b``, ``difference`` (b - a).
        settings: all that differs: models, options, environment, code.
        only_a, only_b: the questions that only this run has.
        a, b: the runs.
    """

    rows: pandas.DataFrame
    metrics: pandas.DataFrame
    settings: pandas.DataFrame
    only_a: list[str]
    only_b: list[str]
    a: Record
    b: Record
    pairs: list[tuple[dict, dict]] = field(repr=False)

    def __str__(self) -> str:
        unpaired = len(self.only_a) + len(self.only_b)
        return (
            f"{self.a.name} and {self.b.name}: {counted(len(self.rows), 'question')} in both, "
            f"{counted(int(self.rows['same'].sum()), 'answer')} the same; {unpaired} in only one"
        )

    def _repr_html_(self) -> str:
        tables = frame_html(self.settings, "settings") + frame_html(self.metrics, "metrics")
        both = zip(self.pairs, self.rows["same"], strict=True)
        different = [pair for pair, same in both if not same]
        if different:
            heads = ("", "question", self.a.name, self.b.name, "IoU")
            rows = (self._cells(*pair) for pair in different[:MOST_SHOWN])
            tables += f"<h4>answers that differ</h4>{table_html(heads, rows)}"
        return f"<p>{html.escape(str(self))}</p>{tables}"

    def _cells(self, a: dict, b: dict) -> list[str]:
        first, second = items_of(a), items_of(b)
        any_boxes = first or second
        picture = reading.draw_answer(self.a, a, second, first, ("b", "a")) if any_boxes else None
        drawn = image_html(picture, width=reading.WIDTH, alt=question_of(a)) if picture else ""
        overlap = _mean_iou(a, b)
        shown = "–" if overlap is None else f"{overlap:.2f}"
        return [drawn, *map(html.escape, (question_of(a), answer_of(a), answer_of(b), shown))]


def diff(a: Any, b: Any) -> RunDiff:
    """Two runs side by side: answers, boxes, metrics and settings.

    Answers are paired by question, media content and the media's limits; what is left, by question
    and content.

    Args:
        a, b: the runs' folders, or Runs.

    Raises:
        VlkitError: there is no run.
    """
    import pandas

    first, second = read_run(a), read_run(b)
    pairs, only_a, only_b = _pair(first.answers, second.answers)
    rows = pandas.DataFrame([_facts(*pair) for pair in pairs], columns=list(_COLUMNS))
    metrics = pandas.DataFrame({"a": first.metrics, "b": second.metrics}, dtype="float64")
    metrics["difference"] = metrics["b"] - metrics["a"]
    changed = reading.differences(dict(_settings_of(first)), dict(_settings_of(second)))
    settings = pandas.DataFrame(changed, columns=["setting", "a", "b"])
    return RunDiff(
        rows.astype({"at": "Int64", "iou": "float64", "same": bool}),
        metrics, settings.set_index("setting"), only_a, only_b, first, second, pairs,
    )  # fmt: skip


_COLUMNS = (
    "question", "media", "a", "b", "same", "at", "iou", "boxes_a", "boxes_b", "new_tokens_a",
    "new_tokens_b", "seconds_a", "seconds_b",
)  # fmt: skip


def _facts(a: dict, b: dict) -> dict[str, Any]:
    both = "raw" in a and "raw" in b
    at = reading.first_difference(a, b) if both else None
    same = at is None if both else answer_of(a) == answer_of(b)
    row = {
        "question": question_of(a),
        "media": ", ".join(medium["name"] for medium in a["media"]),
        "a": answer_of(a), "b": answer_of(b), "same": same, "at": at, "iou": _mean_iou(a, b),
    }  # fmt: skip
    for name, answer in (("a", a), ("b", b)):
        row[f"boxes_{name}"] = len(answer.get("boxes", ()))
        row[f"new_tokens_{name}"] = answer.get("usage", {}).get("new_tokens")
        row[f"seconds_{name}"] = answer.get("seconds")
    return row


def _mean_iou(a: dict, b: dict) -> float | None:
    """Over the best pairs of boxes; an unpaired box counts 0."""
    boxes_a, boxes_b = ([i for i in items_of(line) if isinstance(i, Box)] for line in (a, b))
    if not boxes_a and not boxes_b:
        return None
    total = sum(iou(boxes_a[i], boxes_b[j]) for i, j in pair_boxes(boxes_b, boxes_a).items())
    return total / max(len(boxes_a), len(boxes_b))


def _pair(a: list[dict], b: list[dict]) -> tuple[list[tuple[dict, dict]], list[str], list[str]]:
    """Answers of both, and the questions that only ``a``, and only ``b``, has."""
    partner: dict[int, int] = {}  # index in a: index in b
    for key in (lambda answer: answer["key"], _content_key):
        paired = set(partner.values())
        unpaired = defaultdict(list)  # indices in b by key
        for j, answer in enumerate(b):
            if j not in paired:
                unpaired[key(answer)].append(j)
        for i, answer in enumerate(a):
            if i not in partner and unpaired[key(answer)]:
                partner[i] = unpaired[key(answer)].pop(0)
    paired = set(partner.values())
    only_a = [question_of(answer) for i, answer in enumerate(a) if i not in partner]
    only_b = [question_of(answer) for j, answer in enumerate(b) if j not in paired]
    return [(a[i], b[j]) for i, j in sorted(partner.items())], only_a, only_b


def _content_key(answer: dict) -> tuple:
    return question_of(answer), *((medium["of"], medium["sha256"]) for medium in answer["media"])


def _settings_of(record: Record) -> Iterator[tuple[str, Any]]:
    for number, model in enumerate(record.models.values(), 1):
        for name, value in reading.flat(model):
            if name not in ("id", "record", "time", "seconds_in"):
                yield f"model {number}: {name}", value
    for name in dict.fromkeys(name for answer in record.answers for name in answer["options"]):
        values = dict.fromkeys(answer["options"].get(name) for answer in record.answers)
        if name != "seed" or len(values) == 1:
            yield name, _one_or_all(values)
    limits = [str(m.get("options", {})) for answer in record.answers for m in answer["media"]]
    if any(limit != "{}" for limit in limits):
        yield "limits of media", _one_or_all(dict.fromkeys(limits))
    yield from reading.flat(record.manifest["environment"])
    yield from reading.flat({"git": record.manifest.get("git")})


def _one_or_all(values: dict) -> Any:
    return next(iter(values)) if len(values) == 1 else list(values)
