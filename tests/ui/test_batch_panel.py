"""The BatchPanel under a real mouse and keyboard, in JupyterLab as a user has it."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import expect

import vlkit

REPORTS = Path(__file__).parents[2] / "reports" / "ui"
CELL = """import vlkit

panel = vlkit.widgets.BatchPanel(vlkit.load(), prompt="Locate the red circle.")
panel"""
QUESTIONS = {
    "image": ["red_circle.png", "nope.png", "three_shapes.png"],
    "what": ["red circle", "<b>dog</b>", "blue square"],
}


@pytest.fixture
def notebook(tmp_path, run_cells):
    for name in ("red_circle", "three_shapes"):
        shutil.copy(vlkit.sample(name), tmp_path)
    pd.DataFrame(QUESTIONS).to_csv(tmp_path / "questions.csv", index=False)
    return run_cells(CELL, height=1500)


def test_samples_then_a_table_then_save(notebook):
    panel = notebook.page.locator(".vlkit-batch")
    rows = panel.locator(".vlkit-row-grid")
    expect(rows).to_have_count(8)
    expect(panel.locator(".vlkit-row-grid img")).to_have_count(8, timeout=30_000)
    _ask_of_a_table(panel, rows)
    REPORTS.mkdir(parents=True, exist_ok=True)
    for theme, name in (("Dark", "batch_panel_dark.png"), ("Light", "batch_panel.png")):
        notebook.set_theme(f"JupyterLab {theme}")
        notebook.page.screenshot(path=REPORTS / name)
    panel.locator(".vlkit-shown select").select_option("failures")
    expect(rows).to_have_count(1)
    panel.locator(".vlkit-save-button").click()
    expect(panel.locator(".vlkit-status")).to_have_text("3 rows saved to answers.csv.")
    assert notebook.page_errors == []


def _ask_of_a_table(panel, rows):
    source = panel.locator(".vlkit-source input")
    source.fill("questions.csv")
    source.press("Tab")
    prompt = panel.locator(".vlkit-prompt textarea")
    prompt.fill("Locate the {what}.")
    prompt.press("Tab")
    expect(panel.locator(".vlkit-columns-line")).to_have_text("3 rows; columns {image} {what}")
    panel.locator(".vlkit-start-button").click()
    expect(panel.locator(".vlkit-status")).to_contain_text("Done in", timeout=60_000)
    expect(panel.locator(".vlkit-counts")).to_have_text("3 of 3 rows, 1 failed")
    expect(rows.nth(0)).to_contain_text("the red circle(")
    expect(rows.nth(1)).to_contain_text("Locate the <b>dog</b>.")
    expect(rows.nth(1).locator(".vlkit-error")).to_contain_text("nope.png does not exist")
    expect(rows.nth(2)).to_contain_text("the blue square(")
    expect(panel.locator(".vlkit-row-grid img")).to_have_count(2)
    expect(panel.locator(".vlkit-start-button")).to_be_enabled()
    expect(panel.locator(".vlkit-stop-button")).to_be_disabled()
