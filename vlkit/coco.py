"""COCO's average precision, counted by pycocotools, its reference implementation."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlkit.errors import VlkitError
from vlkit.grounding import Box
from vlkit.metrics import SIZES, label_key

NAMES = ("map", "map@0.5", "map@0.75")  # over IoU 0.5 to 0.95 in steps of 0.05, and at two


class AveragePrecision:
    """mAP of boxes in pictures.

    Attributes:
        overall: ``map``, ``map@0.5`` and ``map@0.75``, at most 100 boxes a picture, as COCO has it.
        by_label: the first of them for each label, where labels are compared.
        by_size: the first of them for COCO's sizes, by the area of the true box.
    """

    def __init__(
        self,
        answers: Sequence[Sequence[Box]],
        truths: Sequence[Sequence[Box]],
        scores: Sequence[Sequence[float]],
        match_labels: bool = True,
    ):
        keys = {label_key(box.label, match_labels) for boxes in truths for box in boxes}
        numbers = {key: number for number, key in enumerate(sorted(keys), start=1)}
        kinds = [[numbers.get(label_key(b.label, match_labels)) for b in own] for own in answers]
        true_kinds = [[numbers[label_key(b.label, match_labels)] for b in own] for own in truths]
        sure = [[1.0] * len(own) for own in truths]
        sides = (
            _dataset(truths, true_kinds, sure, len(numbers)),
            _dataset(answers, kinds, scores, len(numbers)),
        )
        self._evaluator = _evaluate(*sides, [(0, 1e10)])
        precision = self._accumulate(self._evaluator)[:, :, :, 0]
        self.overall = dict(zip(NAMES, _means(precision), strict=True))
        each = [_means(precision[:, :, k])[0] for k in range(len(numbers))]
        self.by_label = dict(zip(sorted(keys), each, strict=True)) if match_labels else {}
        areas = [(low, min(high, 1e10)) for low, high in SIZES.values()]
        sized = self._accumulate(_evaluate(*sides, areas))
        self.by_size = {name: _means(sized[..., i])[0] for i, name in enumerate(SIZES)}

    def drawn(self, pictures: np.ndarray) -> list[float]:
        """The three of ``overall`` for pictures drawn by number, each as often as it is drawn."""
        evaluator = copy.copy(self._evaluator)
        count = len(evaluator.params.imgIds)
        blocks = len(evaluator.evalImgs) // count
        order = (np.arange(blocks)[:, None] * count + pictures[None]).ravel()
        evaluator.evalImgs = [self._evaluator.evalImgs[i] for i in order]
        evaluator.params = copy.copy(evaluator.params)
        evaluator.params.imgIds = list(range(len(pictures)))
        evaluator._paramsEval = evaluator.params
        return _means(self._accumulate(evaluator)[..., 0])

    @staticmethod
    def _accumulate(evaluator: Any) -> np.ndarray:
        """Precision of shape (10 IoUs, 101 recalls, labels, areas)."""
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.accumulate()
        return evaluator.eval["precision"][..., -1]


def _means(precision: np.ndarray) -> list[float]:
    """Over what could be counted: pycocotools writes -1 for a label without a true box."""
    parts = (precision, precision[0], precision[5])
    return [float(p[p > -1].mean()) if (p > -1).any() else float("nan") for p in parts]


def _dataset(boxes: Sequence, kinds: Sequence, scores: Sequence, labels: int) -> dict:
    annotations = [
        {
            "image_id": picture,
            "category_id": kind,
            "bbox": [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1],
            "area": box.area,
            "iscrowd": 0,
            "score": score,
        }
        for picture, row in enumerate(zip(boxes, kinds, scores, strict=True))
        for box, kind, score in zip(*row, strict=True)
        if kind is not None
    ]
    return {
        "images": [{"id": picture} for picture in range(len(boxes))],
        "categories": [{"id": number} for number in range(1, labels + 1)],
        "annotations": [{**a, "id": i} for i, a in enumerate(annotations, start=1)],
    }


def _evaluate(truth: dict, answer: dict, areas: list[tuple[float, float]]) -> Any:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise VlkitError(
            "mAP needs pycocotools: pip install 'vlkit[eval]', or pass coco=False"
        ) from None
    with contextlib.redirect_stdout(io.StringIO()):  # it reports on its way
        sides = []
        for dataset in (truth, answer):
            side = COCO()
            side.dataset = dataset
            side.createIndex()
            sides.append(side)
        evaluator = COCOeval(*sides, "bbox")
        evaluator.params.areaRng = areas
        evaluator.params.areaRngLbl = [str(area) for area in areas]
        evaluator.params.maxDets = [100]
        evaluator.evaluate()
    return evaluator
