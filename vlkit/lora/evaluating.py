"""``lora.evaluate``, ``compare``, ``use_adapter``: held-out answers."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas

from vlkit.batch.answering import answer_all
from vlkit.errors import VlkitError
from vlkit.evaluation.metrics import Evaluation, evaluate_grounding
from vlkit.generation.reply import Failure, attempt
from vlkit.grounding.boxes import Box
from vlkit.lora.curves import is_same
from vlkit.lora.data import Example, TrainingData, as_data
from vlkit.messages import text_of
from vlkit.models.adapters import attach_adapter, check_base, check_name, find_adapter
from vlkit.models.load import VLM


@dataclass(frozen=True, eq=False)
class Scores:
    """Answers and the truth; made by :func:`evaluate`.

    Attributes:
        table: a row for each example: ``row``, ``question``, ``truth``, ``answer`` (None where it
            failed), ``exact``, ``boxes`` (how many true ones).
        accuracy: share of exact answers (ignoring case and surrounding blanks) among the rows
            without boxes in their truth; None where all have some.
        grounding: of the rows with boxes in their truth; None where there are none.
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
        match_labels: compare only boxes with the same label, as :func:`vlkit.evaluate_grounding`.
        batch_size, progress: as for :func:`vlkit.generate_batch`.

    Raises:
        VlkitError: data that cannot be used; a row that cannot be answered counts as wrong.
    """
    data = as_data(data)
    conversations = [example.messages_for(vlm) for example in data]
    questions = [messages[:-1] for messages in conversations]
    options: Any = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    replies = answer_all(vlm, questions, progress=progress, **options)
    truths = [_boxes(example) for example in data]
    rows: list[dict[str, Any]] = []
    for example, messages, reply, boxes in zip(data, conversations, replies, truths, strict=True):
        question, truth = text_of(messages[-2]), text_of(messages[-1])
        answer = None if isinstance(reply, Failure) else reply.text
        is_exact = answer is not None and is_same(answer, truth)
        rows.append({"row": example.row, "question": question, "truth": truth,
                     "answer": answer, "exact": is_exact, "boxes": len(boxes)})  # fmt: skip
    exact: list[bool] = [row["exact"] for row in rows if not row["boxes"]]
    accuracy = sum(exact) / len(exact) if exact else None
    grounding = None
    if any(truths):
        pairs = [(_predicted(r), boxes) for r, boxes in zip(replies, truths, strict=True) if boxes]
        predicted, expected = zip(*pairs, strict=True)
        grounding = evaluate_grounding(predicted, expected, match_labels=match_labels, coco=False)
    return Scores(pandas.DataFrame(rows), accuracy, grounding)


def _boxes(example: Example) -> list[Box]:
    """The boxes of the last answer, where the picture's size is known."""
    if example.coordinates.size is None:
        return []
    groups = [segment for segment in example.segments[-1] if not isinstance(segment, str)]
    return [item for group in groups for item in group if isinstance(item, Box)]


def _predicted(reply: Any) -> list[Box] | None:
    boxes = attempt(getattr, reply, "boxes")  # a Failure has none
    return None if isinstance(boxes, Failure) else boxes


BASE = "base"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Answers of one model without and with adapters; made by :func:`compare`.

    Attributes:
        table: a row for each example: ``row``, ``question``, ``truth``, ``base`` (answers without
            an adapter), and a column of answers for each adapter.
        scores: of each column.
    """

    table: pandas.DataFrame = field(repr=False)
    scores: dict[str, Scores] = field(repr=False)

    @property
    def summary(self) -> pandas.DataFrame:
        """A row for each column of answers: ``accuracy``, and of boxes ``accuracy at IoU 0.5``."""
        rows = {}
        for name, scores in self.scores.items():
            found = scores.grounding and scores.grounding.accuracy
            rows[name] = {"accuracy": scores.accuracy, "accuracy at IoU 0.5": found}
        return pandas.DataFrame(rows).T.dropna(axis=1, how="all")

    @property
    def changed(self) -> pandas.DataFrame:
        """The rows whose answers differ."""
        answers = self.table[list(self.scores)].fillna("")
        return self.table[answers.nunique(axis=1) > 1]

    def _repr_html_(self) -> str:
        rows = f"answers differ in {len(self.changed):,} of {len(self.table):,} rows"
        shown = self.changed.head(20).to_html(index=False)
        return f"{self.summary.round(4).to_html()}<p>{rows}</p>{shown}"


@contextmanager
def use_adapter(vlm: VLM, adapter: str | os.PathLike | None) -> Iterator[VLM]:
    """The loaded model with another adapter, or with none; restored on exit.

    The weights are shared, so inside the block use the model that it yields, not the one passed::

        with vlkit.lora.use_adapter(vlm, "runs/a") as tuned:
            vlkit.generate(tuned, message)

    Args:
        vlm: from :func:`vlkit.load`, with or without an adapter.
        adapter: folder or hub id; None for the base.

    Raises:
        ModelError: the adapter was made for another model.
    """
    has_adapter = hasattr(vlm.model, "peft_config")
    change: AbstractContextManager[Any] = nullcontext()
    if adapter is not None:
        path = find_adapter(adapter, vlm.folder, vlm.family)
        change = (_replaced if has_adapter else _attached)(vlm.model, path, vlm.folder)
    elif has_adapter:
        change = vlm.model.disable_adapter()
    with change as network:
        name = None if adapter is None else os.fspath(adapter)
        yield replace(vlm, model=network or vlm.model, adapter=name)


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
        adapters: folders or hub ids, or a dict of them by the names of their columns.
        max_new_tokens, match_labels, batch_size, progress: as for :func:`evaluate`.

    Raises:
        ModelError: an adapter was made for another model; raised before the first question.
        VlkitError: two adapters have the same name, or one is called ``base``.
    """
    data, named = as_data(data), _name_adapters(adapters)
    for adapter in named.values():
        check_base(find_adapter(adapter, vlm.folder, vlm.family), vlm.model, vlm.folder)
    scores: dict[str, Scores] = {}
    for name in (BASE, *named):
        with use_adapter(vlm, named.get(name)) as adapted:
            scores[name] = evaluate(
                adapted, data, max_new_tokens=max_new_tokens, match_labels=match_labels,
                batch_size=batch_size, progress=progress,
            )  # fmt: skip
    table = scores[BASE].table[["row", "question", "truth"]]
    answers = {name: column.table["answer"] for name, column in scores.items()}
    return Comparison(table.assign(**answers), scores)


def _name_adapters(adapters: Any) -> dict[str, str | os.PathLike]:
    if isinstance(adapters, str | os.PathLike):
        adapters = [adapters]
    if not isinstance(adapters, Iterable):
        raise VlkitError(f"adapters={adapters!r:.80} must be a list or dict of folders or hub ids")
    pairs = adapters.items() if isinstance(adapters, Mapping) else [(None, a) for a in adapters]
    names = [BASE, "row", "question", "truth"]
    for name, adapter in pairs:
        check_name(adapter, "adapter")
        names.append(Path(adapter).name if name is None else str(name))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise VlkitError(f"two columns would be called {twice[0]!r}; pass a dict with other names")
    return dict(zip(names[4:], (adapter for _, adapter in pairs), strict=True))


@contextmanager
def _attached(network: Any, path: Path, folder: Any) -> Iterator[Any]:
    needed = {name: p.requires_grad for name, p in network.named_parameters()}
    try:
        yield attach_adapter(network, path, folder).eval()
    finally:
        _remove_adapters(network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(needed[name])


def _remove_adapters(network: Any) -> None:
    """Remove every adapter, also one that was attached only partly."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in list(network.named_modules()):
        parent, _, attribute = name.rpartition(".")
        if isinstance(module, BaseTunerLayer):
            setattr(network.get_submodule(parent), attribute, module.get_base_layer())
        elif isinstance(module, AuxiliaryTrainingWrapper):
            setattr(network.get_submodule(parent), attribute, module.original_module)
    vars(network).pop("peft_config", None)


@contextmanager
def _replaced(network: Any, path: Path, folder: Any) -> Iterator[Any]:
    before = network.active_adapter
    try:
        attach_adapter(network, path, folder, name="other").eval()
        network.set_adapter("other")
        yield network
    finally:
        network.set_adapter(before)
        network.delete_adapter("other")


TOGETHER = 8  # rows of a batch
SCORED = 64  # rows, spread over the held-out data
_TOKENS = 128  # the longest answer


class Examiner:
    """Asks a model some held-out rows, always the same.

    Args:
        vlm: the model; its layers may have adapters.
        data: held-out rows, or None.
        metric: as for :func:`vlkit.lora.train`.
        samples: number of rows whose answers are returned.
    """

    def __init__(self, vlm: VLM, data: TrainingData | None, metric: str | None, samples: int):
        self.vlm, self.metric = vlm, metric
        count = 0 if data is None else min(len(data), max(SCORED if metric else 0, samples))
        self.rows = [] if data is None else [data[i] for i in _spread(len(data), count)]
        self.shown = _spread(count, min(samples, count))

    def __call__(self) -> dict[str, Any]:
        """A dict with ``samples`` and, with a metric, ``eval_accuracy``; empty without rows."""
        if not self.rows:
            return {}
        scores = self._ask(self.rows)
        table = scores.table.iloc[self.shown]
        samples = table[["question", "truth", "answer"]].astype(object)
        results: dict[str, Any] = {"samples": samples.where(samples.notna(), "").values.tolist()}
        accuracy = score_answers(scores, self.metric)
        return results | ({} if accuracy is None else {"eval_accuracy": accuracy})

    def estimate_seconds(self) -> float:
        """The time of a call, measured on its first few rows."""
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


def score_answers(scores: Scores, metric: str | None) -> float | None:
    """The share of right answers; None where the metric counts no row.

    ``exact`` counts rows without boxes in their truth, ``iou`` the true boxes of the others (at
    IoU 0.5), ``auto`` both.
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
