"""The trees of architecture.md and README.md, from the files: ``python docs/file_tree.py``.

A Python file's line is the first line of its docstring, a room's that of its ``__init__.py``. The
order of the rooms is the direction of imports in ``tests/helpers/house.py``.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from house import CORE, PACKAGE, WORKBENCH  # noqa: E402

OTHER_FILES = {  # what a file that has no docstring is for
    "fonts/": "The font of labels (a part of Noto Sans SC), and its licence.",
    "analysis/logprobs.html.jinja": "The tokens of an answer, shaded by their probabilities.",
    "analysis/preflight.html.jinja": "The result of preflight, as a notebook shows it.",
    "cli/classroom/": "The classroom's home page, the bar above its panels, their pictures.",
    "evaluation/gallery.html.jinja": "The gallery as a page and in a notebook.",
    "generation/reply.html.jinja": "An answer, as a notebook shows it.",
    "lora/curves.html.jinja": "Loss and metric curves, and the last answers.",
    "models/qwen_vl_base.jinja": "How Qwen-VL is asked: plain text after the picture.",
    "models/qwen_vl_chat.jinja": "How Qwen-VL-Chat is asked: ChatML, pictures with numbers.",
    "lora/run.html.jinja": "A finished training run, as a notebook shows it.",
    "lora/xray.html.jinja": "The result of inspect, as a notebook shows it.",
    "py.typed": "Type checkers read vlkit's annotations.",
    "records/schema.json": "What a run's files hold, as a JSON Schema.",
    "records/reports/papers.bib": "The papers of the model families.",
    "records/reports/report.html.jinja": "The HTML page of a report.",
    "records/reports/report.md.jinja": "A report in Markdown.",
    "widgets/batch.js": "BatchPanel in the browser: rows, pictures, a row enlarged.",
    "widgets/chooser.js": "ModelChooser in the browser: known models, a question first.",
    "widgets/lora.js": "LoraPanel in the browser: data, curves, what follows a run.",
    "widgets/work.css": "The look of BatchPanel, LoraPanel and ModelChooser.",
    "widgets/work.js": "What BatchPanel, LoraPanel and ModelChooser share in the browser.",
    "widgets/canvas.css": "The look of the picture canvas.",
    "widgets/canvas.js": "A picture with boxes in the browser: zoom, pan, draw, correct.",
    "widgets/controls.json": "The panels' controls by group and name.",
    "widgets/controls.js": "The controls that all panels share, and how another panel uses them.",
    "widgets/conversation.css": "The look of questions, answers and media.",
    "widgets/panel.css": "The look of all panels and controls.",
    "widgets/panel.js": "AskPanel, VideoPanel and GroundingPanel in the browser.",
    "widgets/zh.json": "The panels' words in Chinese.",
}
CORE_LINE = "── the core: loads a model, asks it, draws boxes; knows nothing of the workbench ──"
WORKBENCH_LINE = "── the workbench: stands on the core ──"


def main() -> int:
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
    return 0


def pages() -> dict[Path, str]:
    """The pages with their trees as they should be."""
    trees = {ROOT / "docs" / "architecture.md": file_tree(), ROOT / "README.md": room_tree()}
    return {page: with_tree(page.read_text(encoding="utf-8"), trees[page]) for page in trees}


def with_tree(text: str, tree: str) -> str:
    """A page's text with the block replaced that begins with the tree's first line."""
    begins = f"```text\n{tree.partition(chr(10))[0]}\n"
    before, found, rest = text.partition(begins)
    assert found, "the page has no tree"
    return f"{before}```text\n{tree}\n```{rest.partition('```')[2]}"


def file_tree() -> str:
    """A line for each room and each file."""
    rows = [("  __init__.py", about("__init__.py")), ("  __main__.py", about("__main__.py"))]
    rows += [("  py.typed", about("py.typed"))]
    for title, rooms in ((CORE_LINE, CORE), (WORKBENCH_LINE, WORKBENCH)):
        rows.append((f"  {title}", ""))
        for room in rooms:
            rows += room_rows(room)
            if room == "plotting":
                rows.append(("  fonts/", about("fonts/")))
    return "vlkit/\n" + aligned(rows)


def room_tree() -> str:
    """A line for each room and each file outside of rooms."""
    rows = []
    for title, rooms in ((CORE_LINE, CORE), (WORKBENCH_LINE, WORKBENCH)):
        rows.append((f"  {title}", ""))
        rows += [room_rows(room)[0] for room in rooms]
    return "vlkit/\n" + aligned(rows)


def room_rows(room: str) -> list[tuple[str, str]]:
    if f"{room}.py" in files():
        return [(f"  {room}.py", about(f"{room}.py"))]
    return folder_rows(room, 1)


def folder_rows(folder: str, depth: int) -> list[tuple[str, str]]:
    """A folder's line, then those of its files, then its folders."""
    indent = "  " * depth
    rows = [(f"{indent}{folder.rpartition('/')[2]}/", about(f"{folder}/"))]
    inside = [name.removeprefix(f"{folder}/") for name in files() if name.startswith(f"{folder}/")]
    for name in inside:
        if "/" not in name and name != "__init__.py":
            rows.append((f"{indent}  {name}", about(f"{folder}/{name}")))
    for inner in dict.fromkeys(name.partition("/")[0] for name in inside if "/" in name):
        path = f"{folder}/{inner}/"
        row = (f"{indent}  {inner}/", about(path))
        rows += [row] if path in OTHER_FILES else folder_rows(path.rstrip("/"), depth + 1)
    return rows


def files() -> list[str]:
    """The files of the package, by their paths in it."""
    return sorted(
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )


def about(name: str) -> str:
    """The line of a file or, with a slash at its end, of a folder."""
    if name in OTHER_FILES:
        return OTHER_FILES[name]
    path = PACKAGE / name / "__init__.py" if name.endswith("/") else PACKAGE / name
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].replace("``", "")


def aligned(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, text in rows if text) + 2
    return "\n".join(f"{name:<{width}}{text}" if text else f"\n{name}" for name, text in rows)


if __name__ == "__main__":
    sys.exit(main())
