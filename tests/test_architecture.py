"""The plan of the house: one direction of imports, no circle of files, one name for each thing."""

from __future__ import annotations

import ast
import graphlib
from collections import defaultdict
from pathlib import Path

from house import ORDER, PACKAGE

DOORS = {  # imported by name when they are first used; tests/test_core.py shows that they stay shut
    ("models/load.py", "remote"): "load() finds openai: and dashscope: in a table of prefixes",
    ("hooks.py", "records"): "VLKIT_RUN records a whole process",
    ("models/load.py", "generation"): "a VLM's answering methods",
}


LEFT_TO_DO: list[str] = []  # stays empty
WHOLE_PACKAGE = {"cli"}  # rooms that still import the whole package


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def place_of(module: str) -> str:
    return str(MODULES[module].relative_to(PACKAGE))


def imported_by(path: Path) -> set[str]:
    """The modules of vlkit that a file names, also inside functions and to import_module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "vlkit" and [alias.name for alias in node.names] == ["__version__"]:
                continue
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module or "" for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} if "." in node.value else set()  # for import_module
        elif isinstance(node, ast.JoinedStr) and ast.unparse(node).startswith("f'vlkit."):
            package = ast.unparse(node)[2:].partition(".{")[0]
            found |= {name for name in MODULES if name.startswith(f"{package}.")}
    return {name for name in found if name in MODULES}


ARROWS = {module: imported_by(path) - {module} for module, path in MODULES.items()}


def test_every_room_is_in_the_order():
    rooms = {room_of(module) for module in MODULES} - {"", "__main__"}
    assert rooms == set(ORDER)


def test_imports_run_in_one_direction():
    up = []
    for module, targets in ARROWS.items():
        room = room_of(module)
        if room in ("", "__main__"):
            continue
        for target in targets:
            other = room_of(target)
            if other == "" and room in WHOLE_PACKAGE:
                continue
            if other == "":
                up.append(f"{place_of(module)} imports the whole package")
            elif ORDER.index(other) > ORDER.index(room):
                if (place_of(module), other) not in DOORS:
                    up.append(f"{place_of(module)} -> {place_of(target)}")
    assert sorted(up) == LEFT_TO_DO


def test_no_circle_of_files():
    doors = {(place, room) for place, room in DOORS}
    graph = {
        module: {t for t in targets if (place_of(module), room_of(t)) not in doors}
        for module, targets in ARROWS.items()
        if module != "vlkit"
    }
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_no_class_name_twice():
    homes = defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_modules_share_no_private_names():
    private = [
        (place_of(module), name.name)
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vlkit")
        for name in node.names
        if name.name[0] == "_" != name.name[1]
    ]
    assert private == []


def test_the_house_stays_small():
    assert len(MODULES) <= 145
