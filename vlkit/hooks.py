"""Where answers, batches and trainings tell the open runs of ``vlkit.records`` about themselves.

Without an open run a hook costs a look at a context variable.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

RUN_VARIABLE = "VLKIT_RUN"  # a run's folder, into which the whole process records


OPTIONS = ("max_new_tokens", "temperature", "top_p", "seed")


P = ParamSpec("P")


V = TypeVar("V")


_own: ContextVar[tuple[Any, ...] | None] = ContextVar("vlkit_runs", default=None)


_kind: ContextVar[str | None] = ContextVar("vlkit_kind", default=None)


_shared: list[Any] = []  # of the main thread; threads without a run of their own take part in them


def open_runs() -> tuple[Any, ...]:
    """The runs into which this thread records."""
    own = _own.get()
    runs = tuple(_shared) if own is None else own
    if os.environ.get(RUN_VARIABLE):
        from vlkit.records.run import process_run

        runs = (*process_run(), *runs)
    return tuple(run for run in runs if not run.closed)


def enter(run: Any) -> None:
    """Record into ``run`` from here on: in this thread, and in threads that follow it."""
    main = threading.current_thread() is threading.main_thread()
    own = _own.get()
    outer = own if own is not None else tuple(_shared) if main else ()
    _own.set((*outer, run))
    if main:
        _shared.append(run)


def leave(run: Any) -> None:
    """The opposite of :func:`enter`."""
    own = tuple(each for each in _own.get() or () if each is not run)
    _own.set(own or None)
    if run in _shared:
        _shared.remove(run)


@contextmanager
def as_kind(kind: str) -> Iterator[None]:
    """Calls within are noted as ``kind``, such as a chat's turn or a setting that is compared."""
    token = _kind.set(kind)
    try:
        yield
    finally:
        _kind.reset(token)


def begin(kind: str, vlm: Any, messages: Any, options: Mapping[str, Any]) -> Callable[[Any], None]:
    """To be called with the Reply, or the error that came instead of one."""
    runs, kind = open_runs(), _kind.get() or kind
    if not runs:
        return _nothing
    asked = {name: options[name] for name in OPTIONS if name in options}
    asked = {k: {"temperature": 0.0, "top_p": 1.0}.get(k) if v is None else v for k, v in
             asked.items()}  # fmt: skip

    def note(result: Any) -> None:
        tell(runs, "add_answer", kind, vlm, messages, asked, result)

    return note


def tell(runs: tuple[Any, ...], method: str, *facts: Any, **more: Any) -> None:
    """Call a method of each run; what goes wrong there is a warning, and never ends the work."""
    for run in runs:
        try:
            getattr(run, method)(*facts, **more)
        except Exception as error:
            line = (str(error) or repr(error)).splitlines()[0]
            warnings.warn(f"run {run.name!r} could not record this: {line}", stacklevel=3)


def answered(function: Callable[P, V]) -> Callable[P, V]:
    """A function of ``(vlm, messages, …options)`` that gives a Reply, noted in the open runs."""

    def call(given: inspect.BoundArguments, runs: tuple) -> V:
        asked = given.arguments
        note = begin("generate", asked["vlm"], asked["messages"], asked)
        try:
            reply = function(*given.args, **given.kwargs)
        except BaseException as error:
            note(error)
            raise
        note(reply)
        return reply

    return _hooked(function, call)


def batched(function: Callable[P, V]) -> Callable[P, V]:
    """``generate_batch``: each row is noted as it finishes, those of an earlier call as well."""

    def call(given: inspect.BoundArguments, runs: tuple) -> V:
        asked = given.arguments
        vlm, conversations, on_result = asked["vlm"], asked["conversations"], asked["on_result"]
        options = {name: asked[name] for name in OPTIONS}
        batch = {"batch": time.time_ns(), "batch_size": asked["batch_size"]}
        batch |= {"setting": setting} if (setting := _kind.get()) else {}
        seed = options["seed"]

        def take(index: int, result: Any) -> None:
            own = options if seed is None else options | {"seed": seed + index}
            row, facts = conversations[index], batch | {"index": index}
            tell(runs, "add_answer", "batch", vlm, row, own, result, **facts)
            if on_result is not None:
                on_result(index, result)

        given.arguments["on_result"] = take
        with as_kind("agreement"):  # rows asked again alone
            results = function(*given.args, **given.kwargs)
        tell(runs, "add_batch", batch, vlm, getattr(results, "report", None))
        return results

    return _hooked(function, call)


def trained(function: Callable[P, V]) -> Callable[P, V]:
    """``lora.train``: noted when it begins and when it ends."""

    def call(given: inspect.BoundArguments, runs: tuple) -> V:
        tell(runs, "add_training", given.arguments, None)
        try:
            with as_kind("training"):
                result = function(*given.args, **given.kwargs)
        except BaseException as error:
            tell(runs, "add_training", given.arguments, error)
            raise
        tell(runs, "add_training", given.arguments, result)
        return result

    return _hooked(function, call)


def measured(function: Callable[P, V]) -> Callable[P, V]:
    """``evaluate_grounding``: its metrics are noted."""

    def call(given: inspect.BoundArguments, runs: tuple) -> V:
        evaluation = function(*given.args, **given.kwargs)
        tell(runs, "add_evaluation", evaluation, _kind.get() or "")
        return evaluation

    return _hooked(function, call)


def _hooked(function: Callable[P, V], call: Callable[..., V]) -> Callable[P, V]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> V:
        runs = open_runs()
        if not runs:
            return function(*args, **kwargs)
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # says what is wrong in Python's own words
        given.apply_defaults()
        return call(given, runs)

    return wrapper


def _nothing(result: Any) -> None:
    return None
