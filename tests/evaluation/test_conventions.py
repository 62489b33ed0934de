"""The convention detector: known transformations of known boxes are named, doubt is said."""

import numpy as np
import PIL.Image
import pytest

from vlkit import Box, diagnose_boxes
from vlkit.errors import VlkitError
from vlkit.models.families import published_rules

SIZES = [(640, 480), (480, 640), (1600, 900), (333, 500)]
LOW, HIGH = [0, 0, 0.1, 0.1], [0.6, 0.6, 0.4, 0.4]
CHANCE = np.random.default_rng(3)
TRUTH = [
    [
        Box(f"thing {i}", x * w, y * h, (x + a) * w, (y + b) * h)
        for i, (x, y, a, b) in enumerate(CHANCE.uniform(LOW, HIGH, (6, 4)))
    ]
    for w, h in SIZES
]  # fmt: skip


def scaled(box, size, span):
    return [v * span[i % 2] / size[i % 2] for i, v in enumerate(box)]


def swap(box):
    return [box[1], box[0], box[3], box[2]]


def stored(box, size):
    """On the picture before orientation 6 turns it: x is the old y from below."""
    x1, y1, x2, y2 = box
    return [y1, size[0] - x2, y2, size[0] - x1]


RESIZED = {
    side: published_rules(f).image_size for side, f in ((28, "qwen2_5_vl"), (32, "qwen3_vl"))
}
WRITTEN = {
    "0-1000": lambda b, s: scaled(b, s, (1000, 1000)),
    "0-999": lambda b, s: scaled(b, s, (999, 999)),
    "original pixels": lambda b, s: b,
    "resized pixels (28)": lambda b, s: scaled(b, s, RESIZED[28](s)),
    "resized pixels (32)": lambda b, s: scaled(b, s, RESIZED[32](s)),
    "0-1000, swapped axes": lambda b, s: swap(scaled(b, s, (1000, 1000))),
    "original pixels, swapped axes": lambda b, s: swap(b),
    "original pixels, unrotated EXIF (6)": stored,
    "0-1000, unrotated EXIF (6)": lambda b, s: scaled(stored(b, s), s[::-1], (1000, 1000)),
    "original pixels, constant offset": lambda b, s: [b[0] + 24, b[1] - 17, b[2] + 24, b[3] - 17],
    "0-1000, constant offset": lambda b, s: scaled(
        [b[0] + 24, b[1] - 17, b[2] + 24, b[3] - 17], s, (1000, 1000)
    ),
}


def numbers(how, noise=0.0, drop=0.0, seed=0):
    chance = np.random.default_rng(seed)
    return [
        [
            Box(b.label, *(round(v) for v in WRITTEN[how](
                [v + chance.normal(0, noise * (b.x2 - b.x1)) for v in b.xyxy], size)))
            for b in own
            if chance.random() >= drop
        ]
        for own, size in zip(TRUTH, SIZES, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("how", WRITTEN)
def test_every_convention_is_named(how):
    diagnosis = diagnose_boxes(numbers(how), TRUTH, SIZES)
    assert diagnosis.best == how and diagnosis.sure
    assert diagnosis.table["mean_iou"].iloc[0] > 0.97
    assert diagnosis.table["probability"].sum() == pytest.approx(1)
    assert how in diagnosis.verdict


@pytest.mark.parametrize("how", WRITTEN)
def test_also_of_a_model_that_errs_and_misses(how):
    diagnosis = diagnose_boxes(numbers(how, noise=0.08, drop=0.3), TRUTH, SIZES)
    # readings that move a box by less than the model errs are alike, and it says so
    assert diagnosis.best == how or (not diagnosis.sure and how in diagnosis.table.index[:3])
    assert 0.4 < diagnosis.table["mean_iou"].iloc[0] < 0.9


def test_the_boxes_of_a_reading_are_where_it_says():
    diagnosis = diagnose_boxes(numbers("0-1000, unrotated EXIF (6)"), TRUTH, SIZES)
    for own, true in zip(diagnosis.boxes[diagnosis.best], TRUTH, strict=True):
        for a, b in zip(own, true, strict=True):
            assert a.xyxy == pytest.approx(b.xyxy, abs=1)


def test_noise_leaves_0_999_and_0_1000_apart_by_little_and_says_so():
    diagnosis = diagnose_boxes(numbers("0-999", noise=0.08), TRUTH, SIZES)
    assert not diagnosis.sure and "hardly separate" in diagnosis.verdict
    assert set(diagnosis.table.index[:2]) == {"0-999", "0-1000"}


def test_where_two_readings_are_the_same_neither_is_taken_for_sure():
    square = [[Box("a", 100, 200, 400, 500), Box("b", 5, 5, 100, 900)]]
    diagnosis = diagnose_boxes(square, square, [(1000, 1000)])
    first, second = diagnosis.table["probability"].iloc[:2]
    assert first == pytest.approx(second) and not diagnosis.sure
    assert {"0-1000", "original pixels"} == set(diagnosis.table.index[:2])


def test_random_boxes_fit_nothing():
    chance = np.random.default_rng(1)
    answers = [[Box(b.label, *sorted(chance.uniform(0, 60, 2)), 61, 62) for b in t] for t in TRUTH]
    diagnosis = diagnose_boxes(answers, TRUTH, SIZES)
    assert not diagnosis.sure and diagnosis.verdict.startswith("No reading fits")


def test_one_clear_box_is_enough_for_a_clear_case():
    truth = [Box("cat", 40, 60, 200, 300)]
    diagnosis = diagnose_boxes([Box("cat", 62, 125, 312, 625)], truth, [(640, 480)])
    assert diagnosis.best in ("0-1000", "0-999")
    assert diagnosis.table["mean_iou"].iloc[0] > 0.95


def test_the_models_own_sizes_go_before_the_published_ones():
    seen = [(252, 196), (196, 252), (336, 196), (168, 252)]  # under a limit of 63 tokens
    answers = [
        [Box(b.label, *(round(v) for v in scaled(b.xyxy, size, own))) for b in true]
        for true, size, own in zip(TRUTH, SIZES, seen, strict=True)
    ]
    diagnosis = diagnose_boxes(answers, TRUTH, SIZES, input_sizes=seen)
    assert diagnosis.best == "resized pixels" and diagnosis.sure
    assert not diagnose_boxes(answers, TRUTH, SIZES).best.startswith("resized")


def test_answers_that_were_read_already_are_read_back():
    from vlkit.grounding.parse import to_pixels

    wrong = [  # 0-1000 numbers, read as pixels of the resized picture
        [to_pixels(b.label, b.xyxy, RESIZED[28](s), s) for b in own]
        for own, s in zip(numbers("0-1000"), SIZES, strict=True)
    ]
    kept = [
        [b for b in own if b.x2 < s[0] and b.y2 < s[1]] for own, s in zip(wrong, SIZES, strict=True)
    ]
    seen = [RESIZED[28](size) for size in SIZES]
    diagnosis = diagnose_boxes(kept, TRUTH, SIZES, input_sizes=seen, read_as="resized")
    assert diagnosis.best == "0-1000"
    with pytest.raises(VlkitError, match="needs input_sizes"):
        diagnose_boxes(kept, TRUTH, SIZES, read_as="resized")
    with pytest.raises(VlkitError, match="space='pixels' is unknown; choose one of "):
        diagnose_boxes(kept, TRUTH, SIZES, read_as="pixels")


def test_it_shows_itself():
    diagnosis = diagnose_boxes(numbers("0-1000"), TRUTH, SIZES)
    pictures = [PIL.Image.new("RGB", size, "gray") for size in SIZES]
    sheet = diagnosis.plot(pictures, 1, readings=4)
    assert sheet.width > 2 * 480 and sheet.height > 2 * 640
    assert diagnosis.plot(pictures, 0, readings=1).width < 700
    assert "0-1000" in diagnosis._repr_html_() and "<table" in diagnosis._repr_html_()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([[]], [[]], []), "0 image_sizes for 1 pictures"),
        (([[]], [[]], [(0, 5)]), "positive"),
        (([[]], [[]], [(9, 9)]), "no predicted box"),
        (([[Box("a", 0, 0, 1, 1)]], [[Box("b", 0, 0, 1, 1)]], [(9, 9)]), "match_labels=False"),
        (([[]], [[], []], [(9, 9)]), "1 answers for 2 pictures"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(VlkitError, match=message):
        diagnose_boxes(*arguments)
