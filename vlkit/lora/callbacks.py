"""Callbacks of a training run: LiveCurve, the bar on a terminal, Steering (pause and stop)."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

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
        """Draw, and choose when the next drawing is due by how long this one took."""
        if state.is_world_process_zero:
            start = time.monotonic()
            self._show(read_history(state.log_history, state.max_steps))
            end = time.monotonic()
            self._due = end + max(_TICK, (end - start) / _SHARE)


class Steering(TrainerCallback):
    """Pause, resume, stop: from another thread, between two steps.

    Args:
        show: called after each step with its number and that of all steps.
    """

    def __init__(self, show: Callable[[int, int], None] = lambda step, steps: None) -> None:
        self._show = show
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
        """Show the step, wait while paused, or stop."""
        self._show(state.global_step, state.max_steps)
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
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


def show_progress(trainer: Any) -> None:
    """Curves in a notebook and a bar on a terminal, instead of Trainer's line for every step."""
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(_Bar)
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "NotebookProgressCallback":  # its module needs IPython
            trainer.remove_callback(callback)
    live = any(isinstance(c, LiveCurve) for c in trainer.callback_handler.callbacks)
    if in_notebook() and not live:
        trainer.add_callback(LiveCurve)
