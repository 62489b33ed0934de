"""Boxes and points: what each generation writes, read into pixels of the upright original and back.

Every format names its coordinate space in :data:`FORMATS`:

* ``thousand``: 0–1000 of the picture's width and height, whatever its size;
* ``resized``: pixels of the picture as the processor resized it.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from vlkit.errors import GroundingParseError, VlkitError

Size = tuple[int, int]  # (width, height) in pixels


@dataclass(frozen=True)
class Box:
    """An axis-aligned box in pixels of the upright original picture: x right, y down, floats.

    ``(x1, y1)`` is the top left corner, ``(x2, y2)`` the bottom right one.
    """

    label: str
    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """``(x1, y1, x2, y2)``."""
        return (self.x1, self.y1, self.x2, self.y2)

    @property
    def area(self) -> float:
        """Square pixels."""
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)


@dataclass(frozen=True)
class Point:
    """A point in pixels of the upright original picture: x right, y down, floats."""

    label: str
    x: float
    y: float


@dataclass(frozen=True)
class GroundingFormat:
    """How one generation writes coordinates.

    Attributes:
        style: ``tags`` (special tokens around ``(x,y)`` pairs) or ``json`` (``bbox_2d``).
        space: ``thousand`` or ``resized``, see the module's docstring.
        label_tags, box_tags: the tokens around a label and around coordinates, for ``tags``.
    """

    style: Literal["tags", "json"]
    space: Literal["thousand", "resized"]
    label_tags: tuple[str, str] = ("", "")
    box_tags: tuple[str, str] = ("", "")


FORMATS = {
    # Qwen-VL: https://arxiv.org/abs/2308.12966, section 3.2
    "qwen_vl": GroundingFormat("tags", "thousand", ("<ref>", "</ref>"), ("<box>", "</box>")),
    # Qwen2-VL: https://arxiv.org/abs/2409.12191, section 2.2.1
    "qwen2_vl": GroundingFormat(
        "tags",
        "thousand",
        ("<|object_ref_start|>", "<|object_ref_end|>"),
        ("<|box_start|>", "<|box_end|>"),
    ),
    # Qwen2.5-VL: https://arxiv.org/abs/2502.13923, "absolute coordinates"
    "qwen2_5_vl": GroundingFormat("json", "resized"),
    "qwen3_vl": GroundingFormat("json", "thousand"),
    "qwen3_5": GroundingFormat("json", "thousand"),
}

_NUMBER = r"\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*"
_PAIR = re.compile(rf"\({_NUMBER},{_NUMBER}\)")
_BARE_BOX = re.compile(rf"\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)")
# a JSON object without objects inside; possessive, so that no input makes it backtrack
_OBJECT = re.compile(r"""\{(?:[^{}"]++|"(?:[^"\\]++|\\.)*+")*+\}""", re.DOTALL)


def parse_grounding(
    text: str, *, family: str, image_size: Size, input_size: Size | None = None
) -> list[Box | Point]:
    """Read the boxes and points of a model's raw answer.

    Args:
        text: the answer with its special tokens (``reply.raw``).
        family: ``qwen_vl``, ``qwen2_vl``, ``qwen2_5_vl``, ``qwen3_vl`` or ``qwen3_5``.
        image_size: (width, height) of the upright original, in pixels.
        input_size: (width, height) of the picture as the model saw it; needed for
            ``qwen2_5_vl`` alone, whose coordinates are pixels of that size.

    Returns:
        Boxes and points in pixels of the upright original, clipped to it, corners in order; an
        empty list where the answer holds none. Of an answer that is cut off or spoilt in places,
        what is whole is returned and the rest reported as a warning.

    Raises:
        GroundingParseError: the text holds coordinates, but none that this format can read.
    """
    form = _format_of(family)
    span = _span(form, image_size, input_size)
    read = _read_tags if form.style == "tags" else _read_json
    found, problems = read(text, form)
    if problems and not found:
        raise GroundingParseError(f"{problems[0]} (family={family!r})", text)
    if problems:
        warnings.warn(f"{len(found)} read, left out: {'; '.join(problems)}", stacklevel=2)
    return [_to_pixels(label, numbers, span, image_size) for label, numbers in found]


def format_grounding(
    boxes: Box | Point | Iterable[Box | Point],
    *,
    family: str,
    image_size: Size,
    input_size: Size | None = None,
) -> str:
    """Write boxes and points as the family writes them; the inverse of :func:`parse_grounding`.

    Coordinates are rounded to the format's whole numbers. Boxes of one label that follow each
    other share its tag.

    Args:
        boxes: boxes or points in pixels of the upright original, one or many.
        family, image_size, input_size: as in :func:`parse_grounding`.
    """
    form = _format_of(family)
    span = _span(form, image_size, input_size)
    items = [boxes] if isinstance(boxes, Box | Point) else list(boxes)
    pairs = [(item.label, _from_pixels(item, span, image_size)) for item in items]
    return _write_tags(pairs, form) if form.style == "tags" else _write_json(pairs)


def _format_of(family: str) -> GroundingFormat:
    if family not in FORMATS:
        raise VlkitError(f"family {family!r} is unknown; families = {list(FORMATS)}")
    return FORMATS[family]


def _span(form: GroundingFormat, image_size: Size, input_size: Size | None) -> Size:
    """The (width, height) that the format's coordinates run over."""
    for name, size in (("image_size", image_size), ("input_size", input_size)):
        if size is not None and (len(size) != 2 or min(size) <= 0):
            raise VlkitError(f"{name}={size!r} must be (width, height) in pixels, both positive")
    if form.space == "thousand":
        return (1000, 1000)
    if input_size is None:
        raise VlkitError(
            "this family writes pixels of the resized picture: pass input_size=(width, height), "
            "which is image_grid_thw[2] and [1] times the patch size (reply.input_sizes)"
        )
    return input_size


def _to_pixels(label: str, numbers: Sequence[float], span: Size, size: Size) -> Box | Point:
    pixels = [
        min(max(value * size[i % 2] / span[i % 2], 0.0), float(size[i % 2]))
        for i, value in enumerate(numbers)
    ]
    if len(pixels) == 2:
        return Point(label, *pixels)
    x1, y1, x2, y2 = pixels
    return Box(label, min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))


def _from_pixels(item: Box | Point, span: Size, size: Size) -> list[int]:
    pixels = item.xyxy if isinstance(item, Box) else (item.x, item.y)
    scaled = [round(value * span[i % 2] / size[i % 2]) for i, value in enumerate(pixels)]
    return [min(max(value, 0), span[i % 2]) for i, value in enumerate(scaled)]


# --- tags: Qwen-VL and Qwen2-VL ------------------------------------------------------------------


def _read_tags(text: str, form: GroundingFormat) -> tuple[list, list[str]]:
    """(label, numbers) pairs, and what could not be read."""
    tags = (*form.label_tags, *form.box_tags)
    pieces = re.split("(" + "|".join(map(re.escape, tags)) + ")", text)
    found, problems, label = [], [], ""
    for tag, content, after in zip(pieces[1::2], pieces[2::2], [*pieces[3::2], ""], strict=True):
        if tag == form.label_tags[0]:
            label = content.strip()
        elif tag == form.box_tags[0]:
            numbers = [float(n) for pair in _PAIR.findall(content) for n in pair]
            if after == form.box_tags[1] and len(numbers) in (2, 4):
                found.append((label, numbers))
            elif after:
                problems.append(f"{tag}{content[:60]}{after} is neither a box nor a point")
            else:
                problems.append(f"the answer ends inside {tag}{content[:60]}")
    if not found and not problems and _BARE_BOX.search(text):
        problems.append(
            f"the answer holds coordinates without {form.box_tags[0]}; pass the raw answer with "
            "its special tokens (reply.raw), or check the family"
        )
    return found, problems


def _write_tags(pairs: list[tuple[str, list[int]]], form: GroundingFormat) -> str:
    (ref, end_ref), (box, end_box) = form.label_tags, form.box_tags
    groups: list[str] = []
    before = None
    for label, n in pairs:
        corners = ",".join(f"({x},{y})" for x, y in zip(n[::2], n[1::2], strict=True))
        if label and label == before:
            groups[-1] += f"{box}{corners}{end_box}"
        else:
            name = f"{ref}{label}{end_ref}" if label else ""
            groups.append(f"{name}{box}{corners}{end_box}")
        before = label
    return ", ".join(groups)


# --- JSON: Qwen2.5-VL and later ------------------------------------------------------------------


def _read_json(text: str, form: GroundingFormat) -> tuple[list, list[str]]:
    """(label, numbers) pairs, and what could not be read."""
    answer = text.rpartition("</think>")[2]
    found, problems, end = [], [], 0
    for match in _OBJECT.finditer(answer):
        if "bbox_2d" not in match[0] and "point_2d" not in match[0]:
            continue
        end = match.end()
        try:
            item = json.loads(match[0])
            found.append(_read_item(item))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            problems.append(f"{match[0][:80]} is neither a box nor a point ({error})")
    if "bbox_2d" in answer[end:] or "point_2d" in answer[end:]:
        problems.append(f"the answer ends inside {answer[end:].strip()[:60]}")
    return found, problems


def _read_item(item: dict) -> tuple[str, list[float]]:
    key = "bbox_2d" if "bbox_2d" in item else "point_2d"
    numbers = [float(n) for n in item[key]]
    if len(numbers) != (4 if key == "bbox_2d" else 2):
        raise ValueError(f"{len(numbers)} numbers")
    if not all(abs(n) < 1e9 for n in numbers):  # also refuses NaN
        raise ValueError("numbers out of range")
    return str(item.get("label", "")), numbers


def _write_json(pairs: list[tuple[str, list[int]]]) -> str:
    lines = [
        json.dumps(
            {"bbox_2d" if len(n) == 4 else "point_2d": n, "label": label}, ensure_ascii=False
        )
        for label, n in pairs
    ]
    return "```json\n[\n\t" + ",\n\t".join(lines) + "\n]\n```" if lines else "```json\n[]\n```"
