"""Table files: CSV, JSON lines, Parquet; read, and written whole."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import PIL.Image

from vlkit.datasets.conversations import is_missing
from vlkit.errors import VlkitError
from vlkit.files import json_line, read_json, read_rows, write_whole
from vlkit.media.image import Image, describe_source, pictures_of
from vlkit.media.sources import local_path

if TYPE_CHECKING:
    import pandas as pd


_SEPARATOR = re.compile(r"[;\t|]")  # what spreadsheets use instead of a comma


def read_table(source: Any) -> tuple[pd.DataFrame, Path | None]:
    """A table as a DataFrame, and the folder to which its paths are relative.

    Args:
        source: a table's path, a folder of pictures, or a DataFrame.

    Raises:
        VlkitError: it cannot be read.
    """
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        _check_names(source.columns, "the DataFrame")
        return source, None
    if not isinstance(source, str | os.PathLike):
        raise VlkitError(
            f"expected a table's path, a folder or a DataFrame, not {type(source).__name__}"
        )
    path = Path(local_path(source))
    if path.is_dir():
        names = [file.name for file in pictures_of(path, str(path))]
        stems = [Path(name).stem for name in names]
        return pd.DataFrame({"image": names, "name": stems}, dtype=object), path
    read = _READERS.get(path.suffix.lower())
    if not path.exists():
        raise VlkitError(f"{path} does not exist; check the path")
    if read is None:
        raise VlkitError(f"{path} is not one of {', '.join(_READERS)}; convert it to one of these")
    try:
        return read(path), path.parent
    except UnicodeDecodeError as error:
        raise VlkitError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (OSError, ValueError) as error:  # pandas' and pyarrow's errors are ValueErrors
        reason = str(error).partition("\n")[0]
        raise VlkitError(f"{path} cannot be read: {reason}") from error


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        table = _parse_csv(path)
    except pd.errors.EmptyDataError as error:
        raise VlkitError(f"{path} is empty; it needs a header and a line a row") from error
    except pd.errors.ParserWarning as error:
        raise VlkitError(
            f"{path} has rows with more cells than its header; quote cells that hold commas"
        ) from error
    alone = path.suffix.lower() == ".csv" and len(table.columns) == 1
    if alone and (sign := _SEPARATOR.search(table.columns[0])):
        raise VlkitError(f"{path} separates its cells by {sign[0]!r}; save it with commas")
    return table


def _parse_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    options: dict[str, Any] = {
        "sep": "\t" if path.suffix.lower() == ".tsv" else ",",
        "dtype": object,
        "keep_default_na": False,
        "index_col": False,
        "encoding": "utf-8-sig",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # cells that would be left out
        header = pd.read_csv(path, header=None, nrows=1, **options)
        _check_names([name for name in header.iloc[0] if name], str(path))
        return pd.read_csv(path, **options)


def _check_names(names: Iterable[Any], where: str) -> None:
    """Raises VlkitError for two columns of one name, which pandas would rename or not read."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise VlkitError(f"{where} has several columns called {twice[0]!r}; rename all but one")


def _read_json(path: Path) -> pd.DataFrame:
    import pandas as pd

    rows = read_json(path) if path.suffix.lower() == ".json" else read_rows(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects, one for each row")
    return pd.DataFrame(rows, dtype=object)


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    _need_pyarrow()
    return pd.read_parquet(path)


def _need_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise VlkitError('Parquet needs pyarrow: pip install "vlkit[parquet]"') from error


_READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


def write_table(frame: pd.DataFrame, path: str | os.PathLike) -> Path:
    """Write a DataFrame as ``.csv`` (UTF-8), ``.jsonl`` or ``.parquet``, whole or not at all.

    Lists such as ``boxes`` are JSON in a CSV. Cells are written as they are: one that begins with
    ``=``, ``+``, ``-`` or ``@`` is a formula to spreadsheet programs, so import such columns as
    text when the answers come from pictures that you do not trust.

    Raises:
        VlkitError: not a DataFrame, another suffix, a folder that does not exist, or pyarrow is
            not installed.
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise VlkitError(f"expected a DataFrame, as to_frame gives, not {type(frame).__name__}")
    path = Path(path).expanduser()
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise VlkitError(f"{path} is not one of {', '.join(_WRITERS)}; use one of these suffixes")
    if not path.parent.is_dir():
        raise VlkitError(f"{path}: the folder {path.parent} does not exist; create it")
    write_whole(path, partial(write, frame))
    return path


# --- writing -------------------------------------------------------------------------------------


def _write_csv(frame: pd.DataFrame, stream: BinaryIO) -> None:
    written = _map(frame, _csv_cell, list(frame.columns))
    written.to_csv(stream, mode="wb", index=False, encoding="utf-8", lineterminator="\n")


def _write_jsonl(frame: pd.DataFrame, stream: BinaryIO) -> None:
    stream.writelines(json_line(_plain(record)) for record in frame.to_dict("records"))


def _write_parquet(frame: pd.DataFrame, stream: BinaryIO) -> None:
    _need_pyarrow()
    try:
        objects = [name for name in frame if frame[name].dtype == object]
        _map(frame, _parquet_cell, objects).to_parquet(stream, index=False, engine="pyarrow")
    except ValueError as error:  # a column that mixes kinds
        reason = str(error).partition("\n")[0]
        raise VlkitError(f"Parquet cannot hold this table ({reason}); write .jsonl") from error


_WRITERS: dict[str, Callable[[Any, BinaryIO], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}


def _map(frame: pd.DataFrame, convert: Callable, columns: Sequence) -> pd.DataFrame:
    """Converts the cells of some columns; DataFrame.map would turn whole numbers into floats."""
    import pandas as pd

    cells = {name: [convert(cell) for cell in frame[name]] for name in columns}
    return frame.assign(**{n: pd.Series(c, frame.index, object) for n, c in cells.items()})


def _csv_cell(cell: Any) -> Any:
    plain = _plain(cell)
    if isinstance(plain, list | dict):
        return json.dumps(plain, ensure_ascii=False)
    return plain.encode("utf-8", "replace").decode() if isinstance(plain, str) else plain


def _parquet_cell(cell: Any) -> Any:
    return cell if isinstance(cell, bytes) else _described(cell)


def _plain(cell: Any) -> Any:
    """A cell as JSON has it; media other than paths as a description."""
    cell = _described(cell)
    if isinstance(cell, Mapping):
        return {str(key): _plain(value) for key, value in cell.items()}
    if isinstance(cell, list | tuple | np.ndarray):
        return [_plain(value) for value in cell]
    if isinstance(cell, np.generic):
        return _plain(cell.item())
    if is_missing(cell):
        return "" if isinstance(cell, str) else None
    return cell if isinstance(cell, bool | int | float) else str(cell)


def _described(cell: Any) -> Any:
    picture = isinstance(cell, bytes | Image | PIL.Image.Image) or getattr(cell, "ndim", 0) > 1
    return describe_source(cell) if picture else cell
