"""Coordinates in documents and actions: QwenVL HTML and Markdown, ``<points>``, clicks."""

from __future__ import annotations

import html
import re

from vlkit.grounding.keys import (
    BARE,
    LABEL_NAMES,
    PATH,
    RULES,
    TOOL_SPACES,
    Fields,
    Found,
    KeyReader,
    Reading,
    label_of,
    plain,
)
from vlkit.grounding.tokens import GAP, NUMBER, Node, flat, numbers_of, parse_values

# --- markup --------------------------------------------------------------------------------------

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


def read_markup(text: str) -> Reading:
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
    r"\(((?:[^()\[\]'\"\n]++|'[^'\n]*+'|\"[^\"\n]*+\"|[(\[][^()\[\]\n]*+[)\]]){1,30}+)\)"
)
_ACTION = re.compile(
    r"(?i)pyautogui\.(?!\w*write)|click|tap|press|drag|swipe|scroll|hover|move|double|single|select|touch"
)
_POSITIONAL = re.compile(rf"[\s(\[\"']*+({NUMBER}(?:{GAP}++{NUMBER})*+)[\s)\]\"']*+(?:,|\Z)")
_RELATIVE = re.compile(r"(?i)pyautogui\.(?:move|drag)|.*(?:move|drag)_?rel(?:ative)?")


def read_calls(text: str) -> Reading:
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
