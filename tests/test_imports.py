"""Importing vlkit costs little: heavy libraries wait until they are needed."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vlkit

HEAVY = {
    "torch",
    "torchvision",
    "transformers",
    "qwen_vl_utils",
    "matplotlib",
    "pandas",
    "IPython",
    "ipywidgets",
}
LIGHT = [
    "errors",
    "media",
    "grounding",
    "plotting",
    "evaluation.metrics",
    "evaluation.conventions",
    "datasets",
    "datasets.scenes",
    "evaluation.gallery",
    "messages",
    "generation.reply",
    "bundled",
]


def in_new_process(code):
    code = f"import json, sys, time\n{code}\nprint(json.dumps([result, sorted(sys.modules)]))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    result, modules = json.loads(run.stdout)
    return result, set(modules)


def test_import_vlkit_is_quick_and_light():
    measure = "start = time.process_time()\nimport vlkit\nresult = time.process_time() - start"
    seconds, modules = min((in_new_process(measure) for _ in range(3)), key=lambda pair: pair[0])
    assert seconds < 1  # 0.3 s on an idle machine
    assert not modules & {*HEAVY, "numpy", "PIL"}


def test_modules_are_light():
    code = f"""
import importlib
result = {{}}
for module in {LIGHT}:
    importlib.import_module("vlkit." + module)
    result[module] = sorted(set({sorted(HEAVY)}) & set(sys.modules))
"""
    loaded, _ = in_new_process(code)
    assert loaded == {module: [] for module in LIGHT}


def test_work_without_a_model_is_light():
    code = """
import vlkit
picture = vlkit.load_image(vlkit.sample("cat"))
boxes = vlkit.parse_grounding(
    "<|box_start|>(1,2),(300,400)<|box_end|>", family="qwen2_vl", image_size=picture.size
)
from vlkit.generation.reply import Reply, Usage
vlkit.draw_boxes(picture, boxes)
usage = Usage(1, 0, 2, 3)
shown = Reply("a", "a", usage, 1.0, "qwen2_vl", (picture,))._repr_html_()
result = [len(boxes), "<img" in shown, len(vlkit.user("What?", picture)["content"])]
"""
    result, modules = in_new_process(code)
    assert result == [1, True, 2]
    assert not modules & HEAVY


def test_public_names():
    import vlkit

    assert set(vlkit.__all__) <= set(dir(vlkit))
    for name in ("user", "Box", "draw_boxes", "load_image", "errors"):
        assert getattr(vlkit, name) is getattr(vlkit, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vlkit.nothing  # noqa: B018


def test_what_modules_share_has_no_underscore():
    private = []
    for path in sorted(Path(vlkit.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vlkit"):
                private += [
                    (path.name, n.name) for n in node.names if n.name[0] == "_" != n.name[1]
                ]
    assert not private
