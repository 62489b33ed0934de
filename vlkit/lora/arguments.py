"""What :func:`train` and :func:`inspect` are called with, checked before anything is done."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

from vlkit.errors import VlkitError

BITS = ("4bit", "8bit")


_SEEDS = 2**32  # numpy's are below


def check_counts(
    batch_size: int | str, gradient_accumulation: int, epochs: float, max_length: int | None
) -> None:
    """Raises VlkitError for a number of rows, passes or tokens that makes no sense."""
    counts: dict[str, Any] = {"gradient_accumulation": gradient_accumulation}
    counts |= {} if batch_size == "auto" else {"batch_size": batch_size}
    counts |= {} if max_length is None else {"max_length": max_length}
    for name, value in counts.items():
        if not _is_number(value, int) or value < 1:
            raise VlkitError(f"{name}={value!r} must be a whole number, 1 or more")
    if not _is_number(epochs) or not 0 < epochs < math.inf:
        raise VlkitError(f"epochs={epochs!r} must be a number above 0")


def check_recipe(learning_rate: float, alpha: float | None, seed: int, callbacks: Any) -> None:
    """Raises VlkitError for a rate, scale or seed out of range, or callbacks that are none."""
    if not _is_number(learning_rate) or not 0 < learning_rate < 1:
        raise VlkitError(f"learning_rate={learning_rate!r} must be a number between 0 and 1")
    if alpha is not None and not (_is_number(alpha) and 0 < alpha < math.inf):
        raise VlkitError(f"alpha={alpha!r} must be a number above 0, or None for twice the rank")
    if not _is_number(seed, int) or not 0 <= seed < _SEEDS:
        raise VlkitError(f"seed={seed!r} must be a whole number from 0 to {_SEEDS - 1:,}")
    known = isinstance(callbacks, Sequence) and all(hasattr(c, "on_step_end") for c in callbacks)
    if not known:
        raise VlkitError(
            f"callbacks={callbacks!r:.60} must be a list of transformers' TrainerCallback"
        )


def check_bits(quantize: str | None) -> None:
    """Raises VlkitError for weights of a size that they cannot have."""
    if quantize not in (None, *BITS):
        raise VlkitError(f"quantize={quantize!r} is unknown; choose one of {list(BITS)}, or None")


def check_switches(**switches: bool) -> None:
    """Raises VlkitError for what is neither on nor off."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise VlkitError(f"{name}={value!r} must be True or False")


def check_rows(**data: Sized | None) -> None:
    """Raises VlkitError for data without a row."""
    for name, rows in data.items():
        if rows is not None and not len(rows):
            raise VlkitError(f"{name} holds no rows; give it at least one conversation")


def as_folder(name: str, path: Any) -> Path:
    """An argument that names a folder to write to. Raises VlkitError for what cannot be one."""
    fits = isinstance(path, str | os.PathLike) and os.fspath(path)
    if not fits or "\0" in os.fspath(path) or Path(path).expanduser().is_file():
        raise VlkitError(f"{name}={path!r} must be the path of a folder")
    return Path(path).expanduser()


def _is_number(value: Any, kind: Any = int | float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def check_trackers(report_to: str | Sequence[str] | None) -> list[str]:
    """The trackers' names. Raises VlkitError where one is unknown or not installed."""
    if report_to is not None and not isinstance(report_to, str | list | tuple):
        raise VlkitError(f"report_to={report_to!r:.60} must be a tracker's name, or a list of them")
    names = [report_to] if isinstance(report_to, str) else list(report_to or ())
    if not names or names in (["none"], ["all"]):
        return names or ["none"]
    from transformers.integrations import integration_utils

    known = integration_utils.INTEGRATION_TO_CALLBACK
    for name in names:
        if name not in known:
            choices = ["none", "all", *sorted(known)]
            raise VlkitError(f"report_to={name!r} is no tracker; choose of {choices}")
        if name not in integration_utils.get_available_reporting_integrations():
            raise VlkitError(f"report_to={name!r} needs its package: pip install {name}")
    return names
