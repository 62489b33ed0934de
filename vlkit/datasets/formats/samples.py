"""vlkit's bundled samples, as data/README.md describes them; read only."""

from __future__ import annotations

from pathlib import Path

from vlkit.datasets.pictures import Scene, checked_box, upright_size
from vlkit.errors import VlkitError
from vlkit.files import read_rows


def read_samples(path: Path, images: Path | None) -> list[Scene]:
    """The pictures of ``samples.json`` with the boxes of what is in them."""
    file = path / "samples.json" if path.is_dir() else path
    scenes = []
    for row in read_rows(file):
        if row.get("kind") == "clip":
            continue
        try:
            image, size = (images or file.parent) / row["file"], (row["width"], row["height"])
            items = [
                checked_box(thing["label"], thing["box"], f"{file}, {row['name']}")
                for thing in row["objects"]
                if thing.get("box")
            ]
        except (KeyError, TypeError) as error:
            why = f"{type(error).__name__} {error}"
            raise VlkitError(f"{file} is not a samples.json of vlkit: {why}") from None
        scenes.append(Scene(image, upright_size(image, size), tuple(items)))
    return scenes
