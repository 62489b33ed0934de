"""Pascal VOC: a folder with an XML file for each picture.

Its pixels count from 1 and the last one is inside: xmin=1, xmax=width is the whole picture.
http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vlkit.datasets.pictures import (
    Scene,
    boxes_of,
    checked_box,
    copy_pictures,
    find_picture,
    upright_size,
)
from vlkit.errors import VlkitError
from vlkit.files import read_text, write_whole
from vlkit.grounding.boxes import Box


def read_voc(path: Path, images: Path | None) -> list[Scene]:
    """``Annotations/*.xml``, or the folder's own; pictures in ``JPEGImages`` or next to it."""
    folder = path / "Annotations" if (path / "Annotations").is_dir() else path
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise VlkitError(f"{folder} contains no .xml")
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
        raise VlkitError(f"{file} is not a Pascal VOC annotation: {error}") from None
    return Scene(image, size, tuple(items))


def _text(element: ElementTree.Element, key: str) -> str:
    value = element.findtext(key)
    if value is None:
        raise ValueError(f"it has no <{key}>")
    return value


def write_voc(scenes: list[Scene], path: Path) -> None:
    """``Annotations/`` and ``JPEGImages/``."""
    boxes = [boxes_of(scene.items, "voc") for scene in scenes]
    for name, scene, row in copy_pictures(scenes, boxes, path, "JPEGImages"):
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
        text = "".join(c for c in str(value) if c.isprintable())  # XML has no control characters
        ElementTree.SubElement(element, key).text = text
