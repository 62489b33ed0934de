"""The page of failures in a real browser."""

import PIL.Image

from vlkit import Box, failure_gallery


def test_a_tall_picture_leaves_room_for_the_others_and_its_shape_is_kept(browser, tmp_path):
    boxes = [[Box("a", 10, 10, 90, 90)]] * 2
    pictures = [PIL.Image.new("RGB", size, "gray") for size in ((100, 600), (600, 100))]
    page = browser.new_page(viewport={"width": 800, "height": 600})
    try:
        page.goto(failure_gallery(pictures, boxes, boxes).save(tmp_path / "g.html").as_uri())
        images = page.locator("figure img")
        heights = [images.nth(i).bounding_box()["height"] for i in range(2)]
        fit = images.first.evaluate("image => getComputedStyle(image).objectFit")
    finally:
        page.close()
    assert heights[0] <= 420 and heights[1] < 200 and fit == "contain"
