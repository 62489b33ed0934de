"""Every family's boxes are read into pixels and written back; garbage is no empty answer."""

import dataclasses
import json
import math
import random
import time
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear import grows_linearly

import vlkit
from vlkit import Box, Point, Quad, format_grounding, parse_grounding
from vlkit.errors import GroundingParseError, VlkitError
from vlkit.grounding import parse as parse_module
from vlkit.grounding.formats import FORMATS
from vlkit.grounding.keys import SPACES

SIZE = (500, 200)  # one unit in 1000 is half a pixel across, a fifth down
INPUT = (250, 400)  # one pixel of the resized picture is two across, a half down
TAGS = {
    "qwen_vl": ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"),
    "qwen2_vl": (
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        "<|box_start|>",
        "<|box_end|>",
        "<|quad_start|>",
        "<|quad_end|>",
    ),
}
JSON = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")


def parse(text, family, **sizes):
    return parse_grounding(text, family=family, **{"image_size": SIZE, "input_size": INPUT} | sizes)


def tagged(family, text):
    """Text in which [ref]…[/ref], [box]…[/box] and [quad]…[/quad] stand for the family's tags."""
    names = ("[ref]", "[/ref]", "[box]", "[/box]", "[quad]", "[/quad]")
    for short, tag in zip(names, TAGS[family], strict=True):
        text = text.replace(short, tag)
    return text


def test_the_families():
    assert set(FORMATS) == {*TAGS, *JSON}


# --- tags ----------------------------------------------------------------------------------------

CAT = Box("cat", 50, 40, 150, 80)
SIGN = Quad("sign", 50, 40, 150, 60, 140, 100, 40, 80)
SIGN_TEXT = "[ref]sign[/ref][quad](100,200),(300,300),(280,500),(80,400)[/quad]"


@pytest.mark.parametrize("family", TAGS)
@pytest.mark.parametrize(
    "text, expected",
    [
        pytest.param("[ref]cat[/ref][box](100,200),(300,400)[/box]", [CAT], id="one"),
        pytest.param(
            "[ref]cat[/ref][box](100,200),(300,400)[/box][box](0,0),(1000,1000)[/box]",
            [CAT, Box("cat", 0, 0, 500, 200)],
            id="two under one label",
        ),
        pytest.param(
            "A [ref]cat[/ref][box](100,200),(300,400)[/box], [ref]dog[/ref][box](0,0),(2,5)[/box].",
            [CAT, Box("dog", 0, 0, 1, 1)],
            id="prose around",
        ),
        pytest.param("[box](100,200),(300,400)[/box]", [Box("", 50, 40, 150, 80)], id="no label"),
        pytest.param(
            "[ref]cat[/ref][box](100,200),(300,400)[/box][ref][/ref][box](2,5),(4,10)[/box]",
            [CAT, Box("", 1, 1, 2, 2)],
            id="label, then none",
        ),
        pytest.param("[ref]eye[/ref][box](500,500)[/box]", [Point("eye", 250, 100)], id="point"),
        pytest.param(
            "[ref]红色的圆形[/ref][box](100,200),(300,400)[/box]，左边。",
            [Box("红色的圆形", 50, 40, 150, 80)],
            id="Chinese",
        ),
        pytest.param(
            "[ref] cat\n[/ref][box] ( 100 , 200 ) , ( 300 , 400 ) [/box]", [CAT], id="spaces"
        ),
        pytest.param("[ref]cat[/ref][box](100.0,200.0),(300,400)[/box]", [CAT], id="decimals"),
        pytest.param("[ref]cat[/ref][box](300,400),(100,200)[/box]", [CAT], id="swapped"),
        pytest.param("[ref]cat[/ref][box](300,200),(100,400)[/box]", [CAT], id="half swapped"),
        pytest.param(
            "[ref]cat[/ref][box](-5,-5),(1200,2000)[/box]", [Box("cat", 0, 0, 500, 200)], id="out"
        ),
        pytest.param(
            "[ref]cat[/ref][box](100,200),(100,200)[/box]",
            [Box("cat", 50, 40, 50, 40)],
            id="no area",
        ),
        pytest.param(
            "<think>[box](1,2),(3,4)[/box]?</think>[ref]cat[/ref][box](100,200),(300,400)[/box]",
            [CAT],
            id="thought before",
        ),
        pytest.param("There is no cat in this picture.", [], id="no box"),
        pytest.param("", [], id="nothing"),
        pytest.param("It costs (5, 3) coins.", [], id="a pair in prose"),
        pytest.param("[ref]cat[/ref] is here", [], id="label without box"),
        pytest.param(SIGN_TEXT, [SIGN], id="quad"),
        pytest.param(
            f"[ref]cat[/ref][box](100,200),(300,400)[/box]{SIGN_TEXT}[box](0,0)[/box]",
            [CAT, SIGN, Point("sign", 0, 0)],
            id="box, quad, point",
        ),
        pytest.param(
            "Action: click(start_box='[box](500,500)[/box]')", [Point("", 250, 100)], id="click"
        ),
        pytest.param(
            "[ref]cat[/ref][box](100,200),(300,400)[/box][box](100,200),(300,400)[/box]",
            [CAT, CAT],
            id="duplicates",
        ),
    ],
)
def test_tags(family, text, expected):
    assert parse(tagged(family, text), family) == expected


@pytest.mark.parametrize("family", TAGS)
@pytest.mark.parametrize(
    "text, message",
    [
        ("[ref]cat[/ref][box](100,200),(300,400)[/box][ref]dog[/ref][box](5,", "ends inside .*5,"),
        ("[ref]cat[/ref][box](100,200),(300,400)[/box][ref]do", "ends inside .*do"),
        ("[ref]cat[/ref][box](100,200),(300,400)[/box][box]", "ends inside"),
        ("[ref]cat[/ref][box](100,200),(300,400)[/box][box](1,2),(3[/box]x", "neither a box nor"),
        ("[box](1,2),[box][ref]cat[/ref][box](100,200),(300,400)[/box]", "neither a box nor"),
        ("[ref]cat[/ref][box](100,200),(300,400)[/box][box]oops[/box]", "1 left out"),
        ("[ref]cat[/ref][box](100,200),(300,400)[/box][quad](1,2),(3,4)[/quad]", "neither a box"),
        ("[ref]cat[/ref][box](100,200),(300,400)[/box][quad](1,2),(3,4)[/box]", "neither a box"),
        ("[ref]cat[/ref][box](100,200),(300,400)[/box][quad](1,2),(3,4),(5", "ends inside"),
    ],
)
def test_tags_keep_what_is_whole_and_warn(family, text, message):
    with pytest.warns(UserWarning, match=f"1 read, .*{message}") as caught:
        assert parse(tagged(family, text), family) == [CAT]
    assert caught[0].filename == __file__


@pytest.mark.parametrize("family", TAGS)
@pytest.mark.parametrize(
    "text",
    [
        "[box](1,2),(3[/box]",
        "[box](1,2),(3,4),(5,6)[/box]",
        "[quad](1,2),(3,4),(5,6)[/quad]",
        "<think>Is it [box](1,2),(3,4)[/box]",
        "[box][/box]",
        "[box](1;2)[/box]",
        "[box](99999999999,2),(3,4)[/box]",
        "[box](1,2),(3,4)",
        "[ref]red cir",
        "cat(100,200),(300,400)",  # reply.text instead of reply.raw
    ],
)
def test_tags_of_garbage_are_an_error(family, text):
    assert_unreadable(tagged(family, text), family)


def assert_unreadable(text, family):
    with pytest.raises(GroundingParseError) as caught:
        parse(text, family)
    message = str(caught.value)
    assert caught.value.text == text
    assert message.isprintable() and len(message) < 400 and repr(family) in message


# --- JSON ----------------------------------------------------------------------------------------

ONE = '{"bbox_2d": [100, 200, 250, 400], "label": "cat"}'
# pixels of the resized picture, or thousandths, to pixels of the original
ONE_READ = {
    "qwen2_5_vl": Box("cat", 200, 100, 500, 200),
    "qwen3_vl": Box("cat", 50, 40, 125, 80),
    "qwen3_5": Box("cat", 50, 40, 125, 80),
}


@pytest.mark.parametrize("family", JSON)
@pytest.mark.parametrize(
    "text",
    [
        f"```json\n[\n\t{ONE}\n]\n```",
        f"[{ONE}]",
        ONE,
        f"Here it is:\n```json\n[{ONE}]\n```\nIt sleeps.",
        f'Objects: {{"objects": [{ONE}]}}',
        f'{{"answer": "yes"}} {ONE}',
        f"<think>[{ONE}] or not?</think>\n{ONE}",
        '{"label": "cat", "bbox_2d": [100, 200, 250, 400], "score": 0.9}',
        '{ "bbox_2d" : [100.0,200.0,250.0,400.0],\n"label":"cat" }',
        '{"attributes": {"color": "red"}, "bbox_2d": [100, 200, 250, 400], "label": "cat"}',
        '{"image": {"objects": [{"bbox_2d": [100, 200, 250, 400], "label": "cat"}]}}',
        '{"bbox_2d": [250, 400, 100, 200], "label": "cat"}',
        '{"bbox_2d": ["100", "200", "250", "400"], "label": "cat"}',
        "[{'bbox_2d': [100, 200, 250, 400], 'label': 'cat'}]",
        """{'label': "cat", 'bbox_2d': (100, 200, 250, 400), 'sure': True, 'of': None}""",
        '{"bbox_2d": [100, 200, 250, 400], "text_content": "cat"}',
        '{"bbox_2d": [[100, 200, 250, 400]], "label": "cat"}',
        "</think>" + ONE,
        "```JSON\n" + ONE,
    ],
)
def test_json(family, text):
    assert parse(text, family) == [ONE_READ[family]]


@pytest.mark.parametrize("family", JSON)
@pytest.mark.parametrize(
    "fields, label",
    [
        ({"label": "红色圆形"}, "红色圆形"),
        ({"label": 'a {curly} "quoted" \\ \']['}, 'a {curly} "quoted" \\ \']['),
        ({"label": 7}, "7"),
        ({"label": "{"}, "{"),
        ({"label": "a{", "attributes": {"color": {"name": "red"}}}, "a{"),
        ({"label": None}, ""),
        ({}, ""),
    ],
)
def test_json_labels(family, fields, label):
    for ensure_ascii in (True, False):
        box = {"bbox_2d": [0, 0, 250, 400]}
        for item in (box | fields, fields | box):
            text = json.dumps(item, ensure_ascii=ensure_ascii)
            assert [box.label for box in parse(f"[{text}, {text}]", family)] == [label, label]


@pytest.mark.parametrize(
    "family, point",
    [("qwen2_5_vl", (200, 100)), ("qwen3_vl", (50, 40)), ("qwen3_5", (50, 40))],
)
def test_json_points(family, point):
    text = '[{"point_2d": [100, 200], "label": "eye"}]'
    assert parse(text, family) == [Point("eye", *point)]


def test_json_with_a_box_and_a_point_in_one_object():
    text = '{"point_2d": [5, 5], "bbox_2d": [[0, 0, 10, 10], [0, 0, 20, 20]], "label": "a"}'
    assert parse(text, "qwen3_vl", image_size=(1000, 1000)) == [
        Box("a", 0, 0, 10, 10),
        Box("a", 0, 0, 20, 20),
        Point("a", 5, 5),
    ]


POINT = {"qwen2_5_vl": (200, 100), "qwen3_vl": (50, 40), "qwen3_5": (50, 40)}


@pytest.mark.parametrize("family", JSON)
@pytest.mark.parametrize(
    "text, labels",
    [
        ('<points x1="100" y1="200" alt="eye">the eye</points>', ["eye"]),
        ('<point x="100" y="200" alt="eye">the eye</point>', ["eye"]),
        (
            '```xml\n<points x1="100" y1="200" x2="100" y2="200" alt="eye">e</points>\n```',
            ["eye", "eye"],
        ),
        (
            'See <points x1="100" y1="200" alt="a &amp; b"/> and <point x="100" y="200">b</point>',
            ["a & b", "b"],
        ),
        ("<points  x1 = '100.0'  y1 = '200'  alt = '红 > \"x\"'>", ['红 > "x"']),
    ],
)  # fmt: skip
def test_xml_points(family, text, labels):
    assert parse(text, family) == [Point(label, *POINT[family]) for label in labels]


@pytest.mark.parametrize("family", JSON)
@pytest.mark.parametrize(
    "rest, message",
    [
        (' x2="3', "breaks off inside"),
        (' x2="3" alt="e', "breaks off inside"),
        (' x2="3" y2="no" alt="e">e</points>', "lacks an x or a y"),
        (' x2="3" alt="e">e</points>', "lacks an x or a y"),
    ],
)
def test_xml_points_keep_what_is_whole_and_warn(family, rest, message):
    with pytest.warns(UserWarning, match=f"1 read, 1 left out: .*{message}"):
        (point,) = parse('<points x1="100" y1="200"' + rest, family)
    assert (point.x, point.y) == POINT[family]


@pytest.mark.parametrize("family", JSON)
@pytest.mark.parametrize(
    "text", ['<points x1="1', "<point >", '<points x1="a" y1="b">', "<points x"]
)
def test_xml_garbage_is_an_error(family, text):
    assert_unreadable(text, family)


# All 18 rows for Qwen in supervision's tests/detection/test_vlm.py: 13 of test_from_qwen_2_5_vl, 3
# of test_from_qwen_3_vl, 2 of test_vlm_parsers_degrade_on_malformed_json; the answers in words of
# our own. `clip=False, labelled=True` are its rules, `classes` is a choice among labels. 15 are in
# PEER; of the others, one is garbage, which is empty for supervision, and two are sizes.
IN, OUT, VGA = (640, 640), (1280, 720), (640, 480)
ONE_PEER = [("a", 20, 22.5, 220, 135)]
TWO = (
    '```json\n[{"bbox_2d": [10, 20, 110, 120], "label": "a"},'
    ' {"bbox_2d": [50, 100, 150, 200], "label": "b"}]\n```'
)
PEER = {
    "nothing but prose": ("It is a sunny day.", IN, OUT, None, []),
    "an empty list": ("```json\n[]\n```", IN, OUT, None, []),
    "no labels": (
        '[{"bbox_2d": [10, 10, 100, 100]}, {"label": "no box"},'
        ' {"bbox_2d": [50, 60, 110, 120], "x": 1}]',
        IN, OUT, None,
        [],
    ),
    "one": ('[{"bbox_2d": [10, 20, 110, 120], "label": "a"}]', IN, OUT, None, ONE_PEER),
    "two": (
        '```json\n[{"bbox_2d": [0, 0, 64, 64], "label": "a"},'
        ' {"bbox_2d": [100, 200, 300, 400], "label": "b"}]\n```',
        IN, IN, None,
        [("a", 0, 0, 64, 64), ("b", 100, 200, 300, 400)],
    ),
    "none of the classes": (TWO, IN, OUT, ["c", "d"], []),
    "all of the classes": (
        TWO, IN, VGA, ["a", "b"],
        [("a", 10, 15, 110, 90), ("b", 50, 75, 150, 150)],
    ),
    "out of bounds": (
        '[{"bbox_2d": [-10, 0, 700, 700], "label": "a"}]',
        IN, OUT, None,
        [("a", -20, 0, 1400, 787.5)],
    ),
    "from Python": (
        "[\n  {'bbox_2d': [10, 20, 110, 120], 'label': 'a'}\n]", IN, OUT, None, ONE_PEER,
    ),
    "cut off in the last object": (
        '```json\n[{"bbox_2d": [0, 0, 64, 64], "label": "a"},\n {"bbox_2d": [10, 20, 110, 120],'
        ' "label": "b"},\n {"bbox_2d": [30, 40, 130, 140], "label":\n',
        IN, IN, None,
        [("a", 0, 0, 64, 64), ("b", 10, 20, 110, 120)],
    ),
    "three numbers": ("[1, 2, 3]", VGA, VGA, None, []),
    "a number": ("42", VGA, VGA, None, []),
    "one of Qwen3-VL": (
        '```json\n[{"bbox_2d": [100, 200, 300, 400], "label": "a"}]\n```', None, VGA, None,
        [("a", 64, 96, 192, 192)],
    ),
    "an empty list of Qwen3-VL": ("```json\n[]\n```", None, VGA, None, []),
    "some of the classes, Qwen3-VL": (
        '```json\n[{"bbox_2d": [0, 0, 500, 500], "label": "a"},'
        ' {"bbox_2d": [500, 500, 1000, 1000], "label": "b"}]\n```',
        None, VGA, ["b"],
        [("b", 320, 240, 640, 480)],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what is cut off; supervision lacks OpenCV
@pytest.mark.parametrize("case", PEER)
def test_the_cases_of_supervision(case):
    import numpy as np
    import supervision

    text, size_in, size_out, classes, expected = PEER[case]
    family = "qwen2_5_vl" if size_in else "qwen3_vl"
    read = parse_grounding(
        text, family=family, image_size=size_out, input_size=size_in, clip=False, labelled=True
    )
    ours = [box for box in read if classes is None or box.label in classes]
    assert ours == [Box(*row) for row in expected]
    theirs = supervision.Detections.from_vlm(
        supervision.VLM.QWEN_2_5_VL if size_in else supervision.VLM.QWEN_3_VL,
        text,
        resolution_wh=size_out,
        classes=classes,
        **({"input_wh": size_in} if size_in else {}),
    )
    np.testing.assert_allclose(theirs.xyxy, np.array([b.xyxy for b in ours]).reshape(-1, 4))
    assert list(theirs.data.get("class_name", [])) == [box.label for box in ours]


def test_the_garbage_that_is_empty_for_supervision_is_an_error():
    with pytest.raises(GroundingParseError, match="the fenced block is not JSON"):
        parse_grounding(
            "```json\nnot valid json\n```", family="qwen2_5_vl", image_size=OUT, input_size=IN
        )


@pytest.mark.parametrize("sizes", [((0, 640), OUT), (IN, (1280, -100))])
def test_the_sizes_that_supervision_refuses(sizes):
    with pytest.raises(VlkitError, match="size"):
        parse_grounding(TWO, family="qwen2_5_vl", image_size=sizes[1], input_size=sizes[0])


def test_by_default_boxes_are_clipped_and_need_no_label():
    """RefCOCO-style answers hold no label; a crop of what lies outside would be empty."""
    text = '[{"bbox_2d": [-10, 10, 700, 100]}]'
    read = parse_grounding(text, family="qwen2_5_vl", image_size=IN, input_size=IN)
    assert read == [Box("", 0, 10, 640, 100)]


@pytest.mark.parametrize("family", JSON)
@pytest.mark.parametrize(
    "text",
    ["", "No cat here.", "[]", "```json\n[]\n```", '{"answer": "ye', '{"a": 1}', "{", "bbox"],
)
def test_json_without_boxes(family, text):
    assert parse(text, family) == []


@pytest.mark.parametrize("family", JSON)
def test_json_out_of_range(family):
    text = '{"bbox_2d": [-10, -10, 5000, 5000], "label": "cat"}'
    assert parse(text, family) == [Box("cat", 0, 0, 500, 200)]


@pytest.mark.parametrize("family", JSON)
@pytest.mark.parametrize(
    "rest, message",
    [
        (',\n\t{"bbox_2d": [1, 2', "ends inside .*1, 2"),
        (',\n\t{"bbox', "ends inside .*bbox"),
        (',\n\t{"label": "do', "ends inside .*do"),
        (', {"bbox_2d": [1, 2, 3], "label": "dog"}]', "neither a box nor a point .*4 numbers"),
        (', {"bbox_2d": "1234"}]', "neither a box nor a point"),
        (', {"bbox_2d": [1, 2, 3, null]}]', "neither a box nor a point"),
        (', {"bbox_2d": [[1, 2], 2, 3, 4]}]', "neither a box nor a point"),
        (', {"bbox_2d": [1, 2, 3, NaN]}]', "out of range"),
        (', {"bbox_2d": [1, 2, 3, 1e999]}]', "out of range"),
        (', {"bbox_2d": [1 2 3 4]}]', "neither a box nor a point"),
        (', {"bbox_2d": ' + "[" * 100_000 + "}", "neither a box nor a point"),
        (', {"bbox_2d": [1, 2, 3, ' + "9" * 10_000 + "]}", "neither a box nor a point"),
    ],
    ids=lambda value: value[:40],
)
def test_json_keeps_what_is_whole_and_warns(family, rest, message):
    with pytest.warns(UserWarning, match=f"(?s)1 read, 1 left out: .*{message}"):
        assert parse(f"[{ONE}{rest}", family) == [ONE_READ[family]]


@pytest.mark.parametrize("family", JSON)
@pytest.mark.parametrize(
    "text",
    [
        '{"bbox_2d": [1, 2, 3',
        '[{"bbo',
        '{"bbox_2d": [1, 2, 3], "label": "cat"}',
        '{"point_2d": [1, 2, 3]}',
        '{"bbox_2d": {"x": 1}}',
        "{'bbox_2d': [1, 2, 3, 4, 'label': }",
        "{'bbox_2d': [1, 2, 3], 'label': 'cat'}",
        "```json\nnot valid json\n```",
        '```json\n[{"answer": "ye',
        '{"bbox_3d": [1, 2, 3, 4, 5, 6, 7, 8, 9], "label": "car"}',
        '<think>Perhaps [{"bbox_2d": [1, 2, 3, 4]}]',
        "bbox_2d: [1, 2, 3, 4]",
    ],
)
def test_json_of_garbage_is_an_error(family, text):
    assert_unreadable(text, family)


# --- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, text",
    [
        ("qwen_vl", "<ref>cat</ref><box>(100,200),(300,400)</box>"),
        (
            "qwen2_vl",
            "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>",
        ),
        ("qwen2_5_vl", '```json\n[\n\t{"bbox_2d": [25, 80, 75, 160], "label": "cat"}\n]\n```'),
        ("qwen3_vl", '```json\n[\n\t{"bbox_2d": [100, 200, 300, 400], "label": "cat"}\n]\n```'),
        ("qwen3_5", '```json\n[\n\t{"bbox_2d": [100, 200, 300, 400], "label": "cat"}\n]\n```'),
    ],
)
def test_written_form(family, text):
    sizes = {"family": family, "image_size": SIZE, "input_size": INPUT}
    assert format_grounding(CAT, **sizes) == text
    assert format_grounding([CAT], **sizes) == text
    assert format_grounding(iter([CAT]), **sizes) == text


@pytest.mark.parametrize("family", TAGS)
def test_boxes_of_one_label_share_its_tag(family):
    written = format_grounding([CAT, CAT, Box("dog", 0, 0, 1, 1)], family=family, image_size=SIZE)
    ref, _, box, *_ = TAGS[family]
    assert (written.count(ref), written.count(box)) == (2, 3)


@pytest.mark.parametrize("family", FORMATS)
def test_no_boxes_there_and_back(family):
    assert (
        parse(format_grounding([], family=family, image_size=SIZE, input_size=INPUT), family) == []
    )


OWN = ["</think>", *(tag for tags in TAGS.values() for tag in tags)]
labels = st.one_of(
    st.sampled_from(["", "cat", "cat", "红色圆形", 'a "b" {c}', "{", '{"a": {', "x, (1,2)"]),
    st.text(st.characters(exclude_categories=("C",)), max_size=12).map(str.strip),
).filter(lambda label: not any(tag in label for tag in OWN))
sides = st.integers(1, 5000)
fractions = st.floats(0, 1)


@st.composite
def scenes(draw):
    width, height = size = (draw(sides), draw(sides))
    items = []
    for _ in range(draw(st.integers(0, 5))):
        (x1, x2), (y1, y2) = (sorted((draw(fractions), draw(fractions))) for _ in "xy")
        label = draw(labels)
        if draw(st.booleans()):
            items.append(Box(label, x1 * width, y1 * height, x2 * width, y2 * height))
        else:
            items.append(Point(label, x1 * width, y1 * height))
    return size, (draw(sides), draw(sides)), items


@st.composite
def box_in_picture(draw):
    width, height = size = (draw(sides), draw(sides))
    (x1, x2), (y1, y2) = (sorted((draw(fractions), draw(fractions))) for _ in "xy")
    return size, (draw(sides), draw(sides)), [
        Box(draw(labels), x1 * width, y1 * height, x2 * width, y2 * height)
    ]  # fmt: skip


@pytest.mark.parametrize("family", FORMATS)
@settings(max_examples=1000, deadline=None)
@given(scene=box_in_picture())
def test_a_thousand_boxes_come_back_within_half_a_unit(family, scene):
    check_round_trip(family, *scene)


@pytest.mark.parametrize("space", [space for space in SPACES if space != "0-1"])  # read only
@pytest.mark.parametrize("family", FORMATS)
@settings(max_examples=25, deadline=None)
@given(scene=scenes())
def test_round_trip_within_half_a_unit(family, space, scene):
    check_round_trip(family, *scene, space)


def check_round_trip(family, size, resized, items, space=None):
    sizes = {"family": family, "image_size": size, "input_size": resized, "space": space}
    back = parse_grounding(format_grounding(items, **sizes), **sizes)
    assert [(type(a), a.label) for a in back] == [(type(a), a.label) for a in items]
    spans = {"0-1000": (1000, 1000), "0-999": (999, 999), "0-100": (100, 100)}
    spans |= {"resized": resized, "original": size}
    units = spans[space or ("resized" if family == "qwen2_5_vl" else "0-1000")]
    half = [0.5 * side / unit * (1 + 1e-9) for side, unit in zip(size, units, strict=True)]
    for a, b in zip(items, back, strict=True):
        a, b = ([*vars(each).values()][1:] for each in (a, b))
        assert all(abs(p - q) <= half[i % 2] for i, (p, q) in enumerate(zip(a, b, strict=True)))
    assert format_grounding(back, **sizes) == format_grounding(items, **sizes)


@pytest.mark.parametrize("family", TAGS)
def test_quads_there_and_back(family):
    sizes = {"family": family, "image_size": SIZE}
    text = format_grounding([CAT, SIGN, Point("sign", 5, 2)], **sizes)
    assert SIGN_TEXT.split("[quad]")[1].split("[/quad]")[0] in text
    assert parse_grounding(text, **sizes) == [CAT, SIGN, Point("sign", 5, 2)]
    assert SIGN.bounds == Box("sign", 40, 40, 150, 100)


def test_the_right_edge_is_999_where_the_service_says_so():
    text = '{"bbox_2d": [0, 0, 999, 999]}'
    exact = parse(text, "qwen3_vl", space="0-999")
    assert exact == [Box("", 0, 0, *SIZE)]
    (inside,) = parse(text, "qwen3_vl")
    assert inside.xyxy == pytest.approx((0, 0, 499.5, 199.8))
    assert parse(text, "qwen3_vl", space="original") == [Box("", 0, 0, *SIZE)]  # clipped
    assert parse(text, "qwen3_vl", space="resized", input_size=(1998, 999)) == [
        Box("", 0, 0, 250, 200)
    ]


def test_every_format_names_its_space():
    assert {family: form.space for family, form in FORMATS.items()} == {
        "qwen_vl": "0-1000",
        "qwen2_vl": "0-1000",
        "qwen2_5_vl": "resized",
        "qwen3_vl": "0-1000",
        "qwen3_5": "0-1000",
    }


def test_size_of_the_input_does_not_matter_to_thousandths():
    text = "<|box_start|>(100,200),(300,400)<|box_end|>"
    boxes = [Box("", 50, 40, 150, 80)]
    assert parse_grounding(text, family="qwen2_vl", image_size=SIZE) == boxes
    assert parse(text, "qwen2_vl", input_size=(28, 28)) == boxes


# --- wrong arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        ({"family": "qwen9"}, ("'qwen9'", "qwen2_vl")),
        ({"image_size": None}, ("image_size=None", "(width, height)")),
        ({"image_size": (0, 9)}, ("image_size=(0, 9)", "positive")),
        ({"image_size": (9,)}, ("image_size=(9,)", "(width, height)")),
        ({"image_size": "ab"}, ("image_size='ab'", "(width, height)")),
        ({"image_size": (float("nan"), 9)}, ("image_size", "(width, height)")),
        ({"image_size": 9}, ("image_size=9", "(width, height)")),
        ({"input_size": None}, ("input_size", "reply.input_sizes")),
        ({"input_size": (9, -1)}, ("input_size=(9, -1)", "positive")),
        ({"space": "thousand"}, ("'thousand'", "0-999")),
    ],
)
@pytest.mark.parametrize("call", [parse_grounding, format_grounding])
def test_wrong_sizes(call, change, words):
    options = {"family": "qwen2_5_vl", "image_size": SIZE, "input_size": INPUT} | change
    with pytest.raises(VlkitError) as caught:
        call("[]" if call is parse_grounding else [], **options)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("text", [None, 7, b"bytes", ["a"]])
def test_text_must_be_text(text):
    with pytest.raises(VlkitError, match=r"reply\.raw"):
        parse(text, "qwen2_vl")


@pytest.mark.parametrize(
    "boxes, words",
    [
        ([(0, 0, 1, 1)], ("vlkit.Box", "(0, 0, 1, 1)")),
        (None, ("vlkit.Box", "None")),
        (Box("a<|box_start|>b", 0, 0, 1, 1), ("a<|box_start|>b", "rename")),
        (Box("a</think>", 0, 0, 1, 1), ("a</think>", "rename")),
    ],
)
def test_what_cannot_be_written(boxes, words):
    with pytest.raises(VlkitError) as caught:
        format_grounding(boxes, family="qwen2_vl", image_size=SIZE)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("family", JSON)
def test_quads_have_no_json(family):
    with pytest.raises(VlkitError, match=r"quad\.bounds"):
        format_grounding(SIGN, family=family, image_size=SIZE, input_size=INPUT)


def test_box_values():
    box = Box("cat", 1, 2, 4, 8)
    assert (box.xyxy, box.area, Box("", 4, 2, 4, 8).area) == ((1, 2, 4, 8), 18, 0)
    assert vlkit.Box is Box and len({box, Box("cat", 1, 2, 4, 8)}) == 1
    assert Box("", np.float32(-1), Fraction(1, 2), np.int64(3), 1e6).xyxy == (-1, 0.5, 3, 1e6)


@pytest.mark.parametrize(
    "make, values, message",
    [
        (Box, ("cat", 0, 0, math.nan, 1), r"box 'cat' has x2=nan, which is not a finite number"),
        (Box, ("cat", -math.inf, 0, 1, 1), r"x1=-inf, which is not a finite number; give pixels"),
        (Box, ("cat", 0, None, 1, 1), r"y1=None, which is not a finite"),
        (Box, ("cat", "0", 0, 1, 1), r"x1='0', which is not a finite"),
        (Box, ("cat", 0, 0, 1, [1]), r"y2=\[1\], which is not a finite"),
        (Box, ("cat", 50, 0, 10, 1), r"the box 'cat' has x2=10 left of x1=50; give its top left"),
        (Box, ("cat", 0, 2.5, 10, 1), r"y2=1 above y1=2\.5; give its top left corner, then its"),
        (Box, (10, 20, 30, 40, "cat"), r"Box\(10, …\): the label comes first and is text"),
        (Box, (None, 0, 0, 1, 1), r"Box\(None, …\): the label comes first"),
        (Point, ("cat", math.inf, 1), r"the point 'cat' has x=inf, which is not a finite"),
        (Point, (1, 2, "cat"), r"Point\(1, …\): the label comes first"),
        (Quad, ("cat", 0, 0, 1, 0, 1, 1, 0, math.nan), r"the quad 'cat' has y4=nan"),
    ],
)
def test_what_is_no_box_is_refused_when_it_is_made(make, values, message):
    with pytest.raises(VlkitError, match=message) as caught:
        make(*values)
    assert "\n" not in str(caught.value)
    with pytest.raises(VlkitError, match=message):
        dataclasses.replace(
            make("", *range(len(values) - 1)), **dict(zip(names(make), values, strict=True))
        )


def names(make):
    return [field.name for field in dataclasses.fields(make)]


# --- hostile answers -----------------------------------------------------------------------------

PIECES = [
    *(tagged(family, "[box](9,9),(99,99)[/box]") for family in TAGS for _ in range(3)),
    *(tag for tags in TAGS.values() for tag in tags),
    *'()[]{},:"\\`\n -.0159',
    *("<points ", 'x1="1" ', "y1='2' ", 'alt="a">', "{'bbox_2d':", "'label'", "<think>"),
    *("cat", "猫", "(1,2)", "(1,2),(3,4)", '"bbox_2d":', '"point_2d":', "[1, 2, 3, 4]", "[1,2]"),
    *('"label":', '"cat"', "```json", "</think>", "null", "NaN", "1e999", "\ud800", "\0", ONE),
]


@pytest.mark.parametrize("family", FORMATS)
def test_fuzzed_answers_raise_nothing_else(family):
    chance = random.Random(7)
    read = unreadable = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(10_000):
            text = "".join(chance.choices(PIECES, k=chance.randint(1, 14)))
            try:
                boxes = parse(text, family)
            except GroundingParseError as error:
                assert error.text == text and str(error).isprintable()
                unreadable += 1
            else:
                read += bool(boxes)
                values = [v for box in boxes for v in list(vars(box).values())[1:]]
                assert all(0 <= value <= 500 for value in values)
    assert min(read, unreadable) > 50


@pytest.mark.parametrize("family", JSON)
@pytest.mark.parametrize(
    "before",
    [
        "{'cat', 'dog'}",
        "{'cat'}",
        "{'cat', ('dog', 2)}",
        "{b'cat', 1j}",
        "{('cat',): 'dog'}",
        "{'cat': {'dog', 'bird'}}",
        "{'cat': [{'dog'}, ('bird',)]}",
        "{'cat': 1j, None: b'dog'}",
        "{'cat', [1]}",
        "{'cat': ...}",
        "{*'cat'}",
        "{**{'cat': 1}}",
        "{'cat' for cat in 'cat'}",
        "('cat', 'dog')",
    ],
)
def test_python_before_the_boxes_is_passed_over(family, before):
    assert parse(f"Objects: {before}\n[{ONE}]", family) == [ONE_READ[family]]


@pytest.mark.parametrize("family", JSON)
@pytest.mark.parametrize(
    "text",
    [
        "{'bbox_2d'}",
        "{'bbox_2d', 'label'}",
        "{'bbox_2d': {1, 2, 3, 4}}",
        "{'bbox_2d': b'1234'}",
        "{'bbox_2d': [1j, 2, 3, 4]}",
        "{'bbox_2d': [1, 2, 3, None]}",
        "{'bbox_2d': [1, 2, 3, {4}]}",
        "{'bbox_2d': [0x" + "f" * 5000 + ", 2, 3, 4]}",
        "{'bbox_2d': " + "-" * 5000 + "1}",
        '{"bbox_2d": [1, 2, 3, ' + "9" * 5000 + "]}",
    ],
    ids=lambda text: text[:40],
)
def test_python_that_is_no_box_is_an_error(family, text):
    assert_unreadable(text, family)


@pytest.mark.parametrize("family", JSON)
def test_a_characters_number_of_too_many_digits_stays_as_it_is_written(family):
    number = f"&#{'9' * 5000};"
    [point] = parse(f'<points x1="100" y1="200" alt="{number}">eye</points>', family)
    assert point.label == number


ANSWERS = {  # right ones, to be damaged
    **{
        family: [
            tagged(family, "[ref]cat[/ref][box](100,200),(300,400)[/box]"),
            tagged(family, SIGN_TEXT),
            f"<think>\n{{'cat'}}\n</think>{tagged(family, '[box](1,2),(3,4)[/box]')}",
        ]
        for family in TAGS
    },
    **{
        family: [
            f"```json\n[\n\t{ONE},\n\t{ONE}\n]\n```",
            "[{'bbox_2d': (1, 2, 3, 4), 'label': 'it\\'s'}, {'point_2d': [5, 6]}]",
            f"Objects: {{'cat', 'dog'}}\n{ONE}",
            "{'bbox_2d': {'a': {'b'}}, 'label': [b'c', (1j, None)]}",
            '<points x1="1" y1="2" x2="3" y2="4" alt="a &amp; b">a</points>',
        ]
        for family in JSON
    },
}
SCRAPS = [*"{}[]()'\"\\<>/,:;|*&#=.-+ \n019jbrux", "'a'", "b'", "{'", "'}", "\ud800", "\0", "1e999"]
cuts = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 4), st.sampled_from(["", *SCRAPS])), max_size=8
)


@pytest.mark.parametrize("family", FORMATS)
@settings(max_examples=400, deadline=None)
@given(data=st.data(), cuts=cuts)
def test_damaged_answers_raise_nothing_else(family, data, cuts):
    text = data.draw(st.sampled_from(ANSWERS[family]))
    for place, length, scrap in cuts:
        place %= len(text) + 1
        text = text[:place] + scrap + text[place + length :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            items = parse(text, family)
        except GroundingParseError as error:
            assert error.text == text and "the reader failed" not in str(error)
        else:
            assert all(0 <= v <= 500 for item in items for v in list(vars(item).values())[1:])


@pytest.mark.parametrize("family", FORMATS)
@pytest.mark.parametrize("error", [AttributeError("keys"), RecursionError(), MemoryError()])
def test_whatever_a_reader_raises_is_a_parse_error(family, error, monkeypatch):
    def broken(*_):
        raise error

    monkeypatch.setattr(parse_module, "read_answer", broken)
    assert_unreadable("any answer", family)


REPEATED = [
    *(
        "{",
        '{"',
        '{"\\"',
        '{"a":',
        '{"bbox_2d":',
        '{"bbox_2d":[',
        '{"bbox_2d":"\\"',
        "{'bbox_2d':[1,2,3,4],'a':",
        "{'",
        "{'a':'\\'",
        "{'a",
        "bbox_2d",
        "[[",
    ),
    *(
        '"',
        "\\",
        "}",
        "{ ",
        " ",
        "1",
        "(",
        "(1",
        "(1,",
        "( ",
        "(1 , 2)",
        "(1,2),",
        "-",
        "<",
        "<points ",
        "<point x='1' ",
        '<points x1="1" y1="2" ',
        '<points x1="',
        "```json",
        "```json\n[",
    ),
    *("</think>", "\n", '{"bbox_2d":[1,2,3,4]}', '{"bbox_2d":[1,1,', "bbox_2d ", "(1,2)   ,   "),
    *(tag for tags in TAGS.values() for tag in tags),
    *(f"{tags[2]}(1,2),(3,4){tags[3]}" for tags in TAGS.values()),
    *(f"{tags[2]}(" for tags in TAGS.values()),
]


@pytest.mark.parametrize("family", TAGS)
@pytest.mark.parametrize("start", ["[box]", "[box](1,2)", "[box](1,2),", "[box](1,2),(3,4)"])
def test_long_blanks_take_linear_time(family, start):
    text = tagged(family, start + " " * 50_000 + "x[/box]")
    begin = time.process_time()
    assert_unreadable(text, family)
    assert time.process_time() - begin < 0.5  # measured: 0.001


def seconds_to_read(text, family):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()
        try:
            parse(text, family)
        except GroundingParseError as error:
            assert len(str(error)) < 400
        return time.process_time() - start


@pytest.mark.parametrize("family", FORMATS)
def test_repetition_takes_linear_time(family):
    seconds = {unit: seconds_to_read(unit * (100_000 // len(unit)), family) for unit in REPEATED}
    slowest = max(seconds, key=seconds.get)
    # measured: 0.09, on a crowded machine 0.36; what grows with the square takes minutes
    assert seconds[slowest] < 2, (slowest, seconds[slowest])


@pytest.mark.parametrize("family", FORMATS)
@pytest.mark.parametrize(
    "unit",
    [
        *(
            "[",
            "{",
            "<",
            '"',
            "'",
            '{"',
            "{'",
            "( ",
            "x",
            "猫",
            ONE,
            '{"bbox_2d":[',
            "<points x1='",
        ),
        *("[box](1,2),(3,4)[/box]", "[ref]cat[/ref]", "[box]", "[quad](1,2),(", "</think>"),
    ],
)
def test_long_texts_take_linear_time(family, unit):
    unit = tagged(family, unit) if family in TAGS else unit
    text = unit * (250_000 // len(unit.encode()))
    # a megabyte takes 0.6 s at most; a square that takes more than 4 s is found by this
    assert grows_linearly(lambda text: seconds_to_read(text, family), text)
