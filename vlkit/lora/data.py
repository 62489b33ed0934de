"""Conversations to learn from: read from any format, checked row by row, split without leaks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

from vlkit.errors import VlkitError
from vlkit.lora.checking import RowReader
from vlkit.lora.coordinates import CONVENTIONS, Text
from vlkit.lora.examples import Example
from vlkit.lora.problems import DataError, Problem, list_problems
from vlkit.lora.readers import FORMATS
from vlkit.lora.rows import open_rows
from vlkit.lora.splitting import split_rows
from vlkit.sources import local_path


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
