"""`vlkit classroom`: a home page, panels as pages, one model for all; served by voila."""

import re
from pathlib import Path

import psutil
import pytest
from jupyter_lab import Lab
from panels import choose_sample
from playwright.sync_api import expect

REPORTS = Path(__file__).parents[2] / "reports" / "ui"
MOST_BYTES = 300_000_000  # that a visitor may cost


@pytest.fixture(scope="module")
def classroom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    server = Lab(folder, folder, ("vlkit", "classroom"), flags=())
    try:
        server.wait_until_ready("", 120)
        yield server
    finally:
        server.stop()


@pytest.fixture
def open_page(browser):
    """``open_page(url, **options)``: a page, and the requests that went elsewhere unblocked."""
    contexts = []

    def open_url(url, width=1400, height=900, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.goto(url, wait_until="domcontentloaded", timeout=120_000)
        return page

    yield open_url
    for context in contexts:
        context.close()


def test_the_home_page_leads_to_each_panel_and_back(classroom, open_page):
    page = open_page(classroom.url, color_scheme="dark")
    cards = page.locator("a.card")
    expect(cards).to_have_count(4)
    expect(page.locator("main")).to_contain_text("tiny")
    pictures = page.locator("a.card img:visible")
    expect(pictures).to_have_count(4)
    assert page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth)") == []
    REPORTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=REPORTS / "classroom_home_dark.png")
    page.locator(".vlkit-theme").click()
    expect(page.locator("html[data-theme=light]")).to_be_attached()
    page.screenshot(path=REPORTS / "classroom_home.png")
    page.locator(".vlkit-theme").click()
    page.get_by_role("link", name="Find things in a picture").click()
    expect(page.locator(".vlkit-grounding")).to_be_visible()
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    assert page.title() == "Find things in a picture · vlkit"
    page.get_by_role("link", name="All panels").click()
    expect(cards).to_have_count(4)


def test_a_chinese_browser_gets_a_chinese_home_page_that_fits_a_phone(classroom, open_page):
    page = open_page(classroom.url, width=420, locale="zh-CN")
    expect(page.get_by_role("heading", name="在图中定位")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.screenshot(path=REPORTS / "classroom_home_zh_420.png", full_page=True)


def test_a_panel_is_a_page_and_its_answer_comes_from_the_model_of_all(classroom, open_page):
    kernels = set(psutil.Process(classroom.process.pid).children(recursive=True))
    page = open_page(f"{classroom.url}/voila/render/grounding.ipynb?theme=light")
    asked, blocked = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda r: blocked.append(r.url) if r.failure == "csp" else None)
    panel = page.locator(".vlkit-grounding")
    expect(panel).to_be_visible()
    choose_sample(panel, "three_shapes")
    panel.get_by_role("button", name="Detect all objects.").click()
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-status")).to_have_text("Done.")
    expect(panel.locator(".vlkit-main-picture .vlkit-chip")).to_have_count(3)
    assert page.locator("text=vlkit.widgets.GroundingPanel").count() == 0  # code is hidden
    page.screenshot(path=REPORTS / "classroom.png")
    outside = [url for url in asked if not url.startswith((classroom.url, "data:", "blob:"))]
    assert sorted(outside) == sorted(blocked)  # the browser is told not to go there
    (kernel,) = set(psutil.Process(classroom.process.pid).children(recursive=True)) - kernels
    assert kernel.memory_full_info().uss < MOST_BYTES


@pytest.mark.parametrize("panel", ["ask", "grounding", "video", "batch"])
def test_every_panel_fits_a_phone_in_chinese(classroom, open_page, panel):
    address = f"{classroom.url}/voila/render/{panel}.ipynb?theme=dark"
    page = open_page(address, width=420, locale="zh-CN")
    expect(page.locator(f".vlkit-{panel}")).to_be_visible()
    expect(page.get_by_role("link", name="所有面板")).to_be_visible()
    expect(page.get_by_role("button", name="浅色")).to_be_visible()
    question = page.locator(".vlkit-prompt textarea")
    expect(question).to_have_value(re.compile("[\u4e00-\u9fff]"))  # the first one, not asked yet
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.screenshot(path=REPORTS / f"classroom_{panel}_420.png", full_page=True)
