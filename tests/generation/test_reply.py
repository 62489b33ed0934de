"""A Reply gives boxes in pixels of the right picture and shows itself without harm."""

import base64
import io
import json
import re
import warnings

import PIL.Image
import pytest

from vlkit import Box, Image, Point, to_frame
from vlkit.errors import GroundingParseError, VlkitError
from vlkit.generation import reply as reply_module
from vlkit.generation.reply import Reply, Usage, record_of, result_of, split_thinking
from vlkit.media.image import DeferredImages
from vlkit.plotting.html import image_html

USAGE = Usage(image_tokens=1024, video_tokens=0, prompt_tokens=2048, new_tokens=17)
CAT = (
    "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|><|im_end|>"
)
EYE = "<|box_start|>(500,500)<|box_end|>"
HALF = CAT.removesuffix("<|im_end|>") + "<|box_start|>(1,"


def picture(width=500, height=200, color="gray"):
    return PIL.Image.new("RGB", (width, height), color)


def reply(raw=CAT, images=None, **changes):
    images = (picture(),) if images is None else images
    text = re.sub(r"<\|\w+\|>", "", raw)
    fields = {"usage": USAGE, "seconds": 1.234, "family": "qwen2_vl"}
    sizes = tuple((28, 56) for _ in images)
    return Reply(text, raw, **fields | {"images": images, "input_sizes": sizes} | changes)


def shown_picture(html):
    source = re.search(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', html)[1]
    return PIL.Image.open(io.BytesIO(base64.b64decode(source)))


# --- thinking, and counts that are estimated -----------------------------------------------------


@pytest.mark.parametrize(
    "raw, thinking, answer",
    [
        ("A cat.", "", "A cat."),
        ("\n\nA cat.", "", "\n\nA cat."),
        ("<think>\nFour legs.\n</think>\n\nA cat.", "Four legs.", "A cat."),
        ("<think>\n\n</think>\n\nA cat.", "", "A cat."),  # thinking is switched off
        ("Four legs.\n</think>\n\nA cat.", "Four legs.", "A cat."),  # <think> is in the prompt
        ("<think>\nFour le", "Four le", ""),  # cut off
        ("Write <think> first.", "", "Write <think> first."),
    ],
)
def test_thinking_is_what_stands_before_its_end(raw, thinking, answer):
    assert split_thinking(raw) == (thinking, answer)
    assert reply(raw).thinking == thinking


def test_estimated_counts_are_shown_written_and_read_back():
    estimated = reply(usage=Usage(1, 0, 2, 3, estimated=True), images=())
    assert estimated._repr_html_().endswith("counts estimated</p></div>")
    assert "estimated" not in reply()._repr_html_()
    record = json.loads(json.dumps(record_of(estimated)))
    assert result_of(record, "?").usage == estimated.usage
    del record["usage"]["estimated"]  # of an earlier version
    assert result_of(record, "?").usage == Usage(1, 0, 2, 3)
    record["usage"]["estimated"] = "yes"
    with pytest.raises(VlkitError, match="its usage is"):
        result_of(record, "?")


# --- boxes ---------------------------------------------------------------------------------------


def test_boxes_and_points():
    both = reply(EYE + CAT)
    assert both.boxes == [Box("cat", 50, 40, 150, 80)]
    assert both.points == [Point("", 250, 100)]
    assert both.grounding() == [*both.points, *both.boxes]


def test_boxes_of_the_last_or_a_chosen_picture():
    two = reply(images=(picture(1000, 1000), picture(500, 200)))
    assert two.boxes == [Box("cat", 50, 40, 150, 80)]
    assert two.grounding(0) == [Box("cat", 100, 200, 300, 400)] == two.grounding(-2)
    assert two.plot().size == (500, 200)
    assert two.plot(0).size == (1000, 1000)


def test_pixels_of_the_resized_picture_need_its_own_size():
    raw = '{"bbox_2d": [7, 14, 14, 28], "label": "cat"}'
    images, sizes = (picture(), picture()), ((500, 200), (14, 28))
    two = reply(raw, family="qwen2_5_vl", images=images, input_sizes=sizes)
    assert two.boxes == [Box("cat", 250, 100, 500, 200)]
    assert two.grounding(0) == [Box("cat", 7, 14, 14, 28)]


@pytest.mark.parametrize("index", [1, -2, 7])
def test_picture_that_is_not_there(index):
    for ask in (reply().grounding, reply().plot):
        with pytest.raises(VlkitError, match=f"image={index} does not exist"):
            ask(index)


def test_no_picture():
    alone = reply(images=())
    assert alone.boxes == alone.points == alone.grounding() == []
    with pytest.raises(VlkitError, match=r"about no picture; pass one to vlkit\.user"):
        alone.plot()


def test_plot_draws_on_a_copy():
    asked = reply()
    before = asked.images[0].tobytes()
    drawn = asked.plot()
    assert drawn.size == (500, 200) and asked.images[0].tobytes() == before
    assert drawn.getpixel((50, 60)) != (128, 128, 128)
    assert drawn.getpixel((100, 60)) == (128, 128, 128)


def test_half_an_answer_warns_in_the_line_that_asks():
    half = reply(HALF)
    asks = (
        lambda: half.boxes,
        lambda: half.points,
        half.grounding,
        lambda: half.plot(),
    )
    for ask in asks[:2] + asks[3:]:
        with pytest.warns(UserWarning, match="1 read, 1 left out: .*ends inside") as caught:
            ask()
        assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="1 left out"):
        assert half.boxes == [Box("cat", 50, 40, 150, 80)]


def test_garbage_raises_with_its_text():
    raw = "<|box_start|>nowhere<|box_end|>"
    for ask in (reply(raw).grounding, reply(raw).plot, lambda: reply(raw).boxes):
        with pytest.raises(GroundingParseError) as caught:
            ask()
        assert caught.value.text == raw


# --- the notebook's view -------------------------------------------------------------------------


def test_view_has_text_picture_and_usage():
    html = reply()._repr_html_()
    assert "cat(100,200),(300,400)" in html
    assert "2,048 prompt tokens (1,024 of them image), 17 new, 1.23 s" in html
    shown = shown_picture(html)
    assert shown.size == (500, 200)
    assert shown.convert("RGB").getpixel((50, 60)) != (128, 128, 128)


def test_view_reaches_for_nothing():
    html = reply()._repr_html_()
    assert not re.search(r"https?:|<script|<link|@import|url\(|src=\"(?!data:)", html)


def test_view_escapes_what_the_model_wrote():
    attack = '<script>alert("1")</script>" onerror="alert(2)\n<img src=x>&amp;'
    html = reply(attack)._repr_html_()
    assert "<script" not in html and "<img src=x" not in html
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;" in html
    assert "<br>&lt;img src=x&gt;&amp;amp;" in html
    tags = re.findall(r"<img[^>]*>", html)
    assert len(tags) == 1 and "onerror=&quot;" not in re.sub(r'alt="[^"]*"', "", tags[0])


def test_view_shows_an_unreadable_answer_as_a_note():
    html = reply('<|box_start|><script>"<|box_end|>')._repr_html_()
    assert "neither a box nor a point" in html and "<script" not in html
    assert shown_picture(html).size == (500, 200)


SET = "Objects: {'cat', 'dog'}\n[{'bbox_2d': [14, 14, 28, 28], 'label': 'cat'}]"


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize(
    "raw", [SET, "{'bbox_2d'}", "{'bbox_2d': {1, 2}}", "{'a', 1j, b'bbox_2d'}"]
)
def test_every_view_of_an_answer_with_python_in_it(family, raw):
    answer = reply(raw, family=family)
    assert shown_picture(answer._repr_html_()).size == (500, 200)
    assert to_frame([answer])["text"].tolist() == [raw]
    assert json.loads(json.dumps(record_of(answer)))["raw"] == raw
    if raw == SET:
        assert [box.label for box in answer.boxes] == ["cat"] and answer.plot().size == (500, 200)
        return
    for view in (lambda: answer.boxes, lambda: answer.points, answer.grounding, answer.plot):
        with pytest.raises(GroundingParseError):
            view()


@pytest.mark.parametrize("error", [KeyError("x"), AttributeError("keys"), RecursionError("deep")])
def test_views_show_what_a_reader_raises_as_a_note(error, monkeypatch):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(reply_module, "locate_grounding", broken)
    html = reply()._repr_html_()
    assert str(error) in html.replace("&#x27;", "'") and shown_picture(html).size == (500, 200)
    assert record_of(reply())["grounding_note"] == str(error)
    assert to_frame([reply()])["boxes"].tolist() == [[]]


def test_view_of_a_picture_that_is_gone_says_so(tmp_path):
    picture().save(tmp_path / "cat.png")
    gone = reply(images=DeferredImages([Image(tmp_path / "cat.png")], [(500, 200)]))
    assert shown_picture(gone._repr_html_()).size == (500, 200)
    (tmp_path / "cat.png").unlink()
    html = gone._repr_html_()
    assert "cat.png does not exist" in html and "2,048 prompt tokens" in html
    assert gone.boxes == reply().boxes


def test_a_reply_that_has_no_record_is_a_failure_in_a_table():
    frame = to_frame([reply(), reply(usage=None), reply()])
    assert frame["error"].notna().tolist() == [False, True, False]


def test_view_shows_half_an_answer_without_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        html = reply(HALF)._repr_html_()
    assert "1 read, 1 left out" in html and "&lt;|box_start|&gt;" in html
    assert shown_picture(html).convert("RGB").getpixel((50, 60)) != (128, 128, 128)


def test_view_without_picture():
    html = reply("Hello", images=())._repr_html_()
    assert "Hello" in html and "<img" not in html


@pytest.mark.parametrize("reason, seen", [("stop", False), ("length", True), ("cancelled", True)])
def test_view_says_how_it_ended(reason, seen):
    assert (f"ended by {reason}" in reply(finish_reason=reason)._repr_html_()) is seen


def test_a_finish_reason_of_an_edited_file_is_not_markup():
    shown = reply(finish_reason="<script>alert(1)</script>")._repr_html_()
    assert "<script" not in shown and "ended by &lt;script&gt;" in shown


def test_view_of_several_pictures_is_the_one_with_the_boxes():
    two = reply(images=(picture(300, 300), picture(500, 200)))
    assert shown_picture(two._repr_html_()).size == (500, 200)


def test_view_of_a_large_picture_is_small():
    html = reply(images=(picture(4000, 3000),))._repr_html_()
    assert shown_picture(html).size == (640, 480) and len(html) < 300_000


def test_view_of_a_tall_picture():
    assert shown_picture(reply(images=(picture(60, 9000),))._repr_html_()).size[1] <= 1280


@pytest.mark.parametrize("mode", ["RGBA", "L", "P"])
def test_image_html_takes_any_mode(mode):
    html = image_html(PIL.Image.new(mode, (900, 900)), width=600, alt='a "b" <c>')
    assert shown_picture(html).size == (600, 600)
    assert 'alt="a &quot;b&quot; &lt;c&gt;"' in html and "outline:1px" in html  # white on white


def test_text_view_is_short():
    assert str(reply("The cat sleeps.")) == "The cat sleeps."
    assert len(repr(reply())) < 500


@pytest.mark.parametrize(
    "family, raw, shown",
    [
        ("qwen2_vl", HALF, "cat …"),
        (
            "qwen2_vl",
            "<|object_ref_start|>a cup<|object_ref_end|><|box_start|>(654,285),(95",
            "a cup …",
        ),
        ("qwen_vl", "<ref>a cup</ref><box>(65,28),(9", "a cup …"),
        ("qwen3_vl", '[\n{"bbox_2d": [1, 2, 3, 4], "label": "cat"},\n{"bbox_2d": [10, 2', "cat …"),
        ("qwen3_vl", '[\n{"bbox_2d": [10, 2', " …"),
        ("qwen2_vl", "Between (654,285) and (95", "Between (654,285) and (95"),  # no box
    ],
)
def test_readers_see_no_half_box_where_an_answer_was_cut_off(family, raw, shown):
    cut = reply(raw, family=family, finish_reason="length")
    assert "".join(text for text, _ in cut.parts) == shown
    assert re.sub("<[^>]+>", "", cut.text_html) == shown
