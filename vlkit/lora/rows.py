"""Rows of files, tables and data sets, numbered, each as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlkit.datasets.files import read_text
from vlkit.errors import VlkitError
from vlkit.sources import local_path
from vlkit.table_files import read_table


def open_rows(meta: Any) -> tuple[Iterator[tuple[int, Any]], str, Path | None]:
    """Numbered rows (an error where a line is no JSON), a name for messages, and the folder."""
    if isinstance(meta, str | os.PathLike):
        path = Path(local_path(meta))
        if path.suffix.lower() in (".json", ".jsonl"):
            return _json_rows(path), path.name, path.parent
        return enumerate(_records(read_table(path)[0]), 1), path.name, path.parent
    if hasattr(meta, "to_dict") and hasattr(meta, "columns"):
        return enumerate(_records(meta), 1), "DataFrame", None
    if hasattr(meta, "cast_column") and hasattr(meta, "features"):
        return enumerate(_undecoded(meta), 1), "Dataset", None
    if isinstance(meta, Mapping) or not isinstance(meta, Iterable):
        raise VlkitError(f"expected a file, a table or rows, not {type(meta).__name__}")
    return enumerate(meta, 1), "conversations", None


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
        except (ValueError, RecursionError) as error:
            raise VlkitError(f"{path} is no JSON: {error}") from None
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, VlkitError(f"it is no JSON ({error})")


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
    """A ``datasets.Dataset`` whose pictures stay files or bytes: they are decoded when needed."""
    for name, feature in dataset.features.items():
        inner = getattr(feature, "feature", feature)
        if type(inner).__name__ == "Image":
            raw = type(inner)(decode=False)
            dataset = dataset.cast_column(name, raw if inner is feature else type(feature)(raw))
    yield from dataset
