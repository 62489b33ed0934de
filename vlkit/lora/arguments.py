"""Checks of the arguments of ``train`` and ``inspect``."""

from __future__ import annotations

import os
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

from vlkit.errors import VlkitError, check_whole, is_number

BITS = ("4bit", "8bit")
_LARGEST_SEED = 2**32 - 1  # numpy's


def check_counts(
    batch_size: int | str, gradient_accumulation: int, epochs: float, max_length: int | None
) -> None:
    """Raises VlkitError for a number of rows, passes or tokens that is out of range."""
    check_whole("gradient_accumulation", gradient_accumulation, 1)
    check_whole("batch_size", 1 if batch_size == "auto" else batch_size, 1)
    check_whole("max_length", max_length, 1, optional=True)
    if not is_number(epochs) or epochs <= 0:
        raise VlkitError(f"epochs={epochs!r} must be a number above 0")


def check_recipe(learning_rate: float, alpha: float | None, seed: int, callbacks: Any) -> None:
    """Raises VlkitError for a rate, scale or seed out of range, or a wrong kind of callbacks."""
    if not is_number(learning_rate) or not 0 < learning_rate < 1:
        raise VlkitError(f"learning_rate={learning_rate!r} must be a number between 0 and 1")
    if alpha is not None and not (is_number(alpha) and alpha > 0):
        raise VlkitError(f"alpha={alpha!r} must be a number above 0, or None for twice the rank")
    check_whole("seed", seed, 0, _LARGEST_SEED)
    known = isinstance(callbacks, Sequence) and all(hasattr(c, "on_step_end") for c in callbacks)
    if not known:
        raise VlkitError(
            f"callbacks={callbacks!r:.60} must be a list of transformers' TrainerCallback"
        )


def check_bits(quantize: str | None) -> None:
    """Raises VlkitError for an unknown quantization."""
    if quantize not in (None, *BITS):
        raise VlkitError(f"quantize={quantize!r} is unknown; choose one of {list(BITS)}, or None")


def check_switches(**switches: bool) -> None:
    """Raises VlkitError for what is neither True nor False."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise VlkitError(f"{name}={value!r} must be True or False")


def check_rows(**data: Sized | None) -> None:
    """Raises VlkitError for data without a row."""
    for name, rows in data.items():
        if rows is not None and not len(rows):
            raise VlkitError(f"{name} has no rows; pass at least one conversation")


def as_folder(name: str, path: Any) -> Path:
    """An argument that names a folder to write to. Raises VlkitError for anything else."""
    is_name = isinstance(path, str | os.PathLike) and os.fspath(path)
    if not is_name or "\0" in os.fspath(path) or Path(path).expanduser().is_file():
        raise VlkitError(f"{name}={path!r} must be the path of a folder")
    return Path(path).expanduser()


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
            raise VlkitError(f"report_to={name!r} is not a tracker; choose one of {choices}")
        if name not in integration_utils.get_available_reporting_integrations():
            raise VlkitError(f"report_to={name!r} needs its package: pip install {name}")
    return names
