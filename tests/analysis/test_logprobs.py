"""How sure the model was: numbers, boxes in every format, and what is shown of it."""

import math
import re

import numpy as np
import PIL.Image
import pytest

import vlkit
from vlkit.analysis.logprobs import coordinate_spans
from vlkit.errors import VlkitError
from vlkit.grounding.parse import format_of, locate_grounding

SIZE = (1000, 1000)  # so that numbers over 1000 are pixels


@pytest.fixture(scope="module")
def scored(vlm):
    message = vlkit.user("Locate the red circle.", vlkit.sample("three_shapes"))
    reply = vlkit.generate(vlm, message)
    return reply, vlkit.token_logprobs(vlm, message, answer=reply)


def test_tokens_make_up_the_answer(scored):
    reply, sure = scored
    assert "".join(sure.tokens) == sure.text == reply.raw
    assert len(sure.logprobs) == len(sure.ids) == reply.usage.new_tokens
    assert (sure.logprobs <= 0).all()


def test_a_box_is_as_sure_as_its_coordinates(scored):
    reply, sure = scored
    digits = [i for i, token in enumerate(sure.tokens) if token.strip("(),").isdigit()]
    expected = math.exp(np.mean([sure.logprobs[i] for i in digits]))
    assert sure.confidence(reply.boxes[0]) == pytest.approx(expected, rel=1e-6)
    assert sure.confidences == ((reply.boxes[0], sure.confidence(reply.boxes[0])),)
    with pytest.raises(VlkitError, match="is not one of the answer's 1 boxes"):
        sure.confidence(vlkit.Box("cat", 0, 0, 1, 1))


def test_a_wrong_box_is_less_sure_than_the_right_one(vlm):
    message = vlkit.user("Locate the red circle.", vlkit.sample("three_shapes"))
    truth = vlkit.samples()["three_shapes"].boxes[0]
    sure = []
    for shift in (0, 120):
        box = vlkit.Box("the red circle", *(v + shift for v in truth.xyxy))
        text = vlkit.format_grounding(box, family=vlm.family, image_size=(400, 300))
        scored = vlkit.token_logprobs(vlm, message, answer=text + "<|im_end|>")
        sure.append(scored.confidences[0][1])
    assert sure[0] > 2 * sure[1]


def test_chinese_characters_of_several_tokens_are_shown_whole(vlm):
    message = vlkit.user("这是什么？", vlkit.sample("three_shapes"))
    answer = "龘🦖 <b>&amp;\n红色"
    sure = vlkit.token_logprobs(vlm, message, answer=answer)
    assert "".join(sure.tokens) == answer and "" in sure.tokens
    shown = sure._repr_html_()
    assert "<b>" not in shown and "&lt;" in shown and "\ufffd" not in shown
    texts = re.sub(r"<[^>]+>", "", shown.split("</p>")[0])
    assert texts.replace("⏎", "") == "龘🦖 &lt;b&gt;&amp;amp;\n红色"
    values = [float(p) for p in re.findall(r'title="([\d.]+)"', shown.split("</p>")[0])]
    assert np.prod(values) == pytest.approx(math.exp(sure.logprobs.sum()), abs=1e-3)


def test_colours_follow_the_probability(scored):
    shown = scored[1]._repr_html_()
    shades = re.findall(r"rgba\(213,94,0,([\d.]+)\)[^>]*title=\"([\d.]+)\"", shown)
    pairs = sorted((float(p), -float(shade)) for shade, p in shades)
    assert pairs == sorted(pairs, key=lambda pair: (pair[1], pair[0])) and len(pairs) > 10


def test_a_picture_without_boxes_or_no_picture_at_all(vlm):
    for message in ("Hello", vlkit.user("What is this?", PIL.Image.new("RGB", (80, 80)))):
        sure = vlkit.token_logprobs(vlm, message, max_new_tokens=3)
        assert len(sure.tokens) <= 3 and "probability:" in sure._repr_html_()


@pytest.mark.parametrize(
    ("family", "text", "numbers"),
    [
        (
            "qwen2_vl",
            "<|object_ref_start|>house 12<|object_ref_end|><|box_start|>(1,20),(300,404)<|box_end|>"
            "<|box_start|>(5,6)<|box_end|>",
            [["1", "20", "300", "404"], ["5", "6"]],
        ),
        ("qwen_vl", "<ref>7 up</ref><box>(1,2),(3,4)</box>", [["1", "2", "3", "4"]]),
        (
            "qwen2_5_vl",
            '```json\n[{"bbox_2d": [1, 20.5, 300, 404], "label": "house 12, 13"},'
            ' {"id": 8, "point_2d": [5, 6], "label": "a"}]\n```',
            [["1", "20.5", "300", "404"], ["5", "6"]],
        ),
        (
            "qwen3_vl",
            '{"label": "7 up", "bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]}',
            [["1", "2", "3", "4"], ["5", "6", "7", "8"]],
        ),
        (
            "qwen2_5_vl",
            '<points x1="11" y1="12" x2="13" y2="14" alt="tree 9">tree 9</points>',
            [["11", "12"], ["13", "14"]],
        ),
        (
            "qwen3_5",
            '<think>[1, 2]</think>{"bbox_2d": [9, 8, 77, 66]}',
            [["9", "8", "77", "66"]],
        ),
    ],
)
def test_coordinates_are_told_from_labels_in_every_format(family, text, numbers):
    placed, _ = locate_grounding(text, family=family, image_size=SIZE, input_size=SIZE)
    spans = [coordinate_spans(text, start, end, format_of(family)) for _, start, end in placed]
    found: list = []
    for index, own in enumerate(spans):
        if index == 0 or placed[index][1:] != placed[index - 1][1:]:
            found += [text[start:end] for start, end in own]
    assert found == [number for each in numbers for number in each]
