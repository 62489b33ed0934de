"""What vlkit brings: the tiny model, and sample pictures whose content is known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from vlkit.errors import MediaError, ModelError
from vlkit.grounding import Box


@dataclass(frozen=True)
class Sample:
    """A sample picture.

    Attributes:
        name: its file's stem.
        path: the file.
        about, about_zh: what it shows, in English and Chinese.
        boxes: what is in it, in pixels of the upright picture; English labels.
        text: the words to be read in it, or None.
        source, licence: where it comes from and under which terms.
    """

    name: str
    path: Path
    about: str
    about_zh: str
    boxes: tuple[Box, ...]
    text: str | None
    source: str
    licence: str


def samples() -> dict[str, Sample]:
    """The sample pictures by name."""
    folder = bundled_path("samples")
    records = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    return {record["name"]: _sample(folder, record) for record in records}


def sample(name: str) -> Path:
    """The file of one sample picture, to pass to :func:`vlkit.user`.

    Raises:
        MediaError: no sample of that name; lists those there are.
    """
    known = samples()
    if name not in known:
        raise MediaError(f"sample {name!r} not found; samples = {sorted(known)}")
    return known[name].path


def _sample(folder: Path, record: dict) -> Sample:
    boxes = tuple(Box(o["label"], *o["box"]) for o in record["objects"] if o.get("box"))
    return Sample(
        record["name"],
        folder / record["file"],
        record["about"],
        record["about_zh"],
        boxes,
        (record.get("text") or {}).get("text"),
        record["source"],
        record["licence"],
    )


def bundled_path(name: str = "") -> Path:
    """A file or folder of vlkit's own ``data``, in a checkout as in an installed wheel."""
    package = Path(str(files("vlkit")))
    for root in (package / "data", package.parent / "data"):
        if (root / "tiny-qwen2-vl").is_dir():
            return root / name
    raise ModelError(f"vlkit's data folder is missing beside {package}; reinstall vlkit")
