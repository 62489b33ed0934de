"""``ask_grounding``: a question for each label of a data set, scored."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkit import __version__
from vlkit.batch.answering import answer_all
from vlkit.bundled import bundled_path
from vlkit.datasets.pictures import questions_of
from vlkit.datasets.scenes import read_scenes
from vlkit.errors import VlkitError
from vlkit.evaluation.gallery import Gallery, failure_gallery
from vlkit.evaluation.metrics import Evaluation, check_thresholds, evaluate_grounding
from vlkit.files import whole_folder
from vlkit.generation.reply import Failure, Reply, attempt
from vlkit.grounding.boxes import Box
from vlkit.messages import user
from vlkit.models.load import Model
from vlkit.plotting.html import frame_html
from vlkit.settings import MAX_NEW_TOKENS

if TYPE_CHECKING:
    import pandas


MOST_LABELS = 200


@dataclass(frozen=True)
class Question:
    """A question about a picture, and the boxes that answer it."""

    image: Path
    prompt: str
    truth: tuple[Box, ...]


@dataclass(frozen=True, eq=False)
class GroundingRun:
    """A model's answers to grounding questions, and their evaluation.

    Attributes:
        evaluation: of the boxes; a picture's name in it is the question's number.
        questions, answers: in the same order; a Failure where the model gave no answer.
        boxes: of each answer, None where it could not be read.
        errors: the answer and why it, or a part of it, could not be parsed; else "".
        about: the model, the data and the settings.
    """

    evaluation: Evaluation
    questions: list[Question]
    answers: list[Reply | Failure]
    boxes: list[list[Box] | None]
    errors: list[str]
    about: dict

    @cached_property
    def rows(self) -> "pandas.DataFrame":
        """The evaluation's rows with ``image``, ``question`` and ``answer``."""
        rows = self.evaluation.rows.copy()
        numbers = rows["picture"].astype(int)
        rows.insert(1, "image", [self.questions[i].image.name for i in numbers])
        rows.insert(2, "question", [self.questions[i].prompt for i in numbers])
        rows["answer"] = [self.errors[i] or str(self.answers[i]) for i in numbers]
        return rows.rename(columns={"picture": "number"})

    def gallery(self, worst: int = 24) -> Gallery:
        """The questions that went worst."""
        captions = [
            f"{q.image.name}\n{q.prompt}\n{error or reply}"
            for q, reply, error in zip(self.questions, self.answers, self.errors, strict=True)
        ]
        named = [  # as the model names them, whatever label they count for
            isinstance(answer, Reply) and boxes and _boxes(answer.read_grounding()[0])
            for boxes, answer in zip(self.boxes, self.answers, strict=True)
        ]
        return failure_gallery(
            [q.image for q in self.questions], named, [q.truth for q in self.questions],
            worst=worst, captions=captions, evaluation=self.evaluation,
            title=f"{self.about['model']} on {self.about['data']}",
            head=frame_html(self.evaluation.overall),
        )  # fmt: skip

    def to_dict(self) -> dict:
        """The content of ``metrics.json``."""
        unread = sum(boxes is None for boxes in self.boxes)
        counts = {"questions": len(self.questions), "unreadable": unread}
        return {**self.about, **counts, **self.evaluation.to_dict()}

    def save(self, folder: str | os.PathLike, *, worst: int = 24) -> Path:
        """Write ``metrics.json``, ``rows.csv`` and ``gallery.html``, all of them or none.

        Raises:
            VlkitError: the folder is not empty, or cannot be written.
        """
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=2, allow_nan=False)
        with whole_folder(Path(folder)) as made:
            (made / "metrics.json").write_text(text + "\n", encoding="utf-8")
            self.rows.to_csv(made / "rows.csv", index=False)
            self.gallery(worst).save(made / "gallery.html")
        return Path(folder)


def read_questions(
    data: str | os.PathLike,
    *,
    prompt: str,
    format: str = "auto",
    images: str | os.PathLike | None = None,
    max_image_tokens: int | None = None,
) -> list[Question]:
    """The questions of a data set: its own, or one for each label in each picture.

    Args:
        data: "samples" for vlkit's own, else a file or folder that :mod:`vlkit.datasets` reads.
        prompt: with ``{label}``, for pictures without a question of their own.
        format, images, max_image_tokens: as for :func:`vlkit.datasets.read_scenes`.

    Raises:
        VlkitError: the data set cannot be read, or has no boxes.
    """
    if "{label}" not in prompt:
        raise VlkitError(f'the prompt {prompt!r:.60} must contain "{{label}}", the object to find')
    if str(data) == "samples" and not Path(data).exists():
        data = bundled_path("samples")
    scenes = read_scenes(data, format=format, images=images, max_image_tokens=max_image_tokens)
    questions = [
        Question(scene.image, question, tuple(boxes))
        for scene in scenes
        for question, items in questions_of(scene, prompt)
        if (boxes := [item for item in items if isinstance(item, Box)])
    ]
    if not questions:
        raise VlkitError(f"{data} has no boxes to ask for")
    return questions


def ask_grounding(
    vlm: Model,
    questions: Sequence[Question],
    *,
    data: str = "",
    iou: Sequence[float] = (0.5, 0.75),
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int | str = "auto",
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> GroundingRun:
    """Ask a model, greedily, and evaluate its boxes.

    For a question about one label, the answer's boxes count for it, whatever labels they have. An
    answer that cannot be parsed counts as one without boxes, and is listed in ``errors``. With over
    200 labels, as in referring expressions, mAP treats them as one.

    Args:
        vlm: from :func:`vlkit.load`.
        questions: from :func:`read_questions`.
        data: a name for the data set.
        iou, bootstrap, seed: as for :func:`vlkit.evaluate_grounding`.
        max_new_tokens, batch_size, progress: as for :func:`vlkit.generate_batch`.

    Raises:
        KeyboardInterrupt: it was stopped; missing answers must not count as wrong.
    """
    questions, iou = list(questions), check_thresholds(iou)  # checked before hours of work
    if not questions:
        raise VlkitError("questions is empty; pass those of read_questions")
    answers = answer_all(
        vlm, [user(question.prompt, question.image) for question in questions],
        max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    parsed = [_parse(answer, question) for answer, question in zip(answers, questions, strict=True)]
    boxes = [read for read, _ in parsed]
    truth = [question.truth for question in questions]
    labels = {box.label for true_boxes in truth for box in true_boxes}
    evaluation = evaluate_grounding(
        boxes, truth, iou, match_labels=len(labels) <= MOST_LABELS, bootstrap=bootstrap, seed=seed,
        groups=[question.image for question in questions],
    )  # fmt: skip
    about = {
        "model": vlm.name, "revision": vlm.revision, "family": vlm.family, "data": data,
        "max_new_tokens": max_new_tokens, "iou": list(evaluation.thresholds),
        "bootstrap": bootstrap, "seed": seed, "vlkit": __version__,
    }  # fmt: skip
    errors = [error for _, error in parsed]
    return GroundingRun(evaluation, questions, list(answers), boxes, errors, about)


def _boxes(items: Sequence[Any]) -> list[Box]:
    return [item for item in items if isinstance(item, Box)]


def _parse(answer: Any, question: Question) -> tuple[list[Box] | None, str]:
    if isinstance(answer, Failure):
        return None, str(answer)
    read = attempt(answer.read_grounding)
    if isinstance(read, Failure):
        return None, f"{answer} ({read.error})"
    items, left_out = read
    boxes = _boxes(items)
    if len({box.label for box in question.truth}) == 1:
        boxes = [replace(box, label=question.truth[0].label) for box in boxes]
    return boxes, f"{answer} ({left_out})" if left_out else ""
