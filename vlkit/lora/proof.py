"""What a run proves of itself: training changed the model, and merging keeps the change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkit.lora.batches import Collator
from vlkit.lora.example import Example
from vlkit.lora.token_labels import label_example
from vlkit.models.load import VLM, base_model

if TYPE_CHECKING:
    import pandas


_ROUNDED = 8  # epsilons of the dtype by which rounding in many layers moves a value


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
        rounding: how far rounding in the model's dtype may move them.
    """

    before: float | None
    after: float | None
    table: pandas.DataFrame = field(repr=False)
    change: float
    merged_difference: float | None
    rounding: float

    @property
    def passed(self) -> bool:
        """Whether training changed the model, and merging changes little."""
        return (
            0 < self.change and (self.merged_difference or 0) <= 0.1 * self.change + self.rounding
        )


class Prover:
    """Compares a model's logits before training, after it, and with the adapter merged.

    Args:
        vlm: the model; its adapters have no effect yet.
        example: whose answer is looked at.
        max_length: the most tokens of it.
    """

    def __init__(self, vlm: VLM, example: Example, max_length: int | None):
        self.vlm = vlm
        self.row = label_example(vlm, example, max_length=max_length)
        self.logits = self._answer_logits()

    def check(self, folder: Path, before: dict[str, Any], after: dict[str, Any]) -> Checks:
        """Compare, when training is done.

        Args:
            folder: where an adapter or model was written.
            before, after: from the run's :class:`vlkit.lora.evaluating.Examiner`.
        """
        trained = self._answer_logits()
        merged_difference = None
        adapted = (folder / "adapter_config.json").is_file()
        if adapted and not getattr(self.vlm.model, "is_quantized", False):
            with _merged(base_model(self.vlm)):
                merged_difference = _distance(self._answer_logits(), trained)
        return Checks(
            before=before.get("eval_accuracy"),
            after=after.get("eval_accuracy"),
            table=_compare(before.get("samples", []), after.get("samples", [])),
            change=_distance(trained, self.logits),
            merged_difference=merged_difference,
            rounding=_ROUNDED * _epsilon(self.vlm.model.dtype) * trained.abs().mean().item(),
        )

    def _answer_logits(self) -> Any:
        """(trained tokens, vocabulary), in float32 on the CPU."""
        import torch

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

    rows = [(*first, answer) for first, (*_, answer) in zip(before, after, strict=False)]
    return pandas.DataFrame(rows, columns=["question", "truth", "before", "after"])


@contextmanager
def _merged(model: Any) -> Iterator[None]:
    """Layers compute with their adapter merged into the weights; restored on exit."""
    from peft.tuners.lora.layer import Linear

    layers = [each for each in model.modules() if type(each) is Linear]
    replaced = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(_merged_layer, layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, replaced, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def _merged_layer(layer: Any, inner: Any, *_: Any, **__: Any) -> Any:
    import torch

    base, name = layer.base_layer, layer.active_adapters[0]
    weight = base.weight + layer.get_delta_weight(name).to(base.weight.dtype)
    return torch.nn.functional.linear(inner, weight, base.bias)
