"""`make demo`: answers and a page first; a notebook that fails or hangs costs its own row."""

import base64
import io
import re
import sys
from pathlib import Path

import nbformat
import PIL.Image
import pytest
from nbformat.sign import NotebookNotary

from vlkit import widgets

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NOTEBOOKS = {
    "00_good": "open('left.txt', 'w').write('here')",
    "01_wrong": "raise ValueError('<b>no [/such] thing</b>')",
    "02_hanging": "while True: pass",
    "03_dead": "import os; os._exit(1)",
    "04_missing": "open('photos.csv')",
    "06_after": "print('still here')",
}


@pytest.fixture
def demo(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import demo

    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(demo, "QUESTIONS", demo.QUESTIONS[1:3])
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))  # signatures go there
    monkeypatch.setenv("VLKIT_SETTINGS", "")
    monkeypatch.setenv("VLKIT_MODEL", "")
    (tmp_path / "notebooks").mkdir()
    for name, code in NOTEBOOKS.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    (tmp_path / "notebooks" / "05_torn.ipynb").write_text('{"cells": [', encoding="utf-8")
    yield demo
    del sys.modules["demo"]


def rows_of(page):
    table = page.read_text(encoding="utf-8").partition("<h2>Notebooks</h2>")[2]
    table = table.partition("<h2>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]


def test_answers_come_first_and_no_notebook_costs_the_page(demo, monkeypatch, capsys):
    page, seen = demo.REPORTS / "index.html", []
    run = demo.run_notebook

    def look_at_the_page_first(path, limit):
        seen.append([row[2] for row in rows_of(page)])
        return run(path, limit)

    monkeypatch.setattr(demo, "run_notebook", look_at_the_page_first)
    assert demo.main(["--limit", "20"]) == 1
    assert seen[0] == ["running", *6 * ["waiting"]]  # there with its answers, before any notebook
    assert "公交车" in page.read_text(encoding="utf-8")

    good, wrong, hanging, dead, missing, torn, after = rows_of(page)
    assert good[2] == after[2] == "ran to its end" and 'href="00_good.html"' in good[0]
    assert wrong[2] == '<span class="bad">ValueError: &lt;b&gt;no [/such] thing&lt;/b&gt;</span>'
    assert re.search(
        r'class="bad">stopped after 20 s in code cell 1; .* 02 --limit 80<', hanging[2]
    )
    assert 'class="bad">FileNotFoundError: ' in missing[2] and "photos.csv" in missing[2]
    assert torn[2].startswith('<span class="bad">05_torn.ipynb cannot be read: ') and torn[1] == "–"
    assert dead[2] == '<span class="bad">DeadKernelError: Kernel died</span>'

    said = capsys.readouterr().out
    assert said.index("公交车(") < said.index("Open reports/index.html") < said.index("00_good")
    assert "2 of 7 notebooks ran to their end" in said
    assert (demo.REPORTS / "00_good" / "left.txt").is_file()
    for name in NOTEBOOKS:
        assert (demo.REPORTS / f"{name}.ipynb").is_file()
        assert (demo.REPORTS / f"{name}.html").is_file()


def test_one_notebook_is_run_alone_and_all_well_is_status_0(demo):
    assert demo.main(["06"]) == 0
    (row,) = rows_of(demo.REPORTS / "index.html")
    assert row[2] == "ran to its end"
    executed = nbformat.read(demo.REPORTS / "06_after.ipynb", as_version=4)
    assert NotebookNotary().check_signature(executed)  # trusted, so that drawings are shown


PANELS = [
    name for name in widgets.__all__ if name.endswith(("Panel", "Chooser")) and name != "Panel"
]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_has_its_picture_where_there_is_no_kernel(demo, panel):
    data = {demo.WIDGET: {}, "text/plain": f"{panel}: run this cell in Jupyter to use it"}
    output = nbformat.v4.new_output("execute_result", data=data, execution_count=1)
    cell = nbformat.v4.new_code_cell("panel", outputs=[output])
    demo.show_panels(nbformat.v4.new_notebook(cells=[cell]))
    assert demo.WIDGET not in cell.outputs[0].data  # a viewer would take it, and show nothing
    picture = base64.b64decode(cell.outputs[0].data["image/png"])
    assert PIL.Image.open(io.BytesIO(picture)).width == 800


def test_a_progress_bar_has_its_last_words_where_there_is_no_kernel(demo):
    data = {demo.WIDGET: {"model_id": "bar"}, "text/plain": "  0%|          | 0/31"}
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data=data)])
    states = {"left": "100%", "middle": 31.0, "right": " 31/31 [00:07&lt;00:00, 0 failed]"}
    held = {name: {"state": {"value": value}} for name, value in states.items()}
    held["bar"] = {"state": {"children": [f"IPY_MODEL_{name}" for name in states]}}
    notebook = nbformat.v4.new_notebook(
        cells=[cell], metadata={"widgets": {demo.STATE: {"state": held}}}
    )
    demo.show_panels(notebook)
    assert cell.outputs[0].data == {"text/plain": "100% 31/31 [00:07<00:00, 0 failed]"}
    assert "widgets" not in notebook.metadata


def test_a_page_leads_to_the_next_notebooks_page(demo, tmp_path):
    link = nbformat.v4.new_markdown_cell("**Next:** [01](01_image_inference.ipynb), pictures.")
    demo.write_html(nbformat.v4.new_notebook(cells=[link]), tmp_path / "page.html")
    assert 'href="01_image_inference.html"' in (tmp_path / "page.html").read_text(encoding="utf-8")
