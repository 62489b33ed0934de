"""The report of a run in a real browser, on screen, in the dark and on paper."""

import re

import pytest
from fake_runs import answer, ask, boxed, model, picture, saved

import vlkit
from vlkit.records import Run, report

LONG = "An-answer-without-any-blank-" * 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a wide table, a long word, boxes and a chat."""
    import pandas

    folder = tmp_path_factory.mktemp("run")
    vlm, path = model("Qwen/Qwen2-VL-2B-Instruct"), saved(folder)
    with Run("A study", directory=folder / "runs", notes="Why?") as run:
        for number in range(4):
            raw = boxed("cat", 20 + number, 10, 120, 60)
            ask(vlm, vlkit.user("Where?", path), reply=answer(raw, images=[picture()]), seed=number)
        ask(vlm, [vlkit.user("Who?"), vlkit.assistant("I."), vlkit.user(LONG)], reply=answer(LONG))
        run.add(pandas.DataFrame({f"column number {i}": [i / 7] for i in range(20)}), "wide")
        run.add(picture("red"), "a figure")
    return run


def colors(page):
    """(text, background) as sums of red, green and blue."""
    read = "getComputedStyle(document.body)"
    found = [page.evaluate(f"{read}.{name}") for name in ("color", "backgroundColor")]
    return [sum(map(int, re.findall(r"\d+", each)[:3])) for each in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_in_light_and_dark_at_1000_pixels(browser, run, tmp_path, scheme):
    outside = []
    context = browser.new_context(viewport={"width": 1000, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.on("request", lambda request: outside.append(request.url))
    path = report(run, tmp_path / "r.html")
    try:
        page.goto(path.as_uri())
        text, background = colors(page)
        assert (text < background) == (scheme == "light") and abs(text - background) > 450
        assert page.evaluate("document.documentElement.scrollWidth") <= 1000
        loaded = page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert loaded and page.locator("section.answer img").count() == 4
        boxes = [page.locator("section.answer img").nth(i).bounding_box() for i in range(4)]
        assert all(100 < box["width"] <= 430 for box in boxes)
        page.emulate_media(media="print")
        text, background = colors(page)
        assert text < background
    finally:
        context.close()
    assert [url for url in outside if not url.startswith(("file://", "data:"))] == []


def test_on_a_phone_pictures_stand_above_their_answers(browser, run, tmp_path):
    page = browser.new_page(viewport={"width": 400, "height": 800})
    try:
        page.goto(report(run, tmp_path / "r.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        section = page.locator("section.answer").first
        image, question = section.locator("img"), section.locator(".question")
        assert image.bounding_box()["y"] < question.bounding_box()["y"]
    finally:
        page.close()


def test_a_pdf_is_printed(run, tmp_path):
    content = report(run, tmp_path / "r.pdf").read_bytes()
    assert content.startswith(b"%PDF-") and len(content) > 10_000
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", content)) >= 2
