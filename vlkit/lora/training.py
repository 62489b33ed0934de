"""LoRA training on transformers' Trainer and PEFT."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from vlkit.inputs import check_loaded
from vlkit.lora.arguments import (
    as_folder,
    check_bits,
    check_counts,
    check_recipe,
    check_rows,
    check_switches,
)
from vlkit.lora.data import as_data
from vlkit.lora.examining import check_examined
from vlkit.lora.inspection import measure_lengths
from vlkit.lora.lengths import guess_length
from vlkit.lora.modules import plan_parts
from vlkit.lora.networks import quantized
from vlkit.lora.runs import ARGUMENTS, LoraRun, check_same, digest_rows, last_checkpoint
from vlkit.lora.sizing import choose_batch
from vlkit.lora.trackers import check_trackers
from vlkit.models import VLM
from vlkit.recording import trained


@trained
def train(
    vlm: VLM,
    data: Any,
    *,
    output_dir: str | os.PathLike,
    eval_data: Any = None,
    epochs: float = 1,
    learning_rate: float = 2e-4,
    rank: int | None = 8,
    alpha: float | None = None,
    target: str = "language",
    batch_size: int | str = "auto",
    gradient_accumulation: int = 1,
    gradient_checkpointing: bool = False,
    quantize: Literal["4bit", "8bit"] | None = None,
    max_length: int | None = None,
    metric: str | None = "auto",
    samples: int = 3,
    seed: int = 0,
    resume: bool = False,
    report_to: str | Sequence[str] = "none",
    callbacks: Sequence[Any] = (),
) -> LoraRun:
    """Train adapters, or layers themselves; the model that is passed stays as it was.

    A checkpoint is written after each epoch, and at least ten times. With ``eval_data`` the one
    with the smallest loss on it becomes the result, else the last. Where the vision tower is not
    trained it looks at each picture once. Started by ``accelerate launch`` on several processes,
    each takes ``batch_size`` rows at a time.

    Args:
        vlm: from :func:`vlkit.load`, without an adapter.
        data: from :func:`vlkit.lora.load_conversations`, or what that reads.
        output_dir: a new or empty folder; with ``resume``, that of a run with the same arguments.
        eval_data: held-out data, as ``data``.
        epochs: passes over the data.
        learning_rate: at its peak; it falls to 0 along a cosine.
        rank: of the adapters; None trains the layers themselves and writes a plain model folder.
        alpha: their scale times ``rank``; twice the rank by default.
        target, gradient_checkpointing, max_length: as in :func:`vlkit.lora.inspect`.
        batch_size: rows at a time. ``auto``: eight rows for one update, in as many parts as the
            memory asks for, now or when it runs out; the losses are the same.
        gradient_accumulation: batches for one update of the weights.
        quantize: load the model anew in ``"4bit"`` or ``"8bit"`` for this run (QLoRA).
        metric: of answers to at most 64 rows of ``eval_data``, whenever its loss is measured:
            ``exact`` text, ``iou`` (share of boxes found at IoU 0.5), ``auto`` for whichever a row
            holds, or None.
        samples: how many of these answers the run shows.
        seed: of the adapters' first weights and the order of the rows.
        resume: go on from the last whole checkpoint; losses are those of an uninterrupted run.
        report_to: trackers that are told losses and metrics, such as ``"tensorboard"``, as for
            transformers' ``TrainingArguments``.
        callbacks: transformers' ``TrainerCallback``.

    Raises:
        VlkitError: data or arguments that cannot be used, an output folder that is in use, or
            other arguments than those of the run to resume.
        ModelError: peft is missing, or the GPU's memory does not suffice.
    """
    check_loaded(vlm)
    check_counts(batch_size, gradient_accumulation, epochs, max_length)
    check_recipe(learning_rate, alpha, seed, callbacks)
    check_bits(quantize)
    check_switches(gradient_checkpointing=gradient_checkpointing, resume=resume)
    check_examined(metric, samples)
    trackers, folder = check_trackers(report_to), as_folder("output_dir", output_dir)
    data, held_out = as_data(data), None if eval_data is None else as_data(eval_data)
    check_rows(data=data, eval_data=held_out)
    asked = {
        "model": vlm.name, "rows": len(data), "epochs": epochs, "learning_rate": learning_rate,
        "rank": rank, "alpha": 2 * rank if rank and alpha is None else alpha, "target": target,
        "batch_size": batch_size, "gradient_accumulation": gradient_accumulation,
        "quantize": quantize, "max_length": max_length, "seed": seed,
        "data": digest_rows(data), "eval_data": digest_rows(held_out),
    }  # fmt: skip
    parts = plan_parts(vlm, target, rank)
    last = last_checkpoint(folder, resume)
    if last is not None:
        check_same(folder / ARGUMENTS, asked)
    vlm = quantized(vlm, quantize, rank)
    for each in (data, held_out):
        if each is not None and max_length is not None:
            measure_lengths(vlm, each, max_length)
    lengths = [guess_length(vlm, example) for example in data]
    size = choose_batch(
        vlm, parts, lengths, rank=rank, batch_size=batch_size,
        accumulation=gradient_accumulation, gradient_checkpointing=gradient_checkpointing,
    )  # fmt: skip
    from vlkit.lora.running import Task, run

    task = Task(
        vlm=vlm, data=data, held_out=held_out, folder=folder, parts=parts, lengths=lengths,
        asked=asked, size=size, gradient_checkpointing=gradient_checkpointing, metric=metric,
        samples=samples, report_to=trackers, callbacks=tuple(callbacks),
    )  # fmt: skip
    return run(task, last)
