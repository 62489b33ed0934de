"""Memory that a prompt needs, from the config; published shapes."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlkit.models.families import family_of_name

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Cost:
    """The memory that a model needs, in bytes.

    Attributes:
        weights: of all parameters.
        cache_per_token: keys and values of one token.
        cache_per_row: the states of layers with linear attention, whatever the row's length.
        pixels_per_patch: the pixels of one patch, kept throughout.
        vision_per_patch: the vision encoder's peak for one patch.
        language_per_token: the language model's peak for one prompt token.
        held: the part of the weights that is in memory already.
    """

    weights: int
    cache_per_token: int
    pixels_per_patch: int
    vision_per_patch: int
    language_per_token: int
    held: int = 0
    cache_per_row: int = 0


@dataclass(frozen=True)
class Memory:
    """An estimate for one prompt with its answer, in bytes.

    Attributes:
        weights: the model's parameters.
        cache: keys and values of all tokens.
        activations: the pixels, and the vision encoder's or the language model's peak, whichever
            is larger.
        available: free memory of this machine, the model's weights included.
        place: ``"GPU"`` or ``"RAM"``: where ``available`` is.
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
        """The sum, in the model's type."""
        return self.weights + self.cache + self.activations

    @property
    def fits(self) -> bool:
        """Whether it fits into this machine's free memory."""
        return self.total * self.factor <= self.available


def count_cost(config: Any, weights: int, *, value_bytes: int = 2, held: int = 0) -> Cost:
    """Bytes for a patch and for a token, from the widest moment of one transformer layer.

    For each patch the vision encoder keeps 20 values of its width: the residual, its norm, queries,
    keys and values, and queries and keys rotated in float32. For each token the language model
    keeps 5 of its width and 3 of the MLP's (or 8 of the heads', if that is more). Attention
    scores are never kept whole (sdpa, flash attention), and logits are of the last token only.
    The estimate is 1.0 to 1.2 times the peaks measured with real layers.

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
        cache_per_row=kinds.count("linear_attention") * _state_bytes(text, value_bytes),
    )


def _state_bytes(text: Any, value_bytes: int) -> int:
    """One linear attention's state: a float32 matrix a value head, and the convolution's inputs."""
    if not hasattr(text, "linear_key_head_dim"):  # a generation without such layers
        return 0
    key, value = text.linear_key_head_dim, text.linear_value_head_dim
    keys, values = text.linear_num_key_heads, text.linear_num_value_heads
    inputs = (2 * keys * key + values * value) * text.linear_conv_kernel_dim
    return 4 * values * key * value + value_bytes * inputs


def estimate_memory(cost: Cost, *, patches: int, prompt_tokens: int, new_tokens: int) -> Memory:
    """The memory for a prompt with this many patches of pictures and frames, and its answer."""
    available, place = available_memory()
    peak = max(cost.vision_per_patch * patches, cost.language_per_token * prompt_tokens)
    return Memory(
        weights=cost.weights,
        cache=cost.cache_per_token * (prompt_tokens + new_tokens) + cost.cache_per_row,
        activations=cost.pixels_per_patch * patches + peak,
        available=available + cost.held,
        place=place,
        factor=2.0 if place == "RAM" and not cost.held else 1.0,
    )


def available_memory() -> tuple[int, str]:
    """Free bytes of all GPUs together, or of the main memory without a GPU.

    Of a GPU at most the share that torch may take (``set_per_process_memory_fraction``).
    """
    import psutil
    import torch

    if torch.cuda.is_available():
        return sum(map(_free_on_gpu, range(torch.cuda.device_count()))), "GPU"
    return psutil.virtual_memory().available, "RAM"


def _free_on_gpu(index: int) -> int:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    used = torch.cuda.memory_allocated(index)
    share = int(torch.cuda.get_per_process_memory_fraction(index) * total)
    return min(free + torch.cuda.memory_reserved(index) - used, share - used)


def return_freed_memory() -> None:
    """Return freed memory that the C library still keeps to the system (glibc; else nothing).

    Tensors of many sizes leave gaps on its heap that it keeps for later, so a process that runs
    for days seems to grow.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def mlp_width(text: Any) -> int:
    """The MLP's width; of a mixture of experts, the width of those that work on one token."""
    experts = getattr(text, "num_experts_per_tok", None)
    if not experts:
        return text.intermediate_size
    shared = getattr(text, "shared_expert_intermediate_size", None) or 0
    return experts * text.moe_intermediate_size + shared


# of the language model: hidden, layers, heads, key-value heads, intermediate, vocabulary, tied
# embeddings; of the vision tower: depth, width, intermediate. Each is in config.json of its hub
# page (https://huggingface.co/ and the name); from Qwen3.5 on also under its "Model Overview".
# Qwen4-Exp has no public sizes yet: the class in transformers leaves out its n-gram embeddings.
SHAPES = {
    "Qwen/Qwen-VL": ((4096, 32, 32, 32, 11008, 151936, False), (48, 1664, 8192)),
    "Qwen/Qwen-VL-Chat": ((4096, 32, 32, 32, 11008, 151936, False), (48, 1664, 8192)),
    "Qwen/Qwen2-VL-2B-Instruct": ((1536, 28, 12, 2, 8960, 151936, True), (32, 1280, 5120)),
    "Qwen/Qwen2-VL-7B-Instruct": ((3584, 28, 28, 4, 18944, 152064, False), (32, 1280, 5120)),
    "Qwen/Qwen2-VL-72B-Instruct": ((8192, 80, 64, 8, 29568, 152064, False), (32, 1280, 5120)),
    "Qwen/Qwen2.5-VL-3B-Instruct": ((2048, 36, 16, 2, 11008, 151936, True), (32, 1280, 3420)),
    "Qwen/Qwen2.5-VL-7B-Instruct": ((3584, 28, 28, 4, 18944, 152064, False), (32, 1280, 3420)),
    "Qwen/Qwen2.5-VL-32B-Instruct": ((5120, 64, 40, 8, 27648, 152064, False), (32, 1280, 3456)),
    "Qwen/Qwen2.5-VL-72B-Instruct": ((8192, 80, 64, 8, 29568, 152064, False), (32, 1280, 3456)),
    "Qwen/Qwen3-VL-2B-Instruct": ((2048, 28, 16, 8, 6144, 151936, True), (24, 1024, 4096)),
    "Qwen/Qwen3-VL-4B-Instruct": ((2560, 36, 32, 8, 9728, 151936, True), (24, 1024, 4096)),
    "Qwen/Qwen3-VL-8B-Instruct": ((4096, 36, 32, 8, 12288, 151936, False), (27, 1152, 4304)),
    "Qwen/Qwen3-VL-32B-Instruct": ((5120, 64, 64, 8, 25600, 151936, False), (27, 1152, 4304)),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": ((2048, 48, 32, 4, 768, 151936, False), (27, 1152, 4304)),
    "Qwen/Qwen3-VL-235B-A22B-Instruct": ((4096, 94, 64, 4, 1536, 151936, False), (27, 1152, 4304)),
    "Qwen/Qwen3.5-0.8B": ((1024, 24, 8, 2, 3584, 248320, True), (12, 768, 3072)),
    "Qwen/Qwen3.5-2B": ((2048, 24, 8, 2, 6144, 248320, True), (24, 1024, 4096)),
    "Qwen/Qwen3.5-4B": ((2560, 32, 16, 4, 9216, 248320, True), (24, 1024, 4096)),
    "Qwen/Qwen3.5-9B": ((4096, 32, 16, 4, 12288, 248320, False), (27, 1152, 4304)),
    "Qwen/Qwen3.5-27B": ((5120, 64, 24, 4, 17408, 248320, False), (27, 1152, 4304)),
    "Qwen/Qwen3.5-35B-A3B": ((2048, 40, 16, 2, 512, 248320, False), (27, 1152, 4304)),
    "Qwen/Qwen3.5-122B-A10B": ((3072, 48, 32, 2, 1024, 248320, False), (27, 1152, 4304)),
    "Qwen/Qwen3.5-397B-A17B": ((4096, 60, 32, 2, 1024, 248320, False), (27, 1152, 4304)),
    "Qwen/Qwen3.6-27B": ((5120, 64, 24, 4, 17408, 248320, False), (27, 1152, 4304)),
    "Qwen/Qwen3.6-35B-A3B": ((2048, 40, 16, 2, 512, 248320, False), (27, 1152, 4304)),
    "Qwen/Qwen3.8-27B": ((5120, 64, 24, 4, 17408, 248320, False), (27, 1152, 4304)),
}
# experts, and how many work on one token; each is as wide as "intermediate", the shared one too
EXPERTS = {
    "Qwen/Qwen3-VL-30B-A3B-Instruct": (128, 8),
    "Qwen/Qwen3-VL-235B-A22B-Instruct": (128, 8),
    "Qwen/Qwen3.5-35B-A3B": (256, 8),
    "Qwen/Qwen3.5-122B-A10B": (256, 8),
    "Qwen/Qwen3.5-397B-A17B": (512, 10),
    "Qwen/Qwen3.6-35B-A3B": (256, 8),
}


@dataclass(frozen=True)
class ModelMemory:
    """The memory of a model of one shape, in bytes.

    Attributes:
        parameters: their number.
        bfloat16: weights at two bytes each.
        four_bit: weights with all linear layers except the last in NF4 (a float32 scale per 64
            values), the rest in bfloat16, as ``quantize="4bit"`` loads them.
        cache_per_token: keys and values of one token in bfloat16.
    """

    parameters: int
    bfloat16: int
    four_bit: int
    cache_per_token: int


@cache
def count_memory(name: str) -> ModelMemory:
    """Build a known model without weights (on torch's meta device) and count its bytes."""
    import torch
    from transformers import AutoModelForImageTextToText

    config = build_config(name)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    total = sum(p.numel() for p in model.parameters())
    linear = sum(
        module.weight.numel()
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and path != "lm_head"
    )
    four_bit = 2 * (total - linear) + linear // 2 + linear // 16
    cache_per_token = count_cost(config, 2 * total).cache_per_token
    return ModelMemory(total, 2 * total, four_bit, cache_per_token)


def build_config(name: str):
    """The transformers config of a known model, from its published shape."""
    from transformers import AutoConfig

    (hidden, layers, heads, kv_heads, inner, vocabulary, tied), (depth, width, v_inner) = SHAPES[
        name
    ]
    text = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": inner, "vocab_size": vocabulary,
    }  # fmt: skip
    vision: dict = {"depth": depth, "num_heads": 12 if depth == 12 else 16}
    kind = family_of_name(name)
    if kind == "qwen_vl":
        return import_module("vlkit.models.qwen_vl").QwenVLConfig()
    if kind == "qwen2_vl":
        vision |= {"embed_dim": width, "hidden_size": hidden, "mlp_ratio": v_inner // width}
    else:
        vision |= {"hidden_size": width, "intermediate_size": v_inner, "out_hidden_size": hidden}
    if kind == "qwen3_vl":
        vision["deepstack_visual_indexes"] = [5, 11, 17] if depth == 24 else [8, 16, 24]
        text["head_dim"] = 128
    if kind == "qwen3_5":
        text |= {"head_dim": 256, "linear_num_value_heads": 2 * heads}
    if name in EXPERTS:
        kind += "_moe"
        text["moe_intermediate_size"] = inner
        if kind == "qwen3_5_moe":
            text["shared_expert_intermediate_size"] = inner
        text["num_experts"], text["num_experts_per_tok"] = EXPERTS[name]
    text["tie_word_embeddings"] = tied
    return AutoConfig.for_model(
        kind, text_config=text, vision_config=vision, tie_word_embeddings=tied
    )


def memory_table() -> pandas.DataFrame:
    """Weights and cache of the family's models in GB (10⁹ bytes), counted from their shapes.

    A run also needs activations: one to a few GB for pictures of ordinary size.
    """
    import pandas

    columns = {
        "parameters, billions": [count_memory(name).parameters for name in SHAPES],
        "bfloat16, GB": [count_memory(name).bfloat16 for name in SHAPES],
        '"4bit", GB': [count_memory(name).four_bit for name in SHAPES],
        "cache per 1,000 tokens, GB": [1000 * count_memory(n).cache_per_token for n in SHAPES],
    }
    return (pandas.DataFrame(columns, index=list(SHAPES)) / 1e9).round(2)
