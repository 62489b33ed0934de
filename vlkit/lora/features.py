"""A frozen vision tower looks at each picture once; its features are kept and given again."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from vlkit.batching.encoding import Encoder, Medium

SHARE = 0.25  # of the free main memory, that features may take


class FrozenTower:
    """Features of pictures and clips, each computed once, without gradients, all new ones at once.

    They are kept in main memory. What its share of it does not hold is computed anew each time.

    Args:
        model: the transformers model, out of an adapter's wrapper.
        budget: bytes that features may take; by default a quarter of the free main memory.
    """

    def __init__(self, model: Any, budget: int | None = None):
        import psutil

        self.visual = model.model.visual
        self.width = model.config.get_text_config().hidden_size
        self.encoder = Encoder(model)
        self.left = int(SHARE * psutil.virtual_memory().available) if budget is None else budget
        self._kept: dict[Hashable, Any] = {}

    def holds(self, key: Hashable) -> bool:
        """Whether this content's features need no pixels any more."""
        return key in self._kept

    def encode(self, media: Sequence[Medium]) -> list[Any]:
        """For each medium (tokens, width × (1 + deeper layers)) on the tower's device.

        Args:
            media: those that are not held need their pixels.
        """
        import torch

        new = {medium.key: medium for medium in media if medium.key not in self._kept}
        found = {}
        with torch.no_grad():
            for key, layers in zip(new, self.encoder.encode(list(new.values())), strict=True):
                found[key] = torch.cat(layers, -1)
                self._keep(key, found[key])
        self.encoder.forget()
        for medium in media:
            if medium.key not in found:
                found[medium.key] = self._kept[medium.key].to(self.visual.device, non_blocking=True)
        return [found[medium.key] for medium in media]

    def _keep(self, key: Hashable, features: Any) -> None:
        import torch

        if features.nbytes > self.left:
            return
        self.left -= features.nbytes
        pinned = features.is_cuda  # the copy does not wait for the GPU, and its reader is the GPU
        held = torch.empty(features.shape, dtype=features.dtype, pin_memory=pinned)
        self._kept[key] = held.copy_(features, non_blocking=pinned)

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Within it the model takes features for ``pixel_values``, and no tower runs."""
        own = vars(self.visual).get("forward")  # accelerate's, where a model is spread out
        self.visual.forward = partial(_split_layers, self.width)
        try:
            yield
        finally:
            del self.visual.forward
            if own is not None:
                self.visual.forward = own


def _split_layers(width: int, features: Any, grid_thw: Any, **_) -> Any:
    """The tower's output, of features with those of deeper layers behind them."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    first, *deeper = features.split(width, -1)
    return BaseModelOutputWithDeepstackFeatures(pooler_output=first, deepstack_features=deeper)
