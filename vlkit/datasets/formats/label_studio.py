"""Label Studio's tasks: https://labelstud.io/guide/task_format."""

import json
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from vlkit.datasets.pictures import Scene, find_picture, upright_size
from vlkit.errors import VlkitError
from vlkit.files import read_rows, relative, write_whole
from vlkit.grounding.boxes import Box, Item, Point, Quad, Size

_KINDS = {"rectanglelabels": Box, "keypointlabels": Point, "polygonlabels": Quad}


def read_label_studio(path: Path, images: Path | None) -> list[Scene]:
    """The first annotation of each task in an export. Rotated rectangles become quads."""
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
            raise VlkitError(f"{path}, task {number} is not a Label Studio task: {why}") from None
        left_out += items.count(None)
        scenes.append(Scene(image, size, tuple(item for item in items if item)))
    if left_out:
        warnings.warn(f"{path}: left out {left_out} results, as polygons and text", stacklevel=3)
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
    return _rotated(label, x, y, w, h, angle) if angle else Box(label, x, y, x + w, y + h)


def _rotated(label: str, x: float, y: float, w: float, h: float, degrees: float) -> Quad:
    """A rectangle rotated clockwise around its top left corner."""
    from math import cos, radians, sin

    c, s = cos(radians(degrees)), sin(radians(degrees))
    corners = [(x + a * c - b * s, y + a * s + b * c) for a, b in ((0, 0), (w, 0), (w, h), (0, h))]
    return Quad(label, *(v for corner in corners for v in corner))


def write_label_studio(scenes: list[Scene], path: Path) -> None:
    """Tasks to import, the labels as annotations."""
    tasks = [
        {
            "id": number,
            "data": {"image": relative(scene.image, path)},
            "annotations": [
                {
                    "id": number,
                    "result": [
                        {"id": f"{number}-{i}"} | _label_studio_result(item, scene.size)
                        for i, item in enumerate(scene.items, start=1)
                    ],
                }
            ],
        }
        for number, scene in enumerate(scenes, start=1)
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
