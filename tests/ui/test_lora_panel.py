"""The LoraPanel under a real mouse, in JupyterLab: a model learns while one looks on."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from playwright.sync_api import expect

REPORTS = Path(__file__).parents[2] / "reports" / "ui"
CELLS = [
    "import vlkit\n\npanel = vlkit.widgets.LoraPanel(vlkit.load())\npanel",
    "6 * 7",
]
LONG = 120_000  # milliseconds
RUN_LAST = """() => {
    const content = window.jupyterapp.shell.currentWidget.content;
    content.activeCellIndex = content.widgets.length - 1;
    return window.jupyterapp.commands.execute('notebook:run-cell');
}"""


@pytest.fixture
def notebook(tmp_path, run_cells):
    """A notebook beside meta.json: forty squares of two colours, to be called by new names."""
    rows = []
    for i in range(40):
        pixels = np.full((112, 112, 3), 255, dtype=np.uint8)
        pixels[30:80, 20 + i : 70 + i] = (220, 40, 40) if i % 2 else (40, 80, 220)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        said = [f"<img>{i}.png</img>What is this?", "A zib." if i % 2 else "A wug."]
        roles = ("user", "assistant")
        talk = [{"from": r, "value": t} for r, t in zip(roles, said, strict=True)]
        rows.append({"id": str(i), "conversations": talk})
    (tmp_path / "meta.json").write_text(json.dumps(rows))
    return run_cells(*CELLS, height=2000)


def test_choose_train_pause_stop_and_compare(notebook):
    panel = notebook.page.locator(".vlkit-lora")
    expect(panel.locator(".vlkit-status")).to_contain_text("no data; name a file")
    source = panel.locator(".vlkit-source input")
    source.fill("meta.json")
    source.press("Tab")
    expect(panel.locator(".vlkit-cost")).to_contain_text("36 rows", timeout=LONG)
    panel.locator(".vlkit-batch-size select").select_option("4")
    epochs = panel.locator(".vlkit-epochs input")
    epochs.fill("3")
    epochs.press("Tab")
    expect(panel.locator(".vlkit-cost")).to_contain_text("27 steps", timeout=LONG)
    _train_with_a_pause(notebook, panel)
    panel.locator(".vlkit-start-button").click()
    expect(panel.locator(".vlkit-status")).to_contain_text("Training", timeout=LONG)
    expect(panel.locator(".vlkit-curves svg [id^=loss] path").first).to_be_attached(timeout=LONG)
    panel.locator(".vlkit-stop-button").click()
    expect(panel.locator(".vlkit-status")).to_contain_text("Stopped: ", timeout=LONG)
    panel.locator("text=Saved runs").click()
    panel.locator(".vlkit-saved select").select_option(label=["lora-1", "lora-2"])
    expect(panel.locator(".vlkit-comparison td", has_text="lora-2")).to_be_visible()
    panel.locator("text=The same in plain Python").click()
    expect(panel.locator("pre")).to_contain_text("run = vlkit.lora.train(")
    _take_pictures(notebook)
    assert notebook.page_errors == []


def _train_with_a_pause(notebook, panel):
    """Paused, the kernel answers other cells; let go on, the model learns the new names."""
    status = panel.locator(".vlkit-status")
    panel.locator(".vlkit-start-button").click()
    expect(status).to_contain_text("Training", timeout=LONG)
    expect(panel.locator(".vlkit-epochs input")).to_be_disabled()
    panel.locator(".vlkit-pause-button").click()
    expect(status).to_contain_text("Paused.")
    notebook.page.evaluate(RUN_LAST)
    answer = notebook.page.locator(".jp-OutputArea-output", has_text=re.compile("^42$"))
    expect(answer).to_be_visible()
    panel.locator(".vlkit-pause-button").click()
    expect(status).to_contain_text("Done: 27 steps", timeout=LONG)
    expect(panel.locator(".vlkit-curves svg")).to_have_count(2)
    expect(panel.locator(".vlkit-curves td", has_text="What is this?").first).to_be_visible()
    expect(panel.locator(".vlkit-start-button")).to_be_enabled()


def _take_pictures(notebook):
    REPORTS.mkdir(parents=True, exist_ok=True)
    for theme, name in (("Dark", "lora_panel_dark.png"), ("Light", "lora_panel.png")):
        notebook.set_theme(f"JupyterLab {theme}")
        notebook.page.screenshot(path=REPORTS / name)
