"""JSON, Python and JavaScript as models write them, slips included, to objects and arrays.

json-repair, json5 and dirtyjson were measured: json5 takes 15 s for a megabyte, dirtyjson reads 8
of 13 kinds of slips, json-repair takes minutes for a megabyte of '{"' and makes numbers of what
is none (1,000 becomes 1 and 0, 40. becomes 40, 1_0 becomes 10). None says where a value stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

NUMBER = r"-?(?:[0０]|[1-9１-９][0-9０-９]{0,8})(?:\.[0-9０-９]{1,9})?"
GAP = r"[\s,，、()（）\[\]［］]"
_NUMBER = re.compile(NUMBER)
_NUMBERS = re.compile(rf"{GAP}*+{NUMBER}(?:{GAP}++{NUMBER})*+{GAP}*+")


def numbers_of(text: str) -> list[float]:
    """Numbers between brackets, commas and blanks; none where there is anything else."""
    return [float(n) for n in _NUMBER.findall(text)] if _NUMBERS.fullmatch(text) else []


def flat(values: list, *, objects: bool = False) -> list[float]:
    """The numbers of values that are all numbers, or all arrays of two; none of any others.

    With ``objects``, also of objects with an x and a y.
    """
    if values and all(isinstance(v, Node) and (v.is_pair or (objects and v.is_xy)) for v in values):
        values = [number for pair in values for number in pair.values]
    texts = [v for v in values if isinstance(v, str) and _NUMBER.fullmatch(v.strip())]
    return [float(v) for v in texts] if len(texts) == len(values) else []


class Word(str):
    """Text without quotes: a number, true, an unquoted key."""


MISSING = Word("no value")


def _lengthen(text: Word, more: Word) -> Word:
    """Words without quotes as one text, up to a length: copied each time, more is not linear."""
    return Word(f"{text} {more}") if len(text) < 1000 else text


@dataclass(slots=True, eq=False)
class Node:
    """An object or an array; ``end`` is -1 where the answer ends inside."""

    start: int
    is_object: bool
    pairs: list[tuple[str, Any]] = field(default_factory=list)  # of an array with empty keys
    end: int = -1
    clean: bool = True  # one comma between two values; no quote without its other half
    key: str | None = None  # whose value has not come yet
    colon: bool = False
    gap: bool = True  # nothing since the last comma

    def add(self, value: str | Node | None) -> None:
        if not self.is_object or self.colon or isinstance(value, Node):
            self.clean &= self.is_object or self.gap
            self.pairs.append((self.key or "", value))
            self.key, self.colon, self.gap = None, False, False
        elif isinstance(value, Word) and isinstance(self.key, Word):
            self.key = _lengthen(self.key, value)
        else:
            self.key = value or ""

    def separate(self) -> None:
        if not self.is_object:
            self.clean &= not self.gap
        elif self.key is not None:
            before = self.pairs[-1] if self.pairs else ("", None)
            if isinstance(before[1], Word) and isinstance(self.key, Word) and not self.colon:
                self.pairs[-1] = before[0], _lengthen(before[1], self.key)
            else:
                self.pairs.append((self.key, MISSING))
        self.key, self.colon, self.gap = None, False, True

    @property
    def values(self) -> list:
        return [value for _, value in self.pairs]

    @property
    def is_pair(self) -> bool:
        return self.clean and not self.is_object and len(self.pairs) == 2

    @property
    def is_xy(self) -> bool:
        return self.clean and [key.casefold() for key, _ in self.pairs] == ["x", "y"]


_DEEPEST = 50
_OPEN, _CLOSE, _COMMA, _COLON = r"\[{(［｛（", r"\]})］｝）", ",，、", ":：="
_START = re.compile(
    r"""[{｛](?=\s*+(?:["'“”‘`\w{\[（(｛}]|\Z))|[\[［](?=\s*+(?:[\[{（(［｛"“'\-\d\]]|\Z))"""
)
_NAME = rf"[\w$-]{{1,40}}+\s*+[{_COLON}]"  # a key without quotes
_TOKEN = re.compile(
    r"(?:\s++|//[^\n]*+|#\s[^\n]*+|/\*[^*\n]{0,200}+\*/)*+"
    rf"(?:(?P<list>\[{NUMBER}(?:, ?{NUMBER})*+\])|(?P<fence>```)"
    rf"|(?P<open>[{_OPEN}])|(?P<close>[{_CLOSE}])|(?P<colon>[{_COLON}])|(?P<comma>[{_COMMA}])"
    rf"|(?P<quote>[\"'“”„‘’`])|(?P<word>[^\s\[\]{{}}()［］｛｝（）{_COLON}{_COMMA}\"“”„]+)|.)"
)
_QUOTED_KEY = rf"""["'“‘`][^"'“”‘’\n]{{1,60}}+["'”’`“‘]\s*+[{_COLON}]"""
_FOLLOWS = {  # what may come after the quote that ends a string
    "key": rf"\s*+(?:[{_COLON}{_COMMA}{_CLOSE}]|\Z)",
    "value": rf"\s*+(?:[{_CLOSE}]|//|/\*|#|```|\Z|{_QUOTED_KEY}"
    rf"|[{_COMMA}]\s*+(?:[{_CLOSE}]|//|/\*|#|\Z|{_QUOTED_KEY}|{_NAME}))",
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
_ESCAPE = re.compile(r"\\(?:u(....)|x(..)|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}


def _unquote(text: str) -> str:
    if "\\" not in text:
        return text
    if _RAW.match(text):
        return re.sub(r"""\\(["']|\\(?=[A-Za-z]))""", r"\1", text)

    def unescape(match: re.Match) -> str:
        code = match[1] or match[2]
        return chr(int(code, 16)) if code else _ESCAPED.get(match[3], match[3])

    # two halves of a character become one
    halves = _ESCAPE.sub(unescape, text).encode("utf-16", "surrogatepass")
    return halves.decode("utf-16", "surrogatepass")


def parse_values(text: str) -> list[Node]:
    """The outermost objects and arrays in a text, in one pass; prose between them is skipped.

    A closing bracket also closes those opened after its own; ``node.end`` is -1 if none comes.
    """
    roots: list[Node] = []
    stack: list[Node] = []  # of open objects and arrays, the innermost last
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
            node = Node(place - len(written), is_object)
            stack[-1].add(node) if stack else roots.append(node)
            if kind == "open":
                stack.append(node)
            else:  # numbers alone, in one step: most of what models write
                node.pairs = [("", Word(number)) for number in _NUMBER.findall(written)]
                node.end = place
        elif kind == "close" and any(node.is_object == is_object for node in stack):
            node = stack[-1]
            while node.end < 0 or node.is_object != is_object:
                node = stack.pop()
                if node.is_object:
                    node.separate()
                node.end = place
        elif kind == "fence":  # ends what is open
            stack = []
        elif stack:
            place = _take(stack[-1], kind, written, text, place, dead)


def _take(node: Node, kind: str | None, written: str, text: str, place: int, dead: set) -> int:
    """A comma, colon, word or string in an object or array; where the text goes on."""
    if kind == "comma":
        node.separate()
    elif kind == "colon":
        node.colon = node.key is not None
        node.clean &= node.is_object
    elif kind == "word":
        node.add(None if written in ("null", "None", "undefined") else Word(written))
    else:  # a quote, or a sign that does not belong here
        where = "item" if not node.is_object else "value" if node.colon else "key"
        pattern = _STRINGS.get((written, where))
        string = pattern.match(text, place) if pattern and pattern not in dead else None
        if string:
            node.add(_unquote(string[1]))
            return string.end()
        dead.add(pattern)
        node.clean = False
    return place
