"""The Trainer and its callbacks: bar, live curve, pause and stop."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, Trainer, TrainerCallback

from vlkit.errors import VlkitError
from vlkit.lora.batches import FrozenTower, LengthSampler
from vlkit.lora.curves import Curves, curves_html, read_history

_TICK = 0.5  # seconds between two drawings, at least
_SHARE = 0.05  # of the time that drawing may take


class LiveCurve(TrainerCallback):
    """Loss, metric and sample answers, redrawn while a model is trained.

    Drawing takes at most a twentieth of the time: on a slow machine it is done less often.

    :func:`vlkit.lora.train` adds one in notebooks.

    Args:
        show: called with the run's :class:`vlkit.lora.curves.Curves`; by default they are shown
            below the cell.
    """

    def __init__(self, show: Callable[[Curves], None] | None = None):
        self._show = show or _Display()
        self._due = 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Draw, unless that was just done."""
        if time.monotonic() >= self._due or "eval_accuracy" in (logs or {}):
            self._draw(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Draw the end."""
        self._draw(state)

    def _draw(self, state: Any) -> None:
        if state.is_world_process_zero:
            start = time.monotonic()
            self._show(read_history(state.log_history, state.max_steps))
            end = time.monotonic()
            self._due = end + max(_TICK, (end - start) / _SHARE)


class Steering(TrainerCallback):
    """Pause, resume, stop: from another thread, between two steps."""

    def __init__(self) -> None:
        self._running = threading.Event()
        self._running.set()
        self._stopped = False

    @property
    def paused(self) -> bool:
        """Whether it waits, or will after this step."""
        return not self._running.is_set()

    def pause(self) -> None:
        """Wait after this step."""
        self._running.clear()

    def resume(self) -> None:
        """Continue after a pause."""
        self._running.set()

    def stop(self) -> None:
        """End after this step, with a checkpoint from which the run can be resumed."""
        self._stopped = True
        self._running.set()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait while paused, or stop."""
        self._running.wait()
        if self._stopped and state.global_step < state.max_steps:
            control.should_training_stop = control.should_save = True


class _Bar(ProgressCallback):
    """A progress bar on a terminal, without a line for every step."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""


class _Display:
    """Shows curves below the cell that is running."""

    def __init__(self) -> None:
        self._handle: Any = None

    def __call__(self, curves: Curves) -> None:
        from IPython.display import HTML, display

        view = HTML(curves_html({"run": curves}))
        if self._handle is None:
            self._handle = display(view, display_id=True)
        else:
            self._handle.update(view)


def in_notebook() -> bool:
    """Whether the code runs in a Jupyter kernel."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def show_progress(trainer: Any) -> None:
    """Curves in a notebook and a bar on a terminal, instead of Trainer's line for every step."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(_Bar)
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "NotebookProgressCallback":  # its module needs IPython
            trainer.remove_callback(callback)
    live = any(isinstance(c, LiveCurve) for c in trainer.callback_handler.callbacks)
    if in_notebook() and not live:
        trainer.add_callback(LiveCurve)


def is_spread(state: Any) -> bool:
    """Whether processes shard the weights (FSDP, DeepSpeed).

    Args:
        state: accelerate's ``PartialState``.

    Raises:
        VlkitError: FSDP on CPUs, where accelerate would silently not use it.
    """
    fsdp, deepspeed = map(_is_set, ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))
    if fsdp and state.distributed_type.value == "MULTI_CPU":
        raise VlkitError(
            "accelerate supports FSDP on GPUs only; on CPUs use --multi_gpu instead of --use_fsdp, "
            "or DeepSpeed"
        )
    return fsdp or deepspeed


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def write_spread(trainer: Any, folder: Path) -> float:
    """Write sharded weights as a whole; called on every process.

    Returns:
        The largest change of them, as the trainer measures it.
    """
    from accelerate.utils import broadcast_object_list

    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))
    return broadcast_object_list([trainer.effect])[0]


# it warns of a faulty filesystem where checkpoints are within a second of each other
logging.getLogger("transformers.trainer_utils").addFilter(
    lambda record: "mtime" not in str(record.msg)
)


class VisionTrainer(Trainer):
    """A Trainer whose batches have features of pictures, and which asks the model questions.

    Args:
        sampler: of the training rows.
        tower: whose features are in the batches, or None.
        examine: called after each evaluation; its result is logged: numbers like Trainer's
            metrics, anything else in ``state.log_history`` only.
        measure: the largest change of weights, given by their names.

    Attributes:
        effect: the largest change when sharded weights were last written, on the first process.
    """

    def __init__(
        self,
        *args: Any,
        sampler: LengthSampler,
        tower: FrozenTower | None,
        examine: Callable[[], dict[str, Any]],
        measure: Callable[[Mapping[str, Any]], float],
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        # a loss is the mean over an update's trained tokens, in however many batches they come
        self.model_accepts_loss_kwargs = True
        self.sampler, self.tower, self.examine = sampler, tower, examine
        self.measure, self.effect = measure, 0.0
        show_progress(self)

    def _get_train_sampler(self, *_: Any) -> Any:
        return self.sampler

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's."""
        with self.tower.replaced() if self.tower else nullcontext():
            return super().compute_loss(*args, **kwargs)

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
        results = self.examine()
        numbers = {name: value for name, value in results.items() if isinstance(value, float)}
        others = {name: value for name, value in results.items() if name not in numbers}
        if others:
            self.state.log_history.append({"step": self.state.global_step, **others})
        if numbers:
            self.log(numbers)
        return metrics | numbers
