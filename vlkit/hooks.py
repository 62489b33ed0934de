"""How answers, batches, trainings, evaluations reach an open ``Run``.

Without an open run a hook costs one look at a context variable.
"""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from vlkit.errors import one_line

RUN_VARIABLE = "VLKIT_RUN"  # a run's folder, into which the whole process records
OPTIONS = ("max_new_tokens", "temperature", "top_p", "seed", "schema")

_thread_runs: ContextVar[tuple[Any, ...] | None] = ContextVar("vlkit_runs", default=None)
_main_runs: list[Any] = []  # opened in the main thread; other threads without a run use them
_kind: ContextVar[str | None] = ContextVar("vlkit_kind", default=None)


def open_runs() -> tuple[Any, ...]:
    """The runs into which this thread records."""
    runs = _thread_runs.get()
    if runs is None:
        runs = tuple(_main_runs)
    if path := os.environ.get(RUN_VARIABLE):
        from vlkit.records.recording import process_run

        runs = (process_run(path), *runs)
    return tuple(run for run in runs if not run.closed)


def enter(run: Any) -> None:
    """Record into ``run`` from now on: in this thread, and in the threads that it starts."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    outer = _thread_runs.get()
    if outer is None:
        outer = tuple(_main_runs) if in_main_thread else ()
    _thread_runs.set((*outer, run))
    if in_main_thread:
        _main_runs.append(run)


def leave(run: Any) -> None:
    """The opposite of :func:`enter`."""
    remaining = tuple(other for other in _thread_runs.get() or () if other is not run)
    _thread_runs.set(remaining or None)
    if run in _main_runs:
        _main_runs.remove(run)


@contextmanager
def as_kind(kind: str) -> Iterator[None]:
    """Calls in this block are recorded as ``kind``, such as a chat's turn or a setting's name."""
    token = _kind.set(kind)
    try:
        yield
    finally:
        _kind.reset(token)


def notify(runs: Sequence[Any], method: str, *args: Any, **kwargs: Any) -> None:
    """Call a method of each run; an error there becomes a warning and never ends the work."""
    for run in runs:
        try:
            getattr(run, method)(*args, **kwargs)
        except Exception as error:
            line = one_line(error)
            warnings.warn(f"run {run.name!r} could not record this: {line}", stacklevel=3)


def answer_recorder(
    kind: str, vlm: Any, messages: Any, options: Mapping[str, Any]
) -> Callable[[Any], None]:
    """A function that records the Reply, or the error that ended the call, in the open runs."""
    runs, kind = open_runs(), _kind.get() or kind
    if not runs:
        return _ignore
    given = {name: options[name] for name in OPTIONS if name in options}
    greedy = {"temperature": 0.0, "top_p": 1.0}  # which transformers' options have as None
    recorded = {n: greedy.get(n) if value is None else value for n, value in given.items()}
    return lambda result: notify(runs, "add_answer", kind, vlm, messages, recorded, result)


@contextmanager
def recording(
    kind: str, vlm: Any, messages: Any, options: Mapping[str, Any]
) -> Iterator[Callable[[Any], None]]:
    """Record one answer: call what the block is given with the Reply; an error records itself."""
    record = answer_recorder(kind, vlm, messages, options)
    try:
        yield record
    except BaseException as error:
        record(error)
        raise


def row_recorder(
    vlm: Any, conversations: Sequence[Any], options: Mapping[str, Any], batch_size: Any
) -> Callable[[int, Any], None]:
    """A function that records a batch's row, by its index and result, in the open runs."""
    runs = open_runs()
    if not runs:
        return _ignore
    facts = {"batch": time.time_ns(), "batch_size": batch_size}
    facts |= {"setting": setting} if (setting := _kind.get()) else {}

    def record(index: int, result: Any) -> None:
        seed = options["seed"]
        row_options = options if seed is None else {**options, "seed": seed + index}
        row = conversations[index]
        notify(runs, "add_answer", "batch", vlm, row, row_options, result, index=index, **facts)

    return record


@contextmanager
def recording_training(arguments: Mapping[str, Any]) -> Iterator[Callable[[Any], None]]:
    """Record a training's start, then its LoraRun, with which the block calls what it is given."""
    runs = open_runs()
    notify(runs, "add_training", arguments, None)
    try:
        with as_kind("training"):
            yield lambda result: notify(runs, "add_training", arguments, result)
    except BaseException as error:
        notify(runs, "add_training", arguments, error)
        raise


def record_evaluation(evaluation: Any) -> None:
    """Record an Evaluation's metrics in the open runs."""
    notify(open_runs(), "add_evaluation", evaluation, _kind.get() or "")


def _ignore(*results: Any) -> None:
    return None
