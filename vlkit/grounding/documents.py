"""Coordinates in documents and actions: QwenVL HTML and Markdown, ``<points>``, clicks."""

from __future__ import annotations

import html
import re

from vlkit.grounding.keys import RULES, TOOL_SPACES, Found, KeyReader, Reading, plain
from vlkit.grounding.tokens import NUMBER, numbers_of, parse_values

# --- markup --------------------------------------------------------------------------------------

_QUOTED = r"""(?:"[^"<]*+"|'[^'<]*+')"""
_ATTRIBUTE = re.compile(rf"(?<![\w-])([\w-]++)\s*+=\s*+({_QUOTED})")
_ELEMENT = re.compile(
    rf"<(/?)([A-Za-z][\w-]*+)((?:\s++[\w-]++(?:\s*+=\s*+{_QUOTED})?)*+)\s*+(/?>)?"
)
_COMMENT = re.compile(r"<!--\s*+([^<>()\[\]\d]{0,60}+)[(\[]([^<>()\[\]a-zA-Z]{1,120}+)[)\]]\s*+-->")
_BETWEEN = re.compile(r"<(?:parameter=)?(\w{1,20}+)>([^<>]{1,120}+)</(?:parameter|\1)>")
_VOID = {"img", "br", "hr", "input", "col", "area", "wbr", "source"}


def read_markup(text: str) -> Reading:
    """Coordinates in attributes, in comments and between tags."""
    reader = KeyReader(text, "markup")
    _read_elements(reader)
    for match in _COMMENT.finditer(text):  # QwenVL Markdown: <!-- Image (x1, y1, x2, y2) -->
        reader.span = match.span()
        reader.read(match[2], match[1].strip(" :"), RULES["bbox"], "a comment")
    tool = re.search(r"<function=(\w+)>", text)  # Qwen3.5: <parameter=coordinate>[x, y]</parameter>
    reader.space = TOOL_SPACES.get(tool[1]) if tool else None
    for match in _BETWEEN.finditer(text):  # UI-TARS, OS-Atlas: <point>x y</point>
        reader.span = match.span()
        reader.read(match[2], "", RULES.get(plain(match[1])), match[1])
    return reader.result()


def _read_elements(reader: KeyReader) -> None:
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
        if own is not None and end:
            boxes.append((dict(pairs), own, match.span()))
        elif not end and (is_point or own is not None):
            part = text[match.start() : match.start() + 60]
            reader.problems.append(f"the answer ends or breaks off inside {part}")
        if end == ">" and name not in _VOID:
            opened.append((name, own))
    for values, texts, span in boxes:
        label = " ".join(_unescape(" ".join(texts)).split())
        label = label or values.get("data-label") or values.get("alt") or values.get("class", "")
        fields = {plain(k): (k, v) for k, v in values.items() if plain(k) in RULES}
        reader.read_fields(fields, span, label, None, "")


def _read_point(reader: KeyReader, pairs: list[tuple[str, str]], match: re.Match) -> None:
    values = dict(pairs) if len(dict(pairs)) == len(pairs) else {}  # not the same name twice
    texts = [f"{v},{values.get('y' + k[1:], '')}" for k, v in values.items() if k[0] == "x"]
    numbers = [each for each in map(numbers_of, texts) if len(each) == 2]
    reader.items += [Found(values.get("alt", ""), each, *match.span()) for each in numbers]
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
_FIRST_TWO = re.compile(rf"\s*([(\[]?\s*{NUMBER}\s*,\s*{NUMBER}\s*[)\]]?)\s*(?:,|\Z)")


def read_calls(text: str) -> Reading:
    """Points in the arguments of clicks and other actions."""
    reader = KeyReader(text, "call")
    for match in _CALL.finditer(text):
        if not _ACTION.search(match[1]):
            continue
        reader.span = match.span()
        place = _FIRST_TWO.match(match[2])
        if place:
            reader.read(place[1], "", RULES["point"], match[1])
            continue
        for node in parse_values(f"{{{match[2]}}}"):
            pairs = [(plain(key), (key, value)) for key, value in node.pairs]
            known = [pair for pair in pairs if pair[0] in RULES or pair[0] in ("x", "y")]
            if len(dict(known)) < len(known):
                reader.problems.append(f"{match[0][:60]} has an argument twice")
            else:
                reader.read_fields(dict(known), match.span(), "", RULES["point"], match[1])
    return reader.result()
