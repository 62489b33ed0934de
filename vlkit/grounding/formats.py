"""How each generation spells boxes: read and written; no geometry.

Every format names its coordinate space, one of ``SPACES``: ``0-1000`` and ``0-999`` are shares of
the picture's width and height, ``resized`` is pixels of the picture as the processor resized it,
``original`` is pixels of the upright original.

An answer is read in steps, the family's own form first: tags, JSON, markup, calls of functions.
What one step has read is blanked out for the next. ``docs/answers.md`` has the whole table.
"""

import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

from vlkit.errors import VlkitError
from vlkit.grounding.keys import (
    BARE,
    CONTAINERS,
    LABEL_NAMES,
    NOTHING,
    PATH,
    RULES,
    TOOL_SPACES,
    Fields,
    Found,
    KeyReader,
    Reading,
    Space,
    label_of,
    plain,
)
from vlkit.grounding.tokens import GAP, NUMBER, Node, flat, numbers_of, parse_values


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

# --- reading -------------------------------------------------------------------------------------

_ASK = "ask for the form of the family (vlkit.locate_prompt)"
_PAIR = rf"[(（]\s?{NUMBER}\s?[,，]\s?{NUMBER}\s?[)）]"
_LOOSE = r"-?\d{1,4}(?:\.\d{1,9})?"  # CogVLM writes [[012,045,789,912]]
_NO_PLACES = r"(?i:image|img|video|audio|frame|pic|photo|speaker|turn|step|page|time|sec|t|h)"
# coordinates in no form at all, and what to say; the first two also next to what was read
_STRAY = (
    (
        rf"{_PAIR}\s?(?:[,，、~-]|to|and|和|到)?\s?(?:{_PAIR}|[(（][^a-z)）]{{0,20}}\Z)"
        rf"|\A\s*+\[++\s*+[;:,.]\s*+{NUMBER}\s?[,;]\s?{NUMBER}"
        rf"|<[a-z]\w*\s?[=:\s]\s?[(\[]?{NUMBER}[\s,]++{NUMBER}",
        "coordinates in no known form ({}): if the special tokens are missing, pass reply.raw, not "
        f".text; else {_ASK}",
    ),
    (  # Kosmos, PaliGemma, Florence, OFA, PaddleOCR; Shikra, CogVLM; DeepSeek, GLM
        rf"(?:<\|?(?!{_NO_PLACES}_?\d)[A-Za-z_]{{0,16}}-?\d{{1,4}}\|?>[\s,，]{{0,3}}){{2}}"
        rf"|(?:\w|\|>)\[{{1,2}}\s?{_LOOSE}(?:\s?,\s?{_LOOSE}){{3}}\s?[\];]"
        r"|\w\[\s?[01]?\.\d{1,9}\s?,\s?[01]?\.\d{1,9}\s?[\];]",
        f"coordinates in no known form ({{}}); another kind of model writes so; {_ASK}",
    ),
    (
        r"""(?:bbox|point|quad)_[23]d["']?\s*[},]"""
        r"""|(?:bbox|bounding_?box|(?:box|point|quad)_[23]d)(?:_2d)?["']?\s*[:=][\s"'(\[{]*-?\d""",
        f"coordinates outside JSON, or under a key that is not in the table ({{}}); {_ASK}",
    ),
    (
        rf"```json\b(?!{NOTHING.pattern}(?:```|\Z))[^\[{{`]*+(?:```|\Z)",
        "the fenced block is not JSON",
    ),
    (
        r"(?i)(?:\b(?:at|from|point|click|tap)|box|located|location|coordinates?|corners?|left|right"
        rf"|center|[坐座]标|座標|位置|位于|框|角|[左右][上下]|点)"
        rf"(?:[^\n.;()\[\]\"']{{0,30}}(?<![a-z]))?[(\[（［【]\s?{NUMBER}"
        rf"\s?[,，]\s?{NUMBER}\s?(?:[,，]\s?{NUMBER}\s?[,，]\s?{NUMBER}\s?)?[)\]）］】]"
        rf"|\b(?:x_?1|x_?min|left)\W{{0,3}}[:=]\W{{0,3}}{NUMBER}\W{{0,8}}(?:y_?1|y_?min|top)"
        rf"\W{{0,3}}[:=]\W{{0,3}}\d"
        rf"|\bx\W{{1,6}}{NUMBER}\W{{1,8}}y\W{{1,6}}{NUMBER}\W{{1,8}}w(?:idth)?\b"
        rf"|(?m:^)[^\n\[\](]{{1,40}}\[{NUMBER}(?:,\s?{NUMBER}){{3}}\][ |,]*+(?m:$)"
        rf"|(?m:^)[^\n\d,]{{1,40}}(?:,{NUMBER}){{4}}(?m:$)",
        f"coordinates in a sentence ({{}}) are not read; {_ASK}",
    ),
)

_MAYBE_KEY = (
    r"(?i:bbox(?:_2d)?|x_?1\D{1,9}y_?1\D{1,9}x_?2\D{1,9}y_?2"
    r"|\b(?:box|pixels?|tap|click|swipe|drag|move|mouse\w*|coordinates?|x_?1|x_?min))|坐标"
)
_OTHER_LABEL = re.compile(r"<\|/?(?:ref|label|class|text)\w*\|>[^<]{0,40}")  # MinerU's
_STYLES = re.compile(  # of a page, which are no coordinates
    r"(?is)<(style|script)\b.*?(?:</\1\s*>|\Z)|```s?css\b.*?(?:```|\Z)"
)
_MAYBE = re.compile(  # numbers that may be coordinates or not
    rf"[\[(（［]\s?(?:[\"'][^\"'\n]{{1,60}}+[\"'],\s?)?"
    rf"{NUMBER}(?:\.?\s?[,，]\s?{NUMBER}){{3}}\.?\s?[)\]）］]"
    r"|(?m:^)\S*(?:\s0?\.\d{1,9}){4}"
    rf"|\w\s?=\s?[\[(]\s?{NUMBER},\s?{NUMBER}\s?[\])]"
    rf"|[\"']x[\"']\s?:\s?{NUMBER},\s?[\"']y[\"']\s?:\s?{NUMBER}"
    rf"|(?:{_MAYBE_KEY})[^\d(\[]{{0,60}}{NUMBER}[\s,，|-]{{1,6}}{NUMBER}"
    r"|\b(?:at|point|position|located|location|corner|left|top|cent(?:er|re))\b"
    rf"[^\d(\[\n]{{0,12}}{NUMBER}[\s,，]{{1,3}}{NUMBER}"
    rf"|(?<![?&(\w])x\s?[:=]\s?{NUMBER}[,;\s]{{1,4}}y\s?[:=]\s?{NUMBER}"
    rf"|{_PAIR}[^\d()（）]{{0,60}}{_PAIR}|[(（]\s?{NUMBER}\s?%\s?[,，]\s?{NUMBER}\s?%"
    rf"|\b(?:at|@)\s{NUMBER}%[,，]?\s{NUMBER}%"
    rf"|(?<![\w(])[(\[（](?!(?:19|20)\d\d\b){NUMBER}[,，]\s?{NUMBER}[)\]）]"
    rf"|\A[^\w.]*{NUMBER}(?:[^\w.]{{1,4}}{NUMBER}){{3}}[^\w.]*\Z"
    rf"|<(\w{{1,20}})>\s?{NUMBER}(?:[\s,]{{1,3}}{NUMBER}){{3}}\s?</"
)


def read_answer(answer: str, family: str) -> Reading:
    """Labels with their numbers in an answer, in order, and what could not be read."""
    steps: list[Callable[[str], Reading]] = [partial(_read_tags, own=family), _read_json]
    if FORMATS[family].style == "json":
        steps.reverse()
    items: list[Found] = []
    problems: list[str] = []
    notes: list[str] = []
    rest = answer
    for step in (*steps, _read_markup, _read_calls):
        read = step(rest)
        items, problems, notes = items + read.items, problems + read.problems, notes + read.notes
        rest = _blank_out(rest, read.items)
    rest = _STYLES.sub("", rest)
    for pattern, problem in _STRAY[: 2 if items else None]:
        if not problems and (match := re.search(pattern, rest)):
            problems.append(problem.format(match[0][:60]))
    if items and (match := _OTHER_LABEL.search(rest)):
        notes.append(f"{match[0]} is no token of this form, and not read as a label")
    if not items and not problems and (match := _MAYBE.search(rest)):
        part = " ".join(match[0][:60].split())
        notes.append(f"numbers that may be coordinates ({part}) are not read; {_ASK}")
    return Reading(sorted(items, key=lambda item: item.start), problems, notes)


def _blank_out(text: str, items: list[Found]) -> str:
    parts, done = [], 0
    for start, end in sorted({(item.start, item.end) for item in items}):
        if end > done:
            begin = max(done, start)
            parts += [text[done:begin], " " * (end - begin)]
            done = end
    return "".join([*parts, text[done:]])


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
            numbers = numbers_of(content) if after == closing else []
            if len(numbers) in ((8,) if what == "quad" else (2, 4)):
                place = start if begin < 0 else begin, end
                items.append(Found(label, numbers, *place, form=family))
                begin = -1
            else:
                problems.append(f"{tag}{content[:60]}{after} is neither a box nor a point")
    late = begin >= 0 and label != "" and not all(item.label for item in items)
    notes = [f"no box follows the label {label!r:.60}, but one before it has no label"] * late
    return Reading(items, problems, notes)


# --- JSON: Qwen2.5-VL and on ---------------------------------------------------------------------

_BORDER = re.compile(r"```\w*|</?answer>")
_LIST_BEGINS = re.compile(rf"\[\s*+[\[(][^\[\]\w]*+\d|{GAP}*+{NUMBER}(?:{GAP}++{NUMBER}){{2}}")


def _read_json(text: str) -> Reading:
    """Coordinates under known keys such as ``bbox_2d``; where there are none, numbers in lists."""
    for quote in ('\\"', "&quot;") if '{"' not in text else ():  # JSON in a JSON string or in HTML
        gap = " " * (len(quote) - 1)  # the same length
        text = re.sub(rf"{re.escape(quote)}(?=\s*[:,}}\]])", f'"{gap}', text)
        text = text.replace(quote, f'{gap}"')
    roots = parse_values(text)
    reader = KeyReader(text)
    for root in roots:
        reader.read(root)
    found_by_key = bool(reader.items or reader.problems)
    if not found_by_key:
        root_at = {(root.start, root.end): root for root in roots}
        for start, end in _parts(text):
            _read_bare(reader, root_at.get((start, end)), start, end)
    if found_by_key or not reader.items:  # lists under other keys may be meant as coordinates
        for key, node in reader.unread:
            part = text[node.start : node.end][:60]
            reader.notes.append(f'"{key}" has {part}, which is not read as coordinates')
    is_meant = bool(reader.items) or "```json" in text
    for root in roots:
        if root.end < 0 and (part := _cut_off(text, root, is_meant)):
            reader.problems.append(f"the answer ends inside {part}")
    return reader.result()


def _parts(text: str) -> list[tuple[int, int]]:
    """Starts and ends of the parts between fences and around <answer>, without blanks."""
    ends = [0, *(end for match in _BORDER.finditer(text) for end in match.span()), len(text)]
    parts = []
    for start, end in zip(ends[::2], ends[1::2], strict=True):
        part = text[start:end]
        parts.append((end - len(part.lstrip()), start + len(part.rstrip())))
    return [(start, end) for start, end in parts if start < end]


def _read_bare(reader: KeyReader, node: Node | None, start: int, end: int) -> None:
    """Numbers without a key: a list, lists of lists, or labels with their four numbers."""
    reader.span, text = (start, end), reader.text[start:end]
    if node is None and text[0] == "[" and text[-1] == "]" and numbers_of(text):  # several lists
        node = parse_values(f"[{text}]")[0]
    while node and node.is_object and [plain(key) in CONTAINERS for key, _ in node.pairs] == [True]:
        node = node.values[0] if isinstance(node.values[0], Node) else None
    values = node.values if node else []
    lists = [value for value in values if isinstance(value, Node) and not value.is_object]
    if node is None:
        numbers = numbers_of(text)
        opened, closed = text[0] in "([（［", text[-1] in ")]）］"
        if opened == closed and (opened or len(numbers) == 4):
            reader.keep(numbers, None, "", BARE, "")
    elif not node.is_object:
        reader.read(node, "", BARE)
        whole = node.clean and (bool(flat(values)) or not lists)
        numbers_alone = not re.search(r"[^\W\d_]|\d:\d", text) and re.search(
            r"\d\D++\d++\D++\d", text
        )
        if not whole and len(reader.items) < max(1, len(lists)) and (reader.items or numbers_alone):
            reader.problems.append("not all of the bare lists are of four numbers or of two")
        if reader.items and re.search(r"[^\W\d_]", text):
            reader.notes.append("the text in the bare lists is not read as a label")
    elif len(lists) == len(values) and all(map(_is_boxes, lists)):
        for label, value in node.pairs:
            reader.read(value, label, BARE)


def _is_boxes(node: Node) -> bool:
    """Whether an array is four numbers, or arrays of four numbers."""
    rows = [value for value in node.values if isinstance(value, Node) and not value.is_object]
    all_rows = len(rows) == len(node.values) > 0
    return len(flat(node.values)) == 4 or (all_rows and all(len(flat(r.values)) == 4 for r in rows))


def _cut_off(text: str, root: Node, is_meant: bool) -> str:
    """What the answer ends inside, where that has coordinates or may have; else nothing."""
    cut = root
    last: Any = root
    numbers_begin = False  # in a list
    while isinstance(last, Node) and last.end < 0:
        cut = last if last.is_object else cut
        numbers_begin = not last.is_object and len(flat(last.values)) == len(last.pairs)
        last = last.values[-1] if last.pairs else None
    part = text[cut.start : cut.start + 60]
    if not cut.is_object:  # bare numbers
        is_alone = root.start < 20 and re.fullmatch(r"\s*(```\w*\s*)?", text[: root.start])
        return part if is_alone and _LIST_BEGINS.match(part) else ""
    keys = [plain(key) for key in (*(key for key, _ in cut.pairs), cut.key or "")]
    is_certain = any(key in RULES and RULES[key].certain for key in keys)
    is_certain |= numbers_begin and len(keys) > 1 and RULES.get(keys[-2], BARE).kind != BARE.kind
    begins = any(key.startswith(keys[-1]) for key in ("bbox2d", "point2d"))
    begins = begins and not cut.clean and not cut.pairs
    is_broken = not cut.clean or cut.key or cut.colon or cut.gap  # not only its brace lacks
    return part if is_certain or begins or (is_meant and is_broken) else ""


# --- documents: QwenVL HTML and Markdown, <points>, elements with coordinates ---------------------

_VALUE = r"""(?:"[^"<]*+"|'[^'<]*+'|[^\s"'<>=`/]++)"""
_ATTRIBUTE = re.compile(rf"(?<![\w-])([^\W\d][\w-]*+)\s*+=\s*+({_VALUE})")
_ELEMENT = re.compile(
    rf"<(/?)([A-Za-z][\w-]*+)((?:\s++[^\W\d][\w-]*+(?:\s*+=\s*+{_VALUE})?+)*+)\s*+(/?>)?"
)
_COMMENT = re.compile(r"<!--\s*+([^<>()\[\]\d]{0,60}+)[(\[]([^<>()\[\]a-zA-Z]{1,120}+)[)\]]\s*+-->")
_TEXT_TAG = r"<(?:parameter=)?(\w{1,20}+)>([^<>]{1,120}+)</(?:parameter|\1)>"
_BETWEEN = re.compile(_TEXT_TAG)
_TEXT_TAGS = re.compile(rf"(?:{_TEXT_TAG}\s*+){{1,30}}+")
_VOID = {"img", "br", "hr", "input", "col", "area", "wbr", "source"}
_DRAWN = {"line", "circle", "ellipse", "path"}  # SVG's shapes that are no box
_POINT_ELEMENTS = {"point", "points", "track", "tracks", "keypoint", "keypoints"}
_LIKE_COORDINATES = re.compile(
    r"""(?i)(?:\s(?:c?[xy]\d?|[xy]_?m(?:in|ax)|[hv]pos|left|top|points|coord\w*)\s*=\s*["']?"""
    r"""|\sstyle\s*=[^>]{0,80}\b(?:left|top)\s*:|\b[bd]?box[ =:"'_]+|\sd\s*=\s*["']?M)"""
    r"""[\s(\[]*-?\.?\d"""
)


def _read_markup(text: str) -> Reading:
    """Coordinates in attributes, in comments and between tags."""
    reader = KeyReader(text, "markup")
    _read_elements(reader)
    for match in _COMMENT.finditer(text):  # QwenVL Markdown: <!-- Image (x1, y1, x2, y2) -->
        reader.span = match.span()
        reader.read(match[2], match[1].strip(" :"), RULES["bbox"], "a comment")
    tool = re.search(r"<function=(\w+)>", text)  # Qwen3.5: <parameter=coordinate>[x, y]</parameter>
    reader.space = TOOL_SPACES.get(tool[1]) if tool else None
    for match in _TEXT_TAGS.finditer(text):  # <point>x y</point>, <xmin>…</xmin><ymin>…</ymin>
        before = text[max(0, match.start() - 300) : match.start()].rpartition("<object")[2]
        label = label_of(_fields([*_attributes(before), *_BETWEEN.findall(before)]))
        pairs = [
            ("point" if _ACTION.fullmatch(key) else key, _unescape(value))
            for key, value in _BETWEEN.findall(match[0])
        ]
        reader.read(Node(match.start(), True, pairs, match.end()), label, BARE)
    return reader.result()


def _attributes(text: str) -> list[tuple[str, str]]:
    return [(key, re.sub(r"^([\"'])(.*)\1$", r"\2", v)) for key, v in _ATTRIBUTE.findall(text)]


def _fields(pairs: list[tuple[str, str]]) -> Fields:
    return {plain(key): (key, _unescape(value)) for key, value in pairs}


def _read_elements(reader: KeyReader) -> None:
    """``<points x1="…" y1="…" alt="…">``, ``<polygon points="…"/>``; QwenVL HTML: ``data-bbox``.

    An item is labelled with the text inside it; a text belongs to the innermost item.
    """
    text, done = reader.text, 0
    opened: list[tuple[str, list[str] | None]] = []  # open elements; their texts, if with an item
    found: list[tuple[re.Match, list[str]]] = []
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
        may_be_item = not end or re.search(r"\d", attributes) or _is_point(match)
        own: list[str] | None = [] if may_be_item else None
        if own is not None:
            found.append((match, own))
        if end == ">" and name not in _VOID:
            opened.append((name, own))
    unclosed = {id(texts) for _, texts in opened}
    for match, texts in found:
        if "data-" not in match[3] and id(texts) in unclosed:
            texts.clear()
        _read_element(reader, match, " ".join(_unescape(" ".join(texts)).split()))


def _read_element(reader: KeyReader, match: re.Match, inside: str) -> None:
    """The coordinates in the attributes of one element."""
    _, name, attributes, end = match.groups()
    pairs = _attributes(attributes)
    fields = _fields(pairs)
    kind = fields.pop("class", ("", ""))[1]
    named = str(label_of(fields)) or kind
    numbers = {key: value for key, value in fields.items() if key not in LABEL_NAMES}
    if len(fields) + bool(kind) < len(pairs):  # the same name twice
        numbers = {}
    reader.span = match.span()
    count, part, problem = len(reader.items) + len(reader.problems), match[0][:60], ""
    if _is_point(match):
        texts = [
            f"{value},{numbers.get('y' + key[1:], ('', ''))[1]}" if key[:1] == "x" else value
            for key, (_, value) in numbers.items()
            if key[:1] == "x" or key in RULES
        ]
        points = [point for point in map(numbers_of, texts) if len(point) == 2]
        reader.items += [Found(named or inside, point, *match.span()) for point in points]
        if not points or len(points) < len(texts):
            problem = f"{part} lacks an x or a y"
    elif end and name not in _DRAWN:
        if "points" in numbers:
            numbers["polygon"] = numbers.pop("points")
        reader.read_fields(numbers, match.span(), inside or named, BARE, name)
    is_unread = count == len(reader.items) + len(reader.problems)
    if not end and (_is_point(match) or _breaks_off(match)):
        problem = f"the answer ends or breaks off inside {part}"
    elif end and is_unread and not problem and _LIKE_COORDINATES.search(match[0]):
        problem = f"{part} is neither a box nor a point"
    reader.problems += [problem] * bool(problem)


def _breaks_off(match: re.Match) -> bool:
    """Whether an element without its end has coordinates; "a <b and x=3" is no element."""
    part = match.string[match.start() : match.start() + 200].split("<")[1]
    is_element = plain(match[2]) in RULES or set("\"'") & set(part)
    return bool(is_element and _LIKE_COORDINATES.search(part))


def _is_point(match: re.Match) -> bool:
    has_attributes = match.string[match.end(2) : match.end(2) + 1] != ">"
    return has_attributes and match[2].lower() in _POINT_ELEMENTS


def _unescape(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # a character's number of more digits than Python reads
        return text


# --- actions of agents: click(start_box='(x,y)'), pyautogui.click(x=…, y=…) ----------------------

_CALL = re.compile(
    r"\b([A-Za-z_][\w.]{2,40}+)"
    r"\(((?:[^()\[\]'\"\n]++|'[^'\n]*+'|\"[^\"\n]*+\""
    r"|\[\[[^()\[\]\n]*+\]\]|[(\[][^()\[\]\n]*+[)\]]){1,30}+)\)"
)
_ACTION = re.compile(
    r"(?i)pyautogui\.(?!\w*write)|click|tap|press|drag|swipe|scroll|hover|move|double|single|select|touch"
)
_POSITIONAL = re.compile(rf"[\s(\[\"']*+({NUMBER}(?:{GAP}++{NUMBER})*+)[\s)\]\"']*+(?:,|\Z)")
_RELATIVE = re.compile(r"(?i)pyautogui\.(?:move|drag)|.*(?:move|drag)_?rel(?:ative)?")


def _read_calls(text: str) -> Reading:
    """Points in the arguments of clicks and other actions."""
    reader = KeyReader(text, "call")
    for match in _CALL.finditer(text):
        name, part = match[1], match[0][:60]
        if not _ACTION.search(name):
            continue
        reader.span = match.span()
        place = _POSITIONAL.match(match[2])
        numbers = numbers_of(place[1]) if place else []
        if re.fullmatch(r"pyautogui\.[hv]?scroll", name):  # first how far
            numbers = numbers[1:]
        named = match[2][place.end() :] if place else match[2]
        pairs = [
            (plain(k), (k, v)) for node in parse_values(f"{{{named}}}")[:1] for k, v in node.pairs
        ]
        known = [pair for pair in pairs if pair[0] in RULES or re.fullmatch("[xy][12]?", pair[0])]
        fields = dict(known)
        if len(fields) < len(known):
            reader.problems.append(f"{part} has an argument twice")
        elif _RELATIVE.fullmatch(name):
            reader.notes.append(f"{part} is relative to the pointer and gives no point")
        elif fields.keys() - {"y"}:
            reader.call = name
            reader.read_fields(fields, match.span(), "", RULES["point"], name)
        else:
            numbers += flat([value for _, value in fields.values()])
            for i in range(0, 4 if PATH.search(name) and len(numbers) > 3 else 2, 2):
                reader.keep(numbers[i : i + 2], None, "", RULES["point"], name)
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
