"""Answers as models really write them: other keys, slips in JSON, documents, actions of agents."""

import json
import random
import re
import warnings
from contextlib import suppress
from pathlib import Path

import PIL.Image
import pytest
from linear import grows_linearly

from vlkit import Box, Point, Quad, format_grounding, parse_grounding
from vlkit.errors import GroundingParseError, VlkitError
from vlkit.generation.reply import Reply, Usage
from vlkit.grounding.keys import COORDINATE_KEYS, LABEL_KEYS
from vlkit.grounding.parse import locate_grounding

SIZE = (1000, 1000)  # thousandths are pixels
CAT = Box("cat", 100, 200, 300, 400)
BARE = Box("", 100, 200, 300, 400)


def parse(text, family="qwen3_vl", size=SIZE, **options):
    return parse_grounding(text, family=family, image_size=size, **options)


def read(text, family="qwen3_vl", size=SIZE, **options):
    """What was read, and the text of the warning, "" if there was none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        items = parse(text, family, size, **options)
    return items, "; ".join(str(each.message) for each in caught)


# --- keys ----------------------------------------------------------------------------------------

KEYS = {key: (kind, sizes) for kind, sizes, *columns in COORDINATE_KEYS for key in
        " ".join(columns).split()}  # fmt: skip
SHAPES = {
    2: ([100, 200], Point("cat", 100, 200)),
    4: ([100, 200, 300, 400], CAT),
    8: ([100, 200, 300, 200, 300, 400, 100, 400],
        Quad("cat", 100, 200, 300, 200, 300, 400, 100, 400)),
}  # fmt: skip


@pytest.mark.parametrize("key", [key for key, (kind, _) in KEYS.items() if kind in
                                 ("box", "point", "quad", "place")])  # fmt: skip
def test_every_key_of_the_table_in_every_spelling(key):
    for size in KEYS[key][1]:
        numbers, expected = SHAPES[size]
        for spelled in (key, key.upper(), key.replace("_", "-"), key.replace("_", " ").title()):
            for text in (
                json.dumps({spelled: numbers, "label": "cat"}, ensure_ascii=False),
                json.dumps([{"label": "cat", spelled: [numbers]}]),
                f"```json\n{json.dumps({'objects': [{'label': 'cat', spelled: numbers}]})}\n```",
            ):
                assert read(text)[0] == [expected], text


@pytest.mark.parametrize("key", [key for key in LABEL_KEYS.split() if key != "names"])
def test_every_key_of_a_label(key):
    for spelled in (key, key.upper(), key.title()):
        assert parse(f'[{{"bbox_2d": [100, 200, 300, 400], "{spelled}": "cat"}}]') == [CAT]


@pytest.mark.parametrize(
    "text, expected",
    [
        # QwenLM/Qwen3-VL, cookbooks/omni_recognition.ipynb asks for both
        ('{"bbox_2d": [100, 200, 300, 400], "name_zh": "猫", "name_en": "cat"}', [CAT]),
        ('{"bbox_2d": [100, 200, 300, 400], "names": {"zh": "猫", "en": "cat"}}', [CAT]),
        ('{"bbox_2d": [100, 200, 300, 400], "label": "", "name": "cat"}', [CAT]),
        ('{"bbox_2d": [100, 200, 300, 400], "name": "cat", "description": "grey"}', [CAT]),
        ('{"bbox_2d": [100, 200, 300, 400], "label": ["cat", "pet"]}',
         [Box("cat, pet", *CAT.xyxy)]),
        ('{"bbox_2d": [100, 200, 300, 400], "label": 12345678}', [Box("12345678", *CAT.xyxy)]),
        # labels as keys
        ('{"cat": {"bbox_2d": [100, 200, 300, 400]}}', [CAT]),
        ('{"cat": [{"bbox_2d": [100, 200, 300, 400]}]}', [CAT]),
        ('{"objects": [{"bbox_2d": [100, 200, 300, 400]}]}', [BARE]),
        ('{"cat": [100, 200, 300, 400]}', [CAT]),
        ('{"result": {"objects": {"cat": [100, 200, 300, 400]}}}', [CAT]),
        ('{"objects": [[100, 200, 300, 400]]}', [BARE]),
        ('{"objects": {"cat": 3}}', []),
        # one label for many, and one for each
        ('{"object": "cat", "bboxes": [[100, 200, 300, 400], [1, 2, 3, 4]]}',
         [CAT, Box("cat", 1, 2, 3, 4)]),
        ('{"bboxes": [[100, 200, 300, 400], [1, 2, 3, 4]], "labels": ["cat", "dog"]}',
         [CAT, Box("dog", 1, 2, 3, 4)]),
        ('{"label": "cat", "instances": [{"bbox_2d": [100, 200, 300, 400]}]}', [CAT]),
        # corners with names
        ('{"bbox": {"x1": 100, "y1": 200, "x2": 300, "y2": 400}, "label": "cat"}', [CAT]),
        ('{"box": {"xmin": 100, "ymin": 200, "xmax": 300, "ymax": 400}, "label": "cat"}', [CAT]),
        ('{"rect": {"left": 100, "top": 200, "right": 300, "bottom": 400}, "label": "cat"}', [CAT]),
        ('{"bbox": {"x": 100, "y": 200, "width": 200, "height": 200}, "label": "cat"}', [CAT]),
        ('{"x1": 100, "y1": 200, "x2": 300, "y2": 400, "label": "cat"}', [CAT]),
        ('{"bbox": {"top_left": [100, 200], "bottom_right": [300, 400]}, "label": "cat"}', [CAT]),
        ('{"bbox_xywh": [100, 200, 200, 200], "label": "cat"}', [CAT]),
        ('{"point": {"x": 10, "y": 20}, "label": "eye"}', [Point("eye", 10, 20)]),
        ('{"points": [{"x": 10, "y": 20, "label": "eye"}, {"x": 1, "y": 2}]}',
         [Point("eye", 10, 20), Point("", 1, 2)]),
        # what stands inside
        ('{"bbox_2d": [100, 200, 300, 400], "label": "cat", "children": [{"bbox_2d": [1, 2, 3, 4],'
         ' "label": "ear", "parts": [{"point_2d": [5, 6], "label": "tip"}]}]}',
         [CAT, Box("ear", 1, 2, 3, 4), Point("tip", 5, 6)]),
        ('{"bbox_2d": [100, 200, 300, 400], "label": "cat", "keypoints": [[10, 12], [20, 22]]}',
         [CAT, Point("cat", 10, 12), Point("cat", 20, 22)]),
        ('{"bbox_2d": [100, 200, 300, 400], "label": "cat", "keypoints": {"nose": [10, 12]}}',
         [CAT, Point("nose", 10, 12)]),
        # four corners
        ('{"quad_2d": [[1, 2], [3, 4], [5, 6], [7, 8]], "label": "s"}',
         [Quad("s", 1, 2, 3, 4, 5, 6, 7, 8)]),
        ('{"segmentation": [[1, 2, 3, 4, 5, 6, 7, 8]], "label": "s"}',
         [Quad("s", 1, 2, 3, 4, 5, 6, 7, 8)]),
        # a key twice, where a brace is missing
        ('{"bbox_2d": [100, 200, 300, 400], "label": "cat", "bbox_2d": [1, 2, 3, 4],'
         ' "label": "dog"}', [CAT, Box("dog", 1, 2, 3, 4)]),
        # not there
        ('{"bbox_2d": null}', []),
        ('[{"bbox_2d": null, "label": "car"}]', []),
        ('{"bbox_2d": [], "label": "car"}', []),
        ('{"bbox_2d": "None", "label": "car"}', []),
        ('{"bboxes": [[]]}', []),
        ("null", []),
        ("```json\nnull\n```", []),
        # the same words for other things
        ('{"location": "Paris", "position": "left", "points": 12, "boxes": 3, "box": "lunch"}', []),
        ('{"coordinates": [48.8567, 2.3508]}', []),
        ('{"size": [640, 480]}', []),
        ('{"ages": [1, 2, 3, 4], "name": "Ann"}', []),
        # other languages, and what layout models write
        ('[{"caja": [100, 200, 300, 400], "etiqueta": "cat"}]', [CAT]),
        ('[{"caixa_delimitadora": [100, 200, 300, 400], "rótulo": "cat"}]', [CAT]),
        ('[{"境界ボックス": [100, 200, 300, 400], "ラベル": "cat"}]', [CAT]),
        ('[{"경계 상자": [100, 200, 300, 400], "레이블": "cat"}]', [CAT]),
        ('[{"邊界框": [100, 200, 300, 400], "標籤": "cat"}]', [CAT]),
        ('[{"type": "cat", "bbox": [100, 200, 300, 400], "angle": 0}]', [CAT]),
        # a ring
        ('{"type": "s", "coordinates": [[[1, 2], [3, 4], [5, 6], [7, 8], [1, 2]]]}',
         [Quad("s", 1, 2, 3, 4, 5, 6, 7, 8)]),
        ('[{&quot;bbox_2d&quot;: [100, 200, 300, 400], &quot;label&quot;: &quot;cat&quot;}]',
         [CAT]),
    ],
)  # fmt: skip
def test_keys(text, expected):
    assert read(text)[0] == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[100, 200, 300, 400]", [BARE]),
        ("[[100, 200, 300, 400]]", [BARE]),
        ("```json\n[[100, 200, 300, 400], [1, 2, 3, 4]]\n```", [BARE, Box("", 1, 2, 3, 4)]),
        ("The cat is here:\n```\n[100, 200, 300, 400]\n```", [BARE]),
        ("(100,200),(300,400)", [BARE]),
        ("100, 200, 300, 400", [BARE]),
        ("<think>\nhm\n</think>\n\n[100, 200, 300, 400]<|im_end|>\n", [BARE]),
        ("[100, 200, 300, 400]<|im_end|><|endoftext|>", [BARE]),
        ("[10, 20]", [Point("", 10, 20)]),
        ("(10, 20)", [Point("", 10, 20)]),
        ("[[10, 20], [30, 40], [50, 60]]", [Point("", x, x + 10) for x in (10, 30, 50)]),
        ("<think>hm</think><answer>\n[100, 200, 300, 400]\n</answer>", [BARE]),
        ("The primes are [2, 3, 5, 7].", []),
        ("[1, 2, 3]", []),
        ("[1, 2, 3, 4], [5, 6, 7, 8]", [Box("", 1, 2, 3, 4), Box("", 5, 6, 7, 8)]),
        ("The size is (640, 480).", []),
        ("[12:30]", []),
        ("(555) 123-4567", []),
        ("42", []),
    ],
)
def test_bare_numbers_count_where_nothing_else_stands(text, expected):
    assert read(text)[0] == expected


@pytest.mark.parametrize("text", ["[100, 200, 300", "[[1, 2, 3, 4], [5, 6", "[[1,2],3,4"])
def test_bare_numbers_that_are_cut_off_are_an_error(text):
    with pytest.raises(GroundingParseError, match=r"ends inside .*raise max_new_tokens"):
        parse(text)


@pytest.mark.parametrize("family", ["qwen_vl", "qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize(
    "text",
    ["The cat is at (100, 200), (300, 400).", "cat: (100，200)，(300，400)", "cat [1, 2, 3, 4]",
     "It spans (100, 200) to (300, 400)", "(100, 200), (300, 4", "It is at [100, 200, 300, 400].",
     "猫的坐标是(100,200)", "目标框：[100,200,300,400]", "x1=100, y1=200, x2=300, y2=400",
     "<100><200><300><400>", "top-left (100, 200)", "[[;101, 20, 30, 40]]", "[[;101, 2",
     "[100 200 300 400]", "[[1, 2, 3]]", "| cat | [1, 2, 3, 4] |", "cat,1,2,3,4", "tap [1, 2]",
     "左上角(100,200)，右下角(300,400)", "座標（100，200）",
     "x: 120\ny: 340\nwidth: 50\nheight: 60",
     "- **x1**: 1\n- **y1**: 2\n- **x2**: 30\n- **y2**: 40"],
)  # fmt: skip
def test_coordinates_that_cannot_be_read_are_an_error(text, family):
    with pytest.raises(GroundingParseError, match=r"in no known form|in a sentence|bare|ends in"):
        parse(text, family)


OTHER_MODELS = [
    # Kosmos-2 and 2.5
    "<phrase>a cat</phrase><object><patch_index_0044><patch_index_0863></object>",
    "<patch_index_0044> <patch_index_0863>",
    "<ocr><bbox><x_12><y_34><x_56><y_78></bbox>Invoice",
    # PaliGemma
    "<loc0123><loc0456><loc0789><loc0999> cat ; <loc0001><loc0002><loc0003><loc0004> dog",
    "cat <loc_123> <loc_456> <loc_789> <loc_999>",  # Florence-2
    "<bin_123> <bin_456> <bin_789> <bin_999>",  # OFA
    "<doctag><text><loc_12><loc_34><loc_56><loc_78>hello</text></doctag>",  # Granite-Docling
    "<extra_id_234> <extra_id_456> <extra_id_834> <extra_id_956> cat",  # Unified-IO
    "The answer is <c0>, <p12>, <p45>, <p78>, <p90>",  # VisionLLM
    "<p>cats</p> {<12><34><56><78>}<delim>{<2><3><6><8>}",  # MiniGPT-v2
    "Invoice<|LOC_123|><|LOC_45|><|LOC_500|><|LOC_45|>",  # PaddleOCR-VL
    "<|12|><|34|><|56|><|78|>",
    # Shikra
    "A cat[0.392,0.254,0.468,0.628] sits.",
    "The cats[0.1,0.2,0.3,0.4;0.5,0.6,0.7,0.8] sleep",
    "The cat[0.512,0.313] sleeps",
    "A cat[[123,045,789,912]] on the mat",  # CogVLM
    "<|ref|>cat<|/ref|><|det|>[[123, 456, 789, 999]]<|/det|>",  # DeepSeek-VL2, DeepSeek-OCR
    "The cat is <|begin_of_box|>[123, 456, 789, 999]<|end_of_box|>",  # GLM-4.5V
]


@pytest.mark.parametrize("text", OTHER_MODELS)
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_the_forms_of_other_models_are_an_error_that_names_them(text, family):
    with pytest.raises(GroundingParseError, match=r"in no known form \(.*another kind of model"):
        parse(text, family, input_size=SIZE)
    own = "{" + ITEM + "}" if family != "qwen2_vl" else "<|box_start|>(1,2),(3,4)<|box_end|>"
    items, warning = read(f"{own}\n{text}", family, input_size=SIZE)
    assert items == [Box("", 1, 2, 3, 4)] and "1 read, 1 left out" in warning


@pytest.mark.parametrize(
    "text",
    ["The clip shows <t_1><t_2>", "<image_1><image_2> both show cats", "<frame1> <frame2>: a cat",
     "<h1>Title</h1> <h2>Sub</h2>", "f(2, 3) = 5", "Smith (2019, 2020) says", "H[1] = [1,2,3]",
     "[0:03, 0:05]", "192.168.1.1", "np.zeros((3, 4))", "12/05/2023", "H2O and CO2", "x = 3"],
)  # fmt: skip
def test_what_only_resembles_them_is_nothing(text):
    assert read(text) == ([], "")


def test_labels_that_are_lost_are_named():
    box = "<|box_start|>(1,2),(3,4)<|box_end|>"
    items, warning = read(f"{box}<|object_ref_start|>cat<|object_ref_end|>", "qwen2_vl")
    assert items == [Box("", 1, 2, 3, 4)] and "no box follows the label 'cat'" in warning
    # MinerU2.5
    items, warning = read(f"{box}<|ref_start|>title<|ref_end|><|rotate_up|>", "qwen2_vl")
    assert items == [Box("", 1, 2, 3, 4)] and "<|ref_start|>title is no token" in warning
    text = f"<|object_ref_start|>cat<|object_ref_end|>{box}<|object_ref_start|>a<|object_ref_end|>"
    assert read(text, "qwen2_vl") == ([Box("cat", 1, 2, 3, 4)], "")


def test_coordinates_next_to_what_was_read_are_named():
    items, warning = read("<ref>a</ref><box>(1,2),(3,4)</box> and (5, 6), (7, 8)", "qwen_vl")
    assert items == [Box("a", 1, 2, 3, 4)] and "1 read, 1 left out" in warning
    assert "(5, 6), (7, 8)" in warning


# --- slips ---------------------------------------------------------------------------------------

ITEM = '"bbox_2d": [1, 2, 3, 4]'


@pytest.mark.parametrize(
    "text, label",
    [
        # OmniParser#220
        ('```json\n[\n {\n  "bbox_2d": [1, 2, 3, 4],\n  "label": "dog",\n },\n]\n```', "dog"),
        ("{" + ITEM + ',, "label": "a"}', "a"),
        ("{" + ITEM + ' "label": "a"}', "a"),  # no comma
        ('[{"bbox_2d": [1, 2, 3, 4}', ""),  # no bracket
        ('{"bbox_2d": 1, 2, 3, 4, "label": "a"}', "a"),  # no brackets
        # olmocr#121
        ("{" + ITEM + r', "text_content": "\(x^2\)"}', r"\(x^2\)"),
        ("{" + ITEM + r', "text_content": "\frac{a}{b}"}', r"\frac{a}{b}"),
        ("{" + ITEM + r', "text_content": "\beta \times \nu \theta \rho"}',
         r"\beta \times \nu \theta \rho"),
        ("{" + ITEM + r', "text_content": "\\frac{a}{b}"}', r"\frac{a}{b}"),
        ("{" + ITEM + r', "text_content": "C:\Users"}', r"C:\Users"),
        ("{" + ITEM + r', "text_content": "C:\temp\new"}', r"C:\temp\new"),
        ("{" + ITEM + r', "text_content": "C:\\temp"}', r"C:\temp"),
        ("{" + ITEM + r', "text_content": "a\nb\u732b\"c\" \/"}', 'a\nb猫"c" /'),
        ("{" + ITEM + r', "label": "\ud83d\ude00"}', "\U0001f600"),
        # langroid#569
        ("{" + ITEM + ', "text_content": "line 1\nline 2\tb"}', "line 1\nline 2\tb"),
        ("{" + ITEM + ', "text_content": "27" monitor"}', '27" monitor'),
        ("{" + ITEM + ', "text_content": "say "hi", then go"}', 'say "hi", then go'),
        ("{" + ITEM + ', "text_content": "27", 30" or 32""}', '27", 30" or 32"'),
        ("{" + ITEM + ", 'label': 'it's'}", "it's"),
        ('{"label": "dog, ' + ITEM + "}", "dog"),  # no quote
        ("{bbox_2d: [1, 2, 3, 4], label: red dog}", "red dog"),
        ("{" + ITEM + ', // left\n "label": "a"}', "a"),
        ("{" + ITEM + ', /* left */ "label": "a"}', "a"),
        ("{" + ITEM + ', # left\n "label": "a"}', "a"),
        ('[{"bbox_2d": "[1, 2, 3, 4]", "label": "a"}]', "a"),
        ('[{"bbox_2d": "1 2 3 4", "label": "a"}]', "a"),
        ('[{"bbox_2d": "(1,2),(3,4)", "label": "a"}]', "a"),
        ('[{"bbox_2d": [[1, 2], [3, 4]], "label": "a"}]', "a"),
        ('[{"bbox_2d"：[1，2，3，4]，"label"："羊"}]', "羊"),
        ('｛"bbox_2d"：［1、2、3、4］，"label"："羊"｝', "羊"),
        ("[{“bbox_2d”: [1, 2, 3, 4], “label”: “cat”}]", "cat"),
        ("{'bbox_2d': (1, 2, 3, 4), 'label': 'a', 'sure': True, 'of': None}", "a"),
        (r'[{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"cat\"}]', "cat"),
        (json.dumps(json.dumps([{"bbox_2d": [1, 2, 3, 4], "label": "cat"}])), "cat"),
        ("{'content': '[{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"cat\"}]'}", "cat"),
        ('{\n{"bbox_2d": [1, 2, 3, 4], "label": "a"}\n]', "a"),  # a brace too many
        ("{" + ITEM + ', "label": 0xff}', "0xff"),
        ('{"bbox_2d": [１, ２, ３, ４], "class": 3, "class_name": "cat"}', "cat"),
        ("{" + ITEM + r', "text_content": "\\sum_{i} x_i \right)"}', r"\sum_{i} x_i \right)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
def test_slips_around_whole_numbers(text, label, family):
    assert parse(text, family) == [Box(label, 1, 2, 3, 4)]


@pytest.mark.parametrize("text", ["bbox: [1, 2, 3, 4]", "Bounding box is bbox_2d = 1, 2, 3, 4"])
def test_coordinates_outside_json_are_an_error(text):
    with pytest.raises(GroundingParseError, match="outside JSON"):
        parse(text)
    assert parse('The key is "bbox": see [1].') == parse('{"type": "bbox"}') == []


def test_what_stands_in_a_label_is_no_box():
    text = "{" + ITEM + r', "text_content": "{\"bbox_2d\": [9, 9, 9, 9]}"}'
    assert parse(text) == [Box('{"bbox_2d": [9, 9, 9, 9]}', 1, 2, 3, 4)]


@pytest.mark.parametrize(
    "numbers",
    ["1, 2, 3", "1, 2, 3, 4, 5", "1,,2,3,4", "1 2 3 4", "1,000, 2, 3", "1, 2, 3, 40.", "1_0, 2, 3",
     "1, 2, 3, 4px", '"10%", 2, 3, 4', "1, 2, 3, 1e999", "1, 2, 3, NaN", "1, 2, 3, x",
     "1/2, 2, 3, 4", "1-2, 3, 4, 5", "+1, 2, 3, 4", "1, 2, 3, 4, [", "1, 2, 3, null"],
)  # fmt: skip
def test_numbers_that_are_not_whole_are_never_guessed(numbers):
    with pytest.raises(GroundingParseError, match=r"neither a box nor|ends inside"):
        parse('{"bbox_2d": [' + numbers + '], "label": "a"}')


# --- what may mean something else, and what has no place -----------------------------------------


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"bbox": [100, 200, 300, 400]}', True),  # COCO's name; 100 + 300 is in the picture
        ('{"bbox": [100, 200, 50, 60]}', True),  # corners the wrong way round
        ('{"bbox": [600, 500, 900, 800]}', False),  # 600 + 900 is not
        ('[{"bbox": [100, 200, 300, 400]}, {"bbox": [600, 500, 900, 800]}]', False),
        ('{"bbox_2d": [100, 200, 300, 400]}', False),
        ('{"bbox_2d": [300, 400, 100, 200]}', False),
        ('{"xyxy": [100, 200, 300, 400]}', False),
        ('{"bbox": {"xmin": 100, "ymin": 200, "xmax": 300, "ymax": 400}}', False),
        ('{"bbox": {"x": 100, "y": 200, "w": 200, "h": 200}}', False),
        ("[100, 200, 300, 400]", True),
    ],
)
def test_four_numbers_that_might_be_width_and_height_are_read_as_corners_and_said(text, said):
    items, warning = read(text)
    assert isinstance(items[0], Box)
    assert ("read as x1, y1, x2, y2; if the model means x, y, width" in warning) == said


FORM = {"json": '{"bbox_2d": [%s, %s, %s, %s], "label": "a"}',
        "tags": "<|box_start|>(%s,%s),(%s,%s)<|box_end|>",
        "old tags": "<box>(%s,%s),(%s,%s)</box>",
        "list": "[%s, %s, %s, %s]",
        "page": '<p data-bbox="%s %s %s %s">a</p>',
        "call": "CLICK(box=[[%s,%s,%s,%s]], element_type='link')"}  # fmt: skip


@pytest.mark.parametrize("form", FORM)
@pytest.mark.parametrize("family", ["qwen_vl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_fractions_are_shares_of_the_picture_in_every_family_and_said(family, form):
    """MoonshotAI/Kimi-VL#56; lmms-eval's and VLMEvalKit's groundingme read all below 1 so."""
    sizes = {"size": (2000, 500), "input_size": (1008, 504)}
    text = FORM[form] % (0.1, 0.2, 0.5, 0.9)
    (box,), warning = read(text, family, **sizes)
    assert box.xyxy == pytest.approx((200, 100, 1000, 450))
    assert "fractions of the picture (0-1)" in warning and 'pass space="' in warning
    assert read(text, family, space="0-1", **sizes)[0] == [box]
    (thousandths,), warning = read(text, family, space="0-1000", **sizes)
    assert thousandths.xyxy == pytest.approx((0.2, 0.1, 1, 0.45)) and "fractions" not in warning


@pytest.mark.parametrize(
    "text, expected",
    [
        ("(0.49, 0.40)", [Point("", 490, 400)]),  # SeeClick
        ("pyautogui.click(x=0.5, y=0.3)", [Point("", 500, 300)]),  # Aguvis
        ("{'action': 'CLICK', 'position': [0.49, 0.42]}", [Point("", 490, 420)]),  # ShowUI
        ('{"x_min": 0.1, "y_min": 0.2, "x_max": 0.5, "y_max": 1}', [Box("", 100, 200, 500, 1000)]),
        # a whole picture among them, and one that reaches out of it
        ('[{"bbox_2d": [0, 0, 1, 1]}, {"bbox_2d": [0.5, 0.5, 1.01, 1]}]',
         [Box("", 0, 0, 1000, 1000), Box("", 500, 500, 1000, 1000)]),
        # thousandths among fractions stay thousandths, a point in the corner too
        ('[{"bbox_2d": [0.1, 0.2, 0.3, 0.4]}, {"bbox_2d": [1, 2, 30, 40]}, {"point_2d": [1, 1]}]',
         [Box("", 100, 200, 300, 400), Box("", 1, 2, 30, 40), Point("", 1, 1)]),
        ('{"rbox_2d": [0.5, 0.5, 0.2, 0.1, 90]}',
         [Quad("", 550, 400, 550, 600, 450, 600, 450, 400)]),
    ],
)  # fmt: skip
def test_fractions_of_other_models(text, expected):
    items, warning = read(text)
    numbers = [tuple(vars(item).values())[1:] for item in items]
    assert [*map(type, items)] == [*map(type, expected)] and "fractions of the picture" in warning
    assert numbers == [pytest.approx(tuple(vars(item).values())[1:]) for item in expected]


def test_numbers_that_may_be_shares_are_said():
    items, warning = read('{"bbox_2d": [0, 0, 1, 1], "score": 0.98}')
    assert items == [Box("", 0, 0, 1, 1)] and 'for fractions, pass space="0-1"' in warning
    molmo = '<point x="61.5" y="40.2" alt="cat">cat</point>'
    items, warning = read(molmo)
    assert items == [Point("cat", 61.5, 40.2)] and 'for percent, pass space="0-100"' in warning
    assert read(molmo, space="0-100") == ([Point("cat", 615, 402)], "")
    assert read('{"bbox_2d": [10.5, 20.5, 300.5, 400.5]}')[1] == ""
    assert read('{"point_2d": [0, 0], "score": 0.98}')[1] == ""
    with pytest.raises(VlkitError, match='space="0-1" cannot be written'):
        format_grounding([CAT], family="qwen3_vl", image_size=SIZE, space="0-1")


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"bbox_2d": [100, 200, 2900, 400]}', "2.9 times as large as 0-1000 allows"),
        ('{"point_2d": [10, 1500]}', "1.5 times as large"),
        ("<box>(100,200),(2900,400)</box>", "2.9 times as large"),
        ('{"bbox_2d": [100, 200, 1003, 400]}', ""),  # models reach a little out
    ],
)
def test_numbers_far_beyond_the_space_are_said(text, said):
    family = "qwen_vl" if "<" in text else "qwen3_vl"
    warning = read(text, family)[1]
    assert said in warning and bool(said) == ('pass space="original"' in warning)
    assert read(text, family, (4000, 3000), space="original")[1] == ""


@pytest.mark.parametrize(
    "text, key",
    [
        ('{"center": {"x": 50, "y": 50}, "width": 20, "height": 20, "label": "a"}', "width"),
        ('{"center": [50, 50], "radius": 20, "label": "a"}', "radius"),
    ],
)
def test_the_extent_of_a_point_is_named(text, key):
    items, warning = read(text)
    assert (
        items == [Point("a", 50, 50)] and f'"{key}" is not read; a point has no extent' in warning
    )


def test_text_in_bare_lists_is_named():
    paddle = '[[[[1, 2], [30, 2], [30, 40], [1, 40]], ("text", 0.98)]]'
    items, warning = read(paddle)
    assert len(items) == 4 and "text in the bare lists is not read as a label" in warning


def test_a_space_that_the_caller_names_goes_before_that_of_a_tool():
    text = '{"name": "mobile_use", "arguments": {"action": "click", "coordinate": [500, 250]}}'
    assert read(text, size=WIDE, space="0-1000")[0] == [Point("", 540, 152)]


THREE = '{"bbox_3d": [0.1, 0.2, 1.3, 0.5, 0.5, 0.5, 0, 0, 0], "label": "table"}'


def test_3d_boxes_are_named():
    """Qwen3-VL#1916, and cookbooks/3d_grounding.ipynb."""
    with pytest.raises(GroundingParseError, match="bbox_3d is a 3D box") as caught:
        parse(THREE)
    assert "max_new_tokens" not in str(caught.value) and "reply.raw" not in str(caught.value)
    items, warning = read(f"[{{{ITEM}}}, {THREE}, {THREE}]")
    assert items == [Box("", 1, 2, 3, 4)] and "1 read, 2 left out" in warning
    assert "bbox_3d" in warning


def test_key_points_with_a_third_number_are_named():
    items, warning = read(f'{{{ITEM}, "keypoints": [[10, 12, 2], [20, 22, 0]]}}')
    assert items == [Box("", 1, 2, 3, 4)] and "keypoints takes 2 numbers" in warning


def test_polygons_of_more_corners_are_named():
    polygon = '{"polygon": [[1, 2], [3, 4], [5, 6], [7, 8], [9, 9]], "label": "s"}'
    with pytest.raises(GroundingParseError, match="polygon has 5 corners"):
        parse(polygon)
    items, warning = read(f"[{{{ITEM}}}, {polygon}]")
    assert items == [Box("", 1, 2, 3, 4)] and "polygon has 5 corners" in warning


def test_rotated_boxes_become_quads_and_the_angle_is_said():
    items, warning = read('{"rbox_2d": [500, 500, 200, 100, 90], "label": "s"}', size=(2000, 1000))
    (quad,) = items
    # 400 by 100 pixels around (1000, 500), its first corner at the top right after the turn
    expected = [(1050, 300), (1050, 700), (950, 700), (950, 300)]
    assert [tuple(map(round, corner)) for corner in quad.corners] == expected
    assert "degrees clockwise" in warning


def test_of_two_keys_the_first_in_the_table_counts_and_the_other_is_said():
    items, warning = read('{"bbox": [5, 6, 7, 8], "bbox_2d": [1, 2, 3, 4]}')
    assert items == [Box("", 1, 2, 3, 4)] and '"bbox" is ignored; "bbox_2d"' in warning
    assert not read('{"bbox": [1, 2, 3, 4], "bbox_2d": [1, 2, 3, 4]}')[1]


# --- documents and actions -----------------------------------------------------------------------

# recorded: QwenLM/Qwen2.5-VL, cookbooks/document_parsing.ipynb (the texts cut)
PAGE = """```html
<html><body>
<h2 data-bbox="310 94 658 132">Qwen2.5 Technical Report</h2>
 <p data-bbox="427 154 542 182">Qwen Team</p>
 <div class="image" data-bbox="262 195 708 272"><img data-bbox="262 195 708 272"/></div>
 <h2 data-bbox="436 289 533 317">Abstract</h2>
 <p data-bbox="99 339 869 565">In this report &amp; more</p>
</body></html>
```"""


@pytest.mark.parametrize(
    "family, size, input_size",
    [("qwen2_5_vl", (2016, 3080), (1008, 1540)), ("qwen3_vl", (2000, 2000), None)],
)
def test_qwenvl_html(family, size, input_size):
    items, warning = read(PAGE, family, size, input_size=input_size)
    doubled = [(item.label, *(value / 2 for value in item.xyxy)) for item in items]
    assert doubled == [
        ("Qwen2.5 Technical Report", 310, 94, 658, 132),
        ("Qwen Team", 427, 154, 542, 182),
        ("image", 262, 195, 708, 272),
        ("", 262, 195, 708, 272),
        ("Abstract", 436, 289, 533, 317),
        ("In this report & more", 99, 339, 869, 565),
    ]
    assert not warning


@pytest.mark.parametrize(
    "text, expected",
    [
        ('<div data-bbox="1 2 3 4" data-label="Text"><p>hi <b>you</b></p></div>', "hi you"),
        ('<div data-bbox="1 2 3 4" data-label="Figure"></div>', "Figure"),
        ("<div data-bbox='1,2,3,4'><div>a</div>b</div> c", "a b"),
        ('<table data-bbox="[1, 2, 3, 4]"><tr><td>a</td><td>b</td></tr></table>', "a b"),
        ("# T\n<!-- Image (1, 2, 3, 4) -->\n<!-- TODO (see 3) -->", "Image"),
        ("<!-- Table: [1,2,3,4] -->\n\\begin{tabular}", "Table"),
    ],
)
def test_documents(text, expected):
    assert read(text) == ([Box(expected, 1, 2, 3, 4)], "")


CORNERS = (100.0, 200.0, 300.0, 200.0, 300.0, 400.0, 100.0, 400.0)


@pytest.mark.parametrize(
    "text, expected",
    [
        ('<polygon points="100,200 300,200 300,400 100,400"/>', Quad("", *CORNERS)),
        ('<polyline points="100 200 300 200 300 400 100 400" label="a"/>', Quad("a", *CORNERS)),
        ('<Coords points="100,200 300,200 300,400 100,400"/>', Quad("", *CORNERS)),
        (
            '<quad x1="100" y1="200" x2="300" y2="200" x3="300" y3="400" x4="100" y4="400"/>',
            Quad("", *CORNERS),
        ),
        ("<point x=100 y=200>", Point("", 100, 200)),
        ('<point x="100" y="200">a</point>', Point("a", 100, 200)),
        ('<point x="100" y="200"> is the cat, <b>it</b> sits', Point("", 100, 200)),
        ('<point coordinates="(100, 200)"/>', Point("", 100, 200)),
        ("<click>100, 200</click>", Point("", 100, 200)),
        ('<click x="100" y="200"/>', Point("", 100, 200)),
        ('<keypoint name="nose" x="100" y="200"/>', Point("nose", 100, 200)),
        ('<box x1="100" y1="200" x2="300" y2="400">a</box>', Box("a", 100, 200, 300, 400)),
        ("<box x0='100' y0='200' x1='300' y1='400'/>", Box("", 100, 200, 300, 400)),
        ('<BBOX X1="100" Y1="200" X2="300" Y2="400"/>', Box("", 100, 200, 300, 400)),
        ('<object name="a" bbox="[100,200,300,400]"/>', Box("a", 100, 200, 300, 400)),
        ('<rect x="100" y="200" width="30" height="40"/>', Box("", 100, 200, 130, 240)),
        ('<region left=100 top=200 right=300 bottom=400 alt="a">', Box("a", 100, 200, 300, 400)),
        ('<area shape="rect" coords="100,200,300,400" alt="a">', Box("a", 100, 200, 300, 400)),
        (
            "<object><name>a</name><bndbox><xmin>100</xmin><ymin>200</ymin>\n<xmax>300</xmax>"
            "<ymax>400</ymax></bndbox></object>",
            Box("a", 100, 200, 300, 400),
        ),
        ("<object><bbox_2d>[100, 200, 300, 400]</bbox_2d><label>a</label></object>",
         Box("a", 100, 200, 300, 400)),
        ('<object name="a"><bbox_2d>100 200 300 400</bbox_2d></object>',
         Box("a", 100, 200, 300, 400)),
    ],
)  # fmt: skip
def test_coordinates_in_attributes_and_elements(text, expected):
    assert read(text) == ([expected], "")
    assert read(f"Here it is:\n```xml\n{text}\n```")[0] == [expected]


@pytest.mark.parametrize(
    "text, message",
    [
        ('<polygon points="1,2 30,2 30,40"/>', "3 corners"),
        ('<polygon points="1,2 abc"/>', "neither a box nor a point"),
        ('<points coords="1 1 100 200 2 300 400">a</points>', "lacks an x or a y"),
        ('<tracks coords="0.5 1 100 200">a</tracks>', "lacks an x or a y"),
        ('<circle cx="100" cy="200" r="30"/>', "circle"),
        ('<line x1="1" y1="2" x2="30" y2="40"/>', "line"),
        ('<path d="M100,200 L300,200"/>', "path"),
        ('<div style="left: 10px; top: 20px">a</div>', "style"),
        ('<span title="bbox 1 2 30 40; x_wconf 95">a</span>', "span"),
        ('<rect x="1" y="2" width="30"/>', "rect"),
        ('<String HPOS="1" VPOS="2" WIDTH="3" HEIGHT="4"/>', "HPOS"),
        ("<box=1,2,30,40>", "box"),
        ("<box 1 2 30 40>", "box"),
        ('<p bbox="1 2 30', "breaks off inside"),
        ('{"points": [1, 2, 30], "label": "a"}', "points"),
    ],
)
def test_attributes_that_give_no_item_are_an_error(text, message):
    with pytest.raises(GroundingParseError, match=message):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        '<img src="a.png" width="300" height="400"/>',
        '<p id="12" data-page="3">100 cats</p>',
        '<table border="1" cellpadding="2"><tr><td colspan="2">100</td></tr></table>',
        "if a <b and x=3: return",
        '<a href="page?x=1&y=2">3, 4</a>',
        "<style>.box-a { left: 0; top: 0; margin: 0 2px }</style>",
        '{"points": 30}',
    ],
)
def test_numbers_that_are_no_coordinates_are_none(text):
    assert read(text) == ([], "")


@pytest.mark.parametrize(
    "text, expected",
    [
        ('{"cx": 100, "cy": 200, "w": 30, "h": 40, "label": "a"}', Box("a", 85, 180, 115, 220)),
        ('{"left": 1, "top": 2, "width": 30, "height": 40}', Box("", 1, 2, 31, 42)),
        ('{"left": 1, "top": 2, "right": 30, "bottom": 40}', Box("", 1, 2, 30, 40)),
        ('{"x": 1, "y": 2, "w": 30, "h": 40, "label": "a"}', Box("a", 1, 2, 31, 42)),
        ('{"x0": 1, "y0": 2, "x1": 30, "y1": 40}', Box("", 1, 2, 30, 40)),
        ('{"top_left": {"x": 1, "y": 2}, "bottom_right": {"x": 3, "y": 4}}', Box("", 1, 2, 3, 4)),
        ('{"left_top": [1, 2], "right_bottom": [3, 4], "label": "a"}', Box("a", 1, 2, 3, 4)),
        ('{"upper_left": [1, 2], "lower_right": [3, 4], "label": "a"}', Box("a", 1, 2, 3, 4)),
        ('{"bbox": {"tl": [1, 2], "br": [3, 4]}, "label": "a"}', Box("a", 1, 2, 3, 4)),
        ('{"bbox": {"min": {"x": 1, "y": 2}, "max": [3, 4]}, "label": "a"}', Box("a", 1, 2, 3, 4)),
        (
            '{"bbox": {"top_left": [1, 2], "top_right": [30, 2], "bottom_right": [30, 4],'
            ' "bottom_left": [1, 4]}}',
            Quad("", 1, 2, 30, 2, 30, 4, 1, 4),
        ),
        ('{"x": 1, "y": 2, "label": "a"}', Point("a", 1, 2)),
        ('{"action": "click", "x": 1, "y": 2}', Point("", 1, 2)),
        (
            '{"vertices": [{"x":1,"y":2}, {"x":30,"y":2}, {"x":30,"y":4}, {"x":1,"y":4}]}',
            Quad("", 1, 2, 30, 2, 30, 4, 1, 4),
        ),
    ],
)
def test_corners_with_names(text, expected):
    assert read(text) == ([expected], "")


def test_an_angle_is_read_with_a_centre_and_else_named():
    items, _ = read('{"cx": 500, "cy": 500, "w": 20, "h": 10, "angle": 90, "label": "s"}')
    corners = [tuple(map(round, corner)) for corner in items[0].corners]
    assert corners == [(505, 490), (505, 510), (495, 510), (495, 490)]
    items, warning = read('{"x": 1, "y": 2, "w": 30, "h": 40, "angle": 9, "label": "s"}')
    assert items == [Box("s", 1, 2, 31, 42)] and '"angle" is not read; the box is' in warning


@pytest.mark.parametrize(
    "text, box",
    [
        ('{"bbox_2d": [1, 2, 3, 4], "nimi": "kissa"}', [Box("", 1, 2, 3, 4)]),
        ('[{"laatikko": [1, 2, 3, 4], "nimi": "kissa"}]', []),
        ('[["cat", 1, 2, 3, 4], ["dog", 5, 6, 7, 8]]', []),
        ('{"x": 100, "y": 200}', []),
        ('do(action="Tap", element=[500, 250])', []),
        ("pos = (100, 200)\npyautogui.click(pos)", []),
        ("pyautogui.dragRel(30, 0)", []),
        ("pyautogui.move(30, 0)", []),
    ],
)
def test_what_may_be_a_label_or_coordinates_is_named(text, box):
    items, warning = read(text)
    assert items == box and re.search("not read|may be coordinates|relative to", warning)


@pytest.mark.parametrize("key", ["zone", "target", "face_box", "size", "coordinates_2d"])
def test_lists_of_numbers_under_other_keys_are_named(key):
    items, warning = read(f'{{"label": "a", "{key}": [1, 2, 30, 40]}}')
    assert items == [] and f'"{key}" has [1, 2, 30, 40]' in warning
    items, warning = read(f'{{"bbox_2d": [1, 2, 3, 4], "label": "a", "{key}": [10, 20]}}')
    assert items == [Box("a", 1, 2, 3, 4)] and f'"{key}" has [10, 20]' in warning


def test_a_page_that_is_cut_off():
    items, warning = read('<p data-bbox="1 2 3 4">a</p>\n<p data-bbox="5 6 7')
    assert items == [Box("a", 1, 2, 3, 4)] and "breaks off inside" in warning
    with pytest.raises(GroundingParseError, match="data-bbox"):
        parse('<p data-bbox="5 6 7">a</p>')


WIDE = (1080, 608)


@pytest.mark.parametrize(
    "text, points",
    [
        # QwenLM/Qwen3-VL, cookbooks/computer_use.ipynb: the screen is 1000x1000
        ('<tool_call>\n{"name": "computer_use", "arguments": {"action": "left_click",'
         ' "coordinate": [500, 250]}}\n</tool_call>', [(540, 152)]),
        ('{"name": "computer_use", "arguments": "{\\"coordinate\\": [500, 250]}"}', [(540, 152)]),
        # cookbooks/mobile_agent.ipynb: the screen is 999x999
        ('<tool_call>\n{"name": "mobile_use", "arguments": {"action": "swipe", "coordinate":'
         ' [999, 333], "coordinate2": [0, 999]}}\n</tool_call>', [(1080, 608 / 3), (0, 608)]),
        # UI-TARS, OS-Atlas, OpenCUA
        ("Thought: x.\nAction: click(start_box='(500,250)')", [(540, 152)]),
        ("Action: drag(start_box='(500,250)', end_box='(1000,1000)')", [(540, 152), (1080, 608)]),
        ("Action: click(point='<point>500 250</point>')", [(540, 152)]),
        ("CLICK <point>[[500,250]]</point>", [(540, 152)]),
        # Qwen3.5's calls of tools
        ("<tool_call>\n<function=computer_use>\n<parameter=action>\nleft_click\n</parameter>\n"
         "<parameter=coordinate>\n[500, 250]\n</parameter>\n</function>\n</tool_call>",
         [(540, 152)]),
        ("<function=mobile_use>\n<parameter=coordinate>[999, 333]</parameter>\n</function>",
         [(1080, 608 / 3)]),
        ("pyautogui.click(x=500, y=250)", [(540, 152)]),
        ("```python\npyautogui.moveTo(500, 250, duration=0.5)\n```", [(540, 152)]),
        ("click(500, 250)", [(540, 152)]),
        ("click((500, 250), button='left')", [(540, 152)]),
        ("TAP(point=[[500,250]], element_type='link')", [(540, 152)]),  # CogAgent
        ("pyautogui.scroll(-10, x=500, y=250)", [(540, 152)]),
        ("pyautogui.scroll(-10, 500, 250)", [(540, 152)]),
        ("pyautogui.scroll(-500)", []),
        ("pyautogui.click(500, y=250)", [(540, 152)]),
        ("swipe(500, 250, 1000, 1000, 300)", [(540, 152), (1080, 608)]),
        ("swipe(x1=500, y1=250, x2=1000, y2=1000)", [(540, 152), (1080, 608)]),
        ("drag((500, 250), (1000, 1000))", [(540, 152), (1080, 608)]),
        ('<tool_call>{"name": "click", "arguments": {"x": 500, "y": 250}}</tool_call>',
         [(540, 152)]),
        ('{"name": "swipe", "arguments": {"x1": 500, "y1": 250, "x2": 1000, "y2": 1000}}',
         [(540, 152), (1080, 608)]),
        ('{"type": "click", "button": "left", "x": 500, "y": 250}', [(540, 152)]),
        ("pyautogui.write('12, 13')", []),
        ("plt.text(x=5, y=10, s='a')", []),
    ],
)  # fmt: skip
def test_actions_of_agents_give_points(text, points):
    items, warning = read(text, size=WIDE)
    assert [type(item) for item in items] == [Point] * len(points) and not warning
    assert [(item.x, item.y) for item in items] == [pytest.approx(point) for point in points]


def test_actions_that_cannot_be_read_are_named():
    with pytest.raises(GroundingParseError, match="has an argument twice"):
        parse("click(x=1, y=2, y=3)")
    with pytest.raises(GroundingParseError, match="start_box takes 2 or 4 numbers"):
        parse("drag(start_box='(5;6)')")
    items, warning = read("drag(start_box='(5,6)', end_box=)")
    assert items == [Point("", 5, 6)] and "end_box takes 2 or 4 numbers" in warning


@pytest.mark.parametrize("key", ["coordinate", "points", "box", "corners"])
@pytest.mark.parametrize("end", ["[", "[500", "[500, ", "[[500, 2"])
def test_an_action_that_is_cut_off_inside_its_coordinates_is_an_error(key, end):
    with pytest.raises(GroundingParseError, match=r"ends inside .*raise max_new_tokens"):
        parse(f'<tool_call>{{"name": "computer_use", "arguments": {{"action": "x", "{key}": {end}')
    assert read(f'{{"action": "x", "{key}": ["the fi') == ([], "")


def test_a_tool_of_qwen2_5_vl_writes_resized_pixels():
    """cookbooks/mobile_agent.ipynb of Qwen2.5-VL gives the resized picture's size as the screen."""
    text = '{"name": "mobile_use", "arguments": {"action": "click", "coordinate": [935, 406]}}'
    items, _ = read(text, "qwen2_5_vl", (1080, 2400), input_size=(1092, 2408))
    assert items == [Point("", 935 * 1080 / 1092, 406 * 2400 / 2408)]
    assert read(text, space="original", size=WIDE)[0] == [Point("", 935, 406)]


@pytest.mark.parametrize(
    "text, count, left_out",
    [
        (f"[{{{ITEM}}}]", 1, ""),
        ('<points x1="1" y1="2" alt="a">a</points>', 1, ""),
        ('{"position": [3, 4, 5, 6]}', 0, ""),  # may mean anything: stays as it is
        ('<p data-bbox="1 2 3 4">a</p>', 0, "not in the form of qwen3_vl"),
        ("click(start_box='(1,2)')", 0, "not in the form of qwen3_vl"),
        ("<box>(1,2),(3,4)</box>", 0, "not in the form of qwen3_vl"),
    ],
)
def test_only_the_familys_own_form_is_written_again_in_another(text, count, left_out):
    sizes = {"family": "qwen3_vl", "image_size": SIZE, "rewritable": True}
    if left_out:
        with pytest.raises(GroundingParseError, match=left_out):
            locate_grounding(text, **sizes)
    else:
        placed, warning = locate_grounding(text, **sizes)
        assert len(placed) == count and not warning


# --- other generations' forms --------------------------------------------------------------------

TAGS = "<|object_ref_start|>羊<|object_ref_end|><|box_start|>(101,201),(150,266)<|box_end|>"


def test_tags_of_a_fine_tuned_model_are_read_and_said():
    """ms-swift#5008, #5280: its legacy format is tags with the family's own numbers."""
    sizes = {"size": (500, 500), "input_size": (1000, 1000)}
    items, warning = read(TAGS, "qwen2_5_vl", **sizes)
    assert items == [Box("羊", 50.5, 100.5, 75, 133)]
    assert "qwen2_vl's tags" in warning and "read as resized" in warning and "form=" in warning
    items, warning = read('[{"bbox_2d": [101, 201, 150, 266], "label": "羊"}]', "qwen2_vl")
    assert items == [Box("羊", 101, 201, 150, 266)] and "is in JSON" in warning
    items, warning = read("<box>(101,201),(150,266)</box>", "qwen2_vl")
    assert items == [Box("", 101, 201, 150, 266)] and "qwen_vl's tags" in warning


def test_form_of_a_reply_overrides():
    reply = Reply(
        text="羊(101,201),(150,266)", raw=TAGS, usage=Usage(0, 0, 0, 0), seconds=0,
        family="qwen2_5_vl", images=(PIL.Image.new("RGB", (500, 500)),),
        input_sizes=((1000, 1000),),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="qwen2_vl's tags"):
        assert reply.boxes == [Box("羊", 50.5, 100.5, 75, 133)]
    assert "qwen2_vl&#x27;s tags" in reply._repr_html_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reply.grounding(form="qwen2_vl") == [Box("羊", 50.5, 100.5, 75, 133)]
        assert reply.grounding(form="qwen2_vl", space="original") == [Box("羊", 101, 201, 150, 266)]
    with pytest.raises(VlkitError, match="'qwen9' is unknown"):
        reply.grounding(form="qwen9")


@pytest.mark.parametrize(
    "text, family, advice",
    [
        ("羊(101,201),(150,266)", "qwen2_vl", "pass reply.raw"),
        ("羊(101,201),(150,266)", "qwen2_5_vl", "pass reply.raw"),
        ('{"bbox_2d": [1, 2', "qwen3_vl", "raise max_new_tokens"),
        ("<|box_start|>(1,2", "qwen2_vl", "raise max_new_tokens"),
        ('{"bbox_2d": [1, 2, 3]}', "qwen3_vl", "bbox_2d takes 4 numbers"),
        (THREE, "qwen3_vl", "3D"),
    ],
)
def test_advice_fits_the_case(text, family, advice):
    with pytest.raises(GroundingParseError) as caught:
        parse(text, family, input_size=SIZE)
    every = ("pass reply.raw", "raise max_new_tokens", "takes 4 numbers", "3D")
    assert [a for a in every if a in str(caught.value)] == [a for a in every if a in advice]


# --- recorded by others --------------------------------------------------------------------------

# recorded: QwenLM/Qwen3-VL, cookbooks/omni_recognition.ipynb
FOOD = """```json
[
	{"bbox_2d": [0, 614, 224, 825], "name_zh": "米饭", "name_en": "Rice"},
	{"bbox_2d": [266, 126, 695, 343], "name_zh": "土豆胡萝卜排骨汤", "name_en": "Potato Carrot Pork Rib Soup"},
	{"bbox_2d": [704, 185, 956, 317], "name_zh": "橙子片", "name_en": "Orange Slices"}
]
```"""  # noqa: E501
ANIME = """```json
[
	{"bbox_2d": [541, 0, 667, 333],
		"names": {
			"zh": "悲鸣屿行冥",
			"en": "Gyomei Himejima"
		}
	},
	{
	{"bbox_2d": [649, 116, 794, 643],
		"names": {
			"zh": "伊黑小芭内",
			"en": "Obanai Iguro"
		}
	},
	{
		"bbox_2d": [762, 34, 999, 555],
		"names": {
			"zh": "炼狱杏寿郎",
			"en": "Kyojuro Rengoku"
		}
	}
]
```"""  # with a brace too many, as recorded
RECORDED = {
    FOOD: [
        Box("Rice", 0, 614, 224, 825),
        Box("Potato Carrot Pork Rib Soup", 266, 126, 695, 343),
        Box("Orange Slices", 704, 185, 956, 317),
    ],
    ANIME: [
        Box("Gyomei Himejima", 541, 0, 667, 333),
        Box("Obanai Iguro", 649, 116, 794, 643),
        Box("Kyojuro Rengoku", 762, 34, 999, 555),
    ],
    # cookbooks/spatial_understanding.ipynb
    '```json\n[\n\t{"point_2d": [925, 618], "label": "point_1"}\n]\n```': [
        Point("point_1", 925, 618)
    ],
    # cookbooks/think_with_images.ipynb, all five
    **{
        f'[TOOL_CALL] image_zoom_in_tool\n{{"label": "{label}", "bbox_2d": {list(numbers)}, '
        '"img_idx": 0}\n[TOOL_RESPONSE] image_zoom_in_tool': [Box(label, *numbers)]
        for label, numbers in {
            "main hanging sign for Hop Inn": (574, 301, 660, 468),
            "two vertical green and white signs on the building facade": (174, 450, 469, 658),
            "white sign with red text listing amenities": (584, 496, 651, 660),
            "license plate of the black car": (231, 795, 284, 820),
            "central bear logo": (395, 276, 618, 740),
        }.items()
    },
    # modelscope/ms-swift#4898
    '{"image_description": "a processor", "objects": [{"name": "Computer Processor", "bbox_2d": '
    '[8, 67, 299, 275], "description": "square"}]}': [Box("Computer Processor", 8, 67, 299, 275)],
    # QwenLM/Qwen3-VL#2101
    "<class>ship</class><quad>1,2,3,4,5,6,7,8</quad>": [Quad("", 1, 2, 3, 4, 5, 6, 7, 8)],
}


@pytest.mark.parametrize("text", RECORDED, ids=lambda text: text[:30])
def test_recorded_answers(text):
    assert read(text)[0] == RECORDED[text]


def test_a_recorded_click():
    """cookbooks/mobile_agent.ipynb, which draws the point at coordinate / 999 of the picture."""
    text = (
        'Thought: To search for Musk in X, I need to click on the search bar.\nAction: "I tapped '
        'on the search bar."\n<tool_call>\n{"name": "mobile_use", "arguments": {"action": "click",'
        ' "coordinate": [447, 81]}}\n</tool_call>'
    )
    (point,) = parse(text, size=(999, 1998))
    assert (point.x, point.y) == pytest.approx((447, 162))


# recorded: QwenLM/Qwen3-VL, cookbooks/2d_grounding.ipynb, a picture of 640x479
TABLE = {
    "plate/dish": [(74, 361, 324, 808), (320, 660, 564, 956), (555, 575, 807, 901),
                   (484, 187, 743, 568), (739, 440, 999, 901), (300, 134, 481, 397)],
    "scallop": [(691, 235, 775, 328), (752, 204, 856, 325), (835, 200, 919, 312),
                (735, 328, 834, 443), (812, 308, 918, 443), (885, 300, 980, 429)],
    "wine bottle": [(162, 0, 303, 354), (462, 0, 589, 210)],
    "bowl": [(615, 72, 730, 212), (255, 82, 333, 220), (0, 801, 102, 999), (619, 939, 762, 999),
             (981, 444, 999, 557), (462, 484, 597, 645)],
    "spoon": [(636, 50, 712, 180)],
    "coconut drink": [(728, 0, 864, 193)],
    "cup": [(728, 843, 846, 999), (95, 812, 223, 999)],
    "chopsticks": [(796, 800, 839, 999), (902, 433, 999, 466), (557, 839, 605, 999)],
}  # fmt: skip


def test_a_recorded_table_of_27_boxes():
    rows = [(label, numbers) for label, boxes in TABLE.items() for numbers in boxes]
    lines = [f'\t{{"bbox_2d": {list(numbers)}, "label": "{label}"}}' for label, numbers in rows]
    items, warning = read("```json\n[\n" + ",\n".join(lines) + "\n]\n```", size=(640, 479))
    assert len(items) == 27 and not warning
    for item, (label, (x1, y1, x2, y2)) in zip(items, rows, strict=True):  # as the cookbook draws
        assert item.label == label
        assert item.xyxy == pytest.approx((x1 * 0.64, y1 * 0.479, x2 * 0.64, y2 * 0.479))


# recorded: QwenLM/Qwen2.5-VL, cookbooks/ocr.ipynb, with its commas before } and ] (10 lines of 39)
RECEIPT = {
    "UNIHAKKA INTERNATIONAL SDN BHD": (125, 169, 754, 208),
    "01 Jun 2018 18:41": (325, 210, 549, 238),
    "(867388-U)": (358, 252, 518, 278),
    "12, Jalan Tampoi 7/4,Kawasan Perindustrian": (168, 286, 706, 320),
    "Invoice #: OR18060102160261": (92, 398, 473, 426),
    "SR I00100000061- 5 Vege": (88, 502, 418, 526),
    "RM6.22": (88, 544, 154, 568),
    "1": (303, 544, 317, 568),
    "SR = GST @0%": (77, 1110, 245, 1134),
    "Like and Follow Us on Facebook!": (207, 1290, 606, 1314),
}


def test_a_recorded_receipt():
    lines = [
        f'    {{\n        "bbox_2d": {list(numbers)}, "text_content": "{text}",\n    }},\n'
        for text, numbers in RECEIPT.items()
    ]
    text = "```json\n[\n" + "".join(lines) + "]\n```"
    items, warning = read(text, "qwen2_5_vl", (876, 1400), input_size=(876, 1400))
    assert items == [Box(text, *numbers) for text, numbers in RECEIPT.items()] and not warning


def test_a_recorded_click_of_computer_use():
    """Qwen2.5-VL, cookbooks/computer_use.ipynb: a screenshot of 2560x1440, seen at 2548x1428."""
    text = (
        '<tool_call>\n{"name": "computer_use", "arguments": {"action": "left_click", "coordinate":'
        " [1294, 811]}}\n</tool_call>"
    )
    (point,) = parse(text, "qwen2_5_vl", (2560, 1440), input_size=(2548, 1428))
    assert (point.x, point.y) == pytest.approx((1300.094, 817.815), abs=0.001)


# --- nothing is invented -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "$[100, 200, 300, 400]$",
        "[cat](100, 200, 300, 400)",
        "<cat>[100, 200, 300, 400]</cat>",
        "cat 0.1 0.2 0.3 0.4",
        "The cat is at pixel 100,200",
        "adb shell input tap 100 200",
        "x = 3, y = 4",
        "{'bbox_2d': array([1., 2., 30., 40.]), 'label': 'a'}",
        "adb shell input swipe 100 200 300 400",
        "The cat is at (63%, 44%)",
        "(63%, 44%)",
        "The point is at 120.5 340.2",
        "⟨100, 200, 300, 400⟩",
        "【100,200,300,400】",
        "{100, 200, 300, 400}",
        "100/200/300/400",
        "El gato está en (100, 200).",
        "Entre (100, 200) e (300, 400)",
        "cat<obj>100,200,300,400</obj>",
        "<DET>100 200 300 400</DET>",
        "label: cat\nbbox_2d:\n  - 100\n  - 200\n  - 300\n  - 400",
        'bbox,label\n"100,200,300,400",cat',
        "| object | x1 | y1 | x2 | y2 |\n|---|---|---|---|---|\n| cat | 1 | 2 | 30 | 40 |",
    ],
)
def test_numbers_that_may_be_coordinates_are_named(text):
    items, warning = read(text)
    assert items == [] and "may be coordinates" in warning


RIGHT = [
    '```json\n[\n\t{"bbox_2d": [101, 212, 323, 434], "label": "cat"},\n\t{"bbox_2d": [545, 656,'
    ' 767, 878], "label": "a \\"dog\\", or two"}\n]\n```',
    "[{'bbox': (101, 212, 323, 434), 'name': 'it\\'s'}, {'point_2d': [545, 656]}]",
    '{"cat": {"box": [101, 212, 323, 434], "parts": [{"bbox_2d": [545, 656, 767, 878]}]}}',
    '{"bboxes": [[101, 212, 323, 434], [545, 656, 767, 878]], "labels": ["a", "b"]}',
    "[[101, 212, 323, 434], [545, 656, 767, 878]]",
    '{"bbox_2d": "(101,212),(323,434)", "label": "猫", "keypoints": [[545, 656], [767, 878]]}',
    '<h1 data-bbox="101 212 323 434">A</h1><p data-bbox="545 656 767 878">b <i>c</i></p>',
    "# A\n<!-- Image (101, 212, 323, 434) -->\ntext\n<!-- Table (545, 656, 767, 878) -->",
    '<points x1="101" y1="212" x2="323" y2="434" alt="a">a</points>',
    '<tool_call>{"name": "computer_use", "arguments": {"coordinate": [101, 212]}}</tool_call>',
    "Action: drag(start_box='(101,212)', end_box='(323,434)')\npyautogui.click(x=545, y=656)",
    "<ref>a</ref><box>(101,212),(323,434)</box><ref>b</ref><box>(545,656)</box>",
    "<|object_ref_start|>a<|object_ref_end|><|box_start|>(101,212),(323,434)<|box_end|>"
    "<|quad_start|>(545,656),(767,878),(1,2),(3,4)<|quad_end|>",
]
RIGHT_NAMED = [  # a name before each number
    '<polygon points="101,212 323,434 545,656 767,878" label="a"/><point x=101 y=212>b</point>',
    '<box x1="101" y1="212" x2="323" y2="434">a</box>',
    "<region left=545 top=656 right=767 bottom=878>",
    "<object><name>a</name><xmin>101</xmin><ymin>212</ymin><xmax>323</xmax><ymax>434</ymax></object>",
    '{"label": "a", "zone": [1, 2], "top_left": {"x": 101, "y": 212}, "bottom_right": [323, 434]}',
    '{"vertices": [{"x":101,"y":212}, {"x":323,"y":434}, {"x":545,"y":656}, {"x":767,"y":878}]}',
]
SCRAPS = [*"{}[]()'\"\\<>/,:;|*&#=.-+ \n0159eEnx，：“”", "null", '": "', '", "', "}, {", "],", "//"]
WHOLE = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\d)")


def damage(text, chance):
    for _ in range(chance.randint(1, 4)):
        place = chance.randint(0, len(text))
        how = chance.randrange(4)
        if how == 0:  # leave out
            text = text[:place] + text[place + chance.randint(1, 5) :]
        elif how == 1:  # write something else
            text = text[:place] + chance.choice(SCRAPS) + text[place:]
        elif how == 2:  # say a part again
            end = place + chance.randint(1, 25)
            text = text[:end] + text[place:end] + text[end:]
        else:  # end early
            text = text[: len(text) - chance.randint(0, len(text) // 3)]
    return text


def read_damaged(examples, family):
    """5,000 damaged answers: each text, the numbers in it, and its items (None: an error)."""
    chance = random.Random(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(5000):
            text = damage(chance.choice(examples), chance)
            items = None
            try:
                items = parse(text, family, input_size=SIZE, clip=False)
            except GroundingParseError as error:
                assert "the reader failed" not in str(error), text
            yield text, [float(number) for number in WHOLE.findall(text)], items


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_5000_damaged_attributes_give_no_number_that_is_not_in_the_text(family):
    read_items = 0
    for text, written, items in read_damaged(RIGHT_NAMED, family):
        for item in items or []:
            assert {*list(vars(item).values())[1:]} <= {*written}, (text, item)
        read_items += len(items or [])
    assert read_items > 1000


@pytest.mark.parametrize("family", ["qwen_vl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_5000_damaged_answers_hold_no_box_that_is_not_in_the_text(family):
    read_items = unreadable = 0
    for text, written, items in read_damaged(RIGHT, family):
        unreadable += items is None
        for item in items or []:
            numbers = sorted(list(vars(item).values())[1:])
            assert any(
                sorted(written[i : i + len(numbers)]) == numbers for i in range(len(written))
            ), (text, item)
        read_items += len(items or [])
    assert read_items > 2500 and unreadable > 250


@pytest.mark.parametrize(
    "unit",
    ['{"a": "b"c" ', "<p data-bbox='1 2 3 4'>x", "<div>", "</div>", "<!-- a (1,", "click(a='",
     "click(", '{"bbox": {', "[[1,2],", "```\n[1,2,3,4]\n", "“", '{"a":"\\', "//", "/*", "{a 'b ",
     "bbox_2d: ", '{"bbox_2d":"', '"a", ', "，", "<point>1", '{"bbox_2d":[1,2],', "(1,2),(3,4)",
     '{\\"a\\":', "{a", "{'a", '```json\n{"a ', '{a:"b",```', '{"":<:', "((", "[;1,2", "at (1,2",
     "left: 1, top ", "<loc_1>", "<a", "a[1,2,", "{x: 1, y: 2, ", "(1,2) ", "<b>1 2 ", "1/2/"],
)  # fmt: skip
def test_anything_takes_linear_time(unit):
    def read(text):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                parse(text)
            except GroundingParseError as error:
                assert len(str(error)) < 400

    # a megabyte takes 2.5 s at most; a square that takes more than 4 s is found by this
    assert grows_linearly(read, unit * (250_000 // len(unit)))


@pytest.mark.parametrize(
    "begin, unit",
    [("“", '{\\"a\\": ```'), ("{a: b", ", c"), ('<points x1="1" y1="2" ', "1")],
    ids=["fences", "words", "digits"],
)  # fmt: skip
def test_a_long_end_after_a_beginning_takes_linear_time(begin, unit):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def read(end):
            with suppress(GroundingParseError):
                parse(begin + end)

        assert grows_linearly(read, unit * (250_000 // len(unit)))  # seconds to minutes before


def test_the_tables_are_in_the_documents():
    text = (Path(__file__).parents[2] / "docs" / "answers.md").read_text(encoding="utf-8")
    for key in [*KEYS, *LABEL_KEYS.split()]:
        assert f"`{key}`" in text, key
