"""The bundled model, pictures and clips: ``sample``, ``samples``, ``clips``."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlkit.errors import MediaError, ModelError
from vlkit.files import read_json
from vlkit.grounding.boxes import Box


@dataclass(frozen=True, kw_only=True)
class _Bundled:
    """What sample pictures and clips have in common."""

    name: str
    path: Path
    about: str
    about_zh: str
    source: str
    licence: str


@dataclass(frozen=True, kw_only=True)
class Sample(_Bundled):
    """A sample picture.

    Attributes:
        name: its file's stem.
        path: the file.
        about, about_zh: what it shows, in English and Chinese.
        boxes: of the things in it, in pixels of the upright picture; English labels.
        text: the words written in it, or None.
        source, licence: where it comes from and under which terms.
    """

    boxes: tuple[Box, ...]
    text: str | None


@dataclass(frozen=True)
class Mover:
    """What one thing in a sample clip does.

    Attributes:
        label, label_zh: its name in English and Chinese.
        directions: "right", "left", "up", "down" or "still"; several where it turns, for equal
            times.
        first, last: its box in the first and in the last frame, in pixels.
    """

    label: str
    label_zh: str
    directions: tuple[str, ...]
    first: Box
    last: Box


@dataclass(frozen=True, kw_only=True)
class SampleClip(_Bundled):
    """A sample clip.

    Attributes:
        name: its file's stem.
        path: the file.
        about, about_zh: what happens in it, in English and Chinese.
        movers: what each thing in it does; empty for the film.
        fps, duration: its frames per second, and its length in seconds.
        source, licence: where it comes from and under which terms.
    """

    movers: tuple[Mover, ...]
    fps: int
    duration: float


def samples() -> dict[str, Sample]:
    """The sample pictures by name."""
    return {record["name"]: _sample(record) for record in _records() if record["kind"] != "clip"}


def clips() -> dict[str, SampleClip]:
    """The sample clips by name."""
    return {record["name"]: _clip(record) for record in _records() if record["kind"] == "clip"}


def sample(name: str) -> Path:
    """The file of one sample picture or clip, to pass to :func:`vlkit.user`.

    Raises:
        MediaError: no sample has that name; lists the samples.
    """
    files_by_name = {record["name"]: record["file"] for record in _records()}
    if name not in files_by_name:
        raise MediaError(f"sample {name!r} not found; samples = {sorted(files_by_name)}")
    return bundled_path("samples") / files_by_name[name]


def _records() -> list[dict]:
    return read_json(bundled_path("samples") / "samples.json")


def _shared_fields(record: dict) -> dict[str, Any]:
    names = ("name", "about", "about_zh", "source", "licence")
    path = bundled_path("samples") / record["file"]
    return {"path": path, **{name: record[name] for name in names}}


def _sample(record: dict) -> Sample:
    boxes = tuple(Box(o["label"], *o["box"]) for o in record["objects"] if o.get("box"))
    text = (record.get("text") or {}).get("text")
    return Sample(**_shared_fields(record), boxes=boxes, text=text)


def _clip(record: dict) -> SampleClip:
    movers = tuple(
        Mover(
            item["label"], item["label_zh"], tuple(item["directions"]),
            Box(item["label"], *item["first_box"]), Box(item["label"], *item["last_box"]),
        )
        for item in record["objects"]
    )  # fmt: skip
    fps, duration = record["fps"], record["duration"]
    return SampleClip(**_shared_fields(record), movers=movers, fps=fps, duration=duration)


def bundled_path(name: str = "") -> Path:
    """A file or folder of vlkit's ``data``, in a checkout or in an installed wheel."""
    package = Path(str(files("vlkit")))
    for root in (package / "data", package.parent / "data"):
        if (root / "tiny-qwen2-vl").is_dir():
            return root / name
    raise ModelError(f"vlkit's data folder is missing next to {package}; reinstall vlkit")
