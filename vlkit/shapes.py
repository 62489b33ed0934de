"""The published shapes of the family's models: enough to count memory without a weight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

# of the language model: hidden, layers, heads, key-value heads, intermediate, vocabulary, tied
# embeddings; of the vision tower: depth, width, intermediate; as in config.json on the hubs
SHAPES = {
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
}


@dataclass(frozen=True)
class Memory:
    """What a model of one shape occupies, in bytes.

    Attributes:
        parameters: their number.
        bfloat16: weights at two bytes each.
        four_bit: weights with every linear layer but the last in NF4 (a float32 scale per 64
            values), the rest in bfloat16, as ``quantize="4bit"`` loads them.
        cache_per_token: keys and values of one token in bfloat16.
    """

    parameters: int
    bfloat16: int
    four_bit: int
    cache_per_token: int


@cache
def count_memory(name: str) -> Memory:
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
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache_bytes = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head
    four_bit = 2 * (total - linear) + linear // 2 + linear // 16
    return Memory(total, 2 * total, four_bit, cache_bytes)


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
    vision: dict = {"depth": depth, "num_heads": 16}
    if "Qwen2-VL" in name:
        kind = "qwen2_vl"
        vision |= {"embed_dim": width, "hidden_size": hidden, "mlp_ratio": v_inner // width}
    else:
        kind = "qwen2_5_vl" if "Qwen2.5" in name else "qwen3_vl"
        vision |= {"hidden_size": width, "intermediate_size": v_inner, "out_hidden_size": hidden}
    if kind == "qwen3_vl":
        vision["deepstack_visual_indexes"] = [5, 11, 17] if depth == 24 else [8, 16, 24]
        text["head_dim"] = 128
    text["tie_word_embeddings"] = tied
    return AutoConfig.for_model(
        kind, text_config=text, vision_config=vision, tie_word_embeddings=tied
    )


def memory_table() -> pandas.DataFrame:
    """Weights and cache of the family's models in GB (10⁹ bytes), counted from their shapes.

    Beside these a run needs activations: one to a few GB for pictures of ordinary size.
    """
    import pandas

    rows = {}
    for name in SHAPES:
        memory = count_memory(name)
        rows[name] = {
            "parameters, billions": memory.parameters / 1e9,
            "bfloat16, GB": memory.bfloat16 / 1e9,
            '"4bit", GB': memory.four_bit / 1e9,
            "cache per 1,000 tokens, GB": memory.cache_per_token * 1000 / 1e9,
        }
    return pandas.DataFrame.from_dict(rows, orient="index").round(2)
