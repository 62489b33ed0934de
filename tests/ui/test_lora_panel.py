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
# of each curve: its colour, whether it is dashed, and its contrast with the panel's background
CURVES = """(chart) => {
    const luminance = (color) => {
        const canvas = document.createElement('canvas').getContext('2d');
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
            .map((part) => part / 255)
            .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const page = luminance(getComputedStyle(chart.closest('.vlkit')).backgroundColor);
    const curves = chart.querySelectorAll('svg:not(.vlkit-key) path.vlkit-curve:last-of-type');
    return [...curves].map((path) => {
        const { stroke, strokeDasharray } = getComputedStyle(path);
        const [low, high] = [page, luminance(stroke)].sort((a, b) => a - b);
        return { stroke, dashed: strokeDasharray !== 'none', contrast: (high + .05) / (low + .05) };
    });
}"""
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
    expect(panel.locator(".vlkit-invitation")).to_be_visible()
    expect(panel.locator(".vlkit-error")).to_have_count(0)
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
    expect(panel.locator(".vlkit-preview mark").first).to_have_text("A wug.")
    expect(panel.locator(".vlkit-curves svg [id^=loss] path").first).to_be_attached(timeout=LONG)
    panel.locator(".vlkit-stop-button").click()
    expect(panel.locator(".vlkit-status")).to_contain_text("Stopped: ", timeout=LONG)
    panel.locator("text=Saved runs").click()
    panel.get_by_label("lora-1", exact=True).check()
    panel.get_by_label("lora-2", exact=True).check()
    expect(panel.locator(".vlkit-comparison td", has_text="lora-2")).to_be_visible()
    rank = panel.locator(".vlkit-rank select")
    rank.select_option("16")
    epochs.fill("9")
    epochs.press("Tab")
    panel.get_by_role("button", name="Use the arguments of lora-1").click()
    expect(rank).to_have_value("8")
    expect(epochs).to_have_value("3")
    panel.locator("text=The same in plain Python").click()
    expect(panel.locator("pre.vlkit-code").last).to_contain_text("run = vlkit.lora.train(")
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
    steps = re.compile(r"step \d+ of 27, .* left, .* GB in use")
    expect(panel.locator(".vlkit-steps")).to_have_text(steps, timeout=LONG)
    expect(status).to_contain_text("Done: 27 steps", timeout=LONG)
    expect(panel.locator(".vlkit-chart")).to_have_count(2)
    legend = panel.locator(".vlkit-chart").first.locator("figcaption > span")
    expect(legend).to_have_text([" training", " held-out"])
    for theme in ("Dark", "Light"):
        notebook.set_theme(f"JupyterLab {theme}")
        _expect_curves_apart(panel)
    expect(panel.locator("td", has_text="What is this?").first).to_be_visible()
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-tried td")).to_have_count(3, timeout=LONG)
    expect(panel.locator(".vlkit-start-button")).to_be_enabled()


def _expect_curves_apart(panel):
    """Training and held-out in other colours, one of them dashed, both 3:1 on the page."""
    styles = panel.locator(".vlkit-chart").first.evaluate(CURVES)
    assert len({style["stroke"] for style in styles}) == 2
    assert [style["dashed"] for style in styles] == [False, True]
    assert min(style["contrast"] for style in styles) >= 3


def _take_pictures(notebook):
    REPORTS.mkdir(parents=True, exist_ok=True)
    for theme, name in (("Dark", "lora_panel_dark.png"), ("Light", "lora_panel.png")):
        notebook.set_theme(f"JupyterLab {theme}")
        notebook.page.screenshot(path=REPORTS / name)
