"""The AskPanel under a real mouse and keyboard, in JupyterLab as a user has it."""

import re
from pathlib import Path

import psutil
import pytest
from panels import choose_sample, set_number
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
def notebook(run_cells):
    return run_cells(*CELLS)


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


def test_one_panel_does_not_freeze_another_and_nothing_is_printed(notebook):
    panel, endless = (notebook.page.locator(".vlkit-ask").nth(i) for i in range(2))
    _ask_without_end(endless)
    _ask_with_the_mouse(panel)
    choose_sample(panel, "red_circle")
    expect(panel.locator(".vlkit-tray")).to_contain_text("red_circle")
    choose_sample(endless, "cat")  # of the next question
    expect(endless.locator(".vlkit-tray")).to_contain_text("cat")
    expect(endless.locator(".vlkit-asked")).not_to_contain_text("cat")
    expect(endless.locator(".vlkit-busy")).to_be_visible()  # all the while it went on
    expect(endless.locator(".vlkit-stop-button")).to_be_enabled()
    endless.locator(".vlkit-stop-button").click()
    expect(endless.locator(".vlkit-status")).to_have_text("Stopped.")
    assert notebook.printed() == [] and notebook.page_errors == []


def test_closing_the_kernel_leaves_no_process(notebook):
    _ask_without_end(notebook.page.locator(".vlkit-ask").nth(1))
    said = notebook.run_code(
        "import os; trial = vlkit.widgets.ModelChooser(); trial.try_out(); "
        "print(os.getpid(), trial._process.pid)"
    )
    processes = [psutil.Process(int(pid)) for pid in said.split()]
    processes += [c for c in processes[0].children(recursive=True) if c not in processes]
    assert all(process.is_running() for process in processes)
    notebook.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    _, left = psutil.wait_procs(processes, timeout=60)
    assert left == []


def _ask_without_end(panel):
    set_number(panel, "max-new-tokens", 2000)
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-stop-button")).to_be_enabled()


def _ask_with_the_mouse(panel):
    choose_sample(panel, "three_shapes")
    panel.get_by_role("button", name="Locate the red circle.").click()
    expect(panel.locator(".vlkit-prompt textarea")).to_have_value("Locate the red circle.")
    expect(panel.locator(".vlkit-tray")).to_contain_text("three_shapes")
    expect(panel.locator(".vlkit-stop-button")).to_be_disabled()
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-status")).to_have_text("Done.")
    expect(panel.locator(".vlkit-answer")).to_contain_text("red circle")
    expect(panel.locator(".vlkit-asked")).to_contain_text("about three_shapes")
    picture = panel.locator(".vlkit-answer img")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") == 400  # the sample's own width
    expect(panel.locator(".vlkit-ask-button")).to_be_enabled()


def _ask_with_the_keyboard(panel):
    prompt = panel.locator(".vlkit-prompt textarea")
    prompt.fill("框出图中蓝色正方形的位置")
    expect(panel.locator('.vlkit-example[aria-pressed="true"]')).to_have_count(0)
    prompt.focus()
    panel.page.keyboard.press("Tab")
    expect(panel.locator(".vlkit-ask-button")).to_be_focused()
    panel.page.keyboard.press("Enter")
    expect(panel.locator(".vlkit-answer").last).to_contain_text("蓝色正方形")
    expect(panel.locator(".vlkit-status")).to_have_text("Done.")
    prompt.fill("Locate the green triangle.")  # and once more, by the shortcut
    prompt.press("Control+Enter")
    expect(panel.locator(".vlkit-answer").nth(2)).to_contain_text("green triangle")


def _stop_a_long_answer(panel):
    ask, stop = panel.locator(".vlkit-ask-button"), panel.locator(".vlkit-stop-button")
    _ask_without_end(panel)
    expect(ask).to_be_disabled()
    expect(panel.locator(".vlkit-answer")).to_contain_text(re.compile(r"\w{3}"))
    expect(panel.locator(".vlkit-facts")).to_contain_text("tokens/s")  # while it writes
    panel.locator(".vlkit-prompt textarea").press("Escape")
    expect(panel.locator(".vlkit-status")).to_have_text("Stopped.")
    expect(panel.locator(".vlkit-answer")).to_contain_text("stopped")
    expect(ask).to_be_enabled()
    expect(stop).to_be_disabled()
