"""The failure gallery: the worst first, all in one file, nothing of the data taken for HTML."""

import re

import PIL.Image
import pytest

import vlkit
from vlkit import Box, evaluate_grounding, failure_gallery
from vlkit.errors import VlkitError

PICTURE = PIL.Image.new("RGB", (200, 160), "gray")
TRUTH = {"a": [Box("cat", 0, 0, 100, 100)], "b": [Box("cat", 0, 0, 100, 100)], "c": []}
ANSWERS = {"a": [Box("cat", 0, 0, 100, 60)], "b": None, "c": [Box("cat", 5, 5, 9, 9)]}
IMAGES = dict.fromkeys(TRUTH, PICTURE)


def test_the_worst_come_first():
    gallery = failure_gallery(IMAGES, ANSWERS, TRUTH)
    assert gallery.pictures == ("b", "c", "a")
    assert [float(n) for n in re.findall(r"mean IoU ([\d.]+)", gallery.page)] == [0, 0, 0.6]
    assert failure_gallery(IMAGES, ANSWERS, TRUTH, worst=1).pictures == ("b",)


def test_it_holds_everything_and_escapes_the_data(tmp_path):
    name = "<script>alert(1)</script>"
    gallery = failure_gallery(
        {name: PICTURE},
        {name: [Box("<b>", 0, 0, 9, 9)]},
        {name: [Box("<img src=x>", 0, 0, 9, 9)]},
        captions={name: 'What is "<i>" & where?' + "x" * 2000},
        title="</title><script>",
    )
    path = gallery.save(tmp_path / "deep" / "gallery.html")
    page = path.read_text(encoding="utf-8")
    assert page == gallery.page and page.startswith("<!DOCTYPE html>")
    for raw in ("<script", "<b><", "<i>", "<img src=x"):
        assert raw not in page
    assert "&lt;script&gt;alert(1)" in page and "&#34;&lt;i&gt;&#34; &amp; where" in page
    assert page.count("xx") < 400  # a long answer is cut
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert "http" not in page


def test_in_a_notebook_and_with_an_evaluation_at_hand():
    evaluation = evaluate_grounding(ANSWERS, TRUTH, coco=False, bootstrap=0)
    gallery = failure_gallery(IMAGES, ANSWERS, TRUTH, evaluation=evaluation, worst=2)
    assert gallery._repr_html_().count("<figure>") == 2
    assert vlkit.failure_gallery is failure_gallery


def test_a_picture_without_an_image():
    with pytest.raises(VlkitError, match="no image or caption for picture 'b'"):
        failure_gallery({"a": PICTURE}, ANSWERS, TRUTH)
