"""`vlkit classroom`: a panel as a page, without cells and code, served by voila."""

from pathlib import Path

import pytest
from jupyter_lab import Lab
from panels import choose_sample
from playwright.sync_api import expect

REPORTS = Path(__file__).parents[2] / "reports" / "ui"


@pytest.fixture
def classroom(tmp_path):
    server = Lab(tmp_path, tmp_path, ("vlkit", "classroom", "--panel", "grounding"), flags=())
    try:
        server.wait_until_ready("")
        yield server
    finally:
        server.stop()


def test_a_panel_is_a_page(classroom, browser):
    page = browser.new_context(viewport={"width": 1000, "height": 900}).new_page()
    asked, blocked = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda r: blocked.append(r.url) if r.failure == "csp" else None)
    page.goto(f"{classroom.url}/?voila-theme=light", wait_until="domcontentloaded", timeout=120_000)
    panel = page.locator(".vlkit-grounding")
    expect(panel).to_be_visible(timeout=60_000)
    choose_sample(panel, "three_shapes")
    panel.get_by_role("button", name="Detect all objects.").click()
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-status")).to_have_text("Done.", timeout=60_000)
    expect(panel.locator(".vlkit-main-picture .vlkit-chip")).to_have_count(3)
    assert page.locator("text=vlkit.widgets.GroundingPanel").count() == 0  # code is hidden
    REPORTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=REPORTS / "classroom.png")
    outside = [url for url in asked if not url.startswith((classroom.url, "data:", "blob:"))]
    assert sorted(outside) == sorted(blocked)  # the browser is told not to go there
    page.context.close()
