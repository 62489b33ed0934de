"""What all panels share: their texts in both languages."""

import json
import re
from pathlib import Path

import vlkit

FOLDER = Path(vlkit.__file__).parent / "widgets"
TABLES = json.loads((FOLDER / "zh.json").read_text(encoding="utf-8"))
CHINESE = TABLES["texts"] | TABLES["sentences"]
NOT_WORDS = {"cpu", "Alpha", "tiny"}  # the same in both languages


def english_texts():
    """Texts that the scripts translate, and labels, hints and states of the panels' controls."""
    for path in FOLDER.glob("*.js"):
        script = path.read_text(encoding="utf-8")
        yield from re.findall(r'\bt\((?:\w+ \? )?"([^"]+)"', script)
        yield from re.findall(r'\blabel: "([^"]+)"', script)
    for path in FOLDER.glob("*.py"):
        code = path.read_text(encoding="utf-8")
        yield from re.findall(r'Control\(\s*"\w+", "([^"]+)"', code)
        yield from re.findall(r'(?:help|placeholder|title)=?[ =]"([^"]{3,})"', code)
        yield from re.findall(r'(?:status\.say|VlkitError|MediaError)\(\s*"([^"{]+)"\s*\)', code)


def test_every_text_of_a_panel_has_its_chinese():
    texts = set(english_texts()) - NOT_WORDS
    assert len(texts) > 120
    assert sorted(texts - CHINESE.keys()) == []


def test_a_translation_has_values_of_its_text_and_no_others():
    values = re.compile(r"\{\w+\}").findall
    wrong = {text for text, chinese in CHINESE.items() if set(values(chinese)) - set(values(text))}
    assert wrong == set()
    latin = [text for text, chinese in CHINESE.items() if not re.search("[\u4e00-\u9fff]", chinese)]
    assert set(latin) <= {"Alpha", "{n} GB", "{n} MB"}
