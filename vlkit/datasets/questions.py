"""Pictures and clips in a table's cells."""

from __future__ import annotations

import itertools
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from vlkit.datasets.tables import is_missing, read_table
from vlkit.errors import VlkitError, counted
from vlkit.generation.reply import Failure, Reply, attempt, record_of
from vlkit.media.image import Image
from vlkit.media.sources import is_url, local_path
from vlkit.media.video import PICTURE_SUFFIXES, Video
from vlkit.messages import looks_like_clip

if TYPE_CHECKING:
    import pandas as pd


def read_media(cell: Any, kind: str, folder: Path | None) -> list[dict]:
    """The pictures and clips of a cell as content items."""
    if is_missing(cell):
        return []
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = parse(cell)
    if isinstance(cell, list | tuple) or (isinstance(cell, np.ndarray) and cell.dtype == object):
        return [item for each in cell for item in read_media(each, kind, folder)]
    if isinstance(cell, Mapping) and {"bytes", "path"} & cell.keys():  # as `datasets` stores them
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str | os.PathLike):
        cell = place(os.fspath(cell), folder)
        kind = "video" if looks_like_clip(cell) else kind
    kind = "video" if isinstance(cell, Video) else kind
    return [{"type": kind, kind: cell}]


def place(path: str, folder: Path | None) -> str:
    """A relative path within a table's folder; a URL as it is."""
    return path if folder is None or is_url(path) else str(folder / local_path(path))


def parse(text: str) -> Any:
    """JSON, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def check_overlooked(table: pd.DataFrame, prompt: str) -> None:
    """A column of pictures that is not used, though nobody said so, is an error."""
    for name in table.columns:
        cells = [cell for cell in table[name].head(20) if not is_missing(cell)]
        if cells and f"{{{name}}}" not in prompt and all(map(_is_media, cells)):
            raise VlkitError(
                f"the column {name!r} seems to hold pictures or clips, but has none of the usual "
                f"names; pass image={str(name)!r}, or image=[] to ask without"
            )


def _is_media(cell: Any) -> bool:
    if isinstance(cell, str | os.PathLike):
        path = os.fspath(cell).partition("?")[0].lower()
        return looks_like_clip(path) or path.endswith(PICTURE_SUFFIXES)
    return isinstance(cell, PIL.Image.Image | Image | Video)


def tell_of_bare_rows(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """A warning where some rows have media in these columns and others have none."""
    bare = int(table[list(columns)].map(is_missing).all(axis=1).sum())
    if 0 < bare < len(table):
        warnings.warn(
            f"{counted(bare, 'row')} of {len(table):,} hold no picture or clip in {list(columns)} "
            "and are asked without",
            stacklevel=3,
        )


# names that a column is known by, in any case; the first that is there counts
COLUMNS = {
    "messages": ("messages",),
    "prompt": ("prompt", "question", "instruction", "query"),
    "system": ("system", "system_prompt"),
    "image": ("image", "images", "image_path", "image_url", "picture", "file_name", "filename"),
    "video": ("video", "videos", "video_path", "video_url", "clip"),
}


_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Conversations(Sequence):
    """Conversations read from a table, a list of messages each; made by :func:`read_conversations`.

    Attributes:
        table: the source's columns as a DataFrame, a row for each conversation.
    """

    def __init__(self, table: pd.DataFrame, rows: Sequence[Any]):
        self.table = table
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Conversations(self.table.iloc[index], self._rows[index])
        return self._rows[index]

    def __repr__(self) -> str:
        return f"Conversations({counted(len(self), 'row')}, columns={list(self.table.columns)})"


def read_conversations(
    source: Any,
    prompt: str | None = None,
    *,
    image: str | Sequence[str] | None = None,
    video: str | Sequence[str] | None = None,
    system: str | None = None,
    messages: str | None = None,
) -> Conversations:
    """Read a table as conversations for :func:`vlkit.generate_batch`.

    A cell with media holds a path, a URL, a list of them (in CSV as JSON), or, in Parquet and
    DataFrames, pictures themselves; an empty one is no picture, and a warning counts these rows.
    Relative paths are relative to the table's folder. Content is not looked at here: a file that is
    missing fails in its own row, and so does a row whose prompt is empty or whose messages are
    malformed. Cells of a CSV stay text, as they are written.

    Args:
        source: path of a ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` (a list of objects) or
            ``.parquet`` file; a DataFrame; or a folder of pictures, in natural order (2 before
            10), which has the columns ``image`` and ``name``.
        prompt: the question, ``{column}`` standing for a cell: ``"Is this a {name}?"``. Braces
            that are meant are doubled. By default, the column that holds questions.
        image, video: columns with media, by default those with a usual name; ``[]`` is none.
        system: column with the system message.
        messages: column with whole conversations, used as they are.

    Raises:
        VlkitError: the file or a column cannot be read, naming the columns that there are; or a
            column without a usual name seems to hold media, and none is named.
    """
    table, folder = read_table(source)
    named = {"image": image, "video": video, "system": system}
    found = {kind: _names(columns) for kind, columns in named.items()}
    _check_columns(table, [*_names(messages), *itertools.chain(*found.values())])
    columns = {kind: _detect(table, kind) if named[kind] is None else found[kind] for kind in named}
    whole = _names(messages) or ([] if prompt is not None else _detect(table, "messages"))
    if whole:
        return Conversations(table, [_messages(cell, folder) for cell in table[whole[0]]])
    question = _question(table, prompt)
    media = [*columns["image"], *columns["video"]]
    if media:
        tell_of_bare_rows(table, media)
    elif image is None and video is None:
        check_overlooked(table, prompt or "")
    rows = table.to_dict("records")
    return Conversations(table, [_conversation(row, columns, question, folder) for row in rows])


def to_frame(results: Sequence[Reply | Failure], conversations: Any = None) -> pd.DataFrame:
    """Results as a DataFrame, a row each: the source's columns, then the answer's.

    Args:
        results: from :func:`vlkit.generate_batch`, in the order of the conversations.
        conversations: from :func:`read_conversations`, for their columns. An answer's column whose
            name is taken there begins with ``reply_``.

    Raises:
        VlkitError: something that is no result, or more or fewer conversations than results.
    """
    import pandas as pd

    for result in results if isinstance(results, Sequence) else [results]:
        if not isinstance(result, Reply | Failure):
            raise VlkitError(
                f"expected results of generate_batch, a Reply or Failure each; got {result!r:.60}"
            )
    records = [_flat(result) for result in results]
    answers = pd.DataFrame(records, columns=list(_flat(Failure(""))), dtype=object)
    answers = answers.astype(_NUMBERS)
    if not isinstance(conversations, Conversations):
        return answers
    if len(conversations) != len(answers):
        raise VlkitError(
            f"{len(answers):,} results, but {len(conversations):,} conversations; pass those that "
            "were answered"
        )
    table = conversations.table
    names = {name: f"reply_{name}" for name in answers.columns if name in table.columns}
    answers = answers.rename(columns=names).set_axis(table.index)
    return pd.concat([table, answers], axis=1)


# --- from cells to messages ----------------------------------------------------------------------

_MEDIA_KEYS = ("image", "image_url", "video", "video_url", "url", "path")


def _names(columns: str | Sequence[str] | None) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns or [])


def _check_columns(table: pd.DataFrame, names: Sequence[str]) -> None:
    for name in names:
        if name not in table.columns:
            raise VlkitError(f"no column is called {name!r}; columns = {list(table.columns)}")


def _detect(table: pd.DataFrame, kind: str) -> list[str]:
    lower = {str(name).lower(): name for name in reversed(table.columns)}
    return [lower[name] for name in COLUMNS[kind] if name in lower][:1]


def _question(table: pd.DataFrame, prompt: str | None) -> Callable[[dict], str]:
    """What writes a row's question."""
    if prompt is not None and not isinstance(prompt, str):
        raise VlkitError(f"prompt={prompt!r:.60} must be text, as 'Is this a {{name}}?'")
    if prompt is not None:
        pieces = list(_pieces(prompt, table))
        return lambda row: "".join(_text(row[name]) if name else text for text, name in pieces)
    if not (column := _detect(table, "prompt")):
        raise VlkitError(
            f'no column is called {" or ".join(COLUMNS["prompt"])}; pass prompt="… {{column}} …"; '
            f"columns = {list(table.columns)}"
        )
    return lambda row: _text(row[column[0]])


def _pieces(prompt: str, table: pd.DataFrame) -> Iterator[tuple[str, Any]]:
    """A template's texts and the columns between them; a cell's braces are never looked at."""
    columns, end = {str(name): name for name in table.columns}, 0
    for match in _FIELD.finditer(prompt):
        yield prompt[end : match.start()], None
        end = match.end()
        if match[0] in ("{{", "}}"):
            yield match[0][0], None
        elif match[1] in columns:
            yield "", columns[match[1]]
        else:
            raise VlkitError(
                f"the prompt's {match[0]} names no column; columns = {list(columns)} "
                "(braces that are meant are doubled: {{ }})"
            )
    yield prompt[end:], None


def _text(cell: Any) -> str:
    return "" if is_missing(cell) else str(cell)


def _conversation(row: dict, columns: dict, question: Callable, folder: Path | None) -> Any:
    """A row's messages; None, which fails as a row of its own, where there is no question."""
    text = question(row)
    if not text.strip():
        return None
    media = [item for kind in ("image", "video") for name in columns[kind]
             for item in read_media(row[name], kind, folder)]  # fmt: skip
    asked = {"role": "user", "content": [*media, {"type": "text", "text": text}]}
    systems = [_text(row[name]) for name in columns["system"] if _text(row[name])]
    return [*({"role": "system", "content": each} for each in systems), asked]


def _messages(cell: Any, folder: Path | None) -> Any:
    """A cell's messages with its paths made whole; what is malformed fails as a row of its own."""
    cell = parse(cell) if isinstance(cell, str) else cell
    cell = _placed(cell, folder)
    return cell if isinstance(cell, list) else None if is_missing(cell) else [cell]


def _placed(value: Any, folder: Path | None) -> Any:
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [_placed(each, folder) for each in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: place(each, folder)
        if key in _MEDIA_KEYS and isinstance(each, str)
        else _placed(each, folder)
        for key, each in value.items()
    }


# --- from results to cells -----------------------------------------------------------------------


_COUNTS = ("image_tokens", "video_tokens", "prompt_tokens", "new_tokens")


_NUMBERS = {name: "Int64" for name in _COUNTS} | {"seconds": "Float64"}


def _flat(result: Reply | Failure) -> dict[str, Any]:
    record = attempt(record_of, result, 0, "")
    if isinstance(record, Failure):
        result, record = record, record_of(record, 0, "")
    usage = record.get("usage", {})
    return {
        **{name: record.get(name) for name in ("text", "boxes", "points", "finish_reason")},
        **{name: usage.get(name) for name in _COUNTS},
        "seconds": record.get("seconds"),
        "error": str(result) if isinstance(result, Failure) else None,
    }
