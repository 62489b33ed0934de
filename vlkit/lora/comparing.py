"""Adapters on one loaded model: put on, taken off, and their answers side by side."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkit.adapters import attach_adapter, check_name, find_adapter
from vlkit.base_weights import check_base
from vlkit.errors import VlkitError
from vlkit.lora.data import as_data
from vlkit.lora.scoring import Scores, evaluate
from vlkit.models import VLM

if TYPE_CHECKING:
    import pandas

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
