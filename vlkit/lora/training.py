"""One training run, its arguments checked."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments, set_seed

from vlkit import hooks
from vlkit.errors import ModelError
from vlkit.files import write_whole
from vlkit.inputs import check_loaded
from vlkit.lora.arguments import (
    as_folder,
    check_bits,
    check_counts,
    check_recipe,
    check_rows,
    check_switches,
    check_trackers,
)
from vlkit.lora.batches import Collator, Examples, FrozenTower, LengthSampler, Preparer
from vlkit.lora.costs import BatchSize, checkpoint_every, choose_batch, count_steps
from vlkit.lora.data import TrainingData, as_data
from vlkit.lora.evaluating import Examiner, check_examined
from vlkit.lora.fast_layers import lean_layers
from vlkit.lora.networks import Part, plan_parts, quantized, trainable
from vlkit.lora.proof import Prover
from vlkit.lora.runs import (
    ARGUMENTS,
    LoraRun,
    check_same,
    digest_rows,
    last_checkpoint,
    only_writer,
    summarize,
)
from vlkit.lora.token_labels import guess_length, label_example, measure_lengths
from vlkit.lora.trainer import VisionTrainer, is_spread, write_spread
from vlkit.models.adapters import check_base, write_marks
from vlkit.models.load import VLM, base_model

LOGGED = 500  # points of the loss curve


WORKERS = 4  # threads that read pictures ahead for a GPU


@dataclass(frozen=True, eq=False)
class Task:
    """What :func:`run` is to do.

    Attributes:
        vlm, data, held_out, folder: as for :func:`vlkit.lora.train`.
        parts: which layers are trained.
        lengths: of the rows, about.
        asked: the run's arguments, as they are written down.
        size: rows at a time.
        gradient_checkpointing, metric, samples: as for :func:`vlkit.lora.train`.
        report_to, callbacks: likewise.
    """

    vlm: VLM
    data: TrainingData
    held_out: TrainingData | None
    folder: Path
    parts: tuple[Part, ...]
    lengths: Sequence[float]
    asked: dict[str, Any]
    size: BatchSize
    gradient_checkpointing: bool
    metric: str | None
    samples: int
    report_to: Sequence[str]
    callbacks: tuple[Any, ...]


def run(task: Task, last: Path | None) -> LoraRun:
    """Train, in smaller batches where the memory runs out and may be divided.

    Args:
        task: what to do.
        last: the checkpoint to go on from.

    Raises:
        ModelError: the GPU's memory does not suffice.
        VlkitError: another process trains into the folder, or it cannot be written.
    """
    first = os.environ.get("RANK", "0") == "0"
    with only_writer(task.folder) if first else nullcontext():
        return _run_in_parts(task, last)


def _run_in_parts(task: Task, last: Path | None) -> LoraRun:
    while True:
        try:
            return _run_once(task, last)
        except torch.cuda.OutOfMemoryError as error:
            smaller = task.size.smaller()
            if smaller is None:
                raise ModelError(
                    f"training {task.vlm.name} needs more than the GPU's memory; pass a smaller "
                    "batch_size, gradient_checkpointing=True, or load(…, max_image_tokens=…)"
                ) from error
        torch.cuda.empty_cache()
        task = replace(task, size=smaller)
        last = last_checkpoint(task.folder, None)


def _run_once(task: Task, last: Path | None) -> LoraRun:
    vlm, asked = task.vlm, task.asked
    arguments = _arguments(task)
    arguments.eval_on_start = last is None and task.held_out is not None
    spread = is_spread(arguments.distributed_state)
    arguments.distributed_state.wait_for_everyone()  # nobody has looked at the folder after this
    if arguments.process_index == 0:
        write_whole(task.folder / ARGUMENTS, json.dumps(asked, indent=1) + "\n")
        if asked["rank"] is not None:
            if last is not None:
                check_base(last, vlm.model, vlm.folder)
            write_marks(vlm.model, task.folder)
    set_seed(asked["seed"])
    names = [name for part in task.parts for name in part.modules]
    with ExitStack() as stack:
        network, measure = stack.enter_context(trainable(vlm, names, asked["rank"], asked["alpha"]))
        seen = any(part.modules for part in task.parts[1:])
        tower = None if seen or spread else FrozenTower(base_model(vlm))
        if not spread:
            stack.enter_context(lean_layers(base_model(vlm)))
        examples = _examples(task, task.data, tower)
        stack.callback(examples.close)
        alone = arguments.process_index == 0 and not spread  # who asks and proves
        examiner = Examiner(vlm, task.held_out if alone else None, task.metric, task.samples)
        trainer = VisionTrainer(
            network,
            arguments,
            data_collator=Collator(
                vlm.processor.tokenizer.pad_token_id, tower, base_model(vlm).model.get_rope_index
            ),
            train_dataset=examples,
            eval_dataset=None if task.held_out is None else _examples(task, task.held_out, tower),
            callbacks=list(task.callbacks),
            sampler=_sampler(task, examples, arguments.world_size),
            tower=tower,
            examine=examiner,
            measure=measure,
        )
        prover = Prover(vlm, _proving_row(task)) if alone else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        effect = write_spread(trainer, task.folder) if spread else measure()
        if arguments.process_index == 0:
            _write(task, None if spread else network)
        history = trainer.state.log_history
        before = [each for each in history if each["step"] == 0]
        found = _joined(before)
        checks = None if prover is None else prover.check(task.folder, found, examiner())
        return replace(summarize(trainer.state, task.folder), effect=effect, checks=checks)


def _proving_row(task: Task) -> Any:
    data = task.held_out or task.data
    return label_example(task.vlm, data[0], max_length=task.asked["max_length"])


def _joined(entries: Sequence[dict]) -> dict[str, Any]:
    return {name: value for each in entries for name, value in each.items()}


def _write(task: Task, network: Any) -> None:
    """The adapter, or a model folder like the one that it was made from."""
    if network is not None:
        network.save_pretrained(task.folder)
    if task.asked["rank"] is None:
        task.vlm.processor.save_pretrained(task.folder)


def _examples(task: Task, data: TrainingData, tower: FrozenTower | None) -> Examples:
    workers = WORKERS if task.vlm.model.device.type == "cuda" and data is task.data else 0
    return Examples(Preparer(task.vlm, data, task.asked["max_length"], tower), workers)


def _sampler(task: Task, examples: Examples, processes: int) -> LengthSampler:
    share = task.size.batch * processes if processes > 1 else 1
    rows, seed = task.size.rows * processes, task.asked["seed"]
    return LengthSampler(examples, task.lengths, rows, seed, share=share)


def _arguments(task: Task) -> TrainingArguments:
    asked, size = task.asked, task.size
    world = int(os.environ.get("WORLD_SIZE", "1"))
    steps = count_steps(len(task.data), size.batch * world, size.accumulation, asked["epochs"])
    every = checkpoint_every(steps, asked["epochs"])
    names = ("activation_checkpointing", "gradient_checkpointing")  # of newer and older versions
    checkpointing = next(name for name in names if hasattr(TrainingArguments, name))
    arguments = TrainingArguments(
        output_dir=str(task.folder),
        num_train_epochs=asked["epochs"],
        per_device_train_batch_size=size.batch,
        per_device_eval_batch_size=size.batch,
        gradient_accumulation_steps=size.accumulation,
        **({checkpointing: True} if task.gradient_checkpointing else {}),
        learning_rate=asked["learning_rate"],
        lr_scheduler_type="cosine",
        logging_steps=max(1, steps // LOGGED),
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        eval_strategy="no" if task.held_out is None else "steps",
        eval_steps=every,
        load_best_model_at_end=task.held_out is not None,
        metric_for_best_model="loss",
        seed=asked["seed"],
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        report_to=list(task.report_to),
        dataloader_pin_memory=False,  # batches are made where the model is
        ddp_find_unused_parameters=any(part.modules for part in task.parts[1:]),
        use_cpu=task.vlm.model.device.type == "cpu",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several take `accelerate launch`
    return arguments


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
    with hooks.recording_training(dict(locals())) as record:  # the arguments as they were passed
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

        task = Task(
            vlm=vlm, data=data, held_out=held_out, folder=folder, parts=parts, lengths=lengths,
            asked=asked, size=size, gradient_checkpointing=gradient_checkpointing, metric=metric,
            samples=samples, report_to=trackers, callbacks=tuple(callbacks),
        )  # fmt: skip
        result = run(task, last)
        record(result)
    return result
