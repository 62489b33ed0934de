"""How well a model answers held-out data: exact answers, and boxes at IoU."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkit.batch.run import answer_all
from vlkit.errors import GroundingParseError, VlkitError, check_whole
from vlkit.evaluation.metrics import Evaluation, evaluate_grounding
from vlkit.generation.reply import Failure
from vlkit.grounding.boxes import Box
from vlkit.lora.data import TrainingData, as_data
from vlkit.lora.example import Example
from vlkit.messages import text_of
from vlkit.models.adapters import attach_adapter, check_base, check_name, find_adapter
from vlkit.models.load import VLM

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Scores:
    """Answers beside the truth; made by :func:`evaluate`.

    Attributes:
        table: a row for each example: ``row``, ``question``, ``truth``, ``answer`` (None where it
            failed), ``exact``, ``boxes`` (how many true ones).
        accuracy: share of exact answers, case and blanks at the ends aside, among the rows whose
            truth holds no box; None where all do.
        grounding: of the rows whose truth holds boxes; None where none does.
    """

    table: pandas.DataFrame = field(repr=False)
    accuracy: float | None
    grounding: Evaluation | None = field(repr=False)


def evaluate(
    vlm: VLM,
    data: Any,
    *,
    max_new_tokens: int = 128,
    match_labels: bool = True,
    batch_size: int | str = "auto",
    progress: bool = True,
) -> Scores:
    """Ask the last question of each conversation, greedily, and compare with its answer.

    Args:
        vlm: from :func:`vlkit.load`, with or without an adapter.
        data: from :func:`vlkit.lora.load_conversations`, or what that reads.
        max_new_tokens: the longest answer.
        match_labels: compare only boxes of one label; as for :func:`vlkit.evaluate_grounding`.
        batch_size, progress: as for :func:`vlkit.generate_batch`.

    Raises:
        VlkitError: data that cannot be used; a row that cannot be answered counts as wrong.
    """
    import pandas

    data = as_data(data)
    told = [example.messages_for(vlm) for example in data]
    replies = answer_all(
        vlm,
        [messages[:-1] for messages in told],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    truths = [_boxes(example) for example in data]
    answers = [None if isinstance(reply, Failure) else reply.text for reply in replies]
    rows = [
        {"row": example.row, "question": text_of(messages[-2]), "truth": text_of(messages[-1]),
         "answer": answer, "exact": _plain(answer) == _plain(text_of(messages[-1])),
         "boxes": len(boxes)}
        for example, messages, answer, boxes in zip(data, told, answers, truths, strict=True)
    ]  # fmt: skip
    boxed = [i for i, boxes in enumerate(truths) if boxes]
    exact = [row["exact"] for i, row in enumerate(rows) if not truths[i]]
    grounding = None
    if boxed:
        found = [_answered(replies[i]) for i in boxed]
        true = [truths[i] for i in boxed]
        grounding = evaluate_grounding(found, true, match_labels=match_labels, coco=False)
    accuracy = sum(exact) / len(exact) if exact else None
    return Scores(pandas.DataFrame(rows), accuracy, grounding)


def _plain(answer: str | None) -> str | None:
    return None if answer is None else answer.strip().casefold()


def _boxes(example: Example) -> list[Box]:
    """The boxes of the last answer, where their place on the picture is known."""
    if example.coordinates.size is None:
        return []
    texts = [part for part in example.turns[-1][1] if not isinstance(part, dict)]
    groups = [each for text in texts for each in text.segments if not isinstance(each, str)]
    return [item for group in groups for item in group if isinstance(item, Box)]


def _answered(reply: Any) -> list[Box] | None:
    try:
        return None if isinstance(reply, Failure) else reply.boxes
    except GroundingParseError:
        return None


BASE = "base"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Answers of one model without and with adapters; made by :func:`compare`.

    Attributes:
        table: a row for each example: ``row``, ``question``, ``truth``, and a column of answers for
            each adapter, the first one, ``base``, without any.
        scores: of each column.
    """

    table: pandas.DataFrame = field(repr=False)
    scores: dict[str, Scores] = field(repr=False)

    @property
    def summary(self) -> pandas.DataFrame:
        """A row for each column of answers: ``accuracy``, and of boxes ``accuracy at IoU 0.5``."""
        import pandas

        rows = {name: _summarise(scores) for name, scores in self.scores.items()}
        return pandas.DataFrame(rows).T.dropna(axis=1, how="all")

    @property
    def changed(self) -> pandas.DataFrame:
        """The rows on which not all answer alike."""
        answers = self.table[list(self.scores)].fillna("")
        return self.table[answers.nunique(axis=1) > 1]

    def _repr_html_(self) -> str:
        rows = f"{len(self.changed):,} of {len(self.table):,} rows are answered differently"
        shown = self.changed.head(20).to_html(index=False)
        return f"{self.summary.round(4).to_html()}<p>{rows}</p>{shown}"


@contextmanager
def use_adapter(vlm: VLM, adapter: str | os.PathLike | None) -> Iterator[VLM]:
    """The loaded model with another adapter, or with none; afterwards it is as it was.

    The weights are shared, so inside the block ask the model that it gives, not the one passed::

        with vlkit.lora.use_adapter(vlm, "runs/a") as tuned:
            vlkit.generate(tuned, message)

    Args:
        vlm: from :func:`vlkit.load`, with or without an adapter of its own.
        adapter: folder or hub id; None for the base.

    Raises:
        ModelError: the adapter was made for another model.
    """
    path = None if adapter is None else find_adapter(adapter, vlm.folder, vlm.family)
    name = None if adapter is None else os.fspath(adapter)
    if not hasattr(vlm.model, "peft_config"):
        with _attached(vlm.model, path, vlm.folder) as network:
            yield replace(vlm, model=network, adapter=name)
    elif path is None:
        with vlm.model.disable_adapter():
            yield replace(vlm, adapter=None)
    else:
        with _replaced(vlm.model, path, vlm.folder):
            yield replace(vlm, adapter=name)


def compare(
    vlm: VLM,
    data: Any,
    adapters: Mapping[str, str | os.PathLike] | Sequence[str | os.PathLike],
    *,
    max_new_tokens: int = 128,
    match_labels: bool = True,
    batch_size: int | str = "auto",
    progress: bool = True,
) -> Comparison:
    """Ask one loaded model the same questions without and with each adapter.

    Args:
        vlm: from :func:`vlkit.load`.
        data: from :func:`load_conversations`, or what that reads.
        adapters: folders or hub ids, or those by the names that their columns get.
        max_new_tokens, match_labels, batch_size, progress: as for :func:`evaluate`.

    Raises:
        ModelError: an adapter that was made for another model; before the first question.
        VlkitError: two adapters of one name, or one that is called ``base``.
    """
    data, named = as_data(data), _name_adapters(adapters)
    for adapter in named.values():
        check_base(find_adapter(adapter, vlm.folder, vlm.family), vlm.model, vlm.folder)
    scores: dict[str, Scores] = {}
    for name in (BASE, *named):
        with use_adapter(vlm, named.get(name)) as asked:
            scores[name] = evaluate(
                asked,
                data,
                max_new_tokens=max_new_tokens,
                match_labels=match_labels,
                batch_size=batch_size,
                progress=progress,
            )
    table = scores[BASE].table[["row", "question", "truth"]]
    answers = {name: each.table["answer"] for name, each in scores.items()}
    return Comparison(table.assign(**answers), scores)


def _name_adapters(adapters: Any) -> dict[str, str | os.PathLike]:
    if isinstance(adapters, str | os.PathLike):
        adapters = [adapters]
    if not isinstance(adapters, Iterable):
        raise VlkitError(f"adapters={adapters!r:.80} must be a list or dict of folders or hub ids")
    pairs = adapters.items() if isinstance(adapters, Mapping) else [(None, a) for a in adapters]
    for _, adapter in pairs:
        check_name(adapter, "adapter")
    named = [(Path(a).name if name is None else str(name), a) for name, a in pairs]
    names = [BASE, "row", "question", "truth", *(name for name, _ in named)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise VlkitError(f"two columns would be called {twice[0]!r}; pass a dict with other names")
    return dict(named)


def _summarise(scores: Scores) -> dict[str, float | None]:
    found = None if scores.grounding is None else scores.grounding.accuracy
    return {"accuracy": scores.accuracy, "accuracy at IoU 0.5": found}


@contextmanager
def _attached(network: Any, path: Path | None, folder: Any) -> Iterator[Any]:
    if path is None:
        yield network
        return
    needed = {name: p.requires_grad for name, p in network.named_parameters()}
    try:
        yield attach_adapter(network, path, folder).eval()
    finally:
        _take_off(network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(needed[name])


def _take_off(network: Any) -> None:
    """The network without any adapter, also one that was put on by half."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in list(network.named_modules()):
        parent, _, own = name.rpartition(".")
        if isinstance(module, BaseTunerLayer):
            setattr(network.get_submodule(parent), own, module.get_base_layer())
        elif isinstance(module, AuxiliaryTrainingWrapper):
            setattr(network.get_submodule(parent), own, module.original_module)
    vars(network).pop("peft_config", None)


@contextmanager
def _replaced(network: Any, path: Path, folder: Any) -> Iterator[None]:
    before = network.active_adapter
    try:
        attach_adapter(network, path, folder, name="other").eval()
        network.set_adapter("other")
        yield
    finally:
        network.set_adapter(before)
        network.delete_adapter("other")


METRICS = ("auto", "exact", "iou")


TOGETHER = 8  # rows that are asked at a time


SCORED = 64  # rows, spread over the held-out data


_TOKENS = 128  # the longest answer


class Examiner:
    """Asks a model some held-out rows, always the same.

    Args:
        vlm: the model; adapters may stand in its layers.
        data: held-out rows, or None.
        metric: of ``METRICS``; None counts nothing.
        samples: rows whose answers are told.
    """

    def __init__(self, vlm: VLM, data: TrainingData | None, metric: str | None, samples: int):
        self.vlm, self.metric = vlm, metric
        count = 0 if data is None else min(len(data), max(SCORED if metric else 0, samples))
        self.rows = [] if data is None else [data[i] for i in _spread(len(data), count)]
        self.shown = _spread(count, min(samples, count))

    def __call__(self) -> dict[str, Any]:
        """``eval_accuracy`` and ``samples``, as far as they are asked for."""
        if not self.rows:
            return {}
        scores = self._ask(self.rows)
        table = scores.table.iloc[self.shown]
        told = table[["question", "truth", "answer"]].astype(object)
        found: dict[str, Any] = {"samples": told.where(told.notna(), "").values.tolist()}
        value = score_answers(scores, self.metric)
        return found | ({} if value is None else {"eval_accuracy": value})

    def estimate_seconds(self) -> float:
        """Of a call, measured on its first few rows."""
        few = self.rows[:TOGETHER]
        start = time.perf_counter()
        if few:
            self._ask(few)
        return (time.perf_counter() - start) * len(self.rows) / max(len(few), 1)

    def _ask(self, rows: list[Example]) -> Scores:
        return evaluate(
            self.vlm, TrainingData("held-out", rows), progress=False, batch_size=TOGETHER,
            max_new_tokens=_TOKENS,
        )  # fmt: skip


def check_examined(metric: str | None, samples: int) -> None:
    """Raises VlkitError for a metric that is unknown, or a number of samples that is none."""
    if metric is not None and metric not in METRICS:
        raise VlkitError(f"metric={metric!r} is unknown; choose one of {list(METRICS)}, or None")
    check_whole("samples", samples)


def score_answers(scores: Scores, metric: str | None) -> float | None:
    """The share of right answers; None where no row is of the kind that the metric counts.

    ``exact`` counts rows whose truth holds no box, ``iou`` the boxes of the others (at IoU 0.5),
    ``auto`` both.
    """
    boxes, texts = int(scores.table["boxes"].sum()), int((scores.table["boxes"] == 0).sum())
    right = counted = 0.0
    if metric in ("auto", "exact") and scores.accuracy is not None:
        right, counted = right + scores.accuracy * texts, counted + texts
    if metric in ("auto", "iou") and scores.grounding is not None:
        right, counted = right + scores.grounding.accuracy * boxes, counted + boxes
    return right / counted if counted else None


def _spread(total: int, count: int) -> Sequence[int]:
    return [i * total // count for i in range(count)]
