"""The table of keys, and the coordinates under them: in JSON, attributes and arguments of calls.

``docs/answers.md`` shows the table to users.
"""

import re
from typing import Any, Literal, NamedTuple, get_args

from vlkit.grounding.tokens import MISSING, Node, Word, flat, numbers_of, parse_values

Space = Literal["0-1000", "0-999", "0-100", "0-1", "resized", "original"]
SPACES = get_args(Space)
# Tools whose published prompt defines its own space for the families that write thousandths: "The
# screen's resolution is 999x999" (QwenLM/Qwen3-VL, cookbooks/mobile_agent.ipynb, which divides by
# 999). computer_use says 1000x1000; data-bbox and comments are divided by 1000 in
# cookbooks/document_parsing.ipynb. Qwen2.5-VL's prompts give the resized picture's size in all.
TOOL_SPACES: dict[str, Space] = {"mobile_use": "0-999"}


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
    space: Space | None = None  # of its numbers, where that is not the family's
    certain: bool = True  # under a key that can mean nothing else


class Reading(NamedTuple):
    """What an answer contains, what of it could not be read, and how to understand the rest."""

    items: list[Found]
    problems: list[str]
    notes: list[str]


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
    ("box", (4,),
     "bbox_2d bboxes_2d box_2d boxes_2d bbox_xyxy xyxy bbox bboxes bounding_box bounding_boxes "
     "bounding_box_2d bndbox data-bbox 边界框 检测框 坐标框 邊界框 境界ボックス 경계상자 "
     "cuadro_delimitador caixa_delimitadora boîte_englobante begrenzungsrahmen",
     "box boxes rect rectangle region regions bounds roi 框 矩形框 caja caixa boîte"),
    ("width and height", (4,), "bbox_xywh box_xywh xywh", ""),
    ("point", (2,),
     "point_2d points_2d keypoint_2d keypoints_2d keypoint keypoints landmarks 关键点",
     "point points click_point start_point end_point coordinate coordinate2 start_coordinate "
     "end_coordinate 点 点坐标"),
    ("point", (2, 4), "start_box end_box", ""),
    ("quad", (8,), "quad_2d quads_2d quad quads quadrilateral polygon_2d data-polygon",
     "polygon polygons poly segmentation contour corners vertices 四边形 多边形"),
    ("place", (4, 2, 8), "",
     "coordinates coords coord location loc position pos center centre 坐标 位置"),
    ("rotated", (5, 8), "rbox_2d rbox rotated_box rotated_bbox rotate_rect rotated_rect obb", ""),
    ("3D", (), "bbox_3d bboxes_3d box_3d boxes_3d point_3d points_3d", ""),
)  # fmt: skip
LABEL_KEYS = (
    "label labels name name_en name_zh names class_name class category_name category object_name "
    "object text_content text alt data-label description caption title phrase ref content tag "
    "标签 名称 类别 物体 文本 文字 描述 标题 类型 標籤 名稱 類別 ラベル 名前 레이블 라벨 이름 "
    "etiqueta nombre rótulo nome étiquette nom bezeichnung kind type"
)
# keys of things that contain others; any other key of an object with coordinates is its label
_CONTAINERS = (
    "objects detections detection items item results result answer answers output outputs "
    "predictions annotations elements children parts part image images data arguments args "
    "parameters action input instances shapes words words_info blocks layout frames cells rows 结果"
)
_CORNERS, _CORNER_PAIRS = (  # corners with names: a number each, or two
    [names.split() for names in rows.split(",")]
    for rows in (
        "x1 y1 x2 y2 x3 y3 x4 y4,x0 y0 x1 y1,x1 y1 x2 y2,xmin ymin xmax ymax,"
        "left top right bottom,left top width height,x y width height,x y w h,cx cy w h,"
        "cx cy width height,xcenter ycenter width height",
        "topleft topright bottomright bottomleft,topleft bottomright,lefttop rightbottom,"
        "upperleft lowerright,tl br,min max",
    )
)
_PAIRS = {name for names in _CORNER_PAIRS for name in names}
_ANGLES = ("angle", "rotation", "theta")
_EXTENTS = {"width", "height", "w", "h", "r", "radius"}  # next to these, x and y are not a point


def plain(key: str) -> str:
    """A key without case, blanks and signs."""
    return re.sub(r"[\W_]+", "", key).casefold().removeprefix("data")


RULES = {
    plain(key): KeyRule(kind, sizes, certain)
    for kind, sizes, *columns in COORDINATE_KEYS
    for certain, keys in zip((True, False), columns, strict=True)
    for key in keys.split()
}
_RANKS = {key: rank for rank, key in enumerate(RULES)}
LABEL_NAMES = [plain(key) for key in LABEL_KEYS.split()]
CONTAINERS = {*map(plain, _CONTAINERS.split())}
_NO_LABELS = {*CONTAINERS, *RULES, *LABEL_NAMES, ""}
_TOOL_ARGUMENTS = {"arguments", "args", "parameters"}
PATH = re.compile("(?i)swipe|drag|fling")  # an action from one point to another
BARE = KeyRule("place", (4, 2), False)  # for numbers without a key
# keys that say in which order their four numbers are
_KNOWN_ORDER = re.compile("2d|xyxy|xywh|start|end|corners")
NOTHING = re.compile(r"\s*+(?:(?i:none|null|nil|n/?a|undefined|无|没有)\s*+)?+")

Fields = dict[str, tuple[str, Any]]  # of an object: the plain key, the key and the value


class KeyReader:
    """Collects the coordinates under keys of the table, in objects and in what resembles them."""

    def __init__(self, text: str, form: str = "json", *, is_inner: bool = False):
        self.text, self.form, self.is_inner = text, form, is_inner
        self.items: list[Found] = []
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.unread: list[tuple[str, Node]] = []  # numbers under keys that are not in the table
        self.space: Space | None = None
        self.call = ""  # its name, where the next object is its arguments
        self.span = (0, 0)  # of the object whose coordinates are read; its end is -1 if it has none

    def result(self) -> Reading:
        return Reading(self.items, self.problems, list(dict.fromkeys(self.notes)))

    def read(self, value: Any, label: Any = "", rule: KeyRule | None = None, key: str = "") -> None:
        """A value; with a rule, it is under a key of the table."""
        if isinstance(value, Node) and value.is_object:
            self._read_object(value, label, rule, key)
        elif isinstance(value, Node):
            self._read_array(value, label, rule, key)
        elif rule and value is not None and not NOTHING.fullmatch(value):
            self.keep(numbers_of(value), value, label, rule, key)

    def _read_array(self, node: Node, label: Any, rule: KeyRule | None, key: str) -> None:
        values, is_whole = node.values, node.clean and node.end >= 0
        has_corners = rule is not None and rule.kind in ("box", "quad")
        numbers = flat(values, objects=has_corners) if is_whole else []
        if len(numbers) == 10 and numbers[:2] == numbers[-2:]:  # a ring: the first corner again
            numbers, rule = numbers[:8], rule and RULES["quad"]
        is_one = rule and numbers and (len(numbers) in rule.sizes or rule.kind == "quad")
        if not rule or (values and not is_one and all(isinstance(v, Node) for v in values)):
            if not rule and len(numbers) > 1 and isinstance(label, str) and label:
                return self.unread.append((label, node))
            labels = label if isinstance(label, list) and len(label) == len(values) else None
            for index, value in enumerate(values):
                self.read(value, labels[index] if labels else label, rule, key)
        elif not node.clean or any(value is not None for value in values):
            self.keep(numbers, node, label, rule, key)

    def _read_object(self, node: Node, label: Any, rule: KeyRule | None, key: str) -> None:
        outer, count = self.span, len(self.items) + len(self.problems)
        parts: list[Fields] = [{}]
        for name, value in node.pairs:
            if not name:
                self.read(value, _join(label), rule, key)
                continue
            if plain(name) in parts[-1]:  # a key twice: the next object
                parts.append({})
            parts[-1][plain(name)] = name, value
        for fields in parts:
            self.read_fields(fields, (node.start, node.end), label, rule, key)
        self.span = outer
        if rule and count == len(self.items) + len(self.problems):
            self.keep([], node, label, rule, key)

    def read_fields(
        self, fields: Fields, span: tuple[int, int], label: Any, rule: KeyRule | None, key: str
    ) -> None:
        """The fields of one object: its own coordinates, then those of the objects in it."""
        own, count, outer_space = label_of(fields) or label, len(self.items), self.space
        call, self.call = self.call or str(fields.get("action", ("", ""))[1]), ""
        self.space = TOOL_SPACES.get(str(own), outer_space)
        names = sorted(fields.keys() & RULES.keys(), key=_RANKS.__getitem__)
        is_named = bool(rule or own or call)  # else x and y may be anything
        corners = [] if names else _corners(fields, is_named)
        if corners and self.span[1] >= 0 <= span[1]:
            self.span = self.span if rule else span
            kinds = {4: rule or RULES["xyxy"], 2: rule or BARE, 5: RULES["rbox"], 8: RULES["quad"]}
            is_path = len(corners) == 4 and PATH.search(call)
            for part in (corners[:2], corners[2:]) if is_path else (corners,):
                self.keep(part, None, own, kinds[len(part)], "corners")
        self._read_keys(fields, names, span, own)
        has_own = len(self.items) > count
        if has_own:
            self._note_unread(fields, own, len(self.items[count].numbers))
        # bare lists count only where nothing else stands
        is_mixed = rule is BARE and not all(isinstance(v, Node) for _, v in fields.values())
        for name, (own_key, value) in fields.items():
            self.call = _join(own) if name in _TOOL_ARGUMENTS else ""
            inherited = "" if has_own or self.call else _join(own)
            if isinstance(value, Node) and name not in RULES and not (corners and name in _PAIRS):
                inner_label = inherited if name in _NO_LABELS else own_key
                self.read(value, inner_label, None if names or has_own or is_mixed else rule, key)
            elif isinstance(value, str) and "{" in value and not has_own and not self.is_inner:
                self._read_inside(value, span)
        self.space = outer_space

    def _note_unread(self, fields: Fields, label: Any, size: int) -> None:
        """Text that may be a label, an angle next to an upright box."""
        for name, (key, value) in fields.items():
            text = not label and isinstance(value, str) and not isinstance(value, Word)
            if size == 2 and name in _EXTENTS and any(flat([value])):
                self.notes.append(f'"{key}" is not read; a point has no extent')
            elif name in _ANGLES and size == 4 and any(flat([value])):
                self.notes.append(f'"{key}" is not read; the box is upright')
            elif text and value and name not in RULES and name != "action" and self.form == "json":
                self.notes.append(f'the text of "{key}" is not read as a label')

    def _read_keys(
        self, fields: Fields, names: list[str], span: tuple[int, int], label: Any
    ) -> None:
        """The values under keys of the table; of several of one kind, the first."""
        read: dict[str, str] = {}  # kinds, with their keys
        for name in names:
            (key, value), rule = fields[name], RULES[name]
            kind = "box" if rule.kind == "width and height" else rule.kind
            is_last = kind in ("place", "rotated")  # count only where nothing else does
            before = next(iter(read.values()), "") if is_last else read.get(kind, "")
            if not before or kind == "point":
                count, self.span = len(self.items), span
                self.read(value, label, rule, key)
                if len(self.items) > count:
                    read[kind] = key
            elif self._written(value) != self._written(fields[plain(before)][1]):
                self.notes.append(f'"{key}" is ignored; "{before}" takes precedence')

    def _read_inside(self, text: str, span: tuple[int, int]) -> None:
        """JSON in a string, as arguments often are."""
        inner = KeyReader(text, is_inner=True)
        inner.space = self.space
        for root in parse_values(text):
            inner.read(root)
        self.items += [item._replace(start=span[0], end=span[1]) for item in inner.items]
        self.problems += inner.problems

    def keep(self, numbers: list[float], value: Any, label: Any, rule: KeyRule, key: str) -> None:
        """An item, if the numbers are as the rule says; else a problem, if they should be."""
        if self.span[1] < 0:  # what is cut off is named once, at the end
            return
        fits = len(numbers) in rule.sizes and sum(map(abs, numbers)) < 1e9
        if fits and rule.kind == "place" and len(numbers) == 2:  # -0.12, 51.5 is a place on a map
            whole = all(n.is_integer() for n in numbers) or max(numbers) <= 1
            fits = whole and min(numbers) >= 0
        if not fits:
            return self._refuse(numbers, value, rule, key)
        if rule.kind == "width and height":
            x, y, width, height = numbers
            numbers = [x, y, x + width, y + height]
        if len(numbers) == 5:
            self.notes.append(f'"{key}" is read as centre, width, height and degrees clockwise')
        is_sure = len(numbers) != 4 or self.form == "markup" or _KNOWN_ORDER.search(plain(key))
        shown = "" if is_sure else f'"{key}"' if key else "bare lists"
        self.items.append(
            Found(_join(label), numbers, *self.span, shown, self.form, self.space, rule.certain)
        )

    def _refuse(self, numbers: list[float], value: Any, rule: KeyRule, key: str) -> None:
        is_broken = value is MISSING or (isinstance(value, Node) and not value.clean)
        is_meant = rule.certain and (is_broken or re.search(r"\d", self._written(value)))
        part, count = self.text[self.span[0] : self.span[0] + 80], " or ".join(map(str, rule.sizes))
        if rule.kind == "quad" and len(numbers) >= 6:
            problem = f"{key} has {len(numbers) // 2} corners, and only four make a Quad"
        elif rule.kind == "3D" and is_meant:
            problem = (
                f"{key} is a 3D box in metres, not one in the picture; read it from reply.text"
            )
        elif is_meant or (key and len(numbers) > 2):
            problem = (
                f"{part} is neither a box nor a point ({key} takes {count} numbers; one is "
                "missing, unreadable or out of range)"
            )
        else:
            return
        self.problems.append(problem)

    def _written(self, value: Any) -> str:
        """A value as it is in the text."""
        if isinstance(value, Node):
            return self.text[value.start : value.end if value.end >= 0 else None]
        return str(value)


def _join(label: Any) -> str:
    return ", ".join(label) if isinstance(label, list) else label or ""


def _corners(fields: Fields, points: bool) -> list[float]:
    """The numbers of corners with names, as x1, y1, x2, y2, or of a point, as x, y."""
    point = ["x y".split()] if points and not fields.keys() & _EXTENTS else []
    for names in [*_CORNERS, *_CORNER_PAIRS, *point]:
        if not fields.keys() >= set(names):
            continue
        numbers = flat([fields[name][1] for name in names], objects=True)
        if len(numbers) == len(names) * (2 if names[0] in _PAIRS else 1):
            x, y, width, height = (*numbers, 0.0, 0.0)[:4]
            if names[0] in ("cx", "xcenter"):
                angle = flat([fields[name][1] for name in _ANGLES if name in fields])
                if angle and any(angle):
                    return [*numbers, *angle]
                x, y = x - width / 2, y - height / 2
            is_extent = names[-1] in ("height", "h")
            return [x, y, x + width, y + height] if is_extent else numbers
    return []


def label_of(fields: Fields) -> str | list[str]:
    """The first label that is not empty; in several languages, the English one."""
    for name in LABEL_NAMES:
        value = fields[name][1] if name in fields else None
        if not isinstance(value, Node):
            label: str | list[str] = str(value or "")
        elif value.is_object:
            texts = {plain(key): text for key, text in value.pairs if isinstance(text, str)}
            label = texts.get("en") or texts.get("zh") or next(iter(texts.values()), "")
            if label is MISSING:  # a Python set
                label = [key for key, _ in value.pairs]
        else:
            label = [text for text in value.values if isinstance(text, str)]
        if label:
            return label
    return ""
