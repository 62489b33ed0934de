"""The content of each section of a report, as plain values."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from markupsafe import Markup

from vlkit.evaluation.metrics import iou
from vlkit.generation.reply import Failure, Reply, Usage, attempt
from vlkit.grounding.boxes import Box, Item
from vlkit.lora.curves import Curves, loss_figure
from vlkit.media.image import DeferredImages
from vlkit.media.video import DeferredClips
from vlkit.messages import text_of
from vlkit.plotting.comparing import TRUTH
from vlkit.records.media import inside
from vlkit.records.reading import Record, answer_of, draw_answer, flat, items_of, question_of

MOST_LABELS = 40  # of an evaluation's table
LEAST = 5  # answers for a plot
Truth = Mapping[str, Sequence[Item]]
_BY_LABEL = ("truths", "answers", "accuracy@0.5", "accuracy@0.75", "mean_iou")
_OPTIONS = ("max_new_tokens", "temperature", "top_p", "seed")
_PINNED = ("torch", "torchvision", "transformers", "peft", "pillow", "av")


def show(value: Any) -> str:
    """A value as text for people."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(show, value)) or "–"
    return value if hasattr(value, "__html__") else str(value)


def view_answer(record: Record, number: int, truth: Truth) -> dict[str, Any]:
    """An answer with its picture.

    Args:
        record: the run.
        number: of the answer, counted from 0.
        truth: true boxes by the picture's file name; those nearest to the answer's boxes are drawn.

    Returns:
        ``number``, counted from 1; ``about``: kind of call, names of the media, model and setting;
        ``before``: (role, text) of the turns before the question; ``question``; ``text``: the
        answer without coordinates, or the error where it ``failed``; ``html``: the text with the
        named things in the colours of their boxes; ``raw``: as the model wrote it, where that is
        more; ``picture`` with boxes, or None; ``boxes`` and ``box_head``: a row for each box, with
        truth its IoU with the nearest true box; ``note``: the part of the boxes that could not be
        parsed; ``cost``: tokens, seconds and options.
    """
    answer = record.answers[number]
    items = items_of(answer)
    names = [medium["name"] for medium in answer["media"]]
    true = [box for box in truth.get(names[-1] if names else "", ()) if isinstance(box, Box)]
    boxes = [item for item in items if isinstance(item, Box)]
    nearest = {max(true, key=partial(iou, box)) for box in boxes} if true else set()
    about = [answer["kind"], *names, record.model_of(answer)["name"], answer.get("setting")]
    text, html = _readable(answer, one_color=bool(nearest))
    raw = answer.get("raw", "")
    return {
        "number": number + 1,
        "about": ", ".join(filter(None, about)),
        "before": list(_turns_before(answer)),
        "question": question_of(answer),
        "text": text,
        "html": html,
        "raw": raw if raw not in ("", text) else "",
        "failed": "raw" not in answer,
        "picture": draw_answer(record, answer, items, list(nearest)),
        "boxes": [_box_row(box, true) for box in boxes],
        "box_head": ("label", "x1", "y1", "x2", "y2", *(["IoU"] if true else [])),
        "note": answer.get("grounding_note", ""),
        "cost": _cost_line(answer),
    }


def _readable(answer: dict, *, one_color: bool) -> tuple[str, str]:
    """An answer for readers, as text and as HTML whose named things have their boxes' colours."""

    def read() -> tuple[str, str]:
        sizes, clips = answer["image_sizes"], answer["clip_sizes"]
        reply = Reply(
            answer["text"], answer["raw"], Usage(**answer["usage"]), answer["seconds"],
            answer["family"], DeferredImages(sizes, sizes), tuple(answer["input_sizes"]),
            DeferredClips(clips, clips),
        )  # fmt: skip
        text = "".join(part for part, _ in reply.parts)
        # next to true boxes, all boxes of the answer are drawn in one colour
        return text, "" if one_color else Markup(reply.text_html)

    result = attempt(read) if "raw" in answer else Failure("")
    return (answer_of(answer), "") if isinstance(result, Failure) else result  # or edited by hand


def _turns_before(answer: dict) -> Iterator[tuple[str, str]]:
    messages = answer["messages"]
    questions = [i for i, message in enumerate(messages) if message.get("role") == "user"]
    for index, message in enumerate(messages):
        if "content" in message and (not questions or index != questions[-1]):
            yield message["role"], text_of(message, " ")


def _box_row(box: Box, truth: Sequence[Box]) -> tuple:
    row = (box.label, *(round(value) for value in box.xyxy))
    return (*row, round(max(iou(box, true) for true in truth), 2)) if truth else row


def _cost_line(answer: dict) -> str:
    options = [f"{k} {show(v)}" for k, v in answer["options"].items() if v is not None]
    if "raw" not in answer:
        return ", ".join(options)
    usage = answer["usage"]
    counts = {kind: usage[f"{kind}_tokens"] for kind in ("image", "video")}
    media = [f"{count:,} of them {kind}" for kind, count in counts.items() if count]
    seen = [f"seen at {'×'.join(map(str, size))}" for size in answer["input_sizes"]]
    prompt = f"{usage['prompt_tokens']:,} prompt tokens" + f" ({', '.join(media)})" * bool(media)
    parts = [prompt, *seen, f"{usage['new_tokens']:,} new", f"{answer['seconds']:.2f} s"]
    if usage.get("estimated"):
        parts.append("counts estimated")
    if answer["finish_reason"] != "stop":
        parts.append(f"ended by {answer['finish_reason']}")
    return ", ".join(parts) + "; " + ", ".join(options)


def subtitle(record: Record) -> str:
    """When it began, how it ended, the models, and what is missing."""
    models = (f"{model['name']} ({model['family']})" for model in record.models.values())
    began = record.manifest["started"][:16].replace("T", " ") + " UTC"
    return " · ".join(filter(None, [began, record.status, *dict.fromkeys(models), record.gap]))


def exhibits(record: Record) -> list[dict[str, Any]]:
    """What a user added; of a figure also its file's ``name`` and ``content`` (None if lost)."""
    shown = []
    for line in record.of("exhibit"):
        file = inside(record.path, line.get("file"))
        content = file.read_bytes() if file and file.is_file() else None
        shown.append({**line, "name": file.name if file else "", "content": content})
    return shown


def chosen(record: Record, most: int) -> list[int]:
    """The indices of the answers to show: all, or ``most`` evenly spread."""
    count = len(record.answers)
    shown = min(count, most)
    return [index * count // shown for index in range(shown)]


def tiles(record: Record) -> list[tuple[str, str]]:
    """The (name, value) tiles at the top."""
    answered = [answer for answer in record.answers if "raw" in answer]
    counts = {
        "answers": len(answered),
        "without answer": len(record.answers) - len(answered),
        "trainings": sum(line["state"] == "ended" for line in record.of("training")),
        "new tokens": sum(answer["usage"]["new_tokens"] for answer in answered),
        "seconds": round(record.seconds),
    }
    optional = ("without answer", "trainings")
    return [(name, show(n)) for name, n in counts.items() if n or name not in optional]


def evaluations(record: Record) -> list[dict[str, Any]]:
    """Tables of metrics with intervals: all evaluations, and one by label if there is only one."""
    lines = record.of("evaluation")
    if not lines:
        return []
    names = list(dict.fromkeys(name for line in lines for name in line["evaluation"]["overall"]))
    columns = [line["evaluation"]["overall"] for line in lines]
    rows = [(name, *(_value(column.get(name)) for column in columns)) for name in names]
    titles = [line["title"] or (f"({i})" if len(lines) > 1 else "value (95 % interval)")
              for i, line in enumerate(lines, 1)]  # fmt: skip
    tables = [{"title": "Metrics", "head": ["metric", *titles], "rows": rows}]
    labels = lines[0]["evaluation"].get("by_label", {})
    if len(lines) == 1 and 1 < len(labels) <= MOST_LABELS:
        columns = [name for name in next(iter(labels.values())) if name in _BY_LABEL]
        rows = [(label, *map(row.get, columns)) for label, row in labels.items()]
        tables.append({"title": "By label", "head": ["label", *columns], "rows": rows})
    return tables


def _value(row: dict | None) -> str | None:
    if row is None or row.get("value") is None:
        return None
    low, high = row.get("low"), row.get("high")
    interval = "" if low is None or high is None else f" ({low:.3f}–{high:.3f})"
    return f"{row['value']:.3f}{interval}"


def model_rows(record: Record) -> list[dict[str, Any]]:
    """Each model with the facts to load it again."""
    hidden = ("id", "record", "time", "seconds_in", "name")
    rows = []
    for model in record.models.values():
        facts = [(n, value) for n, value in flat(model) if n not in hidden and value is not None]
        rows.append({"name": model["name"], "facts": facts})
    return rows


def option_rows(record: Record) -> list[tuple[str, Any]]:
    """Each option with all values that it has in the run's answers."""
    rows = []
    for name in _OPTIONS:
        values = dict.fromkeys(answer["options"].get(name) for answer in record.answers)
        if shown := [value for value in values if value is not None]:
            several = len(shown) > 6
            rows.append((name, f"{show(shown[0])} … {show(shown[-1])}" if several else shown))
    return rows


def environment_rows(record: Record) -> list[tuple[str, Any]]:
    """The machine, the packages and the state of the code."""
    facts = record.manifest["environment"]
    rows = [(name, value) for name, value in facts.items() if name != "packages"]
    gpus = dict.fromkeys(m["gpu"] for m in record.models.values() if "gpu" in m)
    rows += [("GPU", list(gpus))] * bool(gpus)
    peak = [answer["memory"] for answer in record.answers if "memory" in answer]
    if peak:
        rows.append(("memory of the process", f"{max(m['process'] for m in peak) / 1e9:.1f} GB"))
    if any("gpu_peak" in m for m in peak):
        rows.append(("memory of the GPUs", f"{max(m['gpu_peak'] for m in peak) / 1e9:.1f} GB"))
    if git := record.manifest.get("git"):
        state = ", with uncommitted changes" if git["dirty"] else ""
        rows.append(("git commit", git["commit"] + state))
    rows.append(("packages", ", ".join(f"{n} {v}" for n, v in facts["packages"].items())))
    return rows


def training_rows(record: Record) -> list[dict[str, Any]]:
    """Each training with its arguments and result, also one that was killed."""
    lines = record.of("training")
    rows = []
    for index, line in enumerate(lines):
        ended = line["state"] == "ended"
        if not ended and index + 1 < len(lines) and lines[index + 1]["state"] == "ended":
            continue  # the next line says how this training ended
        names = ("steps", "finished", "effect", "seconds")
        facts = [(name, line[name]) for name in names if name in line]
        adapter = [("adapter", Path(line["adapter"]["name"]).name)] if "adapter" in line else []
        arguments = [(name, v) for name, v in line["arguments"].items() if v is not None]
        error = line.get("error") or ("" if ended else "It was not finished.")
        shown = {"facts": [*facts, *adapter, *arguments], "error": error}
        curve = attempt(curve_plot, line)  # its points may have been edited
        shown["curve"] = None if isinstance(curve, Failure) else curve
        rows.append(shown | {"held_out": bool(line.get("evaluations"))})
    return rows


def how_to_repeat(record: Record) -> tuple[list[str], str]:
    """Sentences, and the commands."""
    packages = record.manifest["environment"]["packages"]
    git, lines = record.manifest.get("git"), []
    if git:
        extra = " and the changes that were not committed" if git["dirty"] else ""
        lines.append(f"Code: commit {git['commit'][:12]}{extra}.")
    media = [medium for answer in record.answers for medium in answer["media"]]
    unkept = sum(m["of"] != "unreadable" and not m.keys() & {"path", "kept"} for m in media)
    if unkept:
        lines.append(
            "Pictures and clips that were not files and were not kept (keep_media=True): "
            f"{unkept}. Answers about them cannot be replayed."
        )
    if record.trainings:
        lines.append("Replaying asks again what was asked; trainings are not repeated.")
    lines.append(f"In the folder that holds the run's own, {record.path.name}:")
    # readers paste these commands: names from a run that somebody else made are quoted
    pins = " ".join(quote(f"{name}=={packages[name]!s}") for name in _PINNED if name in packages)
    name = record.path.name
    code = f"import vlkit; print(vlkit.records.replay({name!r}))"
    code = f'"{code}"' if re.fullmatch(r"[\w.-]+", name) else quote(code)
    return lines, f"pip install {' '.join(pins.split())}\npython -c {code}"


def bibtex_keys(entries: str) -> list[str]:
    """The keys by which entries of BibTeX are cited."""
    return re.findall(r"^@\w+\{([^,]+),", entries, re.MULTILINE)


def numeric_columns(rows: Sequence[Sequence[Any]]) -> set[int]:
    """The indices of the columns that contain only numbers."""
    return {
        index
        for index, cells in enumerate(zip(*rows, strict=False))
        if all(isinstance(cell, int | float | None) for cell in cells) and set(cells) != {None}
    }


def cost_plot(answers: Sequence[dict]) -> bytes | None:
    """A PNG of seconds by prompt tokens, without answers of batches; None for few answers."""
    single = [answer for answer in answers if "raw" in answer and "batch" not in answer]
    tokens = [answer["usage"]["prompt_tokens"] for answer in single]
    if len(single) < LEAST or len(set(tokens)) < 3:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.plot(tokens, [answer["seconds"] for answer in single], "o", color=TRUTH, alpha=0.75)
    axis.set(xlabel="prompt tokens", ylabel="seconds", ylim=(0, None))
    return _png(figure)


def curve_plot(training: dict) -> bytes | None:
    """A PNG of a training's losses by step; None without losses."""
    losses, held_out = training.get("losses") or [], training.get("evaluations") or []
    if not losses:
        return None
    figure = loss_figure({"run": Curves(losses, held_out)}, (7, 2.8))
    if held_out:
        figure.axes[0].legend(frameon=False)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()
