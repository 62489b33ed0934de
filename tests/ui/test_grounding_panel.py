"""The GroundingPanel under a real mouse, in JupyterLab as a user has it."""

import json
import time
from pathlib import Path

import pytest
from panels import choose_sample, set_number
from playwright.sync_api import expect

import vlkit

PICTURES = ("three_shapes", "large", "red_circle", "portrait", "banner")
REPORTS = Path(__file__).parents[2] / "reports" / "ui"
CELL = """import vlkit

panel = vlkit.widgets.GroundingPanel(vlkit.load())
panel"""
HELD = """import json
_drawn = panel.drawn.xyxy if panel.drawn else None
print(json.dumps(_drawn))"""


@pytest.fixture
def notebook(run_cells):
    return run_cells(CELL, height=1300)


def held(notebook):
    """The drawn box that the panel holds in Python, or None."""
    return json.loads(notebook.run_code(HELD))


def expect_drawn(notebook, box, near=0.01):
    """The panel holds this box; a message from the browser may still be under way."""
    expected = None if box is None else pytest.approx(box, abs=near)
    deadline = time.monotonic() + 60
    while (drawn := held(notebook)) != expected and time.monotonic() < deadline:
        notebook.page.wait_for_timeout(50)
    assert drawn == expected


def area(panel):
    """Where the picture stands on the screen: left, top, width, height."""
    picture = panel.locator(".vlkit-main-picture .vlkit-canvas-stage img")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    return box["x"], box["y"], box["width"], box["height"]


def drag(panel, size, start, end):
    """Draw with the mouse between two places given in pixels of the original."""
    left, top, width, height = area(panel)
    places = [(left + x / size[0] * width, top + y / size[1] * height) for x, y in (start, end)]
    mouse = panel.page.mouse
    mouse.move(*places[0])
    mouse.down()
    mouse.move((places[0][0] + places[1][0]) / 2, places[1][1] - 5, steps=4)
    mouse.move(*places[1], steps=4)
    mouse.up()


def choose(panel, name):
    choose_sample(panel, name)
    expect(panel.locator(".vlkit-main-picture .vlkit-canvas-stage img")).to_have_attribute(
        "alt", name
    )
    panel.page.wait_for_function(
        "image => image.complete && image.naturalWidth > 0",
        arg=panel.locator(".vlkit-main-picture .vlkit-canvas-stage img").element_handle(),
    )


def test_a_drawn_box_is_where_it_was_drawn(notebook):
    """Enlarged, made smaller, tall and very wide pictures."""
    panel = notebook.page.locator(".vlkit-grounding")
    scales = [_draw_everywhere(notebook, panel, name) for name in PICTURES]
    assert min(scales) < 0.6 and max(scales) > 1.5  # both ways
    assert notebook.page_errors == []


def _draw_everywhere(notebook, panel, name):
    choose(panel, name)
    size = vlkit.load_image(vlkit.sample(name)).size
    scale = area(panel)[2] / size[0]
    near = max(1.0, 1.5 / scale)  # a screen pixel and a half
    start, end = (0.2 * size[0], 0.3 * size[1]), (0.7 * size[0], 0.8 * size[1])
    for ways in ((start, end), (end, start)):
        drag(panel, size, *ways)
        expect_drawn(notebook, [*start, *end], near)
    left, top, width, height = area(panel)  # released outside, it ends at the edge
    mouse = notebook.page.mouse
    mouse.move(left + width / 2, top + height / 2)
    mouse.down()
    mouse.move(left + width + 60, top + height + 30, steps=3)
    mouse.up()
    expect_drawn(notebook, [size[0] / 2, size[1] / 2, *size], near)
    mouse.click(left + 5, top + 5)  # a click takes it away
    expect_drawn(notebook, None)
    return scale


def test_draw_ask_see_and_export(notebook):
    page, panel = notebook.page, notebook.page.locator(".vlkit-grounding")
    choose(panel, "three_shapes")
    stage, status = (
        panel.locator(".vlkit-main-picture .vlkit-canvas-stage"),
        panel.locator(".vlkit-status"),
    )
    button = panel.locator("button.vlkit-ask-box-button")
    expect(button).to_be_disabled()
    x1, y1, x2, y2 = vlkit.samples()["three_shapes"].boxes[1].xyxy
    drag(panel, (400, 300), (x1 - 3, y1 - 3), (x2 + 3, y2 + 3))
    expect(button).to_be_enabled()
    button.click()
    expect(status).to_have_text("Done.")
    expect(panel.locator(".vlkit-answer")).to_contain_text("blue square")
    expect(panel.locator(".vlkit-answer-text")).not_to_contain_text("<|")
    panel.locator(".vlkit-prompt textarea").fill("Detect all objects.")
    panel.locator("button.vlkit-ask-button").click()
    items = panel.locator(".vlkit-main-picture .vlkit-chip")
    expect(items).to_have_count(3)
    expect(status).to_have_text("Done.")
    expect(items.first).to_contain_text("%")
    panel.locator("button.vlkit-show-truth").click()
    expect(panel.locator(".vlkit-canvas-truth")).to_have_count(3)
    _highlight_both_ways(notebook, panel, items)
    _take_screenshots(notebook, panel)
    with page.expect_download() as download:
        panel.locator("button.vlkit-export-button").click()
    written = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert len(written["boxes"]) == 3 and written["size"] == [400, 300]
    set_number(panel, "threshold", 1)
    expect(items).to_have_count(0)
    expect(panel.locator(".vlkit-main-picture .vlkit-canvas-about")).to_contain_text(
        "0 of 3 boxes shown"
    )
    expect(stage).to_have_attribute("aria-busy", "false")
    assert notebook.page_errors == []


def _highlight_both_ways(notebook, panel, items):
    items.nth(2).hover()
    expect(panel.locator(".vlkit-main-picture g.vlkit-canvas-hot")).to_have_count(1)
    left, top, width, height = area(panel)
    box = vlkit.samples()["three_shapes"].boxes[0]  # the red circle
    x, y = (box.x1 + box.x2) / 2 / 400, (box.y1 + box.y2) / 2 / 300
    notebook.page.mouse.move(left + x * width, top + y * height)
    hot = panel.locator(".vlkit-main-picture .vlkit-canvas-list li.vlkit-canvas-hot")
    expect(hot).to_have_count(1)
    expect(hot).to_contain_text("red circle")
    expect(panel.locator(".vlkit-name.vlkit-hot")).to_have_text("a red circle")
    panel.locator(".vlkit-name", has_text="blue square").hover()
    expect(panel.locator(".vlkit-main-picture g.vlkit-canvas-hot")).to_have_count(1)
    expect(hot).to_contain_text("blue square")


def _take_screenshots(notebook, panel):
    REPORTS.mkdir(parents=True, exist_ok=True)
    notebook.page.mouse.move(0, 0)
    panel.locator(".vlkit-head").scroll_into_view_if_needed()
    for theme, name in (("Dark", "grounding_panel_dark.png"), ("Light", "grounding_panel.png")):
        notebook.set_theme(f"JupyterLab {theme}")
        notebook.page.screenshot(path=REPORTS / name)


def test_keys_alone_will_do(notebook):
    page, panel = notebook.page, notebook.page.locator(".vlkit-grounding")
    choose(panel, "red_circle")  # 224×224
    stage = panel.locator(".vlkit-main-picture .vlkit-canvas-stage")
    stage.focus()
    page.keyboard.press("ArrowRight")  # the first key makes a box in the middle
    expect_drawn(notebook, [56, 56, 168, 168])
    stage.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    expect(panel.locator(".vlkit-main-picture .vlkit-canvas-about")).to_contain_text(
        "Drawn: (58, 56, 170, 170)"
    )
    page.keyboard.press("Enter")
    expect(panel.locator(".vlkit-answer")).to_contain_text("red circle")
    expect(panel.locator(".vlkit-status")).to_have_text("Done.")
    stage.focus()
    page.keyboard.press("Escape")
    expect_drawn(notebook, None)
    assert notebook.page_errors == []
