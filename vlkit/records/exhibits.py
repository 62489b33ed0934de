"""What a user adds to a run: figures, tables, pictures, texts."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import PIL.Image

from vlkit.errors import VlkitError

FIGURES = "figures"
MOST_ROWS = 500  # of a table that is kept


def exhibit_facts(exhibit: Any, folder: Path) -> dict[str, Any]:
    """What the run writes of it; pictures go into a file.

    Raises:
        VlkitError: something that cannot be shown on a page.
    """
    if isinstance(exhibit, str):
        return {"exhibit": "text", "text": exhibit}
    if hasattr(exhibit, "savefig"):
        return {
            "exhibit": "figure",
            "file": _save(folder, lambda path: _save_figure(exhibit, path)),
        }
    if isinstance(exhibit, PIL.Image.Image):
        return {"exhibit": "figure", "file": _save(folder, lambda path: exhibit.save(path, "PNG"))}
    if hasattr(exhibit, "to_frame") and hasattr(exhibit, "index"):
        exhibit = exhibit.to_frame()
    if hasattr(exhibit, "columns") and hasattr(exhibit, "itertuples"):
        return {"exhibit": "table", **_table_facts(exhibit)}
    raise VlkitError(
        f"a {type(exhibit).__name__} cannot be added; pass a figure of matplotlib, a DataFrame, a "
        "PIL image or a text"
    )


def _save_figure(figure: Any, path: Path) -> None:
    figure.savefig(path, format="png", dpi=160, bbox_inches="tight", facecolor="white")


def _save(folder: Path, write: Any) -> str:
    (folder / FIGURES).mkdir(exist_ok=True)
    for number in itertools.count(1):
        name = f"{FIGURES}/{number:03d}.png"
        if not (folder / name).exists():
            write(folder / name)
            return name
    raise AssertionError  # there is always a next number


def _table_facts(frame: Any) -> dict[str, Any]:
    index = frame.index
    numbered = index.name is None and list(index[:3]) == list(range(min(3, len(index))))
    shown = frame if numbered else frame.reset_index()
    rows = shown.head(MOST_ROWS).astype(object).where(shown.head(MOST_ROWS).notna(), None)
    columns = ["" if str(name) == "index" and not numbered else str(name) for name in shown.columns]
    return {"columns": columns, "rows": rows.values.tolist(), "of_rows": len(frame)}
