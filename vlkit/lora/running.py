"""One training run, its arguments checked."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from vlkit.base_weights import check_base, write_marks
from vlkit.batching.settings import base_model
from vlkit.datasets.files import write_whole
from vlkit.errors import ModelError
from vlkit.lora.batches import Collator, Examples, LengthSampler
from vlkit.lora.data import TrainingData
from vlkit.lora.examining import Examiner
from vlkit.lora.features import FrozenTower
from vlkit.lora.labels import label_example
from vlkit.lora.layers import lean_layers
from vlkit.lora.modules import Part
from vlkit.lora.networks import trainable
from vlkit.lora.preparing import Preparer
from vlkit.lora.proving import Prover
from vlkit.lora.runs import ARGUMENTS, LoraRun, last_checkpoint, only_writer, summarize
from vlkit.lora.sizing import BatchSize, checkpoint_every, count_steps
from vlkit.lora.spread import is_spread, write_spread
from vlkit.lora.trainer import VisionTrainer
from vlkit.models import VLM

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
