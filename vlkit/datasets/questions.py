"""``read_conversations``, ``to_frame``: tables to questions, answers to tables."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image

from vlkit.datasets.conversations import is_list, is_missing, media_items
from vlkit.datasets.tables import read_table
from vlkit.errors import VlkitError, counted
from vlkit.generation.reply import Failure, Reply, attempt, record_of
from vlkit.media.image import PICTURE_SUFFIXES, Image
from vlkit.media.sources import is_url, local_path
from vlkit.media.video import Video
from vlkit.messages import looks_like_clip

if TYPE_CHECKING:
    import pandas as pd


# names by which a column is recognised, in any case; the first that exists counts
COLUMNS = {
    "messages": ("messages",),
    "prompt": ("prompt", "question", "instruction", "query"),
    "system": ("system", "system_prompt"),
    "image": (
        "image", "images", "image_path", "image_paths", "image_url", "image_urls", "image_file",
        "picture", "pictures", "img", "img_path", "file_name", "filename",
    ),
    "video": ("video", "videos", "video_path", "video_paths", "video_url", "video_urls", "clip"),
}  # fmt: skip
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")  # a doubled brace, {column}, a lone brace
_MEDIA_KEYS = ("image", "image_url", "video", "video_url", "url", "path")


class Conversations(Sequence):
    """Conversations from a table, each a list of messages; see :func:`read_conversations`.

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
    DataFrames, pictures themselves; an empty cell is no picture, and a warning counts these rows.
    Relative paths are relative to the table's folder. Nothing is opened or checked here: a missing
    file, an empty prompt or malformed messages fail in their row when the model is asked. Cells of
    a CSV are read as text.

    Args:
        source: path of a ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` (a list of objects) or
            ``.parquet`` file; a DataFrame; or a folder of pictures, in natural order (2 before
            10), which has the columns ``image`` and ``name``.
        prompt: the question, with ``{column}`` for a cell: ``"Is this a {name}?"``. Literal
            braces are doubled. By default, the column with questions.
        image, video: columns with media, by default those with a usual name; ``[]`` is none.
        system: column with the system message.
        messages: column with whole conversations, used unchanged.

    Raises:
        VlkitError: the file or a column cannot be read (the error lists the columns), or a column
            with an unusual name seems to contain media and no media column is named.
    """
    table, folder = read_table(source)
    named = {"messages": messages, "image": image, "video": video, "system": system}
    columns = {kind: _columns(table, kind, names) for kind, names in named.items()}
    if columns["messages"] and (messages or prompt is None):
        cells = table[columns["messages"][0]]
        return Conversations(table, [_messages(cell, folder) for cell in cells])
    question = _question(table, prompt)
    media = [*columns["image"], *columns["video"]]
    if media:
        _warn_rows_without_media(table, media)
    elif image is None and video is None:
        _check_unused_media(table, prompt or "")
    rows = table.to_dict("records")
    return Conversations(table, [_conversation(row, columns, question, folder) for row in rows])


def to_frame(results: Sequence[Reply | Failure], conversations: Any = None) -> pd.DataFrame:
    """Results as a DataFrame, a row each: the source's columns, then the answer's.

    Args:
        results: from :func:`vlkit.generate_batch`, in the order of the conversations.
        conversations: from :func:`read_conversations`, for their columns. Where both have a
            column of the same name, the answer's gets the prefix ``reply_``.

    Raises:
        VlkitError: something that is not a result, or another number of conversations.
    """
    import pandas as pd

    for result in results if isinstance(results, Sequence) else [results]:
        if not isinstance(result, Reply | Failure):
            raise VlkitError(
                f"expected results of generate_batch (Reply or Failure), not {result!r:.60}"
            )
    records = [_flat(result) for result in results]
    answers = pd.DataFrame(records, columns=list(_flat(Failure(""))), dtype=object)
    answers = answers.astype(_NUMBERS)
    if not isinstance(conversations, Conversations):
        return answers
    if len(conversations) != len(answers):
        raise VlkitError(
            f"{len(answers):,} results, but {len(conversations):,} conversations; pass the ones "
            "that were answered"
        )
    table = conversations.table
    names = {name: f"reply_{name}" for name in answers.columns if name in table.columns}
    answers = answers.rename(columns=names).set_axis(table.index)
    return pd.concat([table, answers], axis=1)


# --- from cells to messages ----------------------------------------------------------------------


def _columns(table: pd.DataFrame, kind: str, names: str | Sequence[str] | None) -> list[str]:
    """The columns that are named for a kind of cell; None finds the usual ones."""
    if names is None:
        return _detect(table, kind)
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in table.columns:
            raise VlkitError(f"there is no column {name!r}; columns = {list(table.columns)}")
    return names


def _detect(table: pd.DataFrame, kind: str) -> list[str]:
    lower = {str(name).lower(): name for name in reversed(table.columns)}
    return [lower[name] for name in COLUMNS[kind] if name in lower][:1]


def _question(table: pd.DataFrame, prompt: str | None) -> Callable[[dict], str]:
    """A function from a row to its question."""
    if prompt is not None and not isinstance(prompt, str):
        raise VlkitError(f"prompt={prompt!r:.60} must be text, as 'Is this a {{name}}?'")
    if prompt is not None:
        pieces = list(_pieces(prompt, table))
        return lambda row: "".join(_text(row[name]) if name else text for text, name in pieces)
    if not (column := _detect(table, "prompt")):
        raise VlkitError(
            f'there is no column {" or ".join(COLUMNS["prompt"])}; pass prompt="… {{column}} …"; '
            f"columns = {list(table.columns)}"
        )
    return lambda row: _text(row[column[0]])


def _pieces(prompt: str, table: pd.DataFrame) -> Iterator[tuple[str, Any]]:
    """A template as pairs (text, column), one of them empty; braces in cells mean nothing."""
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
                f"the prompt's {match[0]} is not a column; columns = {list(columns)} "
                "(double literal braces: {{ }})"
            )
    yield prompt[end:], None


def _text(cell: Any) -> str:
    return "" if is_missing(cell) else str(cell)


def _conversation(row: dict, columns: dict, question: Callable, folder: Path | None) -> Any:
    """A row's messages; None, which fails in its row, where there is no question."""
    text = question(row)
    if not text.strip():
        return None
    content = [item for kind in ("image", "video") for name in columns[kind]
               for item in _media_items(row[name], kind, folder)]  # fmt: skip
    content.append({"type": "text", "text": text})
    systems = [_text(row[name]) for name in columns["system"] if _text(row[name])]
    messages = [{"role": "system", "content": system} for system in systems]
    return [*messages, {"role": "user", "content": content}]


def _messages(cell: Any, folder: Path | None) -> Any:
    """A cell's messages with their paths resolved; malformed ones fail in their row."""
    messages = _with_paths(_parse(cell) if isinstance(cell, str) else cell, folder)
    if isinstance(messages, list):
        return messages
    return None if is_missing(messages) else [messages]


def _with_paths(value: Any, folder: Path | None) -> Any:
    if is_list(value):
        return [_with_paths(element, folder) for element in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: _resolve(element, folder)
        if key in _MEDIA_KEYS and isinstance(element, str)
        else _with_paths(element, folder)
        for key, element in value.items()
    }


def _media_items(cell: Any, kind: str, folder: Path | None) -> list[dict]:
    """The pictures and clips of a cell as content items."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = _parse(cell)
    return media_items(cell, kind, partial(_resolve, folder=folder))


def _resolve(path: str, folder: Path | None) -> str:
    """A path relative to a table's folder; a URL unchanged."""
    return path if folder is None or is_url(path) else str(folder / local_path(path))


def _parse(text: str) -> Any:
    """The text as JSON, or the text itself where it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check_unused_media(table: pd.DataFrame, prompt: str) -> None:
    """Raises VlkitError where a column seems to contain media and the prompt does not use it."""
    for name in table.columns:
        cells = [cell for cell in table[name].head(20) if not is_missing(cell)]
        if cells and f"{{{name}}}" not in prompt and all(map(_is_media, cells)):
            raise VlkitError(
                f"the column {name!r} seems to contain pictures or clips, but its name is not one "
                f"of the usual; pass image={str(name)!r}, or image=[] to ask without"
            )


def _is_media(cell: Any) -> bool:
    if isinstance(cell, str | os.PathLike):
        path = os.fspath(cell).partition("?")[0].lower()
        return looks_like_clip(path) or path.endswith(PICTURE_SUFFIXES)
    return isinstance(cell, PIL.Image.Image | Image | Video)


def _warn_rows_without_media(table: pd.DataFrame, columns: Sequence[str]) -> None:
    count = int(table[list(columns)].map(is_missing).all(axis=1).sum())
    if 0 < count < len(table):
        warnings.warn(
            f"{counted(count, 'row')} of {len(table):,} have no picture or clip in {list(columns)} "
            "and are asked without",
            stacklevel=3,
        )


# --- from results to cells -----------------------------------------------------------------------


_COUNTS = ("image_tokens", "video_tokens", "prompt_tokens", "new_tokens")
_NUMBERS = {name: "Int64" for name in _COUNTS} | {"seconds": "Float64"}


def _flat(result: Reply | Failure) -> dict[str, Any]:
    record = attempt(record_of, result)
    if isinstance(record, Failure):
        result, record = record, record_of(record)
    usage = record.get("usage", {})
    return {
        **{name: record.get(name) for name in ("text", "boxes", "points", "finish_reason")},
        **{name: usage.get(name) for name in _COUNTS},
        "seconds": record.get("seconds"),
        "error": str(result) if isinstance(result, Failure) else None,
    }
