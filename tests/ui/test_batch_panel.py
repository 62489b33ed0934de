"""The BatchPanel under a real mouse and keyboard, in JupyterLab as a user has it."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from panels import give_all
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
    expect(panel.locator(".vlkit-row-grid img")).to_have_count(8)
    expect(panel.locator(".vlkit-page-text")).to_have_text("page 1 of 4")
    panel.get_by_role("button", name="Next page").click()
    expect(panel.locator(".vlkit-page-text")).to_have_text("page 2 of 4")
    expect(rows.first.locator(".vlkit-row-number")).to_have_text("9")
    panel.get_by_role("button", name="Previous page").click()
    _ask_of_a_table(panel, rows)
    _enlarge(notebook.page, panel)
    REPORTS.mkdir(parents=True, exist_ok=True)
    for theme, name in (("Dark", "batch_panel_dark.png"), ("Light", "batch_panel.png")):
        notebook.set_theme(f"JupyterLab {theme}")
        notebook.page.screenshot(path=REPORTS / name)
    panel.locator(".vlkit-shown select").select_option("failures")
    expect(rows).to_have_count(1)
    panel.locator(".vlkit-save-button").click()
    saved = "2 of 3 answered, 1 failed, saved to answers.csv"
    expect(panel.locator(".vlkit-saved")).to_have_text(saved)
    expect(panel.locator(".vlkit-status")).to_contain_text("Done in")
    with notebook.page.expect_download() as download:
        panel.locator(".vlkit-download-button").click()
    assert len(pd.read_csv(download.value.path())) == 3
    assert notebook.page_errors == []


def test_files_are_uploaded_and_a_folder_is_browsed(notebook, tmp_path):
    panel = notebook.page.locator(".vlkit-batch")
    names = ("red_circle.png", "three_shapes.png", "questions.csv")
    files = [str(tmp_path / name) for name in names]
    panel.locator("input[type=file]").set_input_files(files)
    expect(panel.locator(".vlkit-columns-line")).to_contain_text("3 rows; columns {image} {what}")
    expect(panel.locator(".vlkit-row-grid img")).to_have_count(2)
    panel.locator(".vlkit-browse").click()
    panel.get_by_role("button", name="Use this folder: 2 pictures").click()
    expect(panel.locator(".vlkit-columns-line")).to_contain_text("2 rows; columns {image} {name}")


def test_save_says_what_it_saved_while_the_run_goes_on(notebook):
    panel = notebook.page.locator(".vlkit-batch")
    status, saved = panel.locator(".vlkit-status"), panel.locator(".vlkit-saved")
    notebook.run_code("panel.vlm.model.generation_config.eos_token_id = None")  # no answer ends
    notebook.run_code("panel.max_new_tokens.value = 2000")
    panel.locator(".vlkit-start-button").focus()
    notebook.page.keyboard.press("Enter")
    expect(panel.locator(".vlkit-counts")).to_contain_text("running")
    expect(panel.locator(".vlkit-stop-button")).to_be_focused()
    panel.locator(".vlkit-save-button").click()
    expect(saved).to_have_text(re.compile(r"^\d+ of \d+ answered, saved to answers.csv"))
    expect(status).to_have_text("Answering …")
    panel.locator(".vlkit-stop-button").click()
    expect(status).to_have_text("Stopped.")
    expect(saved).to_contain_text("saved to answers.csv")
    expect(panel.locator(".vlkit-state-stopped").first).to_be_visible()


def test_answers_stay_until_the_next_start(notebook):
    panel = notebook.page.locator(".vlkit-batch")
    rows, earlier = panel.locator(".vlkit-row-grid"), panel.locator(".vlkit-earlier")
    prompt, source = panel.locator(".vlkit-prompt textarea"), panel.locator(".vlkit-source input")
    _ask_of_a_table(panel, rows)
    expect(earlier).to_be_hidden()
    prompt.fill("What is this?")
    kept = "These answers are to “Locate the {what}.”; Start asks the new question instead."
    expect(earlier).to_have_text(kept)
    expect(rows.nth(0)).to_contain_text("the red circle")
    for name, first in (("samples", "astronaut.jpg"), ("questions.csv", "the red circle")):
        source.fill(name)
        source.press("Enter")
        expect(rows.nth(0)).to_contain_text(first)
    give_all(panel, "drop", [("notes.txt", "text/plain", b"notes")])  # anywhere on the panel
    refused = "notes.txt is neither a table nor a picture, so it was not sent"
    expect(panel.locator(".vlkit-files")).to_contain_text(refused)
    expect(source).to_have_value("questions.csv")
    panel.locator(".vlkit-start-button").click()
    expect(panel.locator(".vlkit-status")).to_contain_text("Done in")
    expect(earlier).to_be_hidden()
    expect(rows.nth(0)).not_to_contain_text("Locate")


def _enlarge(page, panel):
    """By mouse, to the next row by keys, closed by Escape; the box stays on the circle."""
    panel.get_by_role("button", name="Enlarge row 1").click()
    large = panel.locator("dialog.vlkit-large")
    expect(large).to_contain_text("Row 1")
    expect(large.locator("svg rect").last).to_be_attached()
    picture, box = (
        large.locator("img").bounding_box(),
        large.locator("svg rect").last.bounding_box(),
    )
    assert picture["width"] > 300
    for side, length in (("x", "width"), ("y", "height")):
        middle = (box[side] + box[length] / 2 - picture[side]) / picture[length]
        assert 0.4 < middle < 0.6  # the circle is in the middle of its picture
    page.keyboard.press("ArrowRight")
    expect(large).to_contain_text("Row 2")
    page.keyboard.press("Escape")
    expect(large).to_be_hidden()


def _ask_of_a_table(panel, rows):
    source = panel.locator(".vlkit-source input")
    source.fill("questions.csv")
    source.press("Tab")
    prompt = panel.locator(".vlkit-prompt textarea")
    prompt.fill("Locate the {what}.")
    prompt.press("Tab")
    expect(panel.locator(".vlkit-columns-line")).to_have_text("3 rows; columns {image} {what}")
    expect(rows.locator(".vlkit-state-new")).to_have_count(3)
    panel.locator(".vlkit-start-button").click()
    expect(panel.locator(".vlkit-status")).to_contain_text("Done in")
    expect(panel.locator(".vlkit-counts")).to_have_text("3 of 3 rows, 1 failed")
    expect(rows.nth(0)).to_contain_text("the red circle")
    expect(rows.nth(0).locator(".vlkit-state-done")).to_contain_text("done")
    expect(rows.nth(1)).to_contain_text("Locate the <b>dog</b>.")
    expect(rows.nth(1).locator(".vlkit-error")).to_have_text(re.compile("^nope.png does not exist"))
    expect(rows.nth(1).locator(".vlkit-state-failed")).to_contain_text("failed")
    expect(rows.nth(2)).to_contain_text("the blue square")
    expect(panel.locator(".vlkit-row-grid img")).to_have_count(2)
    expect(panel.locator(".vlkit-start-button")).to_be_enabled()
    expect(panel.locator(".vlkit-stop-button")).to_be_disabled()
