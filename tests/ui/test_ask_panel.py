"""The AskPanel under a real mouse and keyboard, in JupyterLab as a user has it."""

import re
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect

REPORTS = Path(__file__).parents[2] / "reports" / "ui"
CELLS = [
    """import vlkit
from vlkit.widgets import AskPanel

vlm = vlkit.load()
vlm.model.generation_config.eos_token_id = None  # answers end at max_new_tokens, so Stop has time
endless = AskPanel(vlm)
panel = AskPanel(vlkit.load())
panel""",
    "endless",
]


@pytest.fixture
def notebook(tmp_path, open_notebook):
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    path = tmp_path / "ask.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    opened = open_notebook(path)
    opened.run_all(120)
    return opened


def test_ask_with_mouse_and_keyboard_then_stop(notebook):
    panel, endless = (notebook.page.locator(".vlkit-ask").nth(i) for i in range(2))
    _ask_with_the_mouse(panel)
    REPORTS.mkdir(parents=True, exist_ok=True)
    for theme, name in (("Dark", "ask_panel_dark.png"), ("Light", "ask_panel.png")):
        notebook.set_theme(f"JupyterLab {theme}")
        notebook.page.screenshot(path=REPORTS / name)
    _ask_with_the_keyboard(panel)
    _stop_a_long_answer(endless)
    assert notebook.page_errors == []


def _ask_with_the_mouse(panel):
    panel.locator(".vlkit-sample select").select_option("three_shapes")
    panel.locator(".vlkit-examples select").select_option("Locate the red circle.")
    expect(panel.locator(".vlkit-view")).to_contain_text("three_shapes")
    expect(panel.locator(".vlkit-stop-button")).to_be_disabled()
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-status")).to_have_text("Done.", timeout=30_000)
    expect(panel.locator(".vlkit-answer")).to_contain_text("red circle")
    picture = panel.locator(".vlkit-answer img")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") == 400  # the sample's own width
    expect(panel.locator(".vlkit-ask-button")).to_be_enabled()


def _ask_with_the_keyboard(panel):
    prompt = panel.locator(".vlkit-prompt textarea")
    prompt.fill("框出图中蓝色正方形的位置")
    expect(panel.locator(".vlkit-examples select")).to_have_value("choose one …")
    panel.locator(".vlkit-seed input").focus()
    panel.page.keyboard.press("Tab")
    expect(panel.locator(".vlkit-ask-button")).to_be_focused()
    panel.page.keyboard.press("Enter")
    expect(panel.locator(".vlkit-answer")).to_contain_text("蓝色正方形", timeout=30_000)


def _stop_a_long_answer(panel):
    ask, stop = panel.locator(".vlkit-ask-button"), panel.locator(".vlkit-stop-button")
    limit = panel.locator(".vlkit-max-new-tokens .widget-readout")
    limit.fill("2000")
    limit.press("Enter")
    ask.click()
    expect(stop).to_be_enabled(timeout=30_000)
    expect(ask).to_be_disabled()
    expect(panel.locator(".vlkit-answer")).to_contain_text(re.compile(r"\w{3}"), timeout=30_000)
    stop.click()
    expect(panel.locator(".vlkit-status")).to_have_text("Stopped.", timeout=10_000)
    expect(panel.locator(".vlkit-answer")).to_contain_text("ended by cancelled")
    expect(ask).to_be_enabled()
    expect(stop).to_be_disabled()
