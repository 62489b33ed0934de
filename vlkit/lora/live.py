"""Callbacks of a training: a curve that grows in the notebook, and a hand on pause and stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from transformers import ProgressCallback, TrainerCallback

from vlkit.lora.curves import Curves, curves_html, read_history

_TICK = 0.5  # seconds between two views


class LiveCurve(TrainerCallback):
    """Loss, metric and sample answers, shown anew while a model is trained.

    :func:`vlkit.lora.train` adds one in notebooks.

    Args:
        show: called with the run's :class:`vlkit.lora.curves.Curves`; by default they are shown
            below the cell.
    """

    def __init__(self, show: Callable[[Curves], None] | None = None):
        self._show = show or _Display()
        self._due = 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show them, if that has not just been done."""
        if time.monotonic() >= self._due or "eval_accuracy" in (logs or {}):
            self._draw(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show them to the end."""
        self._draw(state)

    def _draw(self, state: Any) -> None:
        if state.is_world_process_zero:
            self._show(read_history(state.log_history, state.max_steps))
            self._due = time.monotonic() + _TICK


class Steering(TrainerCallback):
    """Pause, go on, stop: from another thread, between two steps."""

    def __init__(self) -> None:
        self._going = threading.Event()
        self._going.set()
        self._stopped = False

    @property
    def paused(self) -> bool:
        """Whether it waits, or will after this step."""
        return not self._going.is_set()

    def pause(self) -> None:
        """Wait after this step."""
        self._going.clear()

    def go_on(self) -> None:
        """Wait no more."""
        self._going.set()

    def stop(self) -> None:
        """End after this step, with a checkpoint from which the run can be gone on with."""
        self._stopped = True
        self._going.set()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Do what was asked for."""
        self._going.wait()
        if self._stopped and state.global_step < state.max_steps:
            control.should_training_stop = control.should_save = True


class _Bar(ProgressCallback):
    """A bar on a terminal, but no line for every step."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""


class _Display:
    """A place below the cell that is running."""

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
    """A curve in a notebook and a bar on a terminal, instead of Trainer's line for every step."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(_Bar)
    for callback in list(trainer.callback_handler.callbacks):  # its module needs IPython
        if type(callback).__name__ == "NotebookProgressCallback":
            trainer.remove_callback(callback)
    shown = any(isinstance(each, LiveCurve) for each in trainer.callback_handler.callbacks)
    if in_notebook() and not shown:
        trainer.add_callback(LiveCurve)
