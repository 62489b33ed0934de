"""How each generation spells boxes: read and written; no geometry.

Every format names its coordinate space, one of ``SPACES``: ``0-1000`` and ``0-999`` are shares of
the picture's width and height, ``resized`` is pixels of the picture as the processor resized it,
``original`` is pixels of the upright original.

An answer is read in steps, the family's own form first: tags, JSON, markup, calls of functions.
What one step has read is blanked out for the next. ``docs/answers.md`` has the whole table.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

from vlkit.errors import VlkitError

Space = Literal["0-1000", "0-999", "resized", "original"]
SPACES = get_args(Space)


class Found(NamedTuple):
    """A label with 4 numbers of a box, 2 of a point or 8 of a quad, and its place in the text.

    Five numbers are a rotated box: its centre, width, height and angle in degrees.
    """

    label: str
    numbers: list[float]
    start: int
    end: int
    key: str = ""  # under which four numbers are written, if it does not say their order
    form: str = "json"  # or a family of tags, "markup", "call"
    space: Space | None = None  # where the prompt of that form defines another than the family's
    certain: bool = True  # under a key that can mean nothing else


class Reading(NamedTuple):
    """What an answer contains, what of it could not be read, and how to understand the rest."""

    items: list[Found]
    problems: list[str]
    notes: list[str]


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

# Tools whose published prompt defines its own space for the families that write thousandths: "The
# screen's resolution is 999x999" (QwenLM/Qwen3-VL, cookbooks/mobile_agent.ipynb, which divides by
# 999). computer_use says 1000x1000; data-bbox and comments are divided by 1000 in
# cookbooks/document_parsing.ipynb. Qwen2.5-VL's prompts give the resized picture's size in all.
_TOOL_SPACES: dict[str, Space] = {"mobile_use": "0-999"}


# --- the table of keys ---------------------------------------------------------------------------


class KeyRule(NamedTuple):
    """How the value of a key is read: a row of ``COORDINATE_KEYS``.

    Attributes:
        kind: of thing. Of several keys of a kind an object gives the first in the table, but all
            its points.
        sizes: how many numbers each has.
        certain: the key means nothing else, so that numbers that do not fit are an error.
    """

    kind: str
    sizes: tuple[int, ...]
    certain: bool


# kind, how many numbers, keys that mean nothing else, keys that may mean other things too.
# Upper and lower case, spaces, "_" and "-" make no difference. Earlier rows and keys come first.
COORDINATE_KEYS: tuple[tuple[str, tuple[int, ...], str, str], ...] = (
    (
        "box",
        (4,),
        "bbox_2d bboxes_2d box_2d boxes_2d bbox_xyxy xyxy bbox bboxes bounding_box bounding_boxes "
        "bounding_box_2d data-bbox 边界框 检测框 坐标框",
        "box boxes rect rectangle region regions 框",
    ),
    ("width and height", (4,), "bbox_xywh box_xywh xywh", ""),
    (
        "point",
        (2,),
        "point_2d points_2d keypoint_2d keypoints_2d keypoint keypoints landmarks 关键点",
        "point points click_point start_point end_point coordinate coordinate2 start_coordinate "
        "end_coordinate 点 点坐标",
    ),
    ("point", (2, 4), "start_box end_box", ""),
    (
        "quad",
        (8,),
        "quad_2d quads_2d quad quads quadrilateral polygon_2d data-polygon",
        "polygon polygons poly segmentation contour corners vertices 四边形 多边形",
    ),
    ("place", (4, 2, 8), "", "coordinates coords location position center centre 坐标 位置"),
    ("rotated", (5, 8), "rbox_2d rbox rotated_box rotated_bbox rotate_rect rotated_rect obb", ""),
    ("3D", (), "bbox_3d bboxes_3d box_3d boxes_3d point_3d points_3d", ""),
)
LABEL_KEYS = (
    "label labels name name_en name_zh names class_name class category_name category object_name "
    "object text_content text alt data-label description caption title phrase ref content tag "
    "标签 名称 类别 物体 文本 文字 描述"
)
# keys of things that contain others; any other key of an object with coordinates is its label
_CONTAINERS = (
    "objects detections detection items item results result answer answers output outputs "
    "predictions annotations elements children parts part image images data arguments args "
    "parameters action input instances shapes words words_info blocks layout frames cells rows 结果"
)


def _plain(key: str) -> str:
    return re.sub(r"[\W_]+", "", key).casefold().removeprefix("data")


_RULES = {
    _plain(key): KeyRule(kind, sizes, certain)
    for kind, sizes, *columns in COORDINATE_KEYS
    for certain, keys in zip((True, False), columns, strict=True)
    for key in keys.split()
}
_RANKS = {key: rank for rank, key in enumerate(_RULES)}
_LABELS = [_plain(key) for key in LABEL_KEYS.split()]
_NO_LABELS = {*map(_plain, _CONTAINERS.split()), *_RULES, *_LABELS, ""}
_TOOL_ARGUMENTS = {"arguments", "args", "parameters"}
_BARE = KeyRule("place", (4, 2), False)  # for numbers without a key
_CORNERS = "x1 y1 x2 y2,xmin ymin xmax ymax,left top right bottom,x y width height,x y w h,x y"
# keys that say in which order their four numbers are
_KNOWN_ORDER = re.compile("2d|xyxy|xywh|start|end|corners")


# --- reading -------------------------------------------------------------------------------------

_N = r"-?(?:[0０]|[1-9１-９][0-9０-９]{0,8})(?:\.[0-9０-９]{1,9})?"
_NUMBER = re.compile(_N)
_GAP = r"[\s,，、()（）\[\]［］]"
_NUMBERS = re.compile(rf"{_GAP}*+{_N}(?:{_GAP}++{_N})*+{_GAP}*+")
_NOTHING = re.compile(r"(?i)\s*(?:|none|null|nil|n/?a|undefined|无|没有)\s*")
_FENCE = re.compile(r"```(\w*)(.*?)(?:```|\Z)", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_STRAY = {  # the corners of a box without the special tokens around them
    "tags": re.compile(rf"\(\s*{_N}\s*,\s*{_N}\s*\)\s*,\s*\({_N}\s*,\s*{_N}\s*\)"),
    "json": re.compile(rf"\({_N},{_N}\),\({_N},{_N}\)"),
}
_STRAY_KEY = re.compile(
    r"""(?:bbox|point|quad)_[23]d["']?\s*[},]"""
    r"""|(?:bbox|bounding_?box|(?:box|point|quad)_[23]d)(?:_2d)?["']?\s*[:=][\s"'(\[{]*-?\d"""
)


def _numbers_of(text: str) -> list[float]:
    """Numbers between brackets, commas and blanks; none where there is anything else."""
    return [float(n) for n in _NUMBER.findall(text)] if _NUMBERS.fullmatch(text) else []


def read_answer(answer: str, form: GroundingFormat) -> Reading:
    """Labels with their numbers in an answer, in order, and what could not be read."""
    own = next((name for name, other in FORMATS.items() if other == form), "")
    steps: list[Callable[[str], Reading]] = [_read_json, partial(_read_tags, own=own)]
    if form.style == "tags":
        steps.reverse()
    items: list[Found] = []
    problems: list[str] = []
    notes: list[str] = []
    rest = answer
    for step in (*steps, _read_markup, _read_calls):
        read = step(rest)
        items, problems, notes = items + read.items, problems + read.problems, notes + read.notes
        rest = _blank_out(rest, read.items)
    if not items and not problems:
        problems = _look_again(rest, form)
    return Reading(sorted(items, key=lambda item: item.start), problems, notes)


def _blank_out(text: str, items: list[Found]) -> str:
    parts, done = [], 0
    for start, end in sorted({(item.start, item.end) for item in items}):
        if end > done:
            begin = max(done, start)
            parts += [text[done:begin], " " * (end - begin)]
            done = end
    return "".join([*parts, text[done:]])


def _look_again(text: str, form: GroundingFormat) -> list[str]:
    """Coordinates that are in no form at all."""
    if stray := _STRAY[form.style].search(text):
        return [f"the special tokens around {stray[0][:60]} are missing; pass reply.raw, not .text"]
    if stray := _STRAY_KEY.search(text):
        return [f"coordinates without brackets around them ({stray[0][:60]})"]
    fence = _FENCE.search(text) if form.style == "json" else None
    if fence and fence[1] == "json" and not re.search(r"[\[{]", fence[2]):
        return [] if _NOTHING.fullmatch(fence[2]) else ["the fenced block is not JSON"]
    return []


# --- tags: Qwen-VL and Qwen2-VL ------------------------------------------------------------------

_TAGS = {  # the opening tag: the closing one, what is between them, the family
    opening: (closing, what, name)
    for name, form in FORMATS.items()
    for what, (opening, closing) in zip(
        ("label", "box", "quad"), (form.label_tags, form.box_tags, form.quad_tags), strict=True
    )
    if opening
}
_TAG = re.compile(
    "|".join(map(re.escape, (*_TAGS, *(closing for closing, _, _ in _TAGS.values()))))
)


def _read_tags(text: str, own: str) -> Reading:
    places = [(m[0], *m.span()) for m in _TAG.finditer(text)]
    items, problems, label, begin = [], [], "", -1
    for (tag, start, inner), (after, stop, end) in pairwise([*places, ("", len(text), len(text))]):
        closing, what, family = _TAGS.get(tag, ("", "", ""))
        content = text[inner:stop]
        if what == "label":
            label, begin = content.strip(), start
        if what and not after and (what != "label" or family == own):
            problems.append(f"the answer ends inside {tag}{content[:60]}")
        elif what in ("box", "quad"):
            numbers = _numbers_of(content) if after == closing else []
            if len(numbers) in ((8,) if what == "quad" else (2, 4)):
                place = start if begin < 0 else begin, end
                items.append(Found(label, numbers, *place, form=family))
                begin = -1
            else:
                problems.append(f"{tag}{content[:60]}{after} is neither a box nor a point")
    return Reading(items, problems, [])


# --- values: JSON, Python and JavaScript, with the slips of models -------------------------------
#
# json-repair, json5 and dirtyjson were measured: json5 takes 15 s for a megabyte, dirtyjson reads 8
# of 13 kinds of slips, json-repair takes minutes for a megabyte of '{"' and makes numbers of what
# is none (1,000 becomes 1 and 0, 40. becomes 40, 1_0 becomes 10). None says where a value stands.


Fields = dict[str, tuple[str, Any]]  # of an object: the plain key, the key and the value


class _Word(str):
    """Text without quotes: a number, true, an unquoted key."""


_MISSING = _Word("no value")


@dataclass(slots=True, eq=False)
class _Node:
    """An object or an array; ``end`` is -1 where the answer ends inside."""

    start: int
    is_object: bool
    pairs: list[tuple[str, Any]] = field(default_factory=list)  # of an array with empty keys
    end: int = -1
    clean: bool = True  # one comma between two values; no quote without its other half
    key: str | None = None
    colon: bool = False
    gap: bool = True

    def add(self, value: str | _Node | None) -> None:
        if not self.is_object or self.colon or isinstance(value, _Node):
            self.clean &= self.is_object or self.gap
            self.pairs.append((self.key or "", value))
            self.key, self.colon, self.gap = None, False, False
        elif isinstance(value, _Word) and isinstance(self.key, _Word):
            self.key = _Word(f"{self.key} {value}")
        else:
            self.key = value or ""

    def separate(self) -> None:
        if not self.is_object:
            self.clean &= not self.gap
        elif self.key is not None:
            before = self.pairs[-1] if self.pairs else ("", None)
            if isinstance(before[1], _Word) and isinstance(self.key, _Word) and not self.colon:
                self.pairs[-1] = before[0], _Word(f"{before[1]} {self.key}")
            else:
                self.pairs.append((self.key, _MISSING))
        self.key, self.colon, self.gap = None, False, True

    def finish(self, end: int) -> None:
        if self.is_object:
            self.separate()
        self.end = end

    @property
    def values(self) -> list:
        return [value for _, value in self.pairs]


_DEEPEST = 50
_OPEN, _CLOSE, _COMMA, _COLON = r"\[{(［｛（", r"\]})］｝）", ",，、", ":：="
_START = re.compile(
    r"""[{｛](?=\s*+(?:["'“”‘`\w{\[（(｛}]|\Z))|[\[［](?=\s*+(?:[\[{（(［｛"“'\-\d\]]|\Z))"""
)
_TOKEN = re.compile(
    r"(?:\s++|//[^\n]*+|#\s[^\n]*+|/\*[^*\n]{0,200}+\*/)*+"
    rf"(?:(?P<list>\[{_N}(?:, ?{_N})*+\])|(?P<fence>```)|(?P<open>[{_OPEN}])|(?P<close>[{_CLOSE}])"
    rf"|(?P<colon>[{_COLON}])|(?P<comma>[{_COMMA}])|(?P<quote>[\"'“”„‘’`])"
    rf"|(?P<word>[^\s\[\]{{}}()［］｛｝（）{_COLON}{_COMMA}\"“”„]+)|.)"
)
_QUOTES = ('"“”„', "'‘’", "`")
_QUOTED_KEY = rf"""["'“‘`][^"'“”‘’\n]{{1,60}}+["'”’`“‘]\s*+[{_COLON}]"""
_NEXT_KEY = rf"[{_COMMA}]\s*+(?:{_QUOTED_KEY})"
_FOLLOWS = {  # what may come after the quote that ends a string
    "key": rf"\s*+(?:[{_COLON}{_COMMA}{_CLOSE}]|\Z)",
    "value": rf"\s*+(?:[{_CLOSE}]|//|/\*|#|```|\Z|{_QUOTED_KEY}"
    rf"|[{_COMMA}]\s*+(?:[{_CLOSE}]|//|/\*|#|\Z|{_QUOTED_KEY}|[\w$-]{{1,40}}+\s*+[{_COLON}]))",
    "item": rf"\s*+(?:[{_COMMA}{_CLOSE}]|//|/\*|#|```|\Z)",
}


def _string_pattern(quotes: str, place: str) -> re.Pattern[str]:
    """A string up to the quote that ends it; a quote that nothing like JSON follows is inside.

    A value also ends before a comma and the next key, where its quote is missing.
    """
    next_key = rf"\s*+[{quotes}][^{quotes}\n]{{1,60}}+[{quotes}]\s*+[{_COLON}]"
    comma = rf",(?!{next_key})" if place == "value" else ","
    body = rf"(?:[^\\,{quotes}]|\\.|{comma}|[{quotes}](?!{_FOLLOWS[place]}))*+"
    return re.compile(rf"({body})(?:[{quotes}]|(?=,))", re.DOTALL)


_STRINGS = {
    (quote, place): _string_pattern(quotes, place)
    for place in _FOLLOWS
    for quotes in ('"“”„', "'‘’", "`")
    for quote in quotes
}
# A backslash that JSON cannot mean: LaTeX or a Windows path, whose string is kept as it is written.
_RAW_ESCAPE = (
    r"""(?:[bf]|u(?![0-9a-fA-F]{4})|x(?![0-9a-fA-F]{2})|[^"'`“”‘’\\/bfnrtux\s]"""
    r"|n(?:abla|e[qg]?\b|u\b|ot(?:in)?\b|mid\b|leq|geq|exists)"
    r"|r(?:ho\b|ight|angle\b|m\b|ceil|floor|ef\b)"
    r"|t(?:imes\b|heta\b|ext(?:[a-z]*\{|\b)|au\b|o\b|op\b|ilde\b|anh?[\\({^]|riangle|frac))"
)
_RAW = re.compile(
    rf"[A-Za-z]:\\(?!\\)|(?:[^\\]|\\(?!{_RAW_ESCAPE}).)*+\\(?={_RAW_ESCAPE})", re.DOTALL
)
_TO_JSON = re.compile(r"""\\([^"'`“”‘’\nx])|\\x(..)|\\?(["'`“”‘’\n])""", re.DOTALL)


def _unquote(text: str) -> str:
    if "\\" not in text:
        return text
    if _RAW.match(text):
        return re.sub(r"""\\(["']|\\(?=[A-Za-z]))""", r"\1", text)

    def escape(match: re.Match) -> str:
        kept, code, quote = match.groups()
        return f"\\{kept}" if kept else f"\\u00{code}" if code else json.dumps(quote)[1:-1]

    try:
        return json.loads(f'"{_TO_JSON.sub(escape, text)}"', strict=False)
    except ValueError:
        return text


def _parse_values(text: str) -> list[_Node]:
    """All objects and arrays in a text, in one pass; where it is cut off, as far as they go."""
    roots: list[_Node] = []
    stack: list[_Node] = []
    dead: set[re.Pattern] = set()  # strings that end nowhere in the rest of the text
    place = 0
    while True:
        start = None if stack else _START.search(text, place)
        token = _TOKEN.match(text, start.start() if start else place) if start or stack else None
        if token is None:
            return roots
        kind, place = token.lastgroup, token.end()
        written = token[kind] if kind else ""
        is_object = written in ("{", "｛", "}", "｝")
        if kind == "list" or (kind == "open" and len(stack) < _DEEPEST):
            node = _Node(place - len(written), is_object)
            stack[-1].add(node) if stack else roots.append(node)
            if kind == "open":
                stack.append(node)
            else:  # numbers alone, in one step: most of what models write
                node.pairs = [("", _Word(number)) for number in _NUMBER.findall(written)]
                node.end = place
        elif kind == "close" and any(node.is_object == is_object for node in stack):
            node = stack[-1]
            while node.end < 0 or node.is_object != is_object:
                node = stack.pop()
                node.finish(place)
        elif kind == "fence":  # ends what is open
            stack = []
        elif stack:
            place = _take(stack[-1], kind, written, text, place, dead)


def _take(node: _Node, kind: str | None, written: str, text: str, place: int, dead: set) -> int:
    """A comma, colon, word or string in an object or array; where the text goes on."""
    if kind == "comma":
        node.separate()
    elif kind == "colon":
        node.colon = node.key is not None
        node.clean &= node.is_object
    elif kind == "quote":
        where = "item" if not node.is_object else "value" if node.colon else "key"
        pattern = _STRINGS[written, where]
        string = None if pattern in dead else pattern.match(text, place)
        if string:
            node.add(_unquote(string[1]))
            return string.end()
        dead.add(pattern)
        node.clean = False
    elif kind == "word":
        node.add(None if written in ("null", "None", "undefined") else _Word(written))
    else:
        node.clean = False
    return place


def _read_json(text: str) -> Reading:
    """Coordinates under keys of the table; bare numbers only where there is nothing else."""
    if '{\\"' in text and '{"' not in text:  # quoted once more than it should be
        text = re.sub(r'\\"(?=\s*[:,}\]])', '" ', text).replace('\\"', ' "')
    roots = _parse_values(text)
    reader = _Reader(text)
    for root in roots:
        reader.read(root)
    if not reader.items and not reader.problems:
        by_place = {(root.start, root.end): root for root in roots}
        for start, end in _regions(text):
            reader.read_bare(by_place.get((start, end)), start, end)
    fenced = "```json" in text
    for root in roots:
        if root.end < 0:
            reader.check_end(root, fenced)
    return reader.result()


def _regions(text: str) -> list[tuple[int, int]]:
    """What may be nothing but coordinates: the text, the content of a fence or of <answer>."""
    spans = [(0, len(text)), *(match.span(2) for match in _FENCE.finditer(text))]
    spans += [match.span(1) for match in _ANSWER.finditer(text)]
    trimmed = []
    for start, end in spans:
        part = text[start:end]
        trimmed.append((start + len(part) - len(part.lstrip()), start + len(part.rstrip())))
    return list(dict.fromkeys(span for span in trimmed if span[0] < span[1]))


def _flat(values: list) -> list[float]:
    """All the values as numbers; none where one is something else."""
    texts = [v for v in values if isinstance(v, str) and _NUMBER.fullmatch(v.strip())]
    return [float(v) for v in texts] if len(texts) == len(values) else []


def _pairs_of(values: list) -> list[float]:
    """The numbers of arrays of two."""
    pairs = [_flat(v.values) if isinstance(v, _Node) and v.clean else [] for v in values]
    return [n for pair in pairs for n in pair] if all(len(p) == 2 for p in pairs) else []


class _Reader:
    """Collects the coordinates under keys of the table, in objects and in what resembles them."""

    def __init__(self, text: str, form: str = "json", *, is_inner: bool = False):
        self.text, self.form, self.is_inner = text, form, is_inner
        self.items: list[Found] = []
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.space: Space | None = None
        self.span = (0, 0)  # of the object whose coordinates are read; its end is -1 if it has none

    def result(self) -> Reading:
        return Reading(self.items, self.problems, list(dict.fromkeys(self.notes)))

    def read(self, value: Any, label: Any = "", rule: KeyRule | None = None, key: str = "") -> None:
        """A value; with a rule, it is under a key of the table."""
        if isinstance(value, _Node) and value.is_object:
            self.read_object(value, label, rule, key)
        elif isinstance(value, _Node) and rule:
            self.read_array(value, label, rule, key)
        elif isinstance(value, _Node):
            for inner in value.values:
                self.read(inner, label)
        elif rule and value is not None and not _NOTHING.fullmatch(value):
            self.keep(_numbers_of(value), value, label, rule, key)

    def read_object(self, node: _Node, label: Any, rule: KeyRule | None, key: str) -> None:
        outer, span = self.span, (node.start, node.end)
        fields: dict[str, tuple[str, Any]] = {}
        count = len(self.items), len(self.problems)
        for name, value in node.pairs:
            if not name:
                self.read(value, _join(label), rule, key)
            elif _plain(name) in fields:  # a key twice: the next object
                self.read_fields(fields, span, label, rule, key)
                fields = {_plain(name): (name, value)}
            else:
                fields[_plain(name)] = name, value
        self.read_fields(fields, span, label, rule, key)
        self.span = outer
        if rule and count == (len(self.items), len(self.problems)):
            self.keep([], node, label, rule, key)

    def read_fields(
        self, fields: Fields, span: tuple[int, int], label: Any, rule: Any = None, key: str = ""
    ) -> None:
        """The fields of one object: its own coordinates, then those of the objects in it."""
        own, count = _label_of(fields) or label, len(self.items)
        names = sorted(fields.keys() & _RULES.keys(), key=_RANKS.__getitem__)
        corners = [] if names else _corners(fields, _CORNERS.split(",")[: None if rule else 2])
        if corners and self.span[1] >= 0 <= span[1]:
            self.span = self.span if rule else span
            self.keep(corners, None, own, rule or _RULES["xyxy"], key or "x1y1x2y2")
        first: dict[str, str] = {}
        for name in names:
            (own_key, value), own_rule = fields[name], _RULES[name]
            kind = "box" if own_rule.kind == "width and height" else own_rule.kind
            before = next(iter(first.values()), "") if kind == "rotated" else first.get(kind, "")
            if before and kind != "point":
                if self.written(value) != self.written(fields[_plain(before)][1]):
                    self.notes.append(f'"{own_key}" is ignored; "{before}" takes precedence')
            elif kind != "place" or not first:
                found, self.span = len(self.items), span
                self.read(value, own, own_rule, own_key)
                if len(self.items) > found:
                    first[kind] = own_key
        has_own = len(self.items) > count
        for name, (own_key, value) in fields.items():
            is_call = name in _TOOL_ARGUMENTS
            self.space = _TOOL_SPACES.get(str(own)) if is_call else self.space
            inherited = "" if has_own or is_call else _join(own)
            if isinstance(value, _Node) and name not in _RULES:
                as_label = inherited if name in _NO_LABELS else own_key
                self.read(value, as_label, None if names or has_own else rule, key)
            elif isinstance(value, str) and "{" in value and not has_own and not self.is_inner:
                inner = _Reader(value, is_inner=True)  # JSON in a string, as arguments often are
                inner.space = self.space
                for root in _parse_values(value):
                    inner.read(root)
                self.items += [item._replace(start=span[0], end=span[1]) for item in inner.items]
                self.problems += inner.problems
            self.space = None if is_call else self.space

    def read_array(self, node: _Node, label: Any, rule: KeyRule, key: str) -> None:
        values, whole = node.values, node.clean and node.end >= 0
        pairs = _pairs_of(values) if whole and len(values) > 1 else []
        numbers = _flat(values) if whole else []
        if pairs and (len(pairs) in rule.sizes or rule.kind == "quad"):
            numbers = pairs
        if not numbers and values and all(isinstance(value, _Node) for value in values):
            labels = isinstance(label, list) and len(label) == len(values)
            for index, value in enumerate(values):
                self.read(value, label[index] if labels else label, rule, key)
        elif not node.clean or any(value is not None for value in values):
            self.keep(numbers, node, label, rule, key)

    def read_bare(self, node: _Node | None, start: int, end: int) -> None:
        """Numbers without a key: a list, lists of lists, or labels with their four numbers."""
        self.span, text = (start, end), self.text[start:end]
        values = (
            [v for v in node.values if isinstance(v, _Node) and not v.is_object] if node else []
        )
        if node is None:
            numbers = _numbers_of(text)
            opened, closed = text[0] in "([（［", text[-1] in ")]）］"
            if opened == closed and (opened or len(numbers) == 4):
                self.keep(numbers, None, "", _BARE, "")
        elif not node.is_object:
            self.read_array(node, "", _BARE, "")
            if 0 < len(self.items) < len(values) and not _pairs_of(values):
                self.problems.append("not all of the bare lists are of four numbers or of two")
        elif len(values) == len(node.pairs) and all(len(_flat(v.values)) == 4 for v in values):
            for name, value in node.pairs:
                self.read(value, name, _BARE)

    def keep(self, numbers: list[float], value: Any, label: Any, rule: KeyRule, key: str) -> None:
        """An item, if the numbers are as the rule says; else a problem, if they should be."""
        if self.span[1] < 0:  # what is cut off is named once, by check_end
            return
        fits = len(numbers) in rule.sizes and sum(map(abs, numbers)) < 1e9
        if fits and rule.kind == "place" and len(numbers) == 2:  # -0.12, 51.5 is a place on a map
            whole = all(n.is_integer() for n in numbers) or max(numbers) <= 1
            fits = whole and min(numbers) >= 0
        if not fits:
            return self.refuse(numbers, value, rule, key)
        if rule.kind == "width and height":
            numbers = [*numbers[:2], numbers[0] + numbers[2], numbers[1] + numbers[3]]
        if len(numbers) == 5:
            self.notes.append(f'"{key}" is read as centre, width, height and degrees clockwise')
        is_sure = len(numbers) != 4 or self.form == "markup" or _KNOWN_ORDER.search(_plain(key))
        shown = "" if is_sure else f'"{key}"' if key else "bare lists"
        found = Found(_join(label), numbers, *self.span, shown, self.form)
        self.items.append(found._replace(space=self.space, certain=rule.certain))

    def refuse(self, numbers: list[float], value: Any, rule: KeyRule, key: str) -> None:
        broken = value is _MISSING or (isinstance(value, _Node) and not value.clean)
        has_number = broken or re.search(r"\d", self.written(value))
        part = self.text[self.span[0] : self.span[0] + 80]
        if rule.kind == "quad" and len(numbers) >= 6:
            what = f"{key} has {len(numbers) // 2} corners, and only four make a Quad"
        elif rule.kind == "3D" and has_number:
            what = f"{key} is a 3D box in metres, not a box in the picture; read it from reply.text"
        elif (rule.certain and has_number) or (rule.kind == "box" and len(numbers) > 2):
            count = " or ".join(map(str, rule.sizes))
            what = f"{part} is neither a box nor a point ({key} takes {count} numbers; one is "
            what += "missing, unreadable or out of range)"
        else:
            return
        self.problems.append(what)

    def written(self, value: Any) -> str:
        """A value as it is in the text."""
        if isinstance(value, _Node):
            return self.text[value.start : value.end if value.end >= 0 else None]
        return str(value)

    def check_end(self, root: _Node, fenced: bool) -> None:
        """A problem, where the answer ends inside what has coordinates, or may have."""
        cut = root
        last: Any = root
        while isinstance(last, _Node) and last.end < 0:
            cut = last if last.is_object else cut
            last = last.values[-1] if last.pairs else None
        part = self.text[cut.start : cut.start + 99]
        if cut.is_object:
            keys = {_plain(key) for key in (*(key for key, _ in cut.pairs), cut.key) if key}
            begun = "".join(part.split()).replace("'", '"')
            begins = any(f'{{"{key}"'.startswith(begun) for key in ("bbox_2d", "point_2d"))
            is_broken = not cut.clean or cut.key or cut.colon or cut.gap  # not only its brace lacks
            is_problem = any(_RULES[key].certain for key in keys & _RULES.keys())
            is_problem = is_problem or (begins and len(begun) > 1)
            is_problem = is_problem or bool(is_broken and (self.items or fenced))
        else:  # bare numbers
            before = self.text[: root.start] if root.start < 20 else "x"
            nodes = [value for value in root.values if isinstance(value, _Node)]
            is_list = not any(node.is_object for node in nodes) and len(nodes or root.pairs[2:]) > 0
            is_alone = re.fullmatch(r"\s*(```\w*\s*)?", before)
            is_problem = bool(is_list and is_alone and re.search(r"\d", part))
        if is_problem:
            self.problems.append(f"the answer ends inside {part[:60]}")


def _join(label: Any) -> str:
    return ", ".join(label) if isinstance(label, list) else label or ""


def _corners(fields: Fields, names: list[str]) -> list[float]:
    """The numbers of corners with names, as x1, y1, x2, y2 or x, y."""
    for four in map(str.split, names):
        numbers = _flat([fields[name][1] for name in four if name in fields])
        if len(numbers) == len(four):
            if four[-1] in ("height", "h"):
                numbers[2:] = numbers[0] + numbers[2], numbers[1] + numbers[3]
            return numbers
    return []


def _label_of(fields: Fields) -> str | list[str]:
    for name in _LABELS:
        value = fields[name][1] if name in fields else None
        if not isinstance(value, _Node):
            label: str | list[str] = str(value or "")
        elif value.is_object:  # by language
            texts = {_plain(key): text for key, text in value.pairs if isinstance(text, str)}
            label = texts.get("en") or texts.get("zh") or next(iter(texts.values()), "")
        else:
            label = [text for text in value.values if isinstance(text, str)]
        if label:
            return label
    return ""


# --- markup: <points>, QwenVL HTML and Markdown --------------------------------------------------

_QUOTED = r"""(?:"[^"<]*+"|'[^'<]*+')"""
_ATTRIBUTE = re.compile(rf"([\w-]++)\s*+=\s*+({_QUOTED})")
_ELEMENT = re.compile(
    rf"<(/?)([A-Za-z][\w-]*+)((?:\s++[\w-]++(?:\s*+=\s*+{_QUOTED})?)*+)\s*+(/?>)?"
)
_COMMENT = re.compile(r"<!--\s*+([^<>()\[\]\d]{0,60}+)[(\[]([^<>()\[\]a-zA-Z]{1,120}+)[)\]]\s*+-->")
_BETWEEN = re.compile(r"<(?:parameter=)?(\w{1,20}+)>([^<>]{1,120}+)</(?:parameter|\1)>")
_VOID = {"img", "br", "hr", "input", "col", "area", "wbr", "source"}


def _read_markup(text: str) -> Reading:
    reader = _Reader(text, "markup")
    _read_elements(reader)
    for match in _COMMENT.finditer(text):  # QwenVL Markdown: <!-- Image (x1, y1, x2, y2) -->
        reader.span = match.span()
        reader.read(match[2], match[1].strip(" :"), _RULES["bbox"], "a comment")
    tool = re.search(r"<function=(\w+)>", text)  # Qwen3.5: <parameter=coordinate>[x, y]</parameter>
    reader.space = _TOOL_SPACES.get(tool[1]) if tool else None
    for match in _BETWEEN.finditer(text):  # UI-TARS, OS-Atlas: <point>x y</point>
        if rule := _RULES.get(_plain(match[1])):
            reader.span = match.span()
            reader.read(match[2], "", rule, match[1])
    return reader.result()


def _read_elements(reader: _Reader) -> None:
    """``<points x1="…" y1="…" alt="…">``; QwenVL HTML: ``data-bbox``.

    A box is labelled with the text inside it; a text belongs to the innermost box.
    """
    text, done = reader.text, 0
    opened: list[tuple[str, list[str] | None]] = []  # open elements; their texts, if with a box
    boxes: list[tuple[dict[str, str], list[str], tuple[int, int]]] = []
    for match in _ELEMENT.finditer(text):
        closing, name, attributes, end = match.groups()
        recent = opened[-20:]
        inside = [texts for _, texts in recent if texts is not None]
        if inside:
            inside[-1].append(text[done : match.start()])
        done = match.end()
        if closing:
            names = [name for name, _ in recent]
            if name in names:
                del opened[len(opened) - 1 - names[::-1].index(name) :]
            continue
        pairs = [(key, _unescape(value[1:-1])) for key, value in _ATTRIBUTE.findall(attributes)]
        own: list[str] | None = [] if re.search("data-(?:bbox|polygon)", attributes) else None
        is_point = name in ("point", "points") and text[match.end(2) : match.end(2) + 1] != ">"
        if is_point:
            _read_point(reader, pairs, match)
        if not end and (is_point or own is not None):
            part = text[match.start() : match.start() + 60]
            reader.problems.append(f"the answer ends or breaks off inside {part}")
        elif own is not None:
            boxes.append((dict(pairs), own, match.span()))
        if end == ">" and name not in _VOID:
            opened.append((name, own))
    for values, texts, span in boxes:
        label = " ".join(_unescape(" ".join(texts)).split())
        label = label or values.get("data-label") or values.get("alt") or values.get("class", "")
        fields = {_plain(k): (k, v) for k, v in values.items() if _plain(k) in _RULES}
        reader.read_fields(fields | {"label": ("label", label)}, span, "")


def _read_point(reader: _Reader, pairs: list[tuple[str, str]], match: re.Match) -> None:
    values = dict(pairs) if len(dict(pairs)) == len(pairs) else {}  # not the same name twice
    texts = [f"{v},{values.get('y' + k[1:], '')}" for k, v in values.items() if k[0] == "x"]
    numbers = [each for each in map(_numbers_of, texts) if len(each) == 2]
    label = values.get("alt", "")
    reader.items += [Found(label, each, *match.span()) for each in numbers]
    if match[4] and (not numbers or len(numbers) < len(texts)):
        reader.problems.append(f"{match[0][:60]} lacks an x or a y")


def _unescape(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # a character's number of more digits than Python reads
        return text


# --- actions of agents: click(start_box='(x,y)'), pyautogui.click(x=…, y=…) ----------------------

_CALL = re.compile(
    r"\b([A-Za-z_][\w.]{2,40}+)"
    r"\(((?:[^()\[\]'\"\n]++|'[^'\n]*+'|\"[^\"\n]*+\"|[(\[][^()\[\]\n]*+[)\]]){1,30}+)\)"
)
_ACTION = re.compile(
    r"(?i)pyautogui\.|click|tap|press|drag|swipe|scroll|hover|move|double|single|select|touch"
)
_ARGUMENT = re.compile(
    r"\s*+(?:(\w++)\s*+=\s*+)?('[^']*+'|\"[^\"]*+\"|[(\[][^()\[\]]*+[)\]]|[^\s,()'\"=]++)\s*+(?:,|\Z)"
)


def _read_calls(text: str) -> Reading:
    reader = _Reader(text, "call")
    for match in _CALL.finditer(text):
        arguments = _ARGUMENT.findall(match[2]) if _ACTION.search(match[1]) else []
        keys = [key for key, _ in arguments]
        names = [key for key in keys if key]
        if _ARGUMENT.sub("", match[2]) or keys[: -len(names) or None] + names != keys:
            continue
        named = dict(arguments) if len(set(names)) == len(names) else {}
        fields = {
            _plain(key): (key, value.strip("'\""))
            for key, value in named.items()
            if _plain(key) in _RULES
        }
        bare = [value for key, value in arguments if not key]
        place = [named["x"], named["y"]] if {"x", "y"} <= named.keys() else bare[:2]
        if bare and len(_numbers_of(bare[0])) == 2:  # click((x, y))
            place = bare[:1]
        if not fields and len(_numbers_of(",".join(place))) == 2:
            fields = {"point": ("point", ",".join(place))}
        reader.read_fields(fields, match.span(), "")
    return reader.result()


# --- writing -------------------------------------------------------------------------------------


def write_answer(pairs: list[tuple[str, list[int]]], form: GroundingFormat) -> str:
    """Labels with their numbers as the model writes them; the inverse of :func:`read_answer`."""
    tags = ("</think>", *filter(None, (*form.label_tags, *form.box_tags, *form.quad_tags)))
    for label, _ in pairs:
        if any(tag in label for tag in tags):
            raise VlkitError(f"label {label!r} contains one of the format's tags; rename it")
    return _write_tags(pairs, form) if form.style == "tags" else _write_json(pairs)


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
