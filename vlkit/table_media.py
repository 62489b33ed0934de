"""Pictures and clips in a table's cells."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from vlkit.decoding import PICTURE_SUFFIXES
from vlkit.errors import VlkitError
from vlkit.media import Image
from vlkit.messages import looks_like_clip
from vlkit.phrases import counted
from vlkit.sources import is_url, local_path
from vlkit.table_files import is_missing
from vlkit.video import Video

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
