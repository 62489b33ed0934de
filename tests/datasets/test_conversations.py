"""Each generation is asked in its own published words, everywhere alike."""

import pytest

import vlkit
from vlkit.datasets.conversations import SWIFT, locate_prompt
from vlkit.errors import VlkitError
from vlkit.grounding.formats import FORMATS
from vlkit.widgets.ask import examples_for


@pytest.mark.parametrize(
    ("family", "language", "prompt"),
    [
        # README.md of QwenLM/Qwen-VL, with its label
        ("qwen_vl", "zh", "框出图中击掌的位置"),
        ("qwen2_vl", "zh", "框出图中击掌的位置"),
        # what the bundled model was trained on
        ("qwen2_vl", "en", "Locate the 击掌."),
        # cookbooks/spatial_understanding.ipynb of QwenLM/Qwen2.5-VL
        ("qwen2_5_vl", "en", "Locate the 击掌, output its bbox coordinates using JSON format."),
        ("qwen2_5_vl", "zh", "定位击掌，以JSON格式输出其bbox坐标"),
        ("qwen3_5", "en", "Locate the 击掌, output its bbox coordinates using JSON format."),
    ],
)
def test_one_object(family, language, prompt):
    assert vlkit.locate_prompt("击掌", family=family, language=language) == prompt


@pytest.mark.parametrize(
    ("family", "language", "labels", "prompt"),
    [
        ("qwen2_vl", "en", None, "Detect all objects."),
        ("qwen2_vl", "zh", None, "框出图中所有物体的位置"),
        ("qwen2_5_vl", "en", ["small cake"], "Outline the position of each small cake and output "
         "all the coordinates in JSON format."),
        # cookbooks/2d_grounding.ipynb of QwenLM/Qwen3-VL
        ("qwen3_vl", "en", ["head", "hand"], "Locate every instance that belongs to the following "
         'categories: "head, hand". Report bbox coordinates in JSON format.'),
        # Alibaba Cloud Model Studio, visual understanding
        ("qwen3_vl", "zh", "食物", "检测图中所有食物并以JSON格式输出其bbox的坐标"),
        ("qwen3_5", "zh", None, "请以JSON格式输出图中所有物体bbox的坐标以及它们的名字"),
    ],
)  # fmt: skip
def test_all_objects(family, language, labels, prompt):
    assert vlkit.detect_prompt(labels, family=family, language=language) == prompt


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("family", FORMATS)
def test_every_generation_has_both_and_labels_are_data(family, language):
    asked = {"family": family, "language": language}
    for prompt in (
        vlkit.locate_prompt("{0} {x", **asked),
        vlkit.detect_prompt(["{0} {x"], **asked),
    ):
        assert "{0} {x" in prompt
        assert ("JSON" in prompt) == (FORMATS[family].style == "json")
    assert "{" not in vlkit.detect_prompt(**asked)


def test_the_panels_examples_are_in_these_words():
    for family in FORMATS:
        assert vlkit.locate_prompt("red circle", family=family) in examples_for(family)


@pytest.mark.parametrize("name", [*FORMATS, SWIFT])
def test_training_data_asks_alike(name):
    assert locate_prompt("{label}", family=name).count("{label}") == 1


@pytest.mark.parametrize(
    ("label", "options", "error"),
    [
        (" ", {"family": "qwen2_vl"}, "names of objects"),
        (7, {"family": "qwen2_vl"}, "names of objects"),
        ("cat", {"family": "llava"}, "family='llava' is unknown"),
        ("cat", {"family": "qwen2_vl", "language": "fr"}, "language='fr' is unknown"),
    ],
)
def test_wrong_arguments(label, options, error):
    with pytest.raises(VlkitError, match=error):
        vlkit.locate_prompt(label, **options)


def test_no_labels_at_all():
    with pytest.raises(VlkitError, match="names of objects"):
        vlkit.detect_prompt([], family="qwen3_vl")
