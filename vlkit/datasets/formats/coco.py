"""COCO (https://cocodataset.org/#format-data); RefCOCO's lines."""

import json
import warnings
from pathlib import Path
from typing import Any

from vlkit.datasets.pictures import Scene, boxes_of, checked_box, find_picture, upright_size
from vlkit.errors import VlkitError
from vlkit.files import read_json, read_rows, relative, write_rows, write_whole
from vlkit.grounding.boxes import Box, Item, Size


def read_coco(path: Path, images: Path | None) -> list[Scene]:
    """``images``, ``annotations`` and ``categories``; groups (``iscrowd``) are left out."""
    data = read_json(path)
    try:
        labels = {category["id"]: category["name"] for category in data["categories"]}
        boxes: dict[Any, list[Item]] = {image["id"]: [] for image in data["images"]}
        crowds = 0
        for annotation in data["annotations"]:
            if annotation.get("iscrowd"):
                crowds += 1
                continue
            where = f"{path}, annotation {annotation.get('id')}"
            box = _coco_box(labels[annotation["category_id"]], annotation["bbox"], where)
            boxes[annotation["image_id"]].append(box)
        places = [images] if images else [path.parent, path.parent / "images"]
        scenes = [
            Scene(*_picture(image, "file_name", places), tuple(boxes[image["id"]]))
            for image in data["images"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise VlkitError(f"{path} is not a COCO file: {type(error).__name__} {error}") from None
    if crowds:
        warnings.warn(f"{path}: left out {crowds} groups (iscrowd)", stacklevel=3)
    return scenes


def _coco_box(label: Any, numbers: Any, where: str) -> Box:
    checked_box(label, numbers, where)
    x, y, width, height = (float(n) for n in numbers)
    return checked_box(label, (x, y, x + width, y + height), where)


def _picture(record: dict, key: str, places: list[Path]) -> tuple[Path, Size]:
    image = find_picture(record[key], places)
    return image, upright_size(image, (record.get("width"), record.get("height")))


def write_coco(scenes: list[Scene], path: Path) -> None:
    """One file; categories in the order of their names."""
    boxes = [boxes_of(scene.items, "coco") for scene in scenes]
    names = sorted({box.label for row in boxes for box in row})
    numbers = {name: i for i, name in enumerate(names, start=1)}
    pairs = [(image_id, box) for image_id, row in enumerate(boxes, start=1) for box in row]
    annotations = [
        {
            "id": i, "image_id": image_id, "category_id": numbers[box.label], "iscrowd": 0,
            "bbox": [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1], "area": box.area,
        }
        for i, (image_id, box) in enumerate(pairs, start=1)
    ]  # fmt: skip
    pictures = [
        {"id": i, "file_name": relative(s.image, path), "width": s.size[0], "height": s.size[1]}
        for i, s in enumerate(scenes, start=1)
    ]
    categories = [{"id": i, "name": name} for name, i in numbers.items()]
    data = {"images": pictures, "annotations": annotations, "categories": categories}
    write_whole(path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")


# --- RefCOCO: the lines of eval_mm/evaluate_grounding.py in QwenLM/Qwen-VL ------------------------


def read_refcoco(path: Path, images: Path | None) -> list[Scene]:
    """A row for each expression: ``image``, ``sent``, ``bbox``; ``width``, ``height`` if known."""
    scenes = []
    for number, row in enumerate(read_rows(path), start=1):
        where = f"{path}, row {number}"
        if not isinstance(row.get("image"), str) or not isinstance(row.get("sent"), str):
            raise VlkitError(f'{where} lacks "image" or "sent"')
        picture = _picture(row, "image", [images or path.parent])
        scenes.append(Scene(*picture, (checked_box(row["sent"], row.get("bbox"), where),)))
    return scenes


def write_refcoco(scenes: list[Scene], path: Path) -> None:
    """A row for each box."""
    rows = [
        {
            "image": relative(scene.image, path), "sent": box.label, "bbox": list(box.xyxy),
            "width": scene.size[0], "height": scene.size[1],
        }
        for scene in scenes
        for box in boxes_of(scene.items, "refcoco")
    ]  # fmt: skip
    write_rows(path, rows)
