"""``load_conversations``: a source as ``TrainingData``; its split."""

from __future__ import annotations

import hashlib
import json
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np

from vlkit.batch.journal import hash_medium
from vlkit.datasets.tables import read_table
from vlkit.errors import VlkitError, check_choice, check_whole, counted, is_number
from vlkit.files import read_text
from vlkit.lora import training_rows
from vlkit.lora.training_rows import Example, Problem
from vlkit.media.image import Image, describe_source, load_image, pixel_hash
from vlkit.media.sources import is_remote, local_path
from vlkit.messages import read_media_item


def open_rows(meta: Any) -> tuple[Iterator[tuple[int, Any]], str, Path | None]:
    """Numbered rows (an error for a line that is not JSON), a name for messages, the folder."""
    if isinstance(meta, str | os.PathLike):
        path = Path(local_path(meta))
        if os.path.isdir(path):
            raise VlkitError(f"{os.fspath(meta)!r} is a folder; name the file with the rows")
        if path.suffix.lower() in (".json", ".jsonl"):
            return _json_rows(path), describe_source(path.name), path.parent
        return enumerate(_records(path), 1), describe_source(path.name), path.parent
    if hasattr(meta, "to_dict") and hasattr(meta, "columns"):
        return enumerate(_records(meta), 1), "DataFrame", None
    if hasattr(meta, "cast_column") and hasattr(meta, "features"):
        return enumerate(_undecoded(meta), 1), "Dataset", None
    if isinstance(meta, Mapping | bytes | bytearray) or not isinstance(meta, Iterable):
        raise VlkitError(f"expected a file, a table or rows, not {type(meta).__name__}")
    return enumerate(meta, 1), "conversations", None


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a list, of one object, or one a line."""
    text = read_text(path)
    whole = _parse(text)
    is_lines = path.suffix.lower() == ".jsonl"
    is_conversation = isinstance(whole, list) and all(
        isinstance(row, dict) and row.keys() & {"role", "from"} for row in whole
    )
    if isinstance(whole, list) and not (is_lines and whole and is_conversation):
        return enumerate(whole, 1)
    if isinstance(whole, dict):
        try:
            training_rows.detect_format(whole)
        except VlkitError as error:
            raise VlkitError(
                f"{describe_source(path)} is one object, not a list of rows; as a row it has "
                f"{error}"
            ) from None
        return iter([(1, whole)])
    lines = ((i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip())
    rows = ((i, _parse(line)) for i, line in lines)
    first = next(rows, None)
    if first is None:
        return rows
    if isinstance(first[1], VlkitError) and (not is_lines or text.lstrip().startswith("[")):
        raise VlkitError(
            f"{describe_source(path)} is neither a list of rows nor one row a line: {whole}"
        )
    return chain([first], rows)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return VlkitError(f"it is not JSON ({error})")


def _records(table: Any) -> list[dict]:
    return _lists(read_table(table)[0].to_dict("records"))


def _lists(value: Any) -> Any:
    """A table's cells with Parquet's arrays as lists; arrays of pixels stay."""
    if isinstance(value, np.ndarray) and (value.dtype == object or value.ndim == 1):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_lists(item) for item in value]
    return {key: _lists(item) for key, item in value.items()} if isinstance(value, dict) else value


def _undecoded(dataset: Any) -> Iterator[dict]:
    """Rows of a ``datasets.Dataset`` whose media stay files or bytes, decoded when needed."""
    for name, feature in (dataset.features or {}).items():  # a stream may not know its features
        inner = getattr(feature, "feature", feature)
        if type(inner).__name__ in ("Image", "Video"):
            raw = type(inner)(decode=False)
            dataset = dataset.cast_column(name, raw if inner is feature else type(feature)(raw))
    yield from dataset


class TrainingData(Sequence[Example]):
    """Checked conversations; made by :func:`load_conversations`.

    Attributes:
        name: of the source.
        problems: of the rows that were left out (``strict=False``).
    """

    def __init__(
        self,
        name: str,
        examples: Sequence[Example],
        problems: Sequence[Problem] = (),
    ):
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

        Rows that share a picture or clip stay together, so the evaluation may get fewer rows than
        asked for. Each side keeps the source's order.

        Args:
            evaluation: the share of rows, below 1, or their number.
            seed: the same one gives the same split.

        Raises:
            VlkitError: all rows share pictures, or one side would be empty.
            MediaError: a picture that cannot be read.
        """
        wanted = _count_wanted(evaluation, len(self))
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise VlkitError(f"seed={seed!r:.60} must be a whole number")
        groups = _group_rows(self)
        random.Random(seed).shuffle(groups)
        chosen: set[int] = set()
        for group in groups:
            if len(chosen) + len(group) <= wanted:
                chosen.update(group)
        if not chosen:
            raise VlkitError(
                f"rows that share pictures cannot be split: the smallest of {len(groups)} groups "
                f"has {min(map(len, groups))} of {len(self)} rows, evaluation={evaluation!r} "
                f"allows {wanted}"
            )
        training = [example for i, example in enumerate(self) if i not in chosen]
        held_out = [example for i, example in enumerate(self) if i in chosen]
        return TrainingData(self.name, training), TrainingData(self.name, held_out)


def load_conversations(
    meta: Any,
    image_dir: str | os.PathLike | None = None,
    *,
    format: str = "auto",
    boxes: str | None = "auto",
    max_image_tokens: int | None = None,
    strict: bool = True,
) -> TrainingData:
    """Read conversations to train on.

    | format | a row |
    |---|---|
    | ``pai`` | ``conversations`` of ``from`` and ``value``, ``<img>file</img>`` in the text |
    | ``llava`` | ``conversations``, ``<image>`` in the text, files under ``image`` or ``images`` |
    | ``ms-swift`` | ``messages``, ``<image>`` in the text, ``images``, ``objects`` |
    | ``messages`` | ``messages`` of the transformers chat format |
    | ``table`` | columns for picture, question and answer |

    Every picture file is decoded once, and the first frame of each clip, so that a damaged file is
    reported here and not during training. On two shared cores this took 6 to 9 s for 20,000 PNGs
    of 64 × 64 pixels; at 640 × 480, 1 to 2 ms a JPEG and 10 to 17 ms a PNG of noise. URLs are not
    fetched.

    A ``system`` next to the turns becomes the first turn. ``instruction`` and ``input`` are a
    question, after the turns of ``history``. Of several accepted answers, as in VQA and DocVQA, the
    most frequent is learnt, else the first. An answer with ``"loss": false`` or ``"weight": 0`` is
    part of the conversation, but not learnt. A warning names the keys that are not read.

    Newlines between a picture's tag and the text are left out: :func:`vlkit.user` has none.
    Pictures without a tag come before the first question.

    Args:
        meta: a ``.json``, ``.jsonl``, ``.csv`` or ``.parquet`` file, a DataFrame, a
            ``datasets.Dataset``, or any rows (dicts, or lists of messages).
        image_dir: the folder with the pictures, by default that of the file. An absolute path that
            does not exist here (of another machine) is looked for in it by its base name.
        format: of the table above; ``auto`` detects it row by row.
        boxes: the convention of coordinates in the texts: a family, ``ms-swift``, or ``auto``,
            which detects tags and ``objects`` (for JSON pass a family, since several write it);
            None leaves the texts as they are.
        max_image_tokens: to which the source's model was limited; only ``qwen2_5_vl`` uses it.
        strict: with False, rows with problems are left out and reported as a warning.

    Returns:
        A sized sequence of :class:`Example`.

    Raises:
        DataError: every problem with its row: a picture that is missing, unbalanced tags, roles
            out of order, an empty answer, a box without area or outside its picture …
        VlkitError: a wrong argument, or a file that cannot be read.
    """
    check_choice("format", format, ("auto", *training_rows.FORMATS))
    check_choice("boxes", boxes, ("auto", None, *training_rows.CONVENTIONS))
    check_choice("strict", strict, (True, False))
    check_whole("max_image_tokens", max_image_tokens, 1, optional=True)
    is_path = isinstance(image_dir, str | os.PathLike)
    if image_dir is not None and not (is_path and os.path.isdir(local_path(image_dir))):
        raise VlkitError(f"image_dir={image_dir!r:.200} is not a folder; check the path")
    rows, name, folder = open_rows(meta)
    places = [Path(local_path(place)) for place in (image_dir, folder) if place is not None]
    reader = training_rows.RowReader(format, boxes, max_image_tokens, places)
    examples = reader.read(rows)
    if reader.unread:
        listed = ", ".join(f"{key!r} ({counted(n, 'row')})" for key, n in reader.unread.items())
        warnings.warn(f"{name}: these keys are not read: {listed:.500}", stacklevel=2)
    if reader.problems and strict:
        raise training_rows.DataError(name, reader.problems)
    if reader.problems:
        warnings.warn(
            f"left out of {training_rows.list_problems(name, reader.problems)}", stacklevel=2
        )
    if not examples:
        raise VlkitError(f"{name} has no conversation that can be trained on")
    return TrainingData(name, examples, reader.problems)


def as_data(data: Any, name: str = "data") -> TrainingData:
    """The data itself, or anything else that :func:`load_conversations` reads.

    Raises:
        VlkitError: data without a row; ``name`` is the argument's.
    """
    data = data if isinstance(data, TrainingData) else load_conversations(data)
    if not len(data):
        raise VlkitError(f"{name} has no rows; pass at least one conversation")
    return data


def _count_wanted(evaluation: float | int, count: int) -> int:
    share = isinstance(evaluation, float)
    if is_number(evaluation) and 0 < evaluation < (1 if share else count):
        wanted = max(1, round(evaluation * count)) if share else int(evaluation)
        if wanted < count:
            return wanted
    raise VlkitError(
        f"evaluation={evaluation!r:.60} must be a share below 1 or a number below the {count} rows"
    )


def _group_rows(data: Sequence[Example]) -> list[list[int]]:
    """Rows that share media or, without media, their texts: directly or through other rows."""
    items = [(i, item) for i, example in enumerate(data) for item in example.media]
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(_content_key, (item for _, item in items)))
    linked = [(i, key) for (i, _), key in zip(items, keys, strict=True)]
    linked += [(i, "\n".join(row.texts)) for i, row in enumerate(data) if not row.media]
    parent = list(range(len(data)))  # union-find
    first: dict[str, int] = {}
    for i, key in linked:
        parent[_root(parent, i)] = _root(parent, first.setdefault(key, i))
    groups: dict[int, list[int]] = {}
    for i in range(len(data)):
        groups.setdefault(_root(parent, i), []).append(i)
    return list(groups.values())


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = i = parent[parent[i]]
    return i


def _content_key(item: dict) -> str:
    """Equal for media with the same content: of pictures the pixels, of a clip its file."""
    medium = read_media_item(item)
    if isinstance(medium, Image) and not is_remote(medium.source):
        return pixel_hash(load_image(medium))
    return repr(hash_medium(medium.source))


def digest_rows(data: Sequence[Example]) -> str:
    """A hash of what rows say and of their media: of files the names, of others the content."""
    digest = hashlib.sha256()
    for message in (message for example in data for message in example.messages):
        content = [(item["type"], item[item["type"]]) for item in message["content"]]
        said = [value if kind == "text" else _media_name(value) for kind, value in content]
        digest.update(repr((message["role"], said)).encode())
    return digest.hexdigest()[:16]


def _media_name(source: Any) -> Any:
    source = getattr(source, "source", source)
    if isinstance(source, str | os.PathLike):
        return Path(source).parts[-2:]
    if isinstance(source, list | tuple):
        return [_media_name(frame) for frame in source]
    return hash_medium(source)
