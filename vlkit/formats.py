"""What each generation writes around its numbers, to read and to write it; no geometry here.

Every format names its coordinate space: ``thousand`` is 0–1000 of the picture's width and height,
``resized`` is pixels of the picture as the processor resized it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

from vlkit.errors import VlkitError

Labelled = tuple[str, list[float]]  # a label with the 4 numbers of a box or the 2 of a point


@dataclass(frozen=True)
class GroundingFormat:
    """How one generation writes coordinates.

    Attributes:
        style: ``tags`` (special tokens around ``(x,y)`` pairs) or ``json`` (``bbox_2d``).
        space: ``thousand`` or ``resized``, as the module's docstring says.
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
_PAIR = rf"\({_NUMBER},{_NUMBER}\)"
_PAIRS = re.compile(rf"\s*+{_PAIR}(?:\s*+,?\s*+{_PAIR})?\s*+")  # a point or a box
_OBJECT = re.compile(r'\{(?=\s*")')  # where a JSON object begins
_REACH = 4  # how many such places one object may hold; the limit keeps reading linear
_DECODER = json.JSONDecoder()
_KEYS = {"bbox_2d": 4, "point_2d": 2}  # how many numbers each holds
_KEY = r"""(?:bbox|point)_2d["']?\s*[:=]"""
_STRAY = {  # what tells that coordinates are there, but not as the format writes them
    "tags": re.compile(rf"{_PAIR}\s*,\s*{_PAIR}|{_KEY}"),
    "json": re.compile(rf"<box>|<\|box_start\|>|<points?\s+x|{_KEY}"),
}


def read_answer(answer: str, form: GroundingFormat) -> tuple[list[Labelled], list[str]]:
    """Labels with their numbers in an answer, in order, and what could not be read."""
    found, problems = _read_tags(answer, form) if form.style == "tags" else _read_json(answer)
    if not found and not problems and (stray := _STRAY[form.style].search(answer)):
        problems = [f"coordinates outside the format ({stray[0][:60]}): pass reply.raw, not .text"]
    return found, problems


def write_answer(pairs: list[tuple[str, list[int]]], form: GroundingFormat) -> str:
    """Labels with their numbers as the model writes them; the inverse of :func:`read_answer`."""
    own = ("</think>", *filter(None, (*form.label_tags, *form.box_tags)))
    for label, _ in pairs:
        if any(tag in label for tag in own):
            raise VlkitError(f"label {label!r} holds one of the format's own tags; rename it")
    return _write_tags(pairs, form) if form.style == "tags" else _write_json(pairs)


# --- tags: Qwen-VL and Qwen2-VL ------------------------------------------------------------------


def _read_tags(text: str, form: GroundingFormat) -> tuple[list[Labelled], list[str]]:
    """(label, numbers) pairs, and what could not be read."""
    tags = (*form.label_tags, *form.box_tags)
    pieces = re.split("(" + "|".join(map(re.escape, tags)) + ")", text)
    found, problems, label = [], [], ""
    for tag, content, after in zip(pieces[1::2], pieces[2::2], [*pieces[3::2], ""], strict=False):
        if tag == form.label_tags[0]:
            label = content.strip()
        if tag in (form.label_tags[0], form.box_tags[0]) and not after:
            problems.append(f"the answer ends inside {tag}{content[:60]}")
        elif tag == form.box_tags[0]:
            pairs = _PAIRS.fullmatch(content)
            if pairs and after == form.box_tags[1]:
                found.append((label, [float(n) for n in pairs.groups() if n is not None]))
            else:
                problems.append(f"{tag}{content[:60]}{after} is neither a box nor a point")
    return found, problems


def _write_tags(pairs: list[tuple[str, list[int]]], form: GroundingFormat) -> str:
    (ref, end_ref), (box, end_box) = form.label_tags, form.box_tags
    written, before = "", ""
    for label, n in pairs:
        if label != before:
            written += (", " if written else "") + f"{ref}{label}{end_ref}"
        corners = ",".join(f"({x},{y})" for x, y in zip(n[::2], n[1::2], strict=True))
        written += f"{box}{corners}{end_box}"
        before = label
    return written


# --- JSON: Qwen2.5-VL and later ------------------------------------------------------------------


def _read_json(answer: str) -> tuple[list[Labelled], list[str]]:
    """(label, numbers) pairs, and what could not be read."""
    starts = [match.start() for match in _OBJECT.finditer(answer)]
    ends = [*starts[1:], len(answer)]
    found: list[Labelled] = []
    problems: list[str] = []
    done = 0
    for i, (start, end) in enumerate(zip(starts, ends, strict=False)):
        part = answer[start:end]
        window = answer[start : ends[min(i + _REACH, len(starts) - 1)]]
        if start < done:  # inside the object just read: an object in it, or a brace in its label
            continue
        if end == len(answer) and "}" not in part and (found or _may_hold_key(part)):
            problems.append(f"the answer ends inside {part[:60]}")
        elif _holds_key(window):
            try:
                item, length = _DECODER.raw_decode(window)
                if _KEYS.keys() & item.keys():
                    done = start + length
                    found.append(_read_item(item))
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                if start < done or _holds_key(part):
                    problems.append(f"{part[:80]} is neither a box nor a point ({error})")
    return found, problems


def _holds_key(part: str) -> bool:
    return any(key in part for key in _KEYS)


def _may_hold_key(part: str) -> bool:
    begun = "".join(part[:99].split())
    return _holds_key(part) or any(f'{{"{key}"'.startswith(begun) for key in _KEYS)


def _read_item(item: dict) -> Labelled:
    key = next((key for key in _KEYS if key in item), "bbox_2d")
    values = item.get(key)
    if not isinstance(values, list) or len(values) != _KEYS[key]:
        raise ValueError(f"{key} takes {_KEYS[key]} numbers")
    numbers = [float(value) for value in values]
    if not all(abs(n) < 1e9 for n in numbers):  # also refuses NaN
        raise ValueError("numbers out of range")
    label = item.get("label")
    return ("" if label is None else str(label)), numbers


def _write_json(pairs: list[tuple[str, list[int]]]) -> str:
    lines = [
        json.dumps(
            {"bbox_2d" if len(n) == 4 else "point_2d": n, "label": label}, ensure_ascii=False
        )
        for label, n in pairs
    ]
    return "```json\n[\n\t" + ",\n\t".join(lines) + "\n]\n```" if lines else "```json\n[]\n```"
