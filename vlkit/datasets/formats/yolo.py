"""YOLO: a folder with a label file for each picture."""

import warnings
from pathlib import Path

from vlkit.datasets.pictures import Scene, boxes_of, checked_box, copy_pictures, upright_size
from vlkit.errors import VlkitError
from vlkit.files import parse_yaml, read_text, write_whole
from vlkit.grounding.boxes import Box, Item
from vlkit.media.image import PICTURE_SUFFIXES


def read_yolo(path: Path, images: Path | None) -> list[Scene]:
    """``class x y width height``: center and size as shares of the picture."""
    names = _yolo_names(path)
    folder = images or path / "images"
    pictures = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if not pictures:
        raise VlkitError(f"{folder} contains no pictures; YOLO needs them for their sizes")
    labels = {p.relative_to(path / "labels").with_suffix(""): p for p in _label_files(path)}
    scenes, polygons = [], 0
    for picture in pictures:
        file = labels.get(picture.relative_to(folder).with_suffix(""))
        size = upright_size(picture)
        items: list[Item] = []
        lines = read_text(file).splitlines() if file else []
        for number, line in enumerate(lines, start=1):
            if len(line.split()) > 6:
                polygons += 1
            elif line.strip():
                items.append(_yolo_box(line.split(), names, size, f"{file}, line {number}"))
        scenes.append(Scene(picture, size, tuple(items)))
    if polygons:
        warnings.warn(f"{path}: left out {polygons} polygons", stacklevel=3)
    return scenes


def _label_files(path: Path) -> list[Path]:
    return [p for p in (path / "labels").rglob("*.txt") if p.name != "classes.txt"]


def _yolo_names(path: Path) -> dict[int, str]:
    for file in (*sorted(path.glob("*.yaml")), *sorted(path.glob("*.yml"))):
        data = parse_yaml(read_text(file), str(file))
        names = data.get("names") if isinstance(data, dict) else None
        if not names:
            continue
        by_number = dict(enumerate(names)) if isinstance(names, list) else names
        if isinstance(by_number, dict):
            texts = [isinstance(name, str | int | float) for name in by_number.values()]
            if all(texts) and all(str(number).isdecimal() for number in by_number):
                return {int(number): str(name) for number, name in by_number.items()}
        raise VlkitError(f"{file}: names={names!r:.60} must be a list of names, or 0: name …")
    for file in (path / "classes.txt", path / "labels" / "classes.txt"):
        if file.is_file():
            return dict(enumerate(read_text(file).split("\n")))
    raise VlkitError(f"{path} has neither a data.yaml with names nor a classes.txt")


def _yolo_box(words: list[str], names: dict[int, str], size: tuple[int, int], where: str) -> Box:
    try:
        kind = int(words[0])
        x, y, w, h = (float(word) for word in words[1:5])  # a sixth would be the confidence
    except ValueError:
        raise VlkitError(f"{where}: {' '.join(words)!r:.60} is not class x y w h") from None
    if kind not in names:
        raise VlkitError(f"{where}: class {kind} has no name; there are {len(names)}")
    width, height = size
    corners = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
    return checked_box(names[kind], corners, where)


def write_yolo(scenes: list[Scene], path: Path) -> None:
    """``images/``, ``labels/`` and ``data.yaml``; the classes in the order of their names."""
    import yaml

    boxes = [boxes_of(scene.items, "yolo") for scene in scenes]
    names = sorted({box.label for row in boxes for box in row})
    number = {name: i for i, name in enumerate(names)}
    for name, scene, row in copy_pictures(scenes, boxes, path, "images"):
        width, height = scene.size
        lines = [
            f"{number[b.label]} {(b.x1 + b.x2) / 2 / width:.8g} {(b.y1 + b.y2) / 2 / height:.8g} "
            f"{(b.x2 - b.x1) / width:.8g} {(b.y2 - b.y1) / height:.8g}\n"
            for b in row
        ]
        write_whole(path / "labels" / f"{Path(name).stem}.txt", "".join(lines))
    # without "path", which ultralytics takes from where it runs, it is this file's folder
    data = {"train": "images", "val": "images", "names": dict(enumerate(names))}
    write_whole(path / "data.yaml", yaml.safe_dump(data, allow_unicode=True, sort_keys=False))
