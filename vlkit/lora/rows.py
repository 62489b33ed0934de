"""Rows of files, tables and data sets, numbered, each as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vlkit.datasets.files import read_text
from vlkit.errors import VlkitError
from vlkit.lora.readers import detect_format
from vlkit.media import describe_source
from vlkit.sources import local_path
from vlkit.table_files import read_table


def open_rows(meta: Any) -> tuple[Iterator[tuple[int, Any]], str, Path | None]:
    """Numbered rows (an error where a line is no JSON), a name for messages, and the folder."""
    if isinstance(meta, str | os.PathLike):
        path = Path(local_path(meta))
        if os.path.isdir(path):
            raise VlkitError(f"{os.fspath(meta)!r} is no file; name the one that has the rows")
        if path.suffix.lower() in (".json", ".jsonl"):
            return _json_rows(path), describe_source(path.name), path.parent
        rows = _records(read_table(path)[0])
        return enumerate(rows, 1), describe_source(path.name), path.parent
    if hasattr(meta, "to_dict") and hasattr(meta, "columns"):
        return enumerate(_records(meta), 1), "DataFrame", None
    if hasattr(meta, "cast_column") and hasattr(meta, "features"):
        return enumerate(_undecoded(meta), 1), "Dataset", None
    if isinstance(meta, Mapping | bytes | bytearray) or not isinstance(meta, Iterable):
        raise VlkitError(f"expected a file, a table or rows, not {type(meta).__name__}")
    return enumerate(meta, 1), "conversations", None


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a list, of one object, or of lines."""
    text = read_text(path)
    whole = _parse(text)
    if isinstance(whole, list) and not (path.suffix.lower() == ".jsonl" and _is_talk(whole)):
        return enumerate(whole, 1)
    if isinstance(whole, dict):
        _check_row(path, whole)
        return iter([(1, whole)])
    lines = ((i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip())
    rows = ((i, _parse(line)) for i, line in lines)
    first = next(rows, None)
    if first is None:
        return rows
    by_lines = path.suffix.lower() == ".jsonl" and not text.lstrip().startswith("[")
    if isinstance(first[1], VlkitError) and not by_lines:
        raise VlkitError(
            f"{describe_source(path)} is neither a list of rows nor a row a line: {whole}"
        )
    return chain([first], rows)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return VlkitError(f"it is no JSON ({error})")


def _is_talk(rows: list) -> bool:
    """Whether a list is one conversation: messages, each with who speaks."""
    return bool(rows) and all(isinstance(r, dict) and r.keys() & {"role", "from"} for r in rows)


def _check_row(path: Path, whole: dict) -> None:
    try:
        detect_format(whole)
    except VlkitError as error:
        raise VlkitError(
            f"{describe_source(path)} is one object, not a list of rows; as a row it has {error}"
        ) from None


def _records(table: Any) -> list[dict]:
    return _lists(table.to_dict("records"))


def _lists(value: Any) -> Any:
    """Parquet's arrays of cells as lists; arrays of pixels stay."""
    if isinstance(value, np.ndarray) and (value.dtype == object or value.ndim == 1):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_lists(each) for each in value]
    return {key: _lists(each) for key, each in value.items()} if isinstance(value, dict) else value


def _undecoded(dataset: Any) -> Iterator[dict]:
    """A ``datasets.Dataset`` whose media stay files or bytes: they are decoded when needed."""
    for name, feature in (dataset.features or {}).items():  # of a stream they may be unknown
        inner = getattr(feature, "feature", feature)
        if type(inner).__name__ in ("Image", "Video"):
            raw = type(inner)(decode=False)
            dataset = dataset.cast_column(name, raw if inner is feature else type(feature)(raw))
    yield from dataset
