"""LoRA training on transformers' Trainer and PEFT."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from vlkit.datasets.files import write_whole
from vlkit.errors import ModelError, VlkitError
from vlkit.lora.batches import Collator, Examples
from vlkit.lora.data import as_data
from vlkit.lora.inspection import check_counts, count_steps, measure_lengths
from vlkit.lora.modules import plan_parts
from vlkit.lora.runs import ARGUMENTS, LoraRun, check_same, last_checkpoint
from vlkit.models import VLM
from vlkit.recording import trained

LOGGED = 500  # points of the loss curve
CHECKPOINTS = 10  # of a run, or as many as it has epochs


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
    callbacks: Sequence[Any] = (),
) -> LoraRun:
    """Train adapters; the model that is passed stays as it was.

    A checkpoint is written after each epoch, and at least ten times. With ``eval_data`` the one
    with the smallest loss on it becomes the result, else the last.

    Args:
        vlm: from :func:`vlkit.load`, without an adapter.
        data: from :func:`vlkit.lora.load_conversations`, or what that reads.
        output_dir: a new or empty folder; with ``resume``, that of a run with the same arguments.
        eval_data: held-out data, as ``data``.
        epochs: passes over the data.
        learning_rate: at its peak; it falls to 0 along a cosine.
        rank: of the adapters.
        alpha: their scale times ``rank``; twice the rank by default.
        target, batch_size, gradient_accumulation, gradient_checkpointing, max_length: as in
            :func:`vlkit.lora.inspect`.
        seed: of the adapters' first weights and the order of the rows.
        resume: go on from the last whole checkpoint; losses are those of an uninterrupted run.
        callbacks: transformers' ``TrainerCallback``.

    Raises:
        VlkitError: data or arguments that cannot be used, an output folder that is in use, or
            other arguments than those of the run to resume.
        ModelError: peft is missing, or the GPU's memory does not suffice.
    """
    if batch_size == "auto":
        batch_size = 8
    check_counts(batch_size, gradient_accumulation, epochs, max_length)
    if not isinstance(learning_rate, float | int) or not 0 < learning_rate < 1:
        raise VlkitError(f"learning_rate={learning_rate!r} must be a number between 0 and 1")
    folder = Path(output_dir).expanduser()
    data, held_out = as_data(data), None if eval_data is None else as_data(eval_data)
    plan = plan_parts(vlm, target, rank)
    last = last_checkpoint(folder, resume)
    asked = {
        "model": vlm.name, "rows": len(data), "epochs": epochs, "learning_rate": learning_rate,
        "rank": rank, "alpha": 2 * rank if alpha is None else alpha, "target": target,
        "batch_size": batch_size, "gradient_accumulation": gradient_accumulation,
        "max_length": max_length, "seed": seed,
    }  # fmt: skip
    if last is not None:
        check_same(folder / ARGUMENTS, asked)
    for each in (data, held_out):
        if each is not None and max_length is not None:
            measure_lengths(vlm, each, max_length)
    steps = count_steps(len(data), batch_size, gradient_accumulation, epochs)
    every = min(math.ceil(steps / CHECKPOINTS), math.ceil(steps / max(epochs, 1)))
    from transformers import Trainer, TrainingArguments, set_seed

    names = ("activation_checkpointing", "gradient_checkpointing")  # of newer and older versions
    checkpointing = next(name for name in names if hasattr(TrainingArguments, name))
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation,
        **({checkpointing: True} if gradient_checkpointing else {}),
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        logging_steps=max(1, steps // LOGGED),
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        eval_strategy="no" if held_out is None else "steps",
        eval_steps=every,
        load_best_model_at_end=held_out is not None,
        metric_for_best_model="loss",
        seed=seed,
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        report_to="none",
        use_cpu=vlm.model.device.type == "cpu",
    )
    write_whole(folder / ARGUMENTS, json.dumps(asked, indent=1) + "\n")
    set_seed(seed)
    layers = [name for part in plan for name in part.modules]
    with _adapted(vlm, layers, rank, alpha) as network:
        trainer = Trainer(
            network,
            arguments,
            data_collator=Collator(vlm.processor.tokenizer.pad_token_id),
            train_dataset=Examples(vlm, data, max_length),
            eval_dataset=None if held_out is None else Examples(vlm, held_out, max_length),
            callbacks=list(callbacks),
        )
        _hush(trainer)
        _run(trainer, vlm, last)
        network.save_pretrained(folder)
        return _summary(trainer, network, folder)


@contextmanager
def _adapted(vlm: VLM, names: list[str], rank: int, alpha: float | None) -> Iterator[Any]:
    """The model with new adapters; afterwards it is as it was."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModelError('training needs peft: pip install "vlkit[lora]"') from error
    needed = {name: p.requires_grad for name, p in vlm.model.named_parameters()}
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=names
    )
    with warnings.catch_warnings():  # peft and the Trainer use names that are to go
        warnings.simplefilter("ignore", FutureWarning)
        network = get_peft_model(vlm.model, config)
    config.base_model_name_or_path = vlm.name  # not a path of this machine
    try:
        yield network
    finally:
        network.unload()
        for module in vlm.model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.gradient_checkpointing = False
        vlm.model.eval()
        for name, parameter in vlm.model.named_parameters():
            parameter.requires_grad_(needed[name])
            parameter.grad = None


def _run(trainer: Any, vlm: VLM, last: Path | None) -> None:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError(
            f"training {vlm.name} needs more than the GPU's memory; pass a smaller batch_size, "
            "gradient_checkpointing=True, or load(…, max_image_tokens=…)"
        ) from error


def _hush(trainer: Any) -> None:
    """A bar on a terminal, but no line for every step."""
    from transformers import PrinterCallback, ProgressCallback

    class Bar(ProgressCallback):
        def on_log(self, *args, **kwargs):
            pass

    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(Bar)


def _summary(trainer: Any, network: Any, folder: Path) -> LoraRun:
    state = trainer.state
    effect = [p.abs().max().item() for name, p in network.named_parameters() if "lora_B" in name]
    return LoraRun(
        output_dir=folder,
        steps=state.global_step,
        finished=state.global_step >= state.max_steps,
        losses=tuple((e["step"], e["loss"]) for e in state.log_history if "loss" in e),
        evaluations=tuple(
            (e["step"], e["eval_loss"]) for e in state.log_history if "eval_loss" in e
        ),
        effect=max(effect),
        seconds=state.log_history[-1].get("train_runtime", 0.0),
    )
