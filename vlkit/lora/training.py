"""``lora.train``: from checked arguments to a trained adapter, by transformers' Trainer."""

import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from safetensors import SafetensorError
from transformers import Trainer, TrainingArguments, set_seed

from vlkit import hooks
from vlkit.errors import ModelError, VlkitError, one_line
from vlkit.files import write_whole
from vlkit.inputs import check_loaded
from vlkit.lora import batches, costs, networks, run_folder
from vlkit.lora.arguments import as_folder, check_arguments, check_trackers
from vlkit.lora.callbacks import show_progress
from vlkit.lora.data import TrainingData, as_data, digest_rows
from vlkit.lora.evaluating import Examiner
from vlkit.lora.run_folder import ARGUMENTS, LoraRun
from vlkit.models.adapters import check_base, write_marks
from vlkit.models.load import VLM, base_model
from vlkit.plotting.html import byte_text

_LOGGED = 500  # points of the loss curve
_RECIPE = (  # arguments in which a resumed run must not differ
    "epochs", "learning_rate", "rank", "target", "batch_size", "gradient_accumulation",
    "quantize", "max_length", "seed",
)  # fmt: skip
_WORKERS = 4  # threads that read pictures ahead for a GPU

# it warns of a faulty filesystem where checkpoints are within a second of each other
_logger = logging.getLogger("transformers.trainer_utils")
_logger.addFilter(lambda record: "mtime" not in str(record.msg))


class VisionTrainer(Trainer):
    """A Trainer whose batches have features of pictures, and which asks the model questions.

    Args:
        sampler: the :class:`vlkit.lora.batches.LengthSampler` of the training rows.
        lean: contexts of each forward pass, in which the model computes the same in less.
        examine: called after each evaluation; of the dict that it returns, numbers are logged like
            Trainer's metrics, anything else in ``state.log_history`` only.
        measure: a function from weights by their names to their largest change.

    Attributes:
        effect: the largest change when sharded weights were last written, on the first process.
    """

    def __init__(self, *args: Any, sampler: Any, lean: Any, examine: Any, measure: Any, **kwargs):
        super().__init__(*args, **kwargs)
        # a loss is the mean over an update's trained tokens, in however many batches they come
        self.model_accepts_loss_kwargs = True
        self.sampler, self.lean, self.examine = sampler, lean, examine
        self.measure, self.effect = measure, 0.0
        self._weights = self.model.num_parameters(exclude_embeddings=True)
        show_progress(self)

    def _get_train_sampler(self, *_: Any) -> Any:
        return self.sampler

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As Trainer's, which would count the parameters at every step."""
        return 6 * inputs["input_ids"].numel() * self._weights

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, without a cache of keys and values."""
        with ExitStack() as stack:
            for context in self.lean:
                stack.enter_context(context())
            return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's. Raises ModelError for a loss that is not finite, before the update."""
        loss = super().training_step(*args, **kwargs)
        self._check_finite(f"the loss of step {self.state.global_step + 1}", loss.item())
        return loss

    def _check_finite(self, name: str, value: float) -> None:
        if math.isfinite(value):
            return
        updated, dtype = self.state.global_step > 0, str(self.model.dtype).removeprefix("torch.")
        broken = [
            f"the model's weight {weight_name} is not finite (load or download the model again)"
            for weight_name, weight in self.model.named_parameters()
            if not (updated and weight.requires_grad) and not math.isfinite(_sum(weight))
        ]
        rate = f"learning_rate={self.args.learning_rate:g} is too high (lower it)"
        overflow = f'{dtype} overflows (load the model with dtype="float32")'
        causes = broken[:1] or [rate] * updated + [overflow] * (dtype != "float32")
        causes = causes or ["a row or callback that makes the weights or pixels infinite"]
        likely = f"likely cause: {', or '.join(causes)}; after that, train into a new folder"
        raise ModelError(f"{name} is {value}, so training stopped; {likely}")

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As Trainer's, of finite weights only; a failure to write is one line."""
        trained = (weight for weight in self.model.parameters() if weight.requires_grad)
        name = f"a trained weight after step {self.state.global_step}"
        self._check_finite(name, sum(map(_sum, trained)))
        with _writing("a checkpoint", Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if state_dict:
            self.effect = self.measure(state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load whole weights with the model's own loader: on disk they have other names."""
        if hasattr(self.model, "peft_config") or self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        loaded = type(self.model).from_pretrained(resume_from_checkpoint, dtype=self.model.dtype)
        self.model.load_state_dict(loaded.state_dict())

    def _load_best_model(self) -> None:
        if hasattr(self.model, "peft_config") or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As Trainer's, with the answers' metric; samples go to ``state.log_history``."""
        metrics = super().evaluate(*args, **kwargs)
        name = f"the loss on eval_data after step {self.state.global_step}"
        self._check_finite(name, metrics["eval_loss"])
        results = self.examine()
        numbers = {name: value for name, value in results.items() if isinstance(value, float)}
        if others := {name: results[name] for name in results.keys() - numbers.keys()}:
            self.state.log_history.append({"step": self.state.global_step, **others})
        if numbers:
            self.log(numbers)
        return metrics | numbers


def _sum(weight: Any) -> float:
    """Of the part that is on this process; not finite if one of its values is not."""
    local = weight.detach().to_local() if hasattr(weight, "to_local") else weight.detach()
    return local.float().sum().item()


@contextmanager
def _writing(what: str, folder: Path) -> Iterator[None]:
    """A failure to write, such as a full disk, becomes one line."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save's is a RuntimeError
        why = f"{one_line(error)}; {byte_text(shutil.disk_usage(folder).free)} are free there"
        raise VlkitError(
            f"{what} cannot be written to {folder} ({why}); free some space and run it again with "
            "resume=True"
        ) from error


def is_spread(state: Any) -> bool:
    """Whether processes shard the weights (FSDP, DeepSpeed).

    Args:
        state: accelerate's ``PartialState``.

    Raises:
        VlkitError: FSDP on CPUs, where accelerate would silently not use it.
    """
    fsdp, deepspeed = map(parse_flag_from_env, ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))
    if fsdp and state.distributed_type.value == "MULTI_CPU":
        remedy = "on CPUs use --multi_gpu instead of --use_fsdp, or DeepSpeed"
        raise VlkitError(f"accelerate supports FSDP on GPUs only; {remedy}")
    return fsdp or deepspeed


def write_spread(trainer: Any, folder: Path) -> float:
    """Write sharded weights as a whole; called on every process.

    Returns:
        The largest change of them, as the trainer measures it.
    """
    if plugin := getattr(trainer.accelerator.state, "fsdp_plugin", None):
        plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))
    return broadcast_object_list([trainer.effect])[0]


@dataclass(frozen=True, eq=False)
class Task:
    """A checked training run.

    Attributes:
        vlm, data, held_out, folder: as for :func:`train`.
        parts: which layers are trained.
        lengths: of the rows, about.
        recipe: the run's arguments, as they are written into its folder.
        size: rows of a batch.
        options: the arguments of :func:`train`, by name.
    """

    vlm: VLM
    data: TrainingData
    held_out: TrainingData | None
    folder: Path
    parts: tuple[networks.Part, ...]
    lengths: Sequence[float]
    recipe: dict[str, Any]
    size: costs.BatchSize
    options: dict[str, Any]

    @property
    def trains_vision(self) -> bool:
        """Whether a layer of the vision encoder or merger is trained."""
        return any(part.modules for part in self.parts[1:])


def _run(task: Task, checkpoint: Path | None) -> LoraRun:
    """Train, in smaller batches where the GPU's memory runs out and batches may be divided."""
    is_first = os.environ.get("RANK", "0") == "0"
    with run_folder.only_writer(task.folder) if is_first else nullcontext():
        while True:
            try:
                return _run_once(task, checkpoint)
            except torch.cuda.OutOfMemoryError as error:
                smaller = task.size.smaller()
                if smaller is None:
                    remedy = "a smaller batch_size, gradient_checkpointing=True, or "
                    raise ModelError(
                        f"training {task.vlm.name} needs more than the GPU's memory; pass {remedy}"
                        "load(…, max_image_tokens=…)"
                    ) from error
            torch.cuda.empty_cache()
            task = replace(task, size=smaller)
            checkpoint = run_folder.last_checkpoint(task.folder, None)


def _run_once(task: Task, checkpoint: Path | None) -> LoraRun:
    recipe = task.recipe
    arguments = _training_arguments(task, is_resumed=checkpoint is not None)
    is_first = arguments.process_index == 0
    spread = is_spread(arguments.distributed_state)
    arguments.distributed_state.wait_for_everyone()  # all have looked at the folder before it fills
    if is_first:
        write_whole(task.folder / ARGUMENTS, json.dumps(recipe, indent=1) + "\n")
        if recipe["rank"] is not None:  # what a later resumption and load() compare
            if checkpoint is not None:
                check_base(checkpoint, task.vlm.model, task.vlm.folder)
            write_marks(task.vlm.model, task.folder)
    set_seed(recipe["seed"])
    with ExitStack() as stack:
        names = [name for part in task.parts for name in part.modules]
        layers = networks.trainable(task.vlm, names, recipe["rank"], recipe["alpha"])
        network, measure = stack.enter_context(layers)
        if not spread:
            stack.enter_context(networks.lean_layers(base_model(task.vlm)))
            stack.enter_context(networks.short_walks(network, base_model(task.vlm)))
        trainer = _make_trainer(task, arguments, network, measure, spread)
        stack.callback(trainer.train_dataset.close)
        prover = None
        if is_first and not spread:
            example = (task.held_out or task.data)[0]
            prover = run_folder.Prover(task.vlm, example, recipe["max_length"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        with _writing("the adapter" if recipe["rank"] else "the model", task.folder):
            effect = write_spread(trainer, task.folder) if spread else measure()
            if is_first and not spread:
                network.save_pretrained(task.folder)
            if is_first and recipe["rank"] is None:  # the rest of a model's folder
                task.vlm.processor.save_pretrained(task.folder)
        checks = None
        if prover is not None:
            before: dict[str, Any] = {}
            for entry in trainer.state.log_history:
                before |= entry if entry["step"] == 0 else {}
            checks = prover.check(task.folder, before, trainer.examine())
        run = run_folder.summarize(trainer.state, task.folder)
        return replace(run, effect=effect, checks=checks)


def _make_trainer(
    task: Task, arguments: TrainingArguments, network: Any, measure: Any, spread: bool
) -> VisionTrainer:
    vlm, size, world, recipe = task.vlm, task.size, arguments.world_size, task.recipe
    base = base_model(vlm)
    tower = None if task.trains_vision or spread else batches.FrozenTower(base)
    prepare = partial(batches.Examples, vlm, max_length=recipe["max_length"], tower=tower)
    examples = prepare(task.data, workers=_WORKERS if vlm.model.device.type == "cuda" else 0)
    asked = task.held_out if arguments.process_index == 0 and not spread else None
    pad = vlm.processor.tokenizer.pad_token_id
    lean: list[Any] = [] if spread else [partial(networks.lean_loss, base)]
    lean += [tower.replaced] if tower else []
    return VisionTrainer(
        network,
        arguments,
        data_collator=batches.Collator(pad, tower, base.model.get_rope_index),
        train_dataset=examples,
        eval_dataset=task.held_out and prepare(task.held_out),
        callbacks=list(task.options["callbacks"]),
        sampler=batches.LengthSampler(
            examples, task.lengths, size.rows * world, recipe["seed"],
            share=size.batch * world if world > 1 else 1,
        ),
        lean=lean,
        examine=Examiner(vlm, asked, task.options["metric"], task.options["samples"]),
        measure=measure,
    )  # fmt: skip


def _training_arguments(task: Task, *, is_resumed: bool) -> TrainingArguments:
    recipe, size, evaluates = task.recipe, task.size, task.held_out is not None
    rows = size.batch * int(os.environ.get("WORLD_SIZE", "1"))
    steps = costs.count_steps(len(task.data), rows, size.accumulation, recipe["epochs"])
    every = costs.checkpoint_every(steps, recipe["epochs"])
    names = ("activation_checkpointing", "gradient_checkpointing")  # of newer and older versions
    checkpointing = next(name for name in names if hasattr(TrainingArguments, name))
    arguments = TrainingArguments(
        output_dir=str(task.folder),
        num_train_epochs=recipe["epochs"],
        per_device_train_batch_size=size.batch,
        per_device_eval_batch_size=size.batch,
        gradient_accumulation_steps=size.accumulation,
        **({checkpointing: True} if task.options["gradient_checkpointing"] else {}),
        learning_rate=recipe["learning_rate"],
        lr_scheduler_type="cosine",
        logging_steps=max(1, steps // _LOGGED),
        save_steps=every,
        save_total_limit=2,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=every,
        eval_on_start=evaluates and not is_resumed,
        load_best_model_at_end=evaluates,
        logging_nan_inf_filter=False,  # training_step raises
        seed=recipe["seed"],
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        report_to=task.options["report_to"],
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

    Warns:
        UserWarning: the memory will not suffice, with a setting for which it does.
    """
    arguments = dict(locals())  # as they were passed
    with hooks.recording_training(arguments) as record:
        check_loaded(vlm)
        check_arguments(arguments)
        options = arguments | {"report_to": check_trackers(report_to)}
        folder = as_folder("output_dir", output_dir)
        data = as_data(data)
        held_out = as_data(eval_data, "eval_data", optional=True)
        recipe = {"model": vlm.name, "rows": len(data)} | {n: arguments[n] for n in _RECIPE} | {
            "alpha": 2 * rank if rank and alpha is None else alpha,
            "data": digest_rows(data), "eval_data": held_out and digest_rows(held_out),
        }  # fmt: skip
        parts = networks.plan_parts(vlm, target, rank)
        checkpoint = run_folder.last_checkpoint(folder, resume)
        if checkpoint is not None:
            run_folder.check_same(folder / ARGUMENTS, recipe)
        vlm = networks.quantized(vlm, quantize, rank)
        for rows in filter(None, (data, held_out) if max_length else ()):
            batches.measure_lengths(vlm, rows, max_length)
        lengths = batches.guess_lengths(vlm, data)
        cost: dict[str, Any] = {"rank": rank, "gradient_checkpointing": gradient_checkpointing}
        size = costs.choose_batch(vlm, parts, lengths, batch_size, gradient_accumulation, **cost)
        longest = int(max(lengths))
        row = longest, longest // 4, 4 * longest
        costs.estimate_batch(vlm, parts, size, row, **cost, quantize=None)
        task = Task(vlm, data, held_out, folder, parts, lengths, recipe, size, options)
        result = _run(task, checkpoint)
        record(result)
    return result
