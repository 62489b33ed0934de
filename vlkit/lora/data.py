"""Rows of files, tables and data sets, numbered, each as it is."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np

from vlkit.datasets.tables import read_table
from vlkit.errors import VlkitError
from vlkit.files import read_text
from vlkit.lora.checking import DataError, Problem, RowReader, list_problems
from vlkit.lora.example import CONVENTIONS, Example, Text
from vlkit.lora.readers import FORMATS, detect_format
from vlkit.lora.split import split_rows
from vlkit.media.image import describe_source
from vlkit.media.sources import local_path


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


class TrainingData(Sequence[Example]):
    """Checked conversations; made by :func:`load_conversations`.

    Attributes:
        name: what they were read from.
        problems: of the rows that were left out (``strict=False``).
    """

    def __init__(self, name: str, examples: Sequence[Example], problems: Sequence[Problem] = ()):
        self.name, self._examples, self.problems = name, list(examples), tuple(problems)

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> TrainingData: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return TrainingData(self.name, self._examples[index])
        return self._examples[index]

    def __repr__(self) -> str:
        pictures = sum(len(example.media) for example in self)
        dropped = len({problem.row for problem in self.problems})
        left_out = f", {dropped:,} rows left out" if dropped else ""
        return f"TrainingData({self.name}: {len(self):,} rows, {pictures:,} media{left_out})"

    def split(
        self, evaluation: float | int = 0.1, *, seed: int = 0
    ) -> tuple[TrainingData, TrainingData]:
        """Rows for training and for evaluation; no picture, by its pixels, is on both sides.

        Rows that share a picture or clip stay together, so that the evaluation may get fewer rows
        than asked. Each side keeps the source's order.

        Args:
            evaluation: the share of rows, below 1, or their number.
            seed: the same one gives the same split.

        Raises:
            VlkitError: pictures link all rows, or nothing would be left on one side.
            MediaError: a picture that cannot be read.
        """
        sides = split_rows([example.media for example in self], evaluation, seed, self._texts())
        chosen = [[self[i] for i in side] for side in sides]
        return TrainingData(self.name, chosen[0]), TrainingData(self.name, chosen[1])

    def _texts(self) -> list[str]:
        return [
            "\n".join(p.raw for _, parts in e.turns for p in parts if isinstance(p, Text))
            for e in self
        ]


def load_conversations(
    meta: Any,
    image_dir: str | os.PathLike | None = None,
    *,
    format: str = "auto",
    boxes: str | None = "auto",
    max_image_tokens: int | None = None,
    strict: bool = True,
) -> TrainingData:
    """Read conversations to learn from.

    | format | a row |
    |---|---|
    | ``pai`` | ``conversations`` of ``from`` and ``value``, ``<img>file</img>`` in the text |
    | ``llava`` | ``conversations``, ``<image>`` in the text, files under ``image`` or ``images`` |
    | ``ms-swift`` | ``messages``, ``<image>`` in the text, ``images``, ``objects`` |
    | ``messages`` | ``messages`` of the transformers chat format |
    | ``table`` | columns for picture, question and answer |

    Every file of a picture is decoded once, and of each clip the first frame, so that a damaged one
    is a problem here and not in the middle of training. On two shared cores this took 6 to 9 s for
    20,000 PNGs of 64 × 64; of 640 × 480, 1 to 2 ms a JPEG and 10 to 17 a PNG of noise. URLs are not
    fetched.

    Newlines that set a picture's tag off are left out: :func:`vlkit.user` has none. Pictures that
    no tag places stand before the first question.

    Args:
        meta: a ``.json``, ``.jsonl``, ``.csv`` or ``.parquet`` file, a DataFrame, a
            ``datasets.Dataset``, or any rows (dicts, or lists of messages).
        image_dir: the folder with the pictures, by default that of the file. An absolute path that
            is not here, as of another machine, is looked for in it by its base name.
        format: of the table above; ``auto`` tells it row by row.
        boxes: whose convention coordinates in the texts follow: a family, ``ms-swift``, or
            ``auto``, which knows tags and ``objects`` (JSON has to be named, since it may be of
            several families); None leaves the texts as they are.
        max_image_tokens: to which the source's model was limited; it counts for ``qwen2_5_vl``.
        strict: with False, rows with problems are left out and reported as a warning.

    Returns:
        A sized sequence of :class:`Example`.

    Raises:
        DataError: every problem with its row: a picture that is missing, unbalanced tags, roles
            out of order, an empty answer, a box without area or outside its picture …
        VlkitError: a wrong argument, or a file that cannot be read.
    """
    check_choice("format", format, ("auto", *FORMATS))
    check_choice("boxes", boxes, ("auto", None, *CONVENTIONS))
    check_choice("strict", strict, (True, False))
    check_limit(max_image_tokens)
    places = [_picture_folder(image_dir)] if image_dir is not None else []
    rows, name, folder = open_rows(meta)
    reader = RowReader(format, boxes, max_image_tokens, [*places, *([folder] if folder else [])])
    examples = reader.read(rows)
    if reader.problems and strict:
        raise DataError(name, reader.problems)
    if reader.problems:
        warnings.warn(f"left out of {list_problems(name, reader.problems)}", stacklevel=2)
    if not examples:
        raise VlkitError(f"{name} holds no conversation that can be learnt from")
    return TrainingData(name, examples, reader.problems)


def as_data(data: Any) -> TrainingData:
    """The data itself, or anything else that :func:`load_conversations` reads."""
    return data if isinstance(data, TrainingData) else load_conversations(data)


def _picture_folder(image_dir: Any) -> Path:
    if isinstance(image_dir, str | os.PathLike) and os.path.isdir(local_path(image_dir)):
        return Path(local_path(image_dir))
    raise VlkitError(f"image_dir={image_dir!r:.200} is no folder; check the path")


def check_choice(name: str, value: Any, choices: Iterable) -> None:
    """Raises VlkitError for a value that is none of the choices, and of their kind."""
    if not any(type(value) is type(each) and value == each for each in choices):
        raise VlkitError(f"{name}={value!r:.60} is unknown; choose one of {list(choices)}")


def check_limit(max_image_tokens: Any) -> None:
    """Raises VlkitError for what is no limit of tokens."""
    if max_image_tokens is not None and (type(max_image_tokens) is not int or max_image_tokens < 1):
        raise VlkitError(
            f"max_image_tokens={max_image_tokens!r} must be a whole number, 1 or more, or None"
        )
