"""How each generation spells boxes: read and written; no geometry.

Every format names its coordinate space, one of ``SPACES``: ``0-1000`` and ``0-999`` are shares of
the picture's width and height, ``resized`` is pixels of the picture as the processor resized it,
``original`` is pixels of the upright original.
"""

from __future__ import annotations

import html
import json
import re
from ast import literal_eval
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

from vlkit.errors import VlkitError

Space = Literal["0-1000", "0-999", "resized", "original"]
SPACES = get_args(Space)


class Found(NamedTuple):
    """A label with 4 numbers of a box, 2 of a point or 8 of a quad, and its place in the text."""

    label: str
    numbers: list[float]
    start: int
    end: int


@dataclass(frozen=True)
class GroundingFormat:
    """How one generation writes coordinates.

    Attributes:
        style: ``tags`` (special tokens around ``(x,y)`` pairs) or ``json`` (``bbox_2d``).
        space: of the numbers, one of ``SPACES``.
        label_tags, box_tags, quad_tags: the tokens around a label, around the corners of a box or
            a point, and around four corners, for ``tags``.
    """

    style: Literal["tags", "json"]
    space: Space
    label_tags: tuple[str, str] = ("", "")
    box_tags: tuple[str, str] = ("", "")
    quad_tags: tuple[str, str] = ("", "")


FORMATS = {
    # Qwen-VL: https://arxiv.org/abs/2308.12966, section 3.2; its own evaluation reads 0-999
    "qwen_vl": GroundingFormat(
        "tags", "0-1000", ("<ref>", "</ref>"), ("<box>", "</box>"), ("<quad>", "</quad>")
    ),
    # Qwen2-VL: https://arxiv.org/abs/2409.12191, section 2.2.1
    "qwen2_vl": GroundingFormat(
        "tags",
        "0-1000",
        ("<|object_ref_start|>", "<|object_ref_end|>"),
        ("<|box_start|>", "<|box_end|>"),
        ("<|quad_start|>", "<|quad_end|>"),
    ),
    # Qwen2.5-VL: https://arxiv.org/abs/2502.13923, "absolute coordinates"
    "qwen2_5_vl": GroundingFormat("json", "resized"),
    "qwen3_vl": GroundingFormat("json", "0-1000"),
    "qwen3_5": GroundingFormat("json", "0-1000"),
}


_NUMBER = r"\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*"
_PAIR = rf"\({_NUMBER},{_NUMBER}\)"
_PAIRS = re.compile(rf"\s*+{_PAIR}" + rf"(?:\s*+,?\s*+{_PAIR})?" * 3 + r"\s*+")


_OBJECT = re.compile(r"""\{(?=\s*["'])""")  # where a JSON object begins


_REACH = 4  # how many such places one object may contain; the limit keeps reading linear
_DECODER = json.JSONDecoder()
_QUOTED = r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\""""


_PYTHON = re.compile(rf"\{{(?:[^{{}}'\"]|{_QUOTED})*+\}}", re.DOTALL)  # a dict as Python prints it


_KEYS = {"bbox_2d": 4, "point_2d": 2}  # how many numbers each has
_NAME = re.compile("|".join(_KEYS))
_LABELS = ("label", "text_content")  # the second in answers that read text


_FENCE = re.compile(r"```json(.*?)(?:```|\Z)", re.DOTALL)


_XML_START = re.compile(r"<points?\s")
_XML = re.compile(rf"<points?((?:\s++\w++\s*+=\s*+(?:{_QUOTED}))*+)\s*+(/?>)?")


_ATTRIBUTE = re.compile(rf"(\w++)\s*+=\s*+({_QUOTED})")


_KEY = r"""(?:bbox|point|quad)_[23]d["']?\s*[:=]"""


_STRAY = {  # coordinates in another syntax than the format's
    "tags": re.compile(rf"{_PAIR}\s*,\s*{_PAIR}|{_KEY}|<points?\s+x"),
    "json": re.compile(rf"<box>|<\|box_start\|>|<quad>|<\|quad_start\|>|{_KEY}"),
}


def read_answer(answer: str, form: GroundingFormat) -> tuple[list[Found], list[str]]:
    """Labels with their numbers in an answer, in order, and what could not be read."""
    read = _read_tags if form.style == "tags" else _read_json
    items, problems = read(answer, form)
    if not items and not problems and (stray := _STRAY[form.style].search(answer)):
        problems = [f"coordinates outside the format ({stray[0][:60]}): pass reply.raw, not .text"]
    return items, problems


def write_answer(pairs: list[tuple[str, list[int]]], form: GroundingFormat) -> str:
    """Labels with their numbers as the model writes them; the inverse of :func:`read_answer`."""
    tags = ("</think>", *filter(None, (*form.label_tags, *form.box_tags, *form.quad_tags)))
    for label, _ in pairs:
        if any(tag in label for tag in tags):
            raise VlkitError(f"label {label!r} contains one of the format's tags; rename it")
    return _write_tags(pairs, form) if form.style == "tags" else _write_json(pairs)


# --- tags: Qwen-VL and Qwen2-VL ------------------------------------------------------------------


def _read_tags(text: str, form: GroundingFormat) -> tuple[list[Found], list[str]]:
    tags = (*form.label_tags, *form.box_tags, *form.quad_tags)
    closing = dict((form.box_tags, form.quad_tags))
    places = [(m[0], *m.span()) for m in re.finditer("|".join(map(re.escape, tags)), text)]
    items, problems, label, begin = [], [], "", -1
    for (tag, start, inner), (after, stop, end) in pairwise([*places, ("", len(text), len(text))]):
        content = text[inner:stop]
        if tag == form.label_tags[0]:
            label, begin = content.strip(), start
        if tag in (form.label_tags[0], *closing) and not after:
            problems.append(f"the answer ends inside {tag}{content[:60]}")
        elif tag in closing:
            numbers = _numbers_of(content) if after == closing[tag] else []
            if len(numbers) in ((8,) if tag == form.quad_tags[0] else (2, 4)):
                items.append(Found(label, numbers, start if begin < 0 else begin, end))
                begin = -1
            else:
                problems.append(f"{tag}{content[:60]}{after} is neither a box nor a point")
    return items, problems


def _numbers_of(content: str) -> list[float]:
    pairs = _PAIRS.fullmatch(content)
    return [float(n) for n in pairs.groups() if n is not None] if pairs else []


def _write_tags(pairs: list[tuple[str, list[int]]], form: GroundingFormat) -> str:
    (ref, end_ref), written, before = form.label_tags, "", ""
    for label, n in pairs:
        if label != before:
            written += (", " if written else "") + f"{ref}{label}{end_ref}"
        corners = ",".join(f"({x},{y})" for x, y in zip(n[::2], n[1::2], strict=True))
        begin, end = form.quad_tags if len(n) == 8 else form.box_tags
        written += f"{begin}{corners}{end}"
        before = label
    return written


# --- JSON and XML: Qwen2.5-VL and later ----------------------------------------------------------


def _read_json(answer: str, form: GroundingFormat) -> tuple[list[Found], list[str]]:
    items, problems = _read_objects(answer)
    points, more = _read_points(answer)
    items = sorted([*items, *points], key=lambda item: item.start)
    problems += more
    fence = None if items or problems else _FENCE.search(answer)
    if fence and fence[1].strip():
        try:
            json.loads(fence[1])
        except (ValueError, RecursionError) as error:
            problems.append(f"the fenced block is not JSON ({error})")
    return items, problems


def _read_objects(answer: str) -> tuple[list[Found], list[str]]:
    starts = [match.start() for match in _OBJECT.finditer(answer)]
    ends = [*starts[1:], len(answer)]
    keyed = {bisect_right(starts, match.start()) - 1 for match in _NAME.finditer(answer)}
    near = {i for last in keyed for i in range(last - _REACH + 1, last + 1) if i >= 0}
    items: list[Found] = []
    problems: list[str] = []
    done = 0
    for i in sorted(near | {len(starts) - 1} if starts else ()):
        start, part = starts[i], answer[starts[i] : ends[i]]
        if start < done:  # inside the object just read: a nested object, or a brace in its label
            continue
        if i == len(starts) - 1 and "}" not in part and (items or i in keyed or _begins_key(part)):
            problems.append(f"the answer ends inside {part[:60]}")
        elif i in near:
            try:
                item, length = _decode(answer[start : ends[min(i + _REACH, len(starts)) - 1]])
                if _KEYS.keys() & item.keys():
                    done = start + length
                    items += [Found(*values, start, done) for values in _read_item(item)]
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                if start < done or i in keyed:
                    problems.append(f"{part[:80]} is neither a box nor a point ({error!s:.100})")
    return items, problems


def _decode(window: str) -> tuple[dict, int]:
    """The object at the beginning, as JSON or as Python prints it, and its length.

    Python also prints sets with braces; only a dict is an object.
    """
    try:
        return _DECODER.raw_decode(window)
    except ValueError:
        printed = _PYTHON.match(window[:10_000])
        if not printed or "'" not in printed[0]:
            raise
    try:
        value = literal_eval(printed[0])
    except (SyntaxError, MemoryError) as error:
        raise ValueError(f"neither JSON nor Python: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}, not an object")
    return value, printed.end()


def _begins_key(part: str) -> bool:
    begun = "".join(part[:99].split()).replace("'", '"')
    return any(f'{{"{key}"'.startswith(begun) for key in _KEYS)


def _read_item(item: dict) -> Iterator[tuple[str, list[float]]]:
    label = next((str(item[key]) for key in _LABELS if item.get(key) is not None), "")
    for key in [key for key in _KEYS if key in item]:
        values = item[key]
        is_nested = isinstance(values, list) and values and isinstance(values[0], list)
        for numbers in values if is_nested else [values]:
            yield label, _check_numbers(numbers, key)


def _check_numbers(values: object, key: str) -> list[float]:
    if not isinstance(values, list | tuple) or len(values) != _KEYS[key]:
        raise ValueError(f"{key} takes {_KEYS[key]} numbers")
    numbers = [float(value) for value in values]
    if not sum(map(abs, numbers)) < 1e9:  # also refuses NaN
        raise ValueError("numbers out of range")
    return numbers


def _read_points(answer: str) -> tuple[list[Found], list[str]]:
    """``<points x1="…" y1="…" x2="…" y2="…" alt="…">…</points>``."""
    items, problems = [], []
    starts = [match.start() for match in _XML_START.finditer(answer)]
    for start, end in pairwise([*starts, len(answer)]):
        region = answer[start:end]
        head = _XML.match(region)
        values = {k: _unescape(v[1:-1]) for k, v in _ATTRIBUTE.findall(head[1] if head else "")}
        label = values.pop("alt", "")
        pairs = [(v, values.get("y" + k[1:])) for k, v in values.items() if k[0] == "x"]
        numbers = [_numbers_of(f"({x},{y})") for x, y in pairs]
        where = start, start + (head.end() if head else 0)
        items += [Found(label, each, *where) for each in numbers if each]
        if not head or not head[2]:
            problems.append(f"the answer ends or breaks off inside {region[:60]}")
        elif not numbers or not all(numbers):
            problems.append(f"{region[:60]} lacks an x or a y")
    return items, problems


def _unescape(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # a character's number of more digits than Python reads
        return text


def _write_json(pairs: list[tuple[str, list[int]]]) -> str:
    if any(len(n) == 8 for _, n in pairs):
        raise VlkitError(
            "this family writes boxes and points, but not quads; pass quad.bounds, its box"
        )
    lines = [
        json.dumps(
            {"bbox_2d" if len(n) == 4 else "point_2d": n, "label": label}, ensure_ascii=False
        )
        for label, n in pairs
    ]
    return "```json\n[\n\t" + ",\n\t".join(lines) + "\n]\n```" if lines else "```json\n[]\n```"
