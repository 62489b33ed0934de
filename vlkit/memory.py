"""How much memory a model needs for a prompt, estimated from its config alone."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a model needs, in bytes.

    Attributes:
        weights: of all parameters.
        cache_per_token: keys and values of one token.
        pixels_per_patch: the pixels of one patch, held throughout.
        vision_per_patch: the vision tower's peak for one patch.
        language_per_token: the language model's peak for one prompt token.
        held: what of the weights is in memory already.
    """

    weights: int
    cache_per_token: int
    pixels_per_patch: int
    vision_per_patch: int
    language_per_token: int
    held: int = 0


@dataclass(frozen=True)
class Memory:
    """An estimate for one prompt with its answer, in bytes.

    Attributes:
        weights: the model's parameters.
        cache: keys and values of all tokens.
        activations: the pixels, and the vision tower's or the language model's peak, whichever
            is larger.
        available: free on this machine, what the model itself holds included.
        place: ``"GPU"`` or ``"RAM"``, where ``available`` was looked up.
        factor: how much more the model takes there: on a CPU it runs in float32.
    """

    weights: int
    cache: int
    activations: int
    available: int
    place: str
    factor: float = 1.0

    @property
    def total(self) -> int:
        """The sum, in the model's own type."""
        return self.weights + self.cache + self.activations

    @property
    def fits(self) -> bool:
        """Whether it fits what is free on this machine."""
        return self.total * self.factor <= self.available


def count_cost(config: Any, weights: int, *, value_bytes: int = 2, held: int = 0) -> Cost:
    """Bytes for a patch and for a token, from the widest moment of one transformer layer.

    For each patch the vision tower holds 20 values of its width: the residual, its norm, queries,
    keys and values, and queries and keys rotated in float32. For each token the language model
    holds 5 of its width beside 3 of the MLP's (or 8 of the heads', if that is more). Attention
    scores are never held whole (sdpa, flash attention), and logits are of the last token alone.
    Of the peaks measured with real layers the estimate is 1.0 to 1.2 times.

    Args:
        config: a transformers config of the family.
        weights: bytes of all parameters.
        value_bytes: of one value, 2 for bfloat16.
        held: bytes of the weights that are in memory already.
    """
    text, vision = config.get_text_config(), config.vision_config
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    layers = sum(kind != "linear_attention" for kind in kinds)
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    token = 5 * text.hidden_size + max(8 * heads * head, 3 * mlp_width(text))
    return Cost(
        weights=weights,
        cache_per_token=2 * value_bytes * layers * text.num_key_value_heads * head,
        # in float32 from the processor, and in the model's type
        pixels_per_patch=(4 + value_bytes) * 3 * vision.temporal_patch_size * vision.patch_size**2,
        vision_per_patch=20 * width * value_bytes,
        language_per_token=token * value_bytes,
        held=held,
    )


def estimate_memory(cost: Cost, *, patches: int, prompt_tokens: int, new_tokens: int) -> Memory:
    """The memory for a prompt with so many patches of pictures and frames, and its answer."""
    available, place = available_memory()
    peak = max(cost.vision_per_patch * patches, cost.language_per_token * prompt_tokens)
    return Memory(
        weights=cost.weights,
        cache=cost.cache_per_token * (prompt_tokens + new_tokens),
        activations=cost.pixels_per_patch * patches + peak,
        available=available + cost.held,
        place=place,
        factor=2.0 if place == "RAM" and not cost.held else 1.0,
    )


def available_memory() -> tuple[int, str]:
    """Free bytes of all GPUs together, or of the main memory where there is none."""
    import psutil
    import torch

    if torch.cuda.is_available():
        gpus = range(torch.cuda.device_count())
        unused = sum(torch.cuda.memory_reserved(i) - torch.cuda.memory_allocated(i) for i in gpus)
        return sum(torch.cuda.mem_get_info(i)[0] for i in gpus) + unused, "GPU"
    return psutil.virtual_memory().available, "RAM"


def return_freed_memory() -> None:
    """Give the system what the C library keeps of memory that was freed (glibc; else nothing).

    Tensors of many sizes leave gaps on its heap that it holds for later, so that a process which
    answers for days seems to grow.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def mlp_width(text: Any) -> int:
    """The MLP's width; of a mixture, that of the experts which work on one token."""
    experts = getattr(text, "num_experts_per_tok", None)
    if not experts:
        return text.intermediate_size
    shared = getattr(text, "shared_expert_intermediate_size", None) or 0
    return experts * text.moe_intermediate_size + shared
