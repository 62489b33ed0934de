"""Checks of the arguments of ``lora``'s functions."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlkit.errors import VlkitError, check_choice, check_whole, is_number

METRICS = ("auto", "exact", "iou", None)
_LARGEST_SEED = 2**32 - 1  # numpy's


def _check_number(
    name: str, value: Any, most: float = math.inf, *, note: str = "above 0", optional: bool = False
) -> None:
    if not (optional and value is None) and not (is_number(value) and 0 < value < most):
        raise VlkitError(f"{name}={value!r} must be a number {note}")


def _check_callbacks(name: str, value: Any) -> None:
    if not isinstance(value, Sequence) or not all(hasattr(c, "on_step_end") for c in value):
        raise VlkitError(f"{name}={value!r:.60} must be a list of transformers' TrainerCallback")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "batch_size": lambda name, value: check_whole(name, 1 if value == "auto" else value, 1),
    "gradient_accumulation": partial(check_whole, least=1),
    "gradient_checkpointing": partial(check_choice, choices=(True, False)),
    "epochs": _check_number,
    "learning_rate": partial(_check_number, most=1, note="between 0 and 1"),
    "alpha": partial(_check_number, note="above 0, or None for twice the rank", optional=True),
    "quantize": partial(check_choice, choices=("4bit", "8bit", None)),
    "max_length": partial(check_whole, least=1, optional=True),
    "metric": partial(check_choice, choices=METRICS),
    "samples": check_whole,
    "seed": partial(check_whole, most=_LARGEST_SEED),
    "resume": partial(check_choice, choices=(True, False)),
    "callbacks": _check_callbacks,
}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises VlkitError for a value of ``train`` or ``inspect`` that is out of range.

    Args:
        arguments: by name.
    """
    for name, value in arguments.items():
        if name in _CHECKS:
            _CHECKS[name](name, value)


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
    from transformers.integrations import integration_utils

    known = sorted(integration_utils.INTEGRATION_TO_CALLBACK)
    for name in names if names not in (["none"], ["all"]) else ():
        if name not in known:
            choices = ["none", "all", *known]
            raise VlkitError(f"report_to={name!r} is not a tracker; choose one of {choices}")
        if name not in integration_utils.get_available_reporting_integrations():
            raise VlkitError(f"report_to={name!r} needs its package: pip install {name}")
    return names or ["none"]
