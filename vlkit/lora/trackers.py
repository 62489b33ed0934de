"""Trackers such as TensorBoard, which transformers' Trainer reports to."""

from __future__ import annotations

from collections.abc import Sequence

from vlkit.errors import VlkitError


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
