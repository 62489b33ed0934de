"""The report as Markdown, for the appendix of a paper."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlkit.files import write_whole
from vlkit.records.record import Record
from vlkit.records.reports import sections
from vlkit.records.reports.citations import cited
from vlkit.records.reports.sections import curve_plot

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def write_markdown(
    record: Record, path: Path, *, truth: sections.Truth | None = None, most: int = 100
) -> None:
    """The report, its pictures in ``NAME_files`` beside it; arguments as for ``report``."""
    folder = path.with_name(f"{path.stem}_files")
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        f"# {_escape(record.name)}",
        _escape(record.manifest.get("notes", "")),
        _escape(f"Incomplete: {record.gap}." if record.gap else ""),
        *_results(record, folder),
        *_trainings(record, folder),
        *_answers(record, folder, truth or {}, most),
        *_settings(record),
    ]
    write_whole(path, "\n\n".join(filter(None, parts)) + "\n")


def _results(record: Record, folder: Path) -> Iterator[str]:
    if record.values or record.of("evaluation") or record.of("exhibit"):
        yield "## Results"
    if record.values:
        yield _table(list(record.values.items()), ["", "value"])
    for found in sections.evaluations(record):
        yield f"### {found['title']}"
        yield _table(found["rows"], found["head"])
    for line in record.of("exhibit"):
        caption = _escape(line["caption"])
        if line["exhibit"] == "text":
            yield _escape(line["text"])
        elif line["exhibit"] == "table":
            yield _table(line["rows"], line["columns"])
            yield f"*{caption}*" if caption else ""
        elif (record.path / line["file"]).is_file():
            target = folder / Path(line["file"]).name
            target.write_bytes((record.path / line["file"]).read_bytes())
            yield f"![{caption}]({_link(target)})"


def _trainings(record: Record, folder: Path) -> Iterator[str]:
    for number, training in enumerate(sections.training_rows(record), 1):
        yield "## Training"
        yield _escape(training["error"])
        if curve := curve_plot(training["line"]):
            target = folder / f"training_{number}.png"
            target.write_bytes(curve)
            yield f"![Loss by step]({_link(target)})"
        yield _table(training["facts"], ["", "value"])


def _answers(record: Record, folder: Path, truth: sections.Truth, most: int) -> Iterator[str]:
    if record.answers:
        yield "## Answers"
    for index in sections.chosen(record, most):
        view = sections.view_answer(record, index, truth)
        yield f"### {view.number}. {_escape(view.question)}"
        yield f"*{_escape(view.about)}*"
        if view.picture is not None:
            target = folder / f"answer_{view.number:03d}.png"
            view.picture.save(target)
            yield f"![{_escape(view.text[:100])}]({_link(target)})"
        yield "\n".join(f"> {_escape(line)}" for line in view.text.splitlines() or [""])
        if view.boxes:
            yield _table(view.boxes, view.box_head)
        yield _escape(view.cost)
    if len(record.answers) > most:
        yield f"{most} of {len(record.answers)} are shown, evenly spread."


def _settings(record: Record) -> Iterator[str]:
    yield "## Settings"
    for model in sections.model_rows(record):
        yield f"### {_escape(model['name'])}"
        yield _table(model["facts"], ["", "value"])
    yield _table(sections.option_rows(record), ["option", "values"])
    yield "## Environment"
    yield _table(sections.environment_rows(record), ["", "value"])
    how, code = sections.how_to_repeat(record)
    yield "## How to repeat it"
    yield "\n\n".join(map(_escape, how))
    yield f"```\n{code}\n```"
    yield "Cite " + ", ".join(f"[@{key}]" for key in cited(record)) + "."


def _table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    if not rows:
        return ""
    cells = [[_escape(sections.show(cell)) for cell in row] for row in rows]
    lines = [[_escape(name) for name in head], ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    """Text in which nothing is markup, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _link(target: Path) -> str:
    return f"{target.parent.name}/{target.name}".replace(" ", "%20")
