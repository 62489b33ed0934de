"""COCO, RefCOCO-style lines and Label Studio exports."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from vlkit.datasets.files import (
    boxes_of,
    checked_box,
    dump_lines,
    find_picture,
    read_json,
    read_rows,
    relative,
    upright_size,
    write_whole,
)
from vlkit.datasets.scenes import Scene
from vlkit.errors import VlkitError
from vlkit.grounding import Box, Item, Point, Quad, Size

# --- COCO: https://cocodataset.org/#format-data ---------------------------------------------------


def read_coco(path: Path, images: Path | None) -> list[Scene]:
    """``images``, ``annotations`` and ``categories``; groups (``iscrowd``) are left out."""
    data = read_json(path)
    try:
        names = {each["id"]: each["name"] for each in data["categories"]}
        rows: dict[Any, list[Item]] = {each["id"]: [] for each in data["images"]}
        crowds = 0
        for each in data["annotations"]:
            if each.get("iscrowd"):
                crowds += 1
                continue
            where = f"{path}, annotation {each.get('id')}"
            label, (x, y, w, h) = names[each["category_id"]], _four(each["bbox"], where)
            box = checked_box(label, (x, y, x + w, y + h), where)
            rows[each["image_id"]].append(box)
        places = [images] if images else [path.parent, path.parent / "images"]
        scenes = [_coco_scene(each, rows[each["id"]], places) for each in data["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise VlkitError(f"{path} is no COCO file: {type(error).__name__} {error}") from None
    if crowds:
        warnings.warn(f"{path}: {crowds} groups (iscrowd) left out", stacklevel=3)
    return scenes


def _four(numbers: Any, where: str) -> list[float]:
    checked_box("", numbers, where)
    return [float(n) for n in numbers]


def _coco_scene(record: dict, items: list[Item], places: list[Path]) -> Scene:
    image = find_picture(record["file_name"], places)
    size = upright_size(image, (record.get("width"), record.get("height")))
    return Scene(image, size, tuple(items))


def write_coco(scenes: list[Scene], path: Path) -> None:
    """One file; categories in the order of their names."""
    boxes = [boxes_of(scene.items, "coco") for scene in scenes]
    names = sorted({box.label for row in boxes for box in row})
    numbers = {name: i for i, name in enumerate(names, start=1)}
    annotations: list[dict] = []
    for image_id, row in enumerate(boxes, start=1):
        for box in row:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": numbers[box.label],
                    "bbox": [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1],
                    "area": box.area,
                    "iscrowd": 0,
                }
            )
    pictures = [
        {"id": i, "file_name": relative(s.image, path), "width": s.size[0], "height": s.size[1]}
        for i, s in enumerate(scenes, start=1)
    ]
    categories = [{"id": i, "name": name} for name, i in numbers.items()]
    data = {"images": pictures, "annotations": annotations, "categories": categories}
    write_whole(path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")


# --- RefCOCO as Qwen's own evaluation has it: eval_mm/evaluate_grounding.py of QwenLM/Qwen-VL -----


def read_refcoco(path: Path, images: Path | None) -> list[Scene]:
    """A row for each expression: ``image``, ``sent``, ``bbox``, at most ``width``, ``height``."""
    scenes = []
    for number, row in enumerate(read_rows(path), start=1):
        where = f"{path}, row {number}"
        if not isinstance(row.get("image"), str) or not isinstance(row.get("sent"), str):
            raise VlkitError(f'{where} lacks "image" or "sent"')
        image = find_picture(row["image"], [images or path.parent])
        size = upright_size(image, (row.get("width"), row.get("height")))
        box = checked_box(row["sent"], row.get("bbox"), where)
        scenes.append(Scene(image, size, (box,)))
    return scenes


def write_refcoco(scenes: list[Scene], path: Path) -> None:
    """A row for each box."""
    rows = [
        {
            "image": relative(scene.image, path),
            "sent": box.label,
            "bbox": list(box.xyxy),
            "width": scene.size[0],
            "height": scene.size[1],
        }
        for scene in scenes
        for box in boxes_of(scene.items, "refcoco")
    ]
    write_whole(path, dump_lines(rows))


# --- vlkit's own samples: data/README.md ----------------------------------------------------------


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
                checked_box(each["label"], each["box"], f"{file}, {row['name']}")
                for each in row["objects"]
                if each.get("box")
            ]
        except (KeyError, TypeError) as error:
            why = f"{type(error).__name__} {error}"
            raise VlkitError(f"{file} is no samples.json: {why}") from None
        scenes.append(Scene(image, upright_size(image, size), tuple(items)))
    return scenes


# --- Label Studio: https://labelstud.io/guide/task_format -----------------------------------------

_KINDS = {"rectanglelabels": Box, "keypointlabels": Point, "polygonlabels": Quad}


def read_label_studio(path: Path, images: Path | None) -> list[Scene]:
    """An export of tasks; of each the first annotation. Turned rectangles become quads."""
    scenes, left_out = [], 0
    for number, task in enumerate(read_rows(path), start=1):
        try:
            sources = [v for v in task["data"].values() if isinstance(v, str)]
            source = task["data"].get("image") or sources[0]
            results = (task.get("annotations") or [{}])[0].get("result", [])
            stated = next(((r["original_width"], r["original_height"]) for r in results), None)
            image = find_picture(_file_name(source), [images or path.parent])
            size = upright_size(image, stated)
            items = [_label_studio_item(result, size) for result in results]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            why = f"{type(error).__name__} {error}"
            raise VlkitError(f"{path}, task {number} is no Label Studio task: {why}") from None
        left_out += items.count(None)
        scenes.append(Scene(image, size, tuple(item for item in items if item)))
    if left_out:
        warnings.warn(f"{path}: {left_out} results left out, as polygons and text", stacklevel=3)
    return scenes


def _file_name(source: str) -> str:
    parts = urlsplit(source)
    return parse_qs(parts.query).get("d", [unquote(parts.path)])[0].lstrip("/")


def _label_studio_item(result: dict, size: Size) -> Item | None:
    kind, value = result.get("type", ""), result["value"]
    if kind not in _KINDS:
        return None
    label = str((value.get(kind) or [""])[0])
    across, down = (side / 100 for side in size)
    if kind == "polygonlabels":
        flat = [float(v) * (across, down)[i] for xy in value["points"] for i, v in enumerate(xy)]
        return Quad(label, *flat) if len(flat) == 8 else None
    x, y = float(value["x"]) * across, float(value["y"]) * down
    if kind == "keypointlabels":
        return Point(label, x, y)
    w, h = float(value["width"]) * across, float(value["height"]) * down
    angle = float(value.get("rotation") or 0)
    return _turned(label, x, y, w, h, angle) if angle else Box(label, x, y, x + w, y + h)


def _turned(label: str, x: float, y: float, w: float, h: float, degrees: float) -> Quad:
    """A rectangle turned clockwise around its top left corner."""
    from math import cos, radians, sin

    c, s = cos(radians(degrees)), sin(radians(degrees))
    corners = [(x + a * c - b * s, y + a * s + b * c) for a, b in ((0, 0), (w, 0), (w, h), (0, h))]
    return Quad(label, *(v for corner in corners for v in corner))


def write_label_studio(scenes: list[Scene], path: Path) -> None:
    """Tasks to import, the labels as annotations."""
    tasks = [
        {
            "data": {"image": relative(scene.image, path)},
            "annotations": [{"result": [_label_studio_result(i, scene.size) for i in scene.items]}],
        }
        for scene in scenes
    ]
    write_whole(path, json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")


def _label_studio_result(item: Item, size: Size) -> dict:
    across, down = (100 / side for side in size)
    value: dict[str, Any]
    if isinstance(item, Quad):
        value = {"points": [[x * across, y * down] for x, y in item.corners]}
    elif isinstance(item, Point):
        value = {"x": item.x * across, "y": item.y * down, "width": 1}
    else:
        w, h = (item.x2 - item.x1) * across, (item.y2 - item.y1) * down
        value = {"x": item.x1 * across, "y": item.y1 * down, "width": w, "height": h, "rotation": 0}
    kind = next(kind for kind, type_ in _KINDS.items() if isinstance(item, type_))
    return {
        "type": kind,
        "from_name": "label",
        "to_name": "image",
        "original_width": size[0],
        "original_height": size[1],
        "value": value | {kind: [item.label]},
    }
