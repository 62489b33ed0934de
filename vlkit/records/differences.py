"""Two runs side by side."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlkit.grounding import Box
from vlkit.metrics import iou, pair_boxes
from vlkit.phrases import counted
from vlkit.records.pictures import draw_answers, picture_html
from vlkit.records.reading import Record, read_run
from vlkit.records.rebuilding import answer_of, first_difference, items_of, question_of

if TYPE_CHECKING:
    import pandas

SHOWN = 40  # rows that are drawn
_CELL = "padding:4px 14px 4px 0;text-align:left;vertical-align:top;border:none"


@dataclass(frozen=True, eq=False)
class RunDiff:
    """Two runs side by side; it shows itself in a notebook.

    Attributes:
        rows: a row for each question that both were asked: the ``question``, its ``media``, the
            answers ``a`` and ``b``, whether they are the ``same``, the first token that differs
            (``at``), the mean ``iou`` of their boxes (one without a partner counts 0; missing
            where neither has any), boxes, new tokens and seconds of each.
        metrics: what was logged and evaluated: ``a``, ``b``, ``difference`` (b - a).
        settings: what was not the same: models, options, environment, code.
        only_a, only_b: questions that only one of them was asked.
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
        alone = len(self.only_a) + len(self.only_b)
        return (
            f"{self.a.name} and {self.b.name}: {counted(len(self.rows), 'question')} in both, "
            f"{counted(int(self.rows['same'].sum()), 'answer')} the same; {alone} in one alone"
        )

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(str(self))}</p>"]
        for title, table in (("settings", self.settings), ("metrics", self.metrics)):
            if len(table):
                parts.append(f"<h4>{title}</h4>{table.to_html(escape=True, na_rep='–')}")
        both = zip(self.pairs, self.rows["same"], strict=True)
        shown = [pair for pair, same in both if not same]
        rows = "".join(self._row(*pair) for pair in shown[:SHOWN])
        if rows:
            heads = ("", "question", self.a.name, self.b.name, "IoU")
            head = "".join(f'<th style="{_CELL}">{html.escape(each)}</th>' for each in heads)
            parts.append(f"<h4>answers that differ</h4><table><tr>{head}</tr>{rows}</table>")
        return "".join(parts)

    def _row(self, a: dict, b: dict) -> str:
        sets = [("a", items_of(a)), ("b", items_of(b))]
        picture = draw_answers(self.a, a, sets) if any(each for _, each in sets) else None
        drawn = picture_html(picture, question_of(a)) if picture else ""
        overlap = _mean_iou(a, b)
        shown = "–" if overlap is None else f"{overlap:.2f}"
        texts = map(html.escape, (question_of(a), answer_of(a), answer_of(b), shown))
        cells = (drawn, *texts)
        return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"


def diff(a: Any, b: Any) -> RunDiff:
    """Two runs side by side: answers, boxes, metrics and settings.

    Answers are paired by question and media content; where limits of the pictures were others,
    still by text and content.

    Args:
        a, b: the runs' folders, or Runs.

    Raises:
        VlkitError: no run lies there.
    """
    import pandas

    first, second = read_run(a), read_run(b)
    pairs, only_a, only_b = _pair(first.answers, second.answers)
    rows = pandas.DataFrame([_facts(*pair) for pair in pairs], columns=list(_COLUMNS))
    metrics = pandas.DataFrame({"a": first.metrics, "b": second.metrics}, dtype="float64")
    metrics["difference"] = metrics["b"] - metrics["a"]
    settings = pandas.DataFrame(_changed(first, second), columns=["setting", "a", "b"])
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
    at = first_difference(a, b) if both else None
    same = at is None if both else answer_of(a) == answer_of(b)
    row = {
        "question": question_of(a),
        "media": ", ".join(each["name"] for each in a["media"]),
        "a": answer_of(a), "b": answer_of(b), "same": same, "at": at, "iou": _mean_iou(a, b),
    }  # fmt: skip
    for name, answer in (("a", a), ("b", b)):
        row[f"boxes_{name}"] = len(answer.get("boxes", ()))
        row[f"new_tokens_{name}"] = answer.get("usage", {}).get("new_tokens")
        row[f"seconds_{name}"] = answer.get("seconds")
    return row


def _mean_iou(a: dict, b: dict) -> float | None:
    """Of the best pairs of boxes; one without a partner counts 0."""
    mine, yours = ([i for i in items_of(each) if isinstance(i, Box)] for each in (a, b))
    if not mine and not yours:
        return None
    pairs = pair_boxes(yours, mine)
    return sum(iou(mine[t], yours[o]) for t, o in pairs.items()) / max(len(mine), len(yours))


def _pair(a: list[dict], b: list[dict]) -> tuple[list[tuple[dict, dict]], list[str], list[str]]:
    pairs: list[tuple[int, int]] = []
    for key in (lambda answer: answer["key"], _content_key):
        taken = ({i for i, _ in pairs}, {j for _, j in pairs})
        waiting = defaultdict(list)
        for j, answer in enumerate(b):
            if j not in taken[1]:
                waiting[key(answer)].append(j)
        for i, answer in enumerate(a):
            if i not in taken[0] and waiting[key(answer)]:
                pairs.append((i, waiting[key(answer)].pop(0)))
    done_a, done_b = {i for i, _ in pairs}, {j for _, j in pairs}
    only_a = [question_of(answer) for i, answer in enumerate(a) if i not in done_a]
    only_b = [question_of(answer) for j, answer in enumerate(b) if j not in done_b]
    return [(a[i], b[j]) for i, j in sorted(pairs)], only_a, only_b


def _content_key(answer: dict) -> tuple:
    return question_of(answer), *((each["of"], each["sha256"]) for each in answer["media"])


def _changed(a: Record, b: Record) -> Iterator[tuple[str, Any, Any]]:
    one, other = dict(_settings(a)), dict(_settings(b))
    for name in dict.fromkeys((*one, *other)):
        if one.get(name) != other.get(name):
            yield name, one.get(name), other.get(name)


def _settings(record: Record) -> Iterator[tuple[str, Any]]:
    for number, model in enumerate(record.models.values(), 1):
        for name, value in flat(model):
            if name not in ("id", "record", "time", "seconds_in"):
                yield f"model {number}: {name}", value
    names = dict.fromkeys(name for answer in record.answers for name in answer["options"])
    for name in names:
        values = dict.fromkeys(answer["options"].get(name) for answer in record.answers)
        if name != "seed" or len(values) == 1:
            yield name, _one_or_all(values)
    limits = [str(m.get("options", {})) for answer in record.answers for m in answer["media"]]
    if any(each != "{}" for each in limits):
        yield "limits of media", _one_or_all(dict.fromkeys(limits))
    yield from flat(record.manifest["environment"])
    yield from flat({"git": record.manifest.get("git")})


def _one_or_all(values: dict) -> Any:
    return next(iter(values)) if len(values) == 1 else list(values)


def flat(facts: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in nested facts."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value
