"""``lora.inspect``: tokens, layers, memory and time, before training."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import PIL.Image

from vlkit.errors import VlkitError, counted
from vlkit.lora.arguments import check_bits, check_counts, check_rows, check_switches
from vlkit.lora.costs import (
    TrainingMemory,
    checkpoint_every,
    choose_batch,
    count_steps,
    estimate_seconds,
    estimate_training,
    time_forward,
)
from vlkit.lora.data import as_data
from vlkit.lora.evaluating import Examiner, check_examined
from vlkit.lora.example import Example, source_key
from vlkit.lora.networks import Part, check_quantized, plan_parts
from vlkit.lora.token_labels import (
    IGNORED,
    Labelled,
    Length,
    label_example,
    measure_lengths,
    media_ids,
)
from vlkit.media.image import load_image
from vlkit.models.load import VLM
from vlkit.plotting.html import FAINT, byte_text, duration_text, image_html, table_html


@dataclass(frozen=True)
class TokenRun:
    """Tokens of one example that are shown together.

    Attributes:
        text: what they spell; of media their placeholder.
        kind: ``"learnt"``, ``"prompt"``, ``"image"`` or ``"video"``.
        count: how many tokens.
    """

    text: str
    kind: str
    count: int = 1


@dataclass(frozen=True, eq=False)
class XRay:
    """What a training run will do; made by :func:`inspect`.

    Attributes:
        model: what it was called.
        data: the data's name.
        rows: how many there are.
        example: one of them as the model is trained on it.
        images: its pictures, upright.
        runs: its tokens, each with its kind.
        lengths: of the rows that were measured: all, or 2,000 spread evenly.
        max_length: the most tokens of a row, or None.
        parts: what is trained in language model, vision tower and merger.
        memory: an estimate for the longest batch.
        steps: updates of the weights.
        seconds: estimated time of all updates and evaluations, from one forward pass and a few
            answers on this machine.
    """

    model: str
    data: str
    rows: int
    example: Labelled = field(repr=False)
    images: tuple[PIL.Image.Image, ...] = field(repr=False)
    runs: tuple[TokenRun, ...] = field(repr=False)
    lengths: tuple[Length, ...] = field(repr=False)
    max_length: int | None
    parts: tuple[Part, ...] = field(repr=False)
    memory: TrainingMemory
    steps: int
    seconds: float

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return sum(part.trained for part in self.parts)

    @property
    def cut(self) -> list[tuple[int, int]]:
        """Of each row that ``max_length`` shortens: its number, and answer tokens lost."""
        longer = [length for length in self.lengths if length.total > (self.max_length or math.inf)]
        return [(length.row, length.lost(self.max_length)) for length in longer]

    def __str__(self) -> str:
        totals = [length.total for length in self.lengths]
        return (
            f"{counted(self.rows, 'row')} of {min(totals):,} to {max(totals):,} tokens, "
            f"{len(self.cut):,} cut; {self.trained:,} parameters trained; "
            f"about {self.memory.total / 1e9:.1f} GB; "
            f"{counted(self.steps, 'step')} in about {self.seconds:,.0f} s"
        )

    def _repr_html_(self) -> str:
        return xray_card(self)


def inspect(
    vlm: VLM,
    data: Any,
    *,
    eval_data: Any = None,
    example: int = 0,
    target: str = "language",
    rank: int | None = 8,
    epochs: float = 1,
    batch_size: int | str = "auto",
    gradient_accumulation: int = 1,
    gradient_checkpointing: bool = False,
    quantize: Literal["4bit", "8bit"] | None = None,
    max_length: int | None = None,
    metric: str | None = "auto",
    samples: int = 3,
) -> XRay:
    """What training would learn, where, and at which cost. Nothing is trained or changed.

    The result displays itself in a notebook: one example with its tokens coloured by whether they
    are learnt, all lengths, the layers that get adapters, memory, steps and time.

    Args:
        vlm: from :func:`vlkit.load`, without an adapter.
        data: from :func:`vlkit.lora.load_conversations`, or what that reads.
        eval_data: held-out data, as ``data``; evaluating them takes time, too.
        example: the number of the row to show.
        target: ``language``, ``vision`` (encoder and merger), ``all``, or a regular expression
            that matches whole names of layers.
        rank: of the adapters; None trains the layers themselves.
        epochs: passes over the data.
        batch_size: rows at a time, or ``auto``; the memory is that of the longest ones.
        gradient_accumulation: batches for one update of the weights.
        gradient_checkpointing: layers are computed again in the backward pass, not kept.
        quantize: load the model again with its weights in ``"4bit"`` or ``"8bit"``.
        max_length: the most tokens of a row, of which the end is cut.
        metric, samples: as in :func:`vlkit.lora.train`.

    Raises:
        VlkitError: a cut through a picture or one that leaves no answer, with its row; a target
            that matches nothing.
    """
    check_counts(batch_size, gradient_accumulation, epochs, max_length)
    check_bits(quantize)
    check_switches(gradient_checkpointing=gradient_checkpointing)
    check_examined(metric, samples)
    data, held_out = as_data(data), None if eval_data is None else as_data(eval_data)
    check_rows(data=data, eval_data=held_out)
    if not isinstance(example, int) or not -len(data) <= example < len(data):
        raise VlkitError(f"example={example!r} does not exist; the data has {len(data)} rows")
    parts = plan_parts(vlm, target, rank)
    check_quantized(vlm, quantize, rank)
    lengths = measure_lengths(vlm, data, max_length)
    labelled = label_example(vlm, data[example], max_length=max_length)
    longest = max(length.total for length in lengths)
    cut = min(longest, max_length or longest)
    size = choose_batch(
        vlm, parts, [cut], rank=rank, batch_size=batch_size,
        accumulation=gradient_accumulation, gradient_checkpointing=gradient_checkpointing,
        quantize=quantize,
    )  # fmt: skip
    together = min(size.batch, len(data))
    memory = estimate_training(
        vlm,
        parts,
        rank=rank,
        tokens=cut * together,
        learnt=max(length.trained for length in lengths) * together,
        patches=4 * max(length.media for length in lengths) * together,
        gradient_checkpointing=gradient_checkpointing,
        quantize=quantize,
    )
    mean = statistics.fmean(min(n.total, max_length or n.total) for n in lengths)
    share = mean / labelled.length
    whole, encoder = time_forward(vlm, labelled)
    seconds = estimate_seconds(
        parts,
        (whole * share, encoder * share),
        rows=len(data) * epochs,
        pictured=count_pictured(data),
        gradient_checkpointing=gradient_checkpointing,
    )
    steps = count_steps(len(data), size.batch, size.accumulation, epochs)
    if held_out is not None:
        evaluations = 1 + math.ceil(steps / checkpoint_every(steps, epochs))  # one before training
        answers = Examiner(vlm, held_out, metric, samples).estimate_seconds()
        seconds += evaluations * len(held_out) * whole * share + (evaluations + 1) * answers
    return XRay(
        model=vlm.name,
        data=data.name,
        rows=len(data),
        example=labelled,
        images=tuple(load_image(i["image"]) for i in data[example].media if i["type"] == "image"),
        runs=tuple(show_tokens(vlm, labelled)),
        lengths=tuple(lengths),
        max_length=max_length,
        parts=parts,
        memory=memory,
        steps=steps,
        seconds=seconds,
    )


def count_pictured(data: Sequence[Example]) -> int:
    """Rows with pictures or clips; rows about the same files or objects count once."""
    media = [tuple(source_key(item[item["type"]]) for item in example.media) for example in data]
    return len({keys for keys in media if keys})


def show_tokens(vlm: VLM, labelled: Labelled) -> list[TokenRun]:
    """An example's tokens with their texts; the tokens of a picture or a character are one run."""
    decode, known = vlm.processor.tokenizer.decode, media_ids(vlm)
    ids, labels = (t[0].tolist() for t in (labelled.tensors["input_ids"], labelled.labels))
    runs: list[TokenRun] = []
    held: list[int] = []
    for i, (token, label) in enumerate(zip(ids, labels, strict=True)):
        kind = known.get(token, "vision")
        if kind != "vision":
            before = runs.pop().count if runs and runs[-1].kind == kind else 0
            runs.append(TokenRun(decode([token]), kind, before + 1))
            continue
        kind = "prompt" if label == IGNORED else "learnt"
        held.append(token)
        text = decode(held)
        ended = i + 1 == len(ids) or (labels[i + 1] == IGNORED) != (label == IGNORED)
        if not text.endswith("\ufffd") or ended:
            runs.append(TokenRun(text, kind, len(held)))
            held = []
    return runs


SHOWN = 1500  # runs of tokens whose text is shown
_BINS = 24
_TOKENS = {  # kind of token: its style, and its name in the legend
    "learnt": (
        "background:rgba(22,163,74,.28);border-bottom:2px solid #16a34a",
        "learnt: answers and their end token",
    ),
    "prompt": ("background:rgba(128,128,128,.13)", "read, not learnt"),
    "image": ("background:rgba(37,99,235,.25);border-radius:4px;padding:0 6px", "picture"),
    "video": ("background:rgba(147,51,234,.25);border-radius:4px;padding:0 6px", "clip"),
}
_MEMORY = {  # part of the memory: its colour, and its name in the legend
    "weights": ("#64748b", "weights"),
    "state": ("#16a34a", "trained parameters, gradients, AdamW"),
    "activations": ("#2563eb", "activations"),
    "logits": ("#d97706", "logits"),
}


def xray_card(xray: XRay) -> str:
    """HTML in the page's colours, so that it reads on dark and light themes."""
    title = f"<b>{html.escape(xray.model)}</b>: {counted(xray.rows, 'row')} of "
    sections = (_tokens(xray), _lengths(xray), _layers(xray.parts), _cost(xray))
    return (
        f'<div style="max-width:900px;line-height:1.5"><p style="font-size:1.05em;margin:4px 0">'
        f"{title}{html.escape(xray.data)}</p>{''.join(sections)}</div>"
    )


def _section(title: str, note: str, body: str) -> str:
    return (
        f'<div style="margin:14px 0"><div style="margin-bottom:4px"><b>{title}</b> '
        f'<span style="{FAINT}">{note}</span></div>{body}</div>'
    )


def _tokens(xray: XRay) -> str:
    example = xray.example
    note = f"{example.trained:,} of {example.length:,} tokens are learnt"
    note += f"; the cut removes {example.lost:,} of the answer's" if example.lost else ""
    kinds = {run.kind for run in xray.runs}
    legend = " ".join(
        f'<span style="{style};margin-right:10px;padding:0 6px">{name}</span>'
        for kind, (style, name) in _TOKENS.items()
        if kind in kinds
    )
    shown = "".join(map(_run, xray.runs[:SHOWN]))
    more = len(xray.runs) - SHOWN
    shown += f"<span> … and {more:,} more</span>" if more > 0 else ""
    box = (
        "font-family:ui-monospace,monospace;font-size:.85em;line-height:1.75;padding:8px 10px;"
        "border:1px solid rgba(128,128,128,.35);border-radius:6px;white-space:pre-wrap;"
        "overflow-wrap:anywhere;max-height:420px;overflow-y:auto"
    )
    pictures = "".join(
        f'<span style="margin-right:8px">{image_html(image, width=160, alt="picture")}</span>'
        for image in xray.images[:6]
    )
    return _section(
        "One example", note, f'<div style="margin:6px 0">{pictures}</div><div style="{box}">{shown}'
        f'</div><p style="font-size:.85em;margin:6px 0">{legend}</p>'
    )  # fmt: skip


def _run(run: TokenRun) -> str:
    style, name = _TOKENS[run.kind]
    if run.kind in ("image", "video"):
        return f'<span style="{style}">{name}, {run.count:,} tokens</span>'
    text = html.escape(run.text).replace("\n", '<span style="opacity:.5">⏎</span>\n')
    title = f' title="{run.count} tokens"' if run.count > 1 else ""
    return f'<span{title} style="{style};margin-right:1px">{text}</span>'


def _lengths(xray: XRay) -> str:
    totals = sorted(length.total for length in xray.lengths)
    note = (
        f"tokens of a row: {totals[0]:,} to {totals[-1]:,}, median "
        f"{statistics.median(totals):,.0f}; "
        f"{sum(length.trained for length in xray.lengths) / sum(totals):.1%} learnt"
    )
    if len(totals) < xray.rows:
        note += f" (of {len(totals):,} rows spread over the data)"
    lines = f'<p style="margin:4px 0">{_cut(xray)}</p>' if xray.max_length else ""
    return _section("Lengths", note, (_histogram(totals) if totals[0] < totals[-1] else "") + lines)


def _cut(xray: XRay) -> str:
    cut = xray.cut
    if not cut:
        return f"max_length={xray.max_length:,} cuts no row"
    lost = sum(tokens for _, tokens in cut)
    rows = ", ".join(str(row) for row, _ in cut[:8]) + (" …" if len(cut) > 8 else "")
    return (
        f"max_length={xray.max_length:,} cuts <b>{counted(len(cut), 'row')}</b> ({rows}): "
        f"{lost:,} tokens of answers are lost, and none of a picture"
    )


def _histogram(totals: list[int]) -> str:
    low, high = totals[0], totals[-1]
    width = (high - low + 1) / _BINS
    counts = [0] * _BINS
    for total in totals:
        counts[min(int((total - low) / width), _BINS - 1)] += 1
    bars = "".join(
        f'<div title="{low + i * width:,.0f} to {low + (i + 1) * width:,.0f} tokens: '
        f'{counted(count, "row")}" '
        f'style="flex:1;background:#2563eb;opacity:.75;height:{56 * count / max(counts):.0f}px;'
        f'min-height:{2 if count else 0}px"></div>'
        for i, count in enumerate(counts)
    )
    return (
        f'<div style="display:flex;align-items:flex-end;gap:2px;height:58px;max-width:480px;'
        f'border-bottom:1px solid rgba(128,128,128,.5)">{bars}</div><div style="display:flex;'
        f'justify-content:space-between;max-width:480px;{FAINT}"><span>{low:,}</span>'
        f"<span>{high:,} tokens</span></div>"
    )


def _layers(parts: tuple[Part, ...]) -> str:
    total, trained = (sum(getattr(p, name) for p in parts) for name in ("parameters", "trained"))
    heads = ("part", "layers", "trained parameters", "share of its parameters")
    note = f"{trained:,} parameters, {trained / total:.2%} of the model's {total:,}"
    return _section("What is trained", note, table_html(heads, map(_layer_cells, parts)))


def _layer_cells(part: Part) -> tuple[str, ...]:
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in part.modules)
    named = ", ".join(kind for kind in kinds if not kind.isdigit())
    layers = f"{len(part.modules):,}" + (f" ({html.escape(named)})" if named else "")
    cells = (
        part.name,
        layers if part.modules else "none",
        f"{part.trained:,}",
        f"{part.trained / part.parameters:.2%} of {part.parameters:,}",
    )
    return cells if part.modules else tuple(f'<span style="opacity:.6">{c}</span>' for c in cells)


def _cost(xray: XRay) -> str:
    memory = xray.memory
    verdict = "fits" if memory.fits else "<b>does not fit</b>"
    place = "GPU memory" if memory.place == "GPU" else "RAM"
    lines = (
        f'<p style="margin:4px 0">about {byte_text(memory.total)} for the longest batch: {verdict} '
        f"the {byte_text(memory.available)} of free {place}</p>{_bar(memory)}"
        f'<p style="margin:8px 0 0">{counted(xray.steps, "step")}, about '
        f"{duration_text(xray.seconds)} on this machine</p>"
    )
    return _section("Cost", "memory estimated, time by one forward pass", lines)


def _bar(memory: TrainingMemory) -> str:
    pieces, names = "", ""
    for part, (colour, name) in _MEMORY.items():
        value = getattr(memory, part)
        pieces += f'<div style="background:{colour};width:{100 * value / memory.total:.2f}%"></div>'
        names += (
            f'<span style="margin-right:14px;white-space:nowrap"><span style="display:inline-block;'
            f'width:.8em;height:.8em;border-radius:2px;background:{colour}"></span> '
            f"{name} {byte_text(value)}</span>"
        )
    return (
        f'<div style="display:flex;height:14px;max-width:480px;border-radius:4px;overflow:hidden">'
        f'{pieces}</div><div style="{FAINT};margin-top:4px">{names}</div>'
    )
