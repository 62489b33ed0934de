"""transformers' Trainer as it is used here: rows of like lengths, features, answers on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from transformers import Trainer

from vlkit.lora.batches import LengthSampler
from vlkit.lora.features import FrozenTower
from vlkit.lora.live import show_progress

# it takes checkpoints within a second of each other for a fault of the filesystem
logging.getLogger("transformers.trainer_utils").addFilter(
    lambda record: "mtime" not in str(record.msg)
)


class VisionTrainer(Trainer):
    """A Trainer whose batches hold features of pictures, and which asks the model on the way.

    Args:
        sampler: of the training rows.
        tower: whose features the batches hold, or None.
        examine: called after each evaluation; what it returns is logged: numbers as Trainer's
            own, anything else in ``state.log_history`` alone.
        measure: what has changed of weights by their names.

    Attributes:
        effect: what that was when weights spread over processes were last written, on the first.
    """

    def __init__(
        self,
        *args: Any,
        sampler: LengthSampler,
        tower: FrozenTower | None,
        examine: Callable[[], dict[str, Any]],
        measure: Callable[[Mapping[str, Any]], float],
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        # a loss is the mean over an update's learnt tokens, however many batches they come in
        self.model_accepts_loss_kwargs = True
        self.sampler, self.tower, self.examine = sampler, tower, examine
        self.measure, self.effect = measure, 0.0
        show_progress(self)

    def _get_train_sampler(self, *_: Any) -> Any:
        return self.sampler

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's."""
        with self.tower.replaced() if self.tower else nullcontext():
            return super().compute_loss(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if state_dict:
            self.effect = self.measure(state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Whole weights by way of the model's own loader: on disk they have other names."""
        if hasattr(self.model, "peft_config") or self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        loaded = type(self.model).from_pretrained(resume_from_checkpoint, dtype=self.model.dtype)
        self.model.load_state_dict(loaded.state_dict())

    def _load_best_model(self) -> None:
        if hasattr(self.model, "peft_config") or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As Trainer's, with the answers' metric; samples go to ``state.log_history``."""
        metrics = super().evaluate(*args, **kwargs)
        found = self.examine()
        numbers = {name: value for name, value in found.items() if isinstance(value, float)}
        others = {name: value for name, value in found.items() if name not in numbers}
        if others:
            self.state.log_history.append({"step": self.state.global_step, **others})
        if numbers:
            self.log(numbers)
        return metrics | numbers
