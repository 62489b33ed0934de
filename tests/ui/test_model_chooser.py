"""The ModelChooser in JupyterLab: known models, a question before a download, folded options."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

REPORTS = Path(__file__).parents[2] / "reports" / "ui"
CELL = """import os
os.environ["VLKIT_SETTINGS"] = "settings.json"
import vlkit

panel = vlkit.widgets.ModelChooser({})
panel"""
LONG = 120_000  # milliseconds


@pytest.fixture
def chooser(run_cells):
    notebook = run_cells(CELL.format(""))
    yield notebook.page.locator(".vlkit-chooser")
    assert notebook.page_errors == []


def test_a_known_model_is_chosen_and_not_downloaded_without_a_question(chooser):
    card = chooser.get_by_role("radio", name="Qwen/Qwen2-VL-2B-Instruct")
    expect(card).to_contain_text("4.4 GB to download", timeout=LONG)
    expect(card).to_contain_text("of memory")
    card.click()
    expect(card).to_have_attribute("aria-checked", "true")
    expect(chooser.locator(".vlkit-model input")).to_have_value("Qwen/Qwen2-VL-2B-Instruct")
    chooser.locator(".vlkit-try-button").click()
    question = chooser.get_by_role("alertdialog")
    expect(question).to_contain_text("about 4.4 GB are downloaded")
    page = chooser.page
    REPORTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=REPORTS / "model_chooser.png")
    question.get_by_role("button", name="Cancel").click()
    expect(question).to_be_hidden(timeout=LONG)
    chooser.locator(".vlkit-remember-button").click()
    expect(chooser.locator(".vlkit-status")).to_contain_text("Remembered in settings.json")
    expect(question).to_be_hidden()  # also after the view has changed
    chooser.locator(".vlkit-try-button").click()  # asked again, it asks again
    expect(question).to_be_visible(timeout=LONG)


def test_errors_are_plain_and_options_are_folded(chooser):
    expect(chooser.locator(".vlkit-device input")).to_be_hidden()
    chooser.get_by_text("Options: device").click()
    expect(chooser.locator(".vlkit-device input")).to_be_visible()
    name = chooser.locator(".vlkit-model input")
    name.fill("/no/such/folder")
    name.press("Tab")
    chooser.locator(".vlkit-try-button").click()
    status = chooser.locator(".vlkit-status")
    expect(status).to_contain_text("'/no/such/folder' is neither a folder here", timeout=LONG)
    assert "\x1b" not in status.inner_text() and "[1;31m" not in status.inner_text()


def test_the_panel_speaks_chinese(run_cells):
    notebook = run_cells(CELL.format('language="zh"'))
    chooser = notebook.page.locator(".vlkit-chooser")
    expect(chooser.get_by_role("button", name="试用")).to_be_visible()
    expect(chooser).to_contain_text("为所有笔记本选择模型")
