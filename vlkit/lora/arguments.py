"""Checks of the arguments of ``lora``'s functions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlkit.errors import VlkitError, check_whole, is_number

METRICS = ("auto", "exact", "iou", None)
_QUANTIZATIONS = ("4bit", "8bit", None)
_LARGEST_SEED = 2**32 - 1  # numpy's


def check_choice(name: str, value: Any, choices: Iterable) -> None:
    """Raises VlkitError for a value that is not one of the choices, type included."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise VlkitError(f"{name}={value!r:.60} is unknown; choose one of {list(choices)}")


def check_plan(
    *,
    batch_size: Any,
    gradient_accumulation: Any,
    gradient_checkpointing: Any,
    epochs: Any,
    max_length: Any,
    quantize: Any,
    metric: Any,
    samples: Any,
) -> None:
    """Raises VlkitError for an argument, of ``inspect`` and ``train``, that is out of range."""
    check_whole("gradient_accumulation", gradient_accumulation, 1)
    check_whole("batch_size", 1 if batch_size == "auto" else batch_size, 1)
    check_whole("max_length", max_length, 1, optional=True)
    check_whole("samples", samples)
    if not is_number(epochs) or epochs <= 0:
        raise VlkitError(f"epochs={epochs!r} must be a number above 0")
    check_choice("gradient_checkpointing", gradient_checkpointing, (True, False))
    check_choice("quantize", quantize, _QUANTIZATIONS)
    check_choice("metric", metric, METRICS)


def check_recipe(learning_rate: Any, alpha: Any, seed: Any, callbacks: Any, resume: Any) -> None:
    """Raises VlkitError for an argument, of ``train`` alone, that is out of range."""
    if not is_number(learning_rate) or not 0 < learning_rate < 1:
        raise VlkitError(f"learning_rate={learning_rate!r} must be a number between 0 and 1")
    if alpha is not None and not (is_number(alpha) and alpha > 0):
        raise VlkitError(f"alpha={alpha!r} must be a number above 0, or None for twice the rank")
    check_whole("seed", seed, 0, _LARGEST_SEED)
    if not isinstance(callbacks, Sequence) or not all(hasattr(c, "on_step_end") for c in callbacks):
        raise VlkitError(
            f"callbacks={callbacks!r:.60} must be a list of transformers' TrainerCallback"
        )
    check_choice("resume", resume, (True, False))


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
