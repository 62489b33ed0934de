"""Every notebook as a reader has it: run from top to bottom in JupyterLab, its panel used."""

import re
from pathlib import Path

import nbformat
import pytest
from notebook_cases import CASES
from panels import choose_sample
from playwright.sync_api import expect

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "reports" / "ui"

LONG = 90_000  # milliseconds


def ask(panel, question, answer):
    panel.locator(".vlkit-prompt textarea").fill(question)
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-status")).to_have_text("Done.", timeout=LONG)
    expect(panel.locator(".vlkit-answer")).to_contain_text(answer)


def ask_picture(panel):
    choose_sample(panel, "three_shapes")
    ask(panel, "Locate the green triangle.", "green triangle")
    expect(panel.locator(".vlkit-answer img")).to_be_visible()


def ask_clip(panel):
    ask(panel, "How does the red circle move?", "right")


def start_batch(panel):
    panel.locator(".vlkit-start-button").click()
    expect(panel.locator(".vlkit-status")).to_contain_text("Done in", timeout=LONG)
    expect(panel.locator(".vlkit-counts")).to_have_text(re.compile(r"^(\d+) of \1 rows, 0 failed$"))
    expect(panel.locator(".vlkit-row-answer")).to_have_count(8)


def ask_boxes(panel):
    choose_sample(panel, "three_shapes")
    ask(panel, "Detect all objects.", "red circle")
    expect(panel.locator(".vlkit-main-picture .vlkit-chip")).to_have_count(3)


def train(panel):
    panel.locator(".vlkit-start-button").click()
    expect(panel.locator(".vlkit-status")).to_contain_text("Done", timeout=2 * LONG)
    expect(panel.locator(".vlkit-curves svg [id^=loss] path").first).to_be_attached()


# notebook: (its panel's class, what is done with it)
PANELS = {
    "01_image_inference": (".vlkit-ask", ask_picture),
    "02_video_inference": (".vlkit-video", ask_clip),
    "03_batch_inference": (".vlkit-batch", start_batch),
    "04_grounding": (".vlkit-grounding", ask_boxes),
    "05_lora_finetuning": (".vlkit-lora", train),
}


# every one of them takes a while; CI runs the first
QUICK = {"00_setup"}
MARKED = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.notebook) for name in CASES
]


@pytest.mark.timeout(1400)
@pytest.mark.parametrize("name", MARKED)
def test_runs_in_jupyterlab_and_its_panel_works(name, tmp_path, open_notebook):
    page = open_with_small_parameters(name, tmp_path, open_notebook)
    page.run_all(1000)
    # 03 says in its text that a folder's clips are left out with a warning
    assert [text for text in page.warnings() if "left out 9 of 40" not in text] == []
    if name in PANELS:
        css, use = PANELS[name]
        page.show("\npanel")
        panel = page.page.locator(css)
        expect(panel).to_be_visible()
        printed = page.printed()
        use(panel)
        assert page.printed() == printed  # a panel prints nothing behind the scenes
        page.show("\npanel")
    photograph(page, name)
    assert page.page_errors == []


def open_with_small_parameters(name, folder, open_notebook):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    tagged = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    tagged.source += "\n" + CASES[name][0]
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return open_notebook(folder / f"{name}.ipynb", width=1000, height=1100)


def photograph(page, name):
    REPORTS.mkdir(parents=True, exist_ok=True)
    for theme in ("Dark", "Light"):
        page.set_theme(f"JupyterLab {theme}")
        page.page.screenshot(path=REPORTS / f"{name}_{theme.lower()}.png")
