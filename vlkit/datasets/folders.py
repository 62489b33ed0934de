"""YOLO and Pascal VOC: a folder with one label file for each picture."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vlkit.datasets.files import (
    ENDINGS,
    boxes_of,
    checked_box,
    find_picture,
    read_text,
    upright_size,
    write_whole,
)
from vlkit.datasets.scenes import Scene
from vlkit.errors import VlkitError
from vlkit.grounding import Box, Item

# --- YOLO: https://docs.ultralytics.com/datasets/detect/ ------------------------------------------


def read_yolo(path: Path, images: Path | None) -> list[Scene]:
    """``class x y width height``, the middle and the size as shares of the picture."""
    names = _yolo_names(path)
    folder = images or path / "images"
    pictures = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS)
    if not pictures:
        raise VlkitError(f"{folder} holds no pictures; YOLO needs them for their sizes")
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
        warnings.warn(f"{path}: {polygons} polygons left out", stacklevel=3)
    return scenes


def _label_files(path: Path) -> list[Path]:
    return [p for p in (path / "labels").rglob("*.txt") if p.name != "classes.txt"]


def _yolo_names(path: Path) -> dict[int, str]:
    import yaml

    for file in (*sorted(path.glob("*.yaml")), *sorted(path.glob("*.yml"))):
        try:
            names = (yaml.safe_load(read_text(file)) or {}).get("names")
        except (yaml.YAMLError, AttributeError) as error:
            raise VlkitError(f"{file} is no YAML with names: {error}") from None
        if names:
            pairs = names.items() if isinstance(names, dict) else enumerate(names)
            return {int(i): str(name) for i, name in pairs}
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
    for name, scene, row in _copy_pictures(scenes, boxes, path, "images"):
        width, height = scene.size
        lines = [
            f"{number[b.label]} {(b.x1 + b.x2) / 2 / width:.8g} {(b.y1 + b.y2) / 2 / height:.8g} "
            f"{(b.x2 - b.x1) / width:.8g} {(b.y2 - b.y1) / height:.8g}\n"
            for b in row
        ]
        write_whole(path / "labels" / f"{Path(name).stem}.txt", "".join(lines))
    data = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(names))}
    write_whole(path / "data.yaml", yaml.safe_dump(data, allow_unicode=True, sort_keys=False))


# --- Pascal VOC: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html -----------
# Its pixels are counted from 1 and the last is inside: xmin=1, xmax=width is the whole picture.


def read_voc(path: Path, images: Path | None) -> list[Scene]:
    """``Annotations/*.xml``, or the folder's own; pictures in ``JPEGImages`` or beside them."""
    folder = path / "Annotations" if (path / "Annotations").is_dir() else path
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise VlkitError(f"{folder} holds no .xml")
    places = [images] if images else [path / "JPEGImages", path / "images", folder, path]
    return [_voc_scene(file, places) for file in files]


def _voc_scene(file: Path, places: list[Path]) -> Scene:
    text = read_text(file)
    try:
        if "<!ENTITY" in text:
            raise ValueError("it declares entities")
        root = ElementTree.fromstring(text)
        image = find_picture(_text(root, "filename"), places)
        stated = root.findtext("size/width"), root.findtext("size/height")
        size = upright_size(image, stated)
        items = []
        for thing in root.iter("object"):
            numbers = [_text(thing, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
            box = checked_box(_text(thing, "name"), numbers, str(file))
            items.append(Box(box.label, box.x1 - 1, box.y1 - 1, box.x2, box.y2))
    except (ElementTree.ParseError, ValueError) as error:
        raise VlkitError(f"{file} is no Pascal VOC annotation: {error}") from None
    return Scene(image, size, tuple(items))


def _text(element: ElementTree.Element, key: str) -> str:
    value = element.findtext(key)
    if value is None:
        raise ValueError(f"it lacks <{key}>")
    return value


def write_voc(scenes: list[Scene], path: Path) -> None:
    """``Annotations/`` and ``JPEGImages/``."""
    boxes = [boxes_of(scene.items, "voc") for scene in scenes]
    for name, scene, row in _copy_pictures(scenes, boxes, path, "JPEGImages"):
        root = ElementTree.Element("annotation")
        _add(root, folder="JPEGImages", filename=name)
        width, height = scene.size
        _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
        for box in row:
            thing = ElementTree.SubElement(root, "object")
            _add(thing, name=box.label, difficult=0)
            numbers = {"xmin": box.x1 + 1, "ymin": box.y1 + 1, "xmax": box.x2, "ymax": box.y2}
            _add(
                ElementTree.SubElement(thing, "bndbox"),
                **{key: f"{value:.8g}" for key, value in numbers.items()},
            )
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode")
        write_whole(path / "Annotations" / f"{Path(name).stem}.xml", text + "\n")


def _add(element: ElementTree.Element, **values: Any) -> None:
    for key, value in values.items():
        text = "".join(c for c in str(value) if c.isprintable())  # XML knows no control characters
        ElementTree.SubElement(element, key).text = text


def _copy_pictures(scenes: list[Scene], boxes: list[list[Box]], path: Path, folder: str):
    """Copy each picture once; its new name, the scene and its boxes (all of one picture's)."""
    rows: dict[Path, tuple[Scene, list[Box]]] = {}
    for scene, row in zip(scenes, boxes, strict=True):
        rows.setdefault(scene.image.absolute(), (scene, []))[1].extend(row)
    taken: set[str] = set()
    for image, (scene, row) in rows.items():
        name, count = image.name, 1
        while Path(name).stem in taken:  # two folders may have a 1.jpg each
            count += 1
            name = f"{image.stem}_{count}{image.suffix}"
        taken.add(Path(name).stem)
        if not image.is_file():
            raise VlkitError(f"{image} is missing; this format keeps the pictures with the labels")
        (path / folder).mkdir(exist_ok=True)
        shutil.copyfile(image, path / folder / name)
        yield name, scene, row
