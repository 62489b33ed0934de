"""Answers, trainings and values as plain data, for a line of the file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from vlkit.records.facts import adapter_facts
from vlkit.replies import Failure
from vlkit.rows import record_of

_CURVES = ("losses", "evaluations", "metrics", "samples")


def answer_facts(result: Any) -> dict[str, Any]:
    """What the line of an answer holds of a Reply, a Failure or an error."""
    if isinstance(result, BaseException):
        text = str(result) or "it was interrupted"
        result = Failure(text.splitlines()[0], type(result).__name__)
    facts = {k: v for k, v in record_of(result, 0, "").items() if k not in ("key", "index")}
    if isinstance(result, Failure):
        return {"error": facts["error"], "error_kind": facts["kind"]}
    cost = getattr(result, "cost", None)
    tokens = list(result.tokens) or None
    return facts | {"tokens": tokens} | ({} if cost is None else {"cost": cost})


def training_facts(run: Any) -> dict[str, Any]:
    """What came of a training: its curves, and the adapter with the hash of its weights."""
    facts = {name: getattr(run, name, None) for name in ("steps", "finished", "effect", "seconds")}
    curves = {name: getattr(run, name, ()) for name in _CURVES}
    return facts | curves | {"adapter": adapter_facts(str(run.output_dir))}


def plain_value(value: Any) -> Any:
    """An argument as it can be read again; of what cannot, what it is."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not hasattr(value, "__len__"):
        return type(value).__name__
    return f"{type(value).__name__} of {len(value):,} rows" if len(value) else None


def plain(value: Any) -> Any:
    """Values for JSON: what is no number is None, what is of another type its text."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(each) for each in value]
    return plain(value.item()) if hasattr(value, "item") else str(value)


def digest(content: Any) -> str:
    """A short hash of plain values."""
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def line_of(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
