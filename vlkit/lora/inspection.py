"""``lora.inspect``: tokens, layers, memory and time, before training."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import PIL.Image

from vlkit.errors import VlkitError, counted
from vlkit.lora import batches, costs
from vlkit.lora.arguments import check_arguments
from vlkit.lora.batches import IGNORED, Labelled, Length
from vlkit.lora.data import Example, as_data, source_key
from vlkit.lora.evaluating import Examiner
from vlkit.lora.networks import Part, check_quantized, plan_parts
from vlkit.media.image import load_image
from vlkit.models.load import VLM
from vlkit.plotting.html import FAINT, byte_text, duration_text, fill_template, image_html

_BINS = 24


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
    memory: costs.TrainingMemory
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
            f"{len(self.cut):,} cut; {self.trained:,} parameters trained; about "
            f"{self.memory.total / 1e9:.1f} GB; {counted(self.steps, 'step')} in about "
            f"{self.seconds:,.0f} s"
        )

    def _repr_html_(self) -> str:
        totals = [length.total for length in self.lengths]
        counts, edges = np.histogram(totals, _BINS, (min(totals), max(totals) + 1))
        learnt = sum(length.trained for length in self.lengths) / sum(totals)
        return fill_template(
            "vlkit.lora", "xray.html.jinja", xray=self, faint=FAINT, counted=counted,
            byte_text=byte_text, duration_text=duration_text, image_html=image_html,
            bins=list(zip(edges, edges[1:], counts.tolist(), strict=False)),
            totals=(min(totals), max(totals), statistics.median(totals), learnt),
            kinds_of_layers=_name_kinds,
        )  # fmt: skip


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

    Warns:
        UserWarning: the memory does not suffice, with a setting for which it does.
    """
    check_arguments(locals())
    data, held_out = as_data(data), as_data(eval_data, "eval_data", optional=True)
    if not isinstance(example, int) or not -len(data) <= example < len(data):
        raise VlkitError(f"example={example!r} does not exist; the data has {len(data)} rows")
    parts = plan_parts(vlm, target, rank)
    check_quantized(vlm, quantize, rank)
    lengths = batches.measure_lengths(vlm, data, max_length)
    labelled = batches.label_example(vlm, data[example], max_length=max_length)
    longest = max(length.total for length in lengths)
    cut = min(longest, max_length or longest)
    cost: dict[str, Any] = {
        "rank": rank, "gradient_checkpointing": gradient_checkpointing, "quantize": quantize,
    }  # fmt: skip
    size = costs.choose_batch(vlm, parts, [cut], batch_size, gradient_accumulation, **cost)
    whole_batch, size = size.batch, replace(size, batch=min(size.batch, len(data)))
    row = cut, max(n.trained for n in lengths), 4 * max(n.media for n in lengths)
    memory = costs.estimate_batch(vlm, parts, size, row, **cost)
    mean = statistics.fmean(min(n.total, max_length or n.total) for n in lengths)
    share = mean / labelled.length
    whole, encoder = costs.time_forward(vlm, labelled)
    seconds = costs.estimate_seconds(
        parts, (whole * share, encoder * share), rows=len(data) * epochs,
        pictured=count_pictured(data), gradient_checkpointing=gradient_checkpointing,
    )  # fmt: skip
    steps = costs.count_steps(len(data), whole_batch, size.accumulation, epochs)
    if held_out is not None:
        # one of them before training
        evaluations = 1 + math.ceil(steps / costs.checkpoint_every(steps, epochs))
        answers = Examiner(vlm, held_out, metric, samples).estimate_seconds()
        seconds += evaluations * len(held_out) * whole * share + (evaluations + 1) * answers
    images = (load_image(i["image"]) for i in data[example].media if i["type"] == "image")
    return XRay(
        model=vlm.name, data=data.name, rows=len(data), example=labelled, images=tuple(images),
        runs=tuple(show_tokens(vlm, labelled)), lengths=tuple(lengths), max_length=max_length,
        parts=parts, memory=memory, steps=steps, seconds=seconds,
    )  # fmt: skip


def count_pictured(data: Sequence[Example]) -> int:
    """Rows with pictures or clips; rows about the same files or objects count once."""
    media = [tuple(source_key(item[item["type"]]) for item in example.media) for example in data]
    return len({keys for keys in media if keys})


def show_tokens(vlm: VLM, labelled: Labelled) -> list[TokenRun]:
    """An example's tokens with their texts; the tokens of a picture or a character are one run."""
    decode, known = vlm.processor.tokenizer.decode, batches.media_ids(vlm)
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


def _name_kinds(part: Part) -> str:
    """Such as ``" (q_proj, v_proj)"``: the last parts of the layers' names."""
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in part.modules)
    named = ", ".join(kind for kind in kinds if not kind.isdigit())
    return f" ({named})" if named else ""
