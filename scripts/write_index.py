"""Write the map of the course into ``notebooks/index.ipynb``, from the notebooks' title cells.

``python scripts/write_index.py`` writes it; with ``--check`` it only says whether it is current.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
HEAD = "| notebook | after it you can | time | memory | model |\n|---|---|---|---|---|\n"
TITLE = re.compile(
    r"# (?P<title>.+?)\n.*?After this notebook you can (?P<goal>.+?)\.\n.*?"
    r"\*\*Time\*\* (?P<time>.+?) · \*\*memory\*\* (?P<memory>.+?) · \*\*model\*\* (?P<model>.+)",
    re.DOTALL,
)


def main() -> int:
    path = FOLDER / "index.ipynb"
    index = nbformat.read(path, as_version=4)
    cell = next(cell for cell in index.cells if "map" in cell.metadata.get("tags", []))
    begin = cell.source.partition("| notebook |")[0]
    current = begin + table()
    if cell.source == current:
        return 0
    if "--check" in sys.argv:
        print("notebooks/index.ipynb is behind the notebooks; run python scripts/write_index.py")
        return 1
    cell.source = current
    nbformat.write(index, path)
    return 0


def table() -> str:
    """The map as a Markdown table."""
    return HEAD + "\n".join(row(path) for path in sorted(FOLDER.glob("[0-9]*.ipynb")))


def row(path: Path) -> str:
    found = TITLE.match(nbformat.read(path, as_version=4).cells[0].source)
    if found is None:
        raise SystemExit(f"{path.name}: the title cell lacks goal, time, memory or model")
    title, goal, *needs = (" ".join(part.split()) for part in found.groups())
    return f"| [{title}]({path.name}) | {goal} | {' | '.join(needs)} |"


if __name__ == "__main__":
    sys.exit(main())
