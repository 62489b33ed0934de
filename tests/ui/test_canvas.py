"""The picture canvas under fingers and in full screen: its script in a page without Jupyter."""

import pytest

import vlkit
from vlkit.media.image import load_image
from vlkit.plotting.html import data_url
from vlkit.widgets import BoxCanvas

SIZE = (400, 300)
RENDER = """async ([script, css, values]) => {
    document.head.append(Object.assign(document.createElement('style'), { textContent: css }));
    const url = URL.createObjectURL(new Blob([script], { type: 'text/javascript' }));
    const { default: canvas } = await import(url);
    window.model = { get: (name) => values[name], set: (name, value) => { values[name] = value; },
        save_changes() {}, on() {}, send() {} };
    canvas.render({ model: window.model, el: document.body });
    await document.querySelector('img').decode();
}"""


class Finger:
    """Fingers on a page, by Chromium's own touch events."""

    def __init__(self, page):
        self.client = page.context.new_cdp_session(page)

    def send(self, kind, *places):
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        self.client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def drag(self, *paths):
        """Each path is (from, to); several are fingers that move together."""
        self.send("touchStart", *(start for start, _ in paths))
        for part in (0.25, 0.5, 0.75, 1):
            between = [
                tuple(a + part * (b - a) for a, b in zip(start, end, strict=True))
                for start, end in paths
            ]
            self.send("touchMove", *between)
        self.send("touchEnd")


@pytest.fixture
def open_canvas(browser):
    """``open_canvas(touch)``: a page with a canvas that shows three_shapes."""
    contexts = []

    def open_one(touch):
        context = browser.new_context(
            viewport={"width": 420, "height": 800}, has_touch=touch, is_mobile=touch
        )
        contexts.append(context)
        page = context.new_page()
        page.goto("about:blank")
        page.set_content('<meta name="viewport" content="width=device-width">')
        traits = BoxCanvas().get_state()
        values = {name: traits[name] for name in BoxCanvas.class_trait_names(sync=True)
                  if name in traits and not name.startswith("_")}  # fmt: skip
        picture = load_image(vlkit.sample("three_shapes"))
        values |= {"picture": data_url(picture), "picture_size": list(SIZE), "about": "shapes"}
        values = {name: value for name, value in values.items() if name != "layout"}
        page.evaluate(RENDER, [str(BoxCanvas._esm), str(BoxCanvas._css), values])
        return page

    yield open_one
    for context in contexts:
        context.close()


def on_page(page, x, y):
    """Where a pixel of the picture is on the page."""
    area = page.locator("img").bounding_box()
    return area["x"] + x * area["width"] / SIZE[0], area["y"] + y * area["height"] / SIZE[1]


def drawn(page):
    return page.evaluate("window.model.get('drawn')")


def test_a_finger_draws_once_the_box_button_is_pressed(open_canvas):
    page = open_canvas(touch=True)
    finger = Finger(page)
    path = on_page(page, 60, 50), on_page(page, 260, 170)
    finger.drag(path)
    assert drawn(page) == []  # at first a finger scrolls the page
    page.get_by_role("button", name="Draw a box by dragging").tap()
    finger.drag(path)
    assert drawn(page) == pytest.approx([60, 50, 260, 170], abs=1.5)
    page.touchscreen.tap(*on_page(page, 380, 280))  # a tap takes it away
    assert drawn(page) == []


def test_two_fingers_zoom_about_the_place_between_them_and_then_pan(open_canvas):
    page = open_canvas(touch=True)
    page.get_by_role("button", name="Draw a box by dragging").tap()
    image = page.locator("img")
    width = image.bounding_box()["width"]
    x, y = on_page(page, 200, 150)
    finger = Finger(page)
    finger.drag(((x - 40, y), (x - 80, y)), ((x + 40, y), (x + 80, y)))
    assert image.bounding_box()["width"] == pytest.approx(2 * width, rel=0.02)
    assert on_page(page, 200, 150) == pytest.approx((x, y), abs=3)
    assert drawn(page) == []  # nothing was drawn on the way
    finger.drag(((x - 40, y), (x, y + 20)), ((x + 40, y), (x + 80, y + 20)))
    assert on_page(page, 200, 150) == pytest.approx((x + 40, y + 20), abs=3)
    finger.drag((on_page(page, 160, 120), on_page(page, 220, 160)))  # and one finger draws again
    assert drawn(page) == pytest.approx([160, 120, 220, 160], abs=1.5)


def test_full_screen_shows_the_picture_larger_and_boxes_stay_in_place(open_canvas):
    page = open_canvas(touch=False)
    page.set_viewport_size({"width": 900, "height": 700})
    image = page.locator("img")
    width = image.bounding_box()["width"]
    page.get_by_role("button", name="Full screen").click()
    page.wait_for_function("document.fullscreenElement?.matches('.vlkit-canvas-frame')")
    page.wait_for_function("(before) => document.querySelector('img').width > 1.3 * before",
                           arg=width)  # fmt: skip
    for move, (x, y) in ((page.mouse.move, (40, 30)), (page.mouse.move, (140, 90))):
        move(*on_page(page, x, y))
        page.mouse.down() if x == 40 else page.mouse.up()
    assert drawn(page) == pytest.approx([40, 30, 140, 90], abs=1.5)
    page.mouse.wheel(0, -300)  # the wheel alone zooms here
    page.wait_for_function("(before) => document.querySelector('img').width > 2 * before",
                           arg=width)  # fmt: skip
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Full screen").click() if page.evaluate(
        "Boolean(document.fullscreenElement)"
    ) else None
    page.wait_for_function("!document.fullscreenElement")
