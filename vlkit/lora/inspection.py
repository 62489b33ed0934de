"""The X-ray: what is learnt, where, at which cost, before a step is made."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import PIL.Image

from vlkit.errors import VlkitError
from vlkit.lora.arguments import check_bits, check_counts, check_rows, check_switches
from vlkit.lora.costs import (
    TrainingMemory,
    estimate_seconds,
    estimate_training,
    time_forward,
)
from vlkit.lora.data import as_data
from vlkit.lora.examining import Examiner, check_examined
from vlkit.lora.examples import Example
from vlkit.lora.labels import IGNORED, Labelled, label_example, media_ids
from vlkit.lora.lengths import Length, measure_length
from vlkit.lora.modules import Part, plan_parts
from vlkit.lora.networks import check_quantized
from vlkit.lora.problems import Problem, list_problems
from vlkit.lora.sizing import checkpoint_every, choose_batch, count_steps
from vlkit.media import load_image
from vlkit.models import VLM
from vlkit.phrases import counted

MEASURED = 2000  # rows whose lengths are measured where none has to be cut


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
        runs: its tokens, each with what becomes of it.
        lengths: of the rows that were measured: all, or 2,000 spread evenly.
        max_length: the most tokens of a row, or None.
        parts: what is trained in language model, vision tower and merger.
        memory: an estimate for the longest batch.
        steps: updates of the weights.
        seconds: estimated time of all of them and of the answers on the way, by one forward pass
            and a few answers on this machine.
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
        longer = [each for each in self.lengths if each.total > (self.max_length or math.inf)]
        return [(each.row, each.lost(self.max_length)) for each in longer]

    def __str__(self) -> str:
        totals = [length.total for length in self.lengths]
        return (
            f"{counted(self.rows, 'row')} of {min(totals):,} to {max(totals):,} tokens, "
            f"{len(self.cut):,} cut; {self.trained:,} parameters trained; "
            f"about {self.memory.total / 1e9:.1f} GB; "
            f"{counted(self.steps, 'step')} in about {self.seconds:,.0f} s"
        )

    def _repr_html_(self) -> str:
        from vlkit.lora.cards import xray_card

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

    The result shows itself in a notebook: one example with its tokens coloured by whether they are
    learnt, all lengths, the layers that get adapters, memory, steps and time.

    Args:
        vlm: from :func:`vlkit.load`, without an adapter.
        data: from :func:`vlkit.lora.load_conversations`, or what that reads.
        eval_data: held-out data, as ``data``; looking at them takes time, too.
        example: the number of the row to show.
        target: ``language``, ``vision`` (tower and merger), ``all``, or a regular expression that
            matches whole names of layers.
        rank: of the adapters; None trains the layers themselves.
        epochs: passes over the data.
        batch_size: rows at a time, or ``auto``; the memory is that of the longest ones.
        gradient_accumulation: batches for one update of the weights.
        gradient_checkpointing: layers are computed again in the backward pass, not kept.
        quantize: the model is loaded anew with its weights in ``"4bit"`` or ``"8bit"``.
        max_length: the most tokens of a row, of which the end is cut.
        metric, samples: as in :func:`vlkit.lora.train`.

    Raises:
        VlkitError: a cut that goes through a picture or leaves no answer, with its row; a target
            that matches nothing.
    """
    check_counts(batch_size, gradient_accumulation, epochs, max_length)
    check_bits(quantize)
    check_switches(gradient_checkpointing=gradient_checkpointing)
    check_examined(metric, samples)
    data, held_out = as_data(data), None if eval_data is None else as_data(eval_data)
    check_rows(data=data, eval_data=held_out)
    if not isinstance(example, int) or not -len(data) <= example < len(data):
        raise VlkitError(f"example={example!r} is not there; the data has {len(data)} rows")
    parts = plan_parts(vlm, target, rank)
    check_quantized(vlm, quantize, rank)
    lengths = measure_lengths(vlm, data, max_length)
    labelled = label_example(vlm, data[example], max_length=max_length)
    longest = max(each.total for each in lengths)
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
        learnt=max(each.trained for each in lengths) * together,
        patches=4 * max(each.media for each in lengths) * together,
        gradient_checkpointing=gradient_checkpointing,
        quantize=quantize,
    )
    mean = statistics.fmean(min(each.total, max_length or each.total) for each in lengths)
    share = mean / labelled.length
    whole, tower = time_forward(vlm, labelled)
    seconds = estimate_seconds(
        parts,
        (whole * share, tower * share),
        rows=len(data) * epochs,
        pictured=count_pictured(data),
        gradient_checkpointing=gradient_checkpointing,
    )
    steps = count_steps(len(data), size.batch, size.accumulation, epochs)
    if held_out is not None:
        looks = 1 + math.ceil(steps / checkpoint_every(steps, epochs))  # before the first step, too
        answers = Examiner(vlm, held_out, metric, samples).estimate_seconds()
        seconds += looks * len(held_out) * whole * share + (looks + 1) * answers
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


def measure_lengths(vlm: VLM, data: Sequence, max_length: int | None) -> list[Length]:
    """The lengths of rows: of all where some may have to be cut.

    Raises:
        VlkitError: every row that cannot be cut so.
    """
    step = 1 if max_length is not None else math.ceil(len(data) / MEASURED)
    lengths = [measure_length(vlm, data[i]) for i in range(0, len(data), step)]
    problems = []
    for length in lengths:
        try:
            length.lost(max_length)
        except VlkitError as error:
            problems.append(Problem(length.row, str(error).partition(": ")[2]))
    if problems:
        raise VlkitError(list_problems(getattr(data, "name", "data"), problems))
    return lengths


def count_pictured(data: Sequence[Example]) -> int:
    """Rows with pictures or clips; several about the same ones, by their names, count once."""
    shown = [tuple(_name(item[item["type"]]) for item in example.media) for example in data]
    return len({names for names in shown if names})


def _name(source: Any) -> Any:
    return source if isinstance(source, str) else id(source)


def show_tokens(vlm: VLM, labelled: Labelled) -> list[TokenRun]:
    """An example's tokens, each with its text; those of a picture together.

    Tokens that only together spell a character are shown together.
    """
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
