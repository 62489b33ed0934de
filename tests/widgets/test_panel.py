"""What all panels share: their texts in both languages."""

import json
import re
from pathlib import Path

import vlkit
from vlkit.models.hub import HUBS
from vlkit.models.load import DTYPES
from vlkit.widgets.panel import CONTROLS, make_controls

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
        yield from re.findall(r'(?:help|placeholder|title)=?[ =]"([^"]{3,})"', code)
        yield from re.findall(r'(?:status\.say|VlkitError|MediaError)\(\s*"([^"{]+)"\s*\)', code)
    for control in (control for group in CONTROLS.values() for control in group.values()):
        yield from (control[name] for name in ("label", "placeholder", "help") if name in control)
        named = [o[0] if isinstance(o, list) else o for o in control.get("options", ())]
        yield from (text for text in named if isinstance(text, str) and " " in text)


def test_options_are_those_of_load():
    options = {name: control.values for name, control in make_controls(None, "load").items()
               if control.kind == "choice"}  # fmt: skip
    assert options["hub"] == ["auto", *HUBS] and options["dtype"] == ["auto", *DTYPES]


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
