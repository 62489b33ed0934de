"""A run that proves itself: its adapter has an effect, keeps it when merged, and fits no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkit.errors import ModelError
from vlkit.models.adapters import Values, base_values, check_values
from vlkit.models.hub import ModelFolder
from vlkit.models.load import VLM, base_model

if TYPE_CHECKING:
    import pandas


_ROUNDED = 8  # steps of the model's type, by which many layers' rounding moves a value


@dataclass(frozen=True, eq=False)
class Checks:
    """What a training run proves of itself.

    Attributes:
        before, after: share of right answers on held-out rows; None without ``eval_data``.
        table: some of these rows: ``question``, ``truth``, ``before``, ``after``.
        change: how far training moved the logits of a held-out row's answer (or of a training
            row's), on average.
        merged_difference: how far merging the adapter moves them; None without one, or where the
            weights are quantized.
        rounding: how far the rounding of the model's own type may move them.
        refusal: the error of a model of the same shape, each weight a tenth larger, that was given
            the adapter.
        adapter: whether one was trained.
    """

    before: float | None
    after: float | None
    table: pandas.DataFrame = field(repr=False)
    change: float
    merged_difference: float | None
    rounding: float
    refusal: str | None
    adapter: bool = True

    @property
    def passed(self) -> bool:
        """Whether the model changed, merging changes little, and another model refuses it."""
        moved = self.merged_difference or 0.0
        kept = moved <= 0.1 * self.change + self.rounding
        return self.change > 0 and kept and (self.refusal is not None or not self.adapter)


class Prover:
    """Looks at a model before training, and again after it.

    Args:
        vlm: the model; adapters stand in its layers, with no effect so far.
        row: a labelled example, its pixels in its tensors.
    """

    def __init__(self, vlm: VLM, row: Any):
        self.vlm, self.row = vlm, row
        self.logits = self._answer_logits()

    def check(self, folder: Path, before: dict[str, Any], after: dict[str, Any]) -> Checks:
        """What is proved.

        Args:
            folder: where an adapter or model was written.
            before, after: from the run's :class:`vlkit.lora.evaluating.Examiner`.
        """
        now = self._answer_logits()
        merged = refusal = None
        adapter = (folder / "adapter_config.json").is_file()
        if adapter:
            refusal = _refusal(self.vlm, folder)
        if adapter and not getattr(self.vlm.model, "is_quantized", False):
            with _merged(base_model(self.vlm)):
                merged = _distance(self._answer_logits(), now)
        return Checks(
            before=before.get("eval_accuracy"),
            after=after.get("eval_accuracy"),
            table=_compare(before.get("samples", []), after.get("samples", [])),
            change=_distance(now, self.logits),
            merged_difference=merged,
            rounding=_ROUNDED * _epsilon(self.vlm.model.dtype) * now.abs().mean().item(),
            refusal=refusal,
            adapter=adapter,
        )

    def _answer_logits(self) -> Any:
        """(learnt tokens, vocabulary), in float32 on the CPU."""
        import torch

        from vlkit.lora.batches import Collator

        model = base_model(self.vlm)
        training = model.training
        batch = Collator(0)([self.row])
        kept = batch["logits_to_keep"].to(model.device)
        tensors = {
            name: value.to(model.device)
            for name, value in batch.items()
            if name not in ("labels", "shift_labels", "logits_to_keep")
        }
        with torch.no_grad():
            logits = model.eval()(**tensors, logits_to_keep=kept, use_cache=False).logits
        model.train(training)
        return logits[0].float().cpu()


def _epsilon(dtype: Any) -> float:
    import torch

    return torch.finfo(dtype).eps


def _distance(one: Any, other: Any) -> float:
    return (one - other).abs().mean().item()


def _compare(before: list, after: list) -> Any:
    import pandas

    rows = [(*told, answer) for told, (*_, answer) in zip(before, after, strict=False)]
    return pandas.DataFrame(rows, columns=["question", "truth", "before", "after"])


def _refusal(vlm: VLM, folder: Path) -> str | None:
    """What a model of the same shape says to the adapter; None where the adapter's own objects."""
    own = base_values(vlm.model)
    others = {name: [1.1 * value for value in values] for name, values in own.items()}
    other = replace(vlm.folder, name="a model with other weights")
    return _said(folder, others, other) if _said(folder, own, vlm.folder) is None else None


def _said(adapter: Path, values: Values, folder: ModelFolder) -> str | None:
    try:
        check_values(adapter, values, folder)
    except ModelError as error:
        return str(error)
    return None


@contextmanager
def _merged(model: Any) -> Iterator[None]:
    """Layers with their adapter in the weights, as merging writes them; as they were afterwards."""
    from peft.tuners.lora.layer import Linear

    layers = [each for each in model.modules() if type(each) is Linear]
    own = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(_merged_layer, layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def _merged_layer(layer: Any, inner: Any, *_: Any, **__: Any) -> Any:
    import torch

    base, name = layer.base_layer, layer.active_adapters[0]
    weight = base.weight + layer.get_delta_weight(name).to(base.weight.dtype)
    return torch.nn.functional.linear(inner, weight, base.bias)
