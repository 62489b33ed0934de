"""Metrics with answers known from geometry, and against COCO's own evaluator."""

import contextlib
import io
import json
import sys
import time

import numpy as np
import pandas as pd
import pytest

import vlkit
from vlkit import Box, Point, evaluate_grounding, iou
from vlkit.errors import VlkitError


def square(x, label="a", side=100):
    return Box(label, x, 0, x + side, side)


def shifted(by):
    """IoU with square(0) is (100 - by) / (100 + by)."""
    return square(by)


@pytest.mark.parametrize(
    "a, b, expected",
    [
        (square(0), square(0), 1),
        (square(0), square(50), 1 / 3),
        (square(0), square(100), 0),
        (square(0), Box("", 0, 0, 50, 50), 0.25),
        (Box("", 3, 3, 3, 3), Box("", 3, 3, 3, 3), 0),
    ],
)
def test_iou(a, b, expected):
    assert iou(a, b) == pytest.approx(expected) == iou(b, a)


@pytest.mark.parametrize("other", [(0, 0, 1, 1), Point("a", 0, 0), None])
def test_iou_is_of_boxes(other):
    with pytest.raises(VlkitError, match=r"expected vlkit\.Box, not"):
        iou(square(0), other)


# --- accuracy as RefCOCO counts it ----------------------------------------------------------------


def test_accuracy_is_the_share_of_expressions_with_enough_overlap():
    truth = [[square(0)]] * 4
    # IoU 1; 0.6; exactly 0.5 (which counts); 0.25
    predicted = [[square(0)], [shifted(25)], [Box("a", 0, 0, 100, 50)], [Box("a", 0, 0, 50, 50)]]
    result = evaluate_grounding(predicted, truth)
    assert result["accuracy@0.5"] == result.accuracy == 0.75
    assert result["accuracy@0.75"] == 0.25
    assert result.mean_iou == pytest.approx((1 + 0.6 + 0.5 + 0.25) / 4)


def test_of_several_boxes_for_one_asked_the_first_counts():
    result = evaluate_grounding([[square(80), square(0)]], [[square(0)]])
    assert (result["accuracy@0.5"], result["recall@0.5"], result["precision@0.5"]) == (0, 1, 0.5)
    assert result.mean_iou == pytest.approx(20 / 180)


def test_no_answer_and_an_unreadable_one_count_as_missed():
    result = evaluate_grounding([[square(0)], [], None], [[square(0)]] * 3)
    assert result.accuracy == pytest.approx(1 / 3) == result.mean_iou
    assert result["precision@0.5"] == 1


def test_several_alike_are_paired_best_first_and_once():
    truth = [[square(0), square(300)]]
    result = evaluate_grounding([[square(290), square(310), square(5)]], truth)
    assert result["recall@0.5"] == 1 and result["precision@0.5"] == pytest.approx(2 / 3)
    assert sorted(result.rows["kind"]) == ["extra", "found", "found"]
    twice = evaluate_grounding([[square(0), square(0)]], truth)
    assert (twice["recall@0.5"], twice["precision@0.5"]) == (0.5, 0.5)


def test_labels_are_compared_unless_asked_not_to():
    predicted, truth = [[square(0, " The Cat ")]], [[square(0, "cat")]]
    assert evaluate_grounding(predicted, truth).accuracy == 0
    assert evaluate_grounding(predicted, truth, match_labels=False).accuracy == 1
    assert evaluate_grounding([[square(0, " CAT ")]], truth).accuracy == 1


def test_by_label_by_size_and_rows():
    truth = [[square(0, "cat"), Box("dog", 0, 0, 10, 10)], [Box("dog", 50, 50, 60, 60)]]
    predicted = [[square(0, "cat"), Box("dog", 0, 0, 10, 10), square(9, "bird")], []]
    result = evaluate_grounding(predicted, truth)
    assert result.by_label["truths"].to_dict() == {"bird": 0, "cat": 1, "dog": 2}
    assert result.by_label["accuracy@0.5"].dropna().to_dict() == {"cat": 1, "dog": 0.5}
    assert result.by_size["truths"].to_dict() == {"small": 2, "medium": 0, "large": 1}
    assert result.by_size.loc["small", "recall@0.5"] == 0.5
    assert result.by_size.loc["small", "ap"] == pytest.approx(51 / 101)
    assert list(result.rows["kind"]) == ["found", "found", "extra", "missed"]
    assert result.rows.iloc[3][["true_x1", "true_y2"]].tolist() == [50, 60]
    assert result.worst(2) == [1, 0]


def test_names_of_pictures_and_flat_lists():
    named = evaluate_grounding({"b.png": [square(0)]}, {"a.png": [square(0)], "b.png": [square(0)]})
    assert named.accuracy == 0.5 and named.worst(1) == ["a.png"]
    flat = evaluate_grounding([square(0), Point("a", 1, 2)], [square(0)])
    assert flat.accuracy == 1 and np.isnan(flat.overall.loc["accuracy@0.5", "low"])


# --- COCO -----------------------------------------------------------------------------------------


def scene(seed, pictures=30):
    chance = np.random.default_rng(seed)
    truth, predicted, scores = [], [], []
    for _ in range(pictures):
        true = [
            Box(str(chance.choice(["cat", "dog", "bus"])), x, y, x + w, y + h)
            for x, y, w, h in chance.uniform([0, 0, 18, 18], [300, 300, 200, 200], (5, 4))
        ]
        own = [
            Box(b.label, *(np.array(b.xyxy) + chance.uniform(-8, 8, 4)))
            for b in true
            if chance.random() < 0.8
        ]
        own += [Box("cat", *chance.uniform(0, 200, 2), *chance.uniform(200, 400, 2))]
        truth.append(true)
        predicted.append(own)
        scores.append([float(score) for score in chance.random(len(own))])
    return predicted, truth, scores


def coco_stats(predicted, truth, scores):
    """COCOeval with its own settings on the files that pycocotools itself reads."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = {"bus": 1, "cat": 2, "dog": 3}
    boxes = [
        {"image_id": i, "category_id": ids[b.label], "iscrowd": 0, "area": b.area,
         "bbox": [b.x1, b.y1, b.x2 - b.x1, b.y2 - b.y1]}
        for i, own in enumerate(truth) for b in own
    ]  # fmt: skip
    answers = [
        {"image_id": i, "category_id": ids[b.label], "score": score,
         "bbox": [b.x1, b.y1, b.x2 - b.x1, b.y2 - b.y1]}
        for i, own in enumerate(predicted) for b, score in zip(own, scores[i], strict=True)
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(truth))],
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
            "annotations": [{**box, "id": n} for n, box in enumerate(boxes, start=1)],
        }
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(answers), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


@pytest.mark.parametrize("seed", range(3))
def test_map_is_what_pycocotools_itself_says(seed):
    predicted, truth, scores = scene(seed)
    result = evaluate_grounding(predicted, truth, scores=scores, bootstrap=0)
    stats = coco_stats(predicted, truth, scores)
    ours = [result[name] for name in ("map", "map@0.5", "map@0.75")]
    ours += [result.by_size.loc[name, "ap"] for name in ("small", "medium", "large")]
    assert ours == pytest.approx(list(stats[:6]), abs=1e-12)
    assert 0.1 < stats[0] < 0.9
    assert result.by_label["ap"].mean() == pytest.approx(stats[0], abs=1e-12)


def test_map_of_known_scenes():
    truth = [[square(0), square(300)]]
    assert evaluate_grounding(truth, truth)["map"] == 1
    # one of two found: precision 1 up to recall 0.5, 51 of COCO's 101 points
    assert evaluate_grounding([[square(0)]], truth)["map"] == pytest.approx(51 / 101)
    # IoU 0.6: found at 0.5, 0.55 and 0.6, three of COCO's ten thresholds
    assert evaluate_grounding([[shifted(25)]], [[square(0)]])["map"] == pytest.approx(0.3)
    assert evaluate_grounding([[]], truth)["map"] == 0


# --- intervals ------------------------------------------------------------------------------------


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Of a coin with p = 0.7 thrown 60 times, a 95 % interval holds p nearly always."""
    chance, covered = np.random.default_rng(5), 0
    for seed in range(60):
        predicted = [[square(0)] if chance.random() < 0.7 else [] for _ in range(60)]
        result = evaluate_grounding(
            predicted, [[square(0)]] * 60, coco=False, bootstrap=200, seed=seed
        )
        row = result.overall.loc["accuracy@0.5"]
        assert row["low"] <= row["value"] <= row["high"]
        covered += row["low"] <= 0.7 <= row["high"]
    assert 51 <= covered <= 60


def test_the_seed_repeats_and_more_pictures_narrow():
    predicted, truth, _ = scene(1, 12)
    first, again = (evaluate_grounding(predicted, truth, seed=4, bootstrap=200) for _ in range(2))
    pd.testing.assert_frame_equal(first.overall, again.overall)
    wide = first.overall.loc["mean_iou", "high"] - first.overall.loc["mean_iou", "low"]
    many = evaluate_grounding(predicted * 9, truth * 9, bootstrap=200).overall.loc["mean_iou"]
    assert 0.2 < (many["high"] - many["low"]) / wide < 0.5  # as 1/√9
    assert first.overall.loc["map", "low"] < first["map"] < first.overall.loc["map", "high"]


def test_questions_to_one_picture_are_drawn_together():
    """Ten copies of each picture are no more evidence than one: the interval stays as wide."""
    predicted, truth, _ = scene(2, 12)
    groups = [i for i in range(12) for _ in range(10)]
    copies = (
        [own for own in predicted for _ in range(10)],
        [own for own in truth for _ in range(10)],
    )

    def width(*boxes, **options):
        table = evaluate_grounding(*boxes, bootstrap=300, **options).overall
        return (table["high"] - table["low"])[["mean_iou", "map"]].to_numpy()

    once = width(predicted, truth)
    assert width(*copies, groups=groups) == pytest.approx(once, rel=0.3)
    assert (width(*copies) < 0.5 * once).all()


# --- edges ----------------------------------------------------------------------------------------


def test_json_and_html():
    predicted, truth, _ = scene(0, 4)
    truth[0].append(Box("<b>&", 0, 0, 9, 9))
    result = evaluate_grounding(predicted, truth, bootstrap=50)
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["overall"]["accuracy@0.5"]["value"] == result.accuracy
    assert record["by_label"]["<b>&"]["truths"] == 1
    shown = result._repr_html_()
    assert "&lt;b&gt;&amp;" in shown and "<b>&" not in shown


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (([[]], [[], []]), {}, "1 answers for 2 pictures"),
        (([], []), {}, "there are no boxes"),
        (([[]], [[]]), {}, "there are no boxes"),
        (([[square(0)]], [[square(0)]]), {"iou": ()}, "thresholds above 0"),
        (([[square(0)]], [[square(0)]]), {"iou": (0.5, 1.5)}, "thresholds above 0"),
        (([[square(0)]], [[square(0)]]), {"iou": 0.5}, "thresholds above 0"),
        ((None, [[square(0)]]), {}, "must be lists"),
        (([[square(0)]], [[square(0)]]), {"bootstrap": -1}, "bootstrap=-1 must be a whole number"),
        (([[square(0)]], [[square(0)]]), {"scores": [[]]}, "one number for each box"),
        (([[square(0)]], [[square(0)]]), {"groups": [1, 2]}, "2 groups for 1 pictures"),
        (({"a": []}, [[square(0)]]), {}, "is a mapping"),
        (({"a": [], "b": []}, {"a": [square(0)]}), {}, r"without truth: \['b'\]"),
        (([["box"]], [[square(0)]]), {}, r"expected vlkit\.Box"),
    ],
)
def test_wrong_arguments(arguments, options, message):
    with pytest.raises(VlkitError, match=message):
        evaluate_grounding(*arguments, **options)


def test_five_thousand_referring_expressions_take_seconds():
    truth = [[square(i % 7, f"thing {i}")] for i in range(5000)]
    predicted = [[square(0)] for _ in truth]
    with pytest.raises(VlkitError, match="5,000 labels in 5,000 pictures takes hours"):
        evaluate_grounding(predicted, truth)
    start = time.process_time()
    result = evaluate_grounding(predicted, truth, match_labels=False, bootstrap=200)
    assert time.process_time() - start < 30  # measured: 4
    assert result.accuracy == 1 and len(result.by_label) == 5000
    assert result["map"] == pytest.approx(result["map@0.75"], abs=0.2)


def test_without_pycocotools(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    truth = [[square(0)]]
    with pytest.raises(VlkitError, match=r"pip install 'vlkit\[eval\]', or pass coco=False"):
        evaluate_grounding(truth, truth)
    assert evaluate_grounding(truth, truth, coco=False).accuracy == 1


def test_public():
    assert vlkit.evaluate_grounding is evaluate_grounding
    assert "accuracy" in str(evaluate_grounding([[square(0)]], [[square(0)]]).overall)
    with pytest.raises(VlkitError, match="metrics = "):
        evaluate_grounding([[square(0)]], [[square(0)]])["nonsense"]
