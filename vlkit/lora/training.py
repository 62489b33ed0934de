"""``lora.train``: from checked arguments to a trained adapter."""

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
from vlkit.lora.networks import Part, lean_layers, plan_parts, quantized, trainable
from vlkit.lora.runs import (
    ARGUMENTS,
    Checks,
    LoraRun,
    Prover,
    check_same,
    digest_rows,
    last_checkpoint,
    only_writer,
    summarize,
)
from vlkit.lora.token_labels import guess_length, measure_lengths
from vlkit.lora.trainer import VisionTrainer, is_spread, write_spread
from vlkit.models.adapters import check_base, write_marks
from vlkit.models.load import VLM, base_model

_LOGGED = 500  # points of the loss curve
_WORKERS = 4  # threads that read pictures ahead for a GPU


@dataclass(frozen=True, eq=False)
class Task:
    """A checked training run.

    Attributes:
        vlm, data, held_out, folder: as for :func:`train`.
        parts: which layers are trained.
        lengths: of the rows, about.
        recipe: the run's arguments, as they are written into its folder.
        size: rows of a batch.
        gradient_checkpointing, metric, samples, report_to, callbacks: as for :func:`train`.
    """

    vlm: VLM
    data: TrainingData
    held_out: TrainingData | None
    folder: Path
    parts: tuple[Part, ...]
    lengths: Sequence[float]
    recipe: dict[str, Any]
    size: BatchSize
    gradient_checkpointing: bool
    metric: str | None
    samples: int
    report_to: Sequence[str]
    callbacks: tuple[Any, ...]

    @property
    def trains_vision(self) -> bool:
        """Whether a layer of the vision encoder or merger is trained."""
        return any(part.modules for part in self.parts[1:])


def _run(task: Task, checkpoint: Path | None) -> LoraRun:
    """Train, in smaller batches where the GPU's memory runs out and batches may be divided."""
    is_first = os.environ.get("RANK", "0") == "0"
    with only_writer(task.folder) if is_first else nullcontext():
        while True:
            try:
                return _run_once(task, checkpoint)
            except torch.cuda.OutOfMemoryError as error:
                smaller = task.size.smaller()
                if smaller is None:
                    raise ModelError(
                        f"training {task.vlm.name} needs more than the GPU's memory; pass a "
                        "smaller batch_size, gradient_checkpointing=True, or "
                        "load(…, max_image_tokens=…)"
                    ) from error
            torch.cuda.empty_cache()
            task = replace(task, size=smaller)
            checkpoint = last_checkpoint(task.folder, None)


def _run_once(task: Task, checkpoint: Path | None) -> LoraRun:
    arguments = _training_arguments(task, is_resumed=checkpoint is not None)
    is_first = arguments.process_index == 0
    spread = is_spread(arguments.distributed_state)
    arguments.distributed_state.wait_for_everyone()  # all have looked at the folder before it fills
    if is_first:
        _begin(task, checkpoint)
    set_seed(task.recipe["seed"])
    with ExitStack() as stack:
        names = [name for part in task.parts for name in part.modules]
        network, measure = stack.enter_context(
            trainable(task.vlm, names, task.recipe["rank"], task.recipe["alpha"])
        )
        if not spread:
            stack.enter_context(lean_layers(base_model(task.vlm)))
        trainer = _make_trainer(task, arguments, network, measure, spread)
        stack.callback(trainer.train_dataset.close)
        prover = None
        if is_first and not spread:
            example = (task.held_out or task.data)[0]
            prover = Prover(task.vlm, example, task.recipe["max_length"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        effect = write_spread(trainer, task.folder) if spread else measure()
        if is_first:
            _write(task, None if spread else network)
        run = replace(summarize(trainer.state, task.folder), effect=effect)
        return replace(run, checks=_check(trainer, prover, task.folder)) if prover else run


def _begin(task: Task, checkpoint: Path | None) -> None:
    """Write what a later resumption and ``load`` compare."""
    write_whole(task.folder / ARGUMENTS, json.dumps(task.recipe, indent=1) + "\n")
    if task.recipe["rank"] is not None:
        if checkpoint is not None:
            check_base(checkpoint, task.vlm.model, task.vlm.folder)
        write_marks(task.vlm.model, task.folder)


def _make_trainer(
    task: Task, arguments: TrainingArguments, network: Any, measure: Any, spread: bool
) -> VisionTrainer:
    vlm = task.vlm
    tower = None if task.trains_vision or spread else FrozenTower(base_model(vlm))
    examples = _examples(task, task.data, tower)
    asks = arguments.process_index == 0 and not spread
    return VisionTrainer(
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
        examine=Examiner(vlm, task.held_out if asks else None, task.metric, task.samples),
        measure=measure,
    )


def _check(trainer: VisionTrainer, prover: Prover, folder: Path) -> Checks:
    """Compare with what the run logged before its first step."""
    before: dict[str, Any] = {}
    for entry in trainer.state.log_history:
        before |= entry if entry["step"] == 0 else {}
    return prover.check(folder, before, trainer.examine())


def _write(task: Task, network: Any) -> None:
    """The adapter, or the rest of a model folder like the one that it was made from."""
    if network is not None:
        network.save_pretrained(task.folder)
    if task.recipe["rank"] is None:
        task.vlm.processor.save_pretrained(task.folder)


def _examples(task: Task, data: TrainingData, tower: FrozenTower | None) -> Examples:
    workers = _WORKERS if task.vlm.model.device.type == "cuda" and data is task.data else 0
    return Examples(Preparer(task.vlm, data, task.recipe["max_length"], tower), workers)


def _sampler(task: Task, examples: Examples, processes: int) -> LengthSampler:
    share = task.size.batch * processes if processes > 1 else 1
    rows, seed = task.size.rows * processes, task.recipe["seed"]
    return LengthSampler(examples, task.lengths, rows, seed, share=share)


def _training_arguments(task: Task, *, is_resumed: bool) -> TrainingArguments:
    recipe, size, evaluates = task.recipe, task.size, task.held_out is not None
    world = int(os.environ.get("WORLD_SIZE", "1"))
    steps = count_steps(len(task.data), size.batch * world, size.accumulation, recipe["epochs"])
    every = checkpoint_every(steps, recipe["epochs"])
    names = ("activation_checkpointing", "gradient_checkpointing")  # of newer and older versions
    checkpointing = next(name for name in names if hasattr(TrainingArguments, name))
    arguments = TrainingArguments(
        output_dir=str(task.folder),
        num_train_epochs=recipe["epochs"],
        per_device_train_batch_size=size.batch,
        per_device_eval_batch_size=size.batch,
        gradient_accumulation_steps=size.accumulation,
        **({checkpointing: True} if task.gradient_checkpointing else {}),
        learning_rate=recipe["learning_rate"],
        lr_scheduler_type="cosine",
        logging_steps=max(1, steps // _LOGGED),
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=every,
        eval_on_start=evaluates and not is_resumed,
        load_best_model_at_end=evaluates,
        metric_for_best_model="loss",
        seed=recipe["seed"],
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        report_to=list(task.report_to),
        dataloader_pin_memory=False,  # batches are made where the model is
        ddp_find_unused_parameters=task.trains_vision,
        use_cpu=task.vlm.model.device.type == "cpu",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # for several GPUs use `accelerate launch`
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
    """Train adapters, or the layers themselves; the model that is passed does not change.

    A checkpoint is written after each epoch, and at least ten times. With ``eval_data`` the one
    with the smallest loss on it becomes the result, else the last. A vision encoder that is not
    trained encodes each picture once. Started by ``accelerate launch`` on several processes, each
    takes ``batch_size`` rows at a time.

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
        batch_size: rows at a time. ``auto``: eight rows for one update, in as many batches as the
            memory needs; the losses are the same.
        gradient_accumulation: batches for one update of the weights.
        quantize: load the model again in ``"4bit"`` or ``"8bit"`` for this run (QLoRA).
        metric: of answers to at most 64 rows of ``eval_data``, whenever its loss is measured:
            ``exact`` text, ``iou`` (share of true boxes found at IoU 0.5), ``auto`` for the one
            that fits a row, or None.
        samples: how many of these answers the run shows.
        seed: of the adapters' first weights and the order of the rows.
        resume: continue from the last complete checkpoint; losses are those of an uninterrupted
            run.
        report_to: trackers that get losses and metrics, such as ``"tensorboard"``, as for
            transformers' ``TrainingArguments``.
        callbacks: transformers' ``TrainerCallback``.

    Raises:
        VlkitError: data or arguments that cannot be used, an output folder that is in use, or
            arguments that differ from those of the run to resume.
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
        recipe = {
            "model": vlm.name, "rows": len(data), "epochs": epochs, "learning_rate": learning_rate,
            "rank": rank, "alpha": 2 * rank if rank and alpha is None else alpha, "target": target,
            "batch_size": batch_size, "gradient_accumulation": gradient_accumulation,
            "quantize": quantize, "max_length": max_length, "seed": seed,
            "data": digest_rows(data), "eval_data": digest_rows(held_out),
        }  # fmt: skip
        parts = plan_parts(vlm, target, rank)
        checkpoint = last_checkpoint(folder, resume)
        if checkpoint is not None:
            check_same(folder / ARGUMENTS, recipe)
        vlm = quantized(vlm, quantize, rank)
        for rows in (data, held_out):
            if rows is not None and max_length is not None:
                measure_lengths(vlm, rows, max_length)
        lengths = [guess_length(vlm, example) for example in data]
        size = choose_batch(
            vlm, parts, lengths, rank=rank, batch_size=batch_size,
            accumulation=gradient_accumulation, gradient_checkpointing=gradient_checkpointing,
        )  # fmt: skip

        task = Task(
            vlm=vlm, data=data, held_out=held_out, folder=folder, parts=parts, lengths=lengths,
            recipe=recipe, size=size, gradient_checkpointing=gradient_checkpointing, metric=metric,
            samples=samples, report_to=trackers, callbacks=tuple(callbacks),
        )  # fmt: skip
        result = _run(task, checkpoint)
        record(result)
    return result
