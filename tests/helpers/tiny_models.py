"""Tiny models of every generation with random weights, written to a folder like a hub's."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from vlkit.bundled import bundled_path

KINDS = {  # kind → (family, class prefix)
    "qwen2_vl": ("qwen2_vl", "Qwen2VL"),
    "qwen2_5_vl": ("qwen2_5_vl", "Qwen2_5_VL"),
    "qwen3_vl": ("qwen3_vl", "Qwen3VL"),
    "qwen3_vl_moe": ("qwen3_vl", "Qwen3VLMoe"),
    "qwen3_5": ("qwen3_5", "Qwen3_5"),
    "qwen3_5_moe": ("qwen3_5", "Qwen3_5Moe"),
    "qwen4_exp": ("qwen3_5", "Qwen4Exp"),
}
FIRST_KINDS = ("qwen_vl", "qwen_vl_base")  # Qwen-VL-Chat and Qwen-VL
PATCH = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16, "qwen3_5": 16}
HIDDEN = 64
LAYERS = 2

QWEN2_TEMPLATE = (bundled_path("tiny-qwen2-vl") / "chat_template.jinja").read_text()
_ITEMS = (
    "{%- macro render(content) %}{%- if content is string %}{{- content }}"
    "{%- else %}{%- for item in content %}"
    "{%- if 'image' in item or 'image_url' in item or item.type == 'image' %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'video' in item or item.type == 'video' %}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- elif 'text' in item %}{{- item.text }}{%- endif %}{%- endfor %}{%- endif %}"
    "{%- endmacro %}"
)
QWEN3_TEMPLATE = (  # no system message of its own
    _ITEMS + "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + render(message.content) + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN3_5_TEMPLATE = (  # insists on a question, trims contents, and thinks before it answers
    _ITEMS + "{%- if not messages | selectattr('role', 'equalto', 'user') | list %}"
    "{{- raise_exception('No user query found in messages.') }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' and loop.last %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{{- render(message.content) | trim + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '\\n</think>\\n\\n' }}"
    "{%- endif %}{%- endif %}"
)


def build_model(kind: str, folder: Path, *, seed: int = 0, max_shard_size: str = "1GB") -> Path:
    """Write a model of one of ``KINDS`` or ``FIRST_KINDS`` to ``folder``.

    The same seed gives the same weights.
    """
    if kind in FIRST_KINDS:
        return _build_first(kind, folder, seed)
    family, prefix = KINDS[kind]
    tokenizer = _tokenizer(family)
    vision, text = _dimensions(kind, len(tokenizer))
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in {
            "image_token_id": "image_pad",
            "video_token_id": "video_pad",
            "vision_start_token_id": "vision_start",
            "vision_end_token_id": "vision_end",
        }.items()
    }
    config = getattr(transformers, f"{prefix}Config")(
        vision_config=vision, text_config=text, tie_word_embeddings=kind == "qwen2_vl", **ids
    )
    network_class = getattr(transformers, f"{prefix}ForConditionalGeneration")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = network_class(config)
        for parameter in network.parameters():  # spread out: two answers seldom tie
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    network.generation_config.eos_token_id = end
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    network.save_pretrained(folder, max_shard_size=max_shard_size)
    _processor(family, tokenizer).save_pretrained(folder)
    if kind == "qwen2_5_vl":
        _rewrite_as_of_2025(folder)
    return folder


def _tokenizer(family: str):
    tokenizer = AutoTokenizer.from_pretrained(bundled_path("tiny-qwen2-vl"))
    if family in ("qwen3_vl", "qwen3_5"):
        tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    return tokenizer


def _dimensions(kind: str, vocabulary: int) -> tuple[dict, dict]:
    family, _ = KINDS[kind]
    vision = {"depth": LAYERS, "num_heads": 4, "patch_size": PATCH[family]}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = {
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": kind == "qwen2_vl",
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "rope_parameters": rope,
    }
    if family == "qwen2_vl":
        return vision | {"embed_dim": HIDDEN, "hidden_size": HIDDEN, "mlp_ratio": 2}, text
    vision |= {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "out_hidden_size": HIDDEN,
    }
    if family == "qwen2_5_vl":
        return vision | {"fullatt_block_indexes": [1], "window_size": 56}, text
    text |= {"head_dim": 16, "rope_parameters": rope | {"mrope_interleaved": True}}
    vision |= {"num_position_embeddings": 64}
    if family == "qwen3_vl":
        vision |= {"deepstack_visual_indexes": [0]}
    else:
        text["layer_types"] = ["linear_attention", "full_attention"]
        text["rope_parameters"] |= {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
        for side in ("key", "value"):
            text |= {f"linear_{side}_head_dim": 16, f"linear_num_{side}_heads": 2}
    if kind.endswith(("moe", "exp")):
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN}
    if kind in ("qwen3_5_moe", "qwen4_exp"):
        text["shared_expert_intermediate_size"] = HIDDEN
    if kind == "qwen4_exp":  # one index key for each 2 tokens, of which 512 are attended to
        text |= {"hc_count": 2, "hc_lowrank": 16, "indexer_n_heads": 2, "indexer_kv_heads": 1}
        text |= {"indexer_head_dim": 16, "indexer_budget": 512, "indexer_compress_ratio": 2}
    return vision, text


def _processor(family: str, tokenizer):
    patch = PATCH[family]
    token = (2 * patch) ** 2
    size = {"shortest_edge": 4 * token, "longest_edge": 64 * token}
    image_processor = Qwen2VLImageProcessor(patch_size=patch, size=size)
    if family in ("qwen2_vl", "qwen2_5_vl"):
        video_processor = Qwen2VLVideoProcessor(patch_size=patch, size=size)
        kind = Qwen2VLProcessor if family == "qwen2_vl" else Qwen2_5_VLProcessor
        return kind(image_processor, tokenizer, video_processor, chat_template=QWEN2_TEMPLATE)
    template = QWEN3_TEMPLATE if family == "qwen3_vl" else QWEN3_5_TEMPLATE
    video_processor = Qwen3VLVideoProcessor(patch_size=patch, size=size)
    return Qwen3VLProcessor(image_processor, tokenizer, video_processor, chat_template=template)


# --- the first generation, as it was published in 2023 -------------------------------------------

FIRST_CONFIG = {
    "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "torch_dtype": "float32",
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "hidden_size": 256, "intermediate_size": 512, "kv_channels": 64, "num_attention_heads": 4,
    "num_hidden_layers": LAYERS, "vocab_size": 480, "seq_length": 2048, "no_bias": True,
    "max_position_embeddings": 8192, "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000,
    "rotary_pct": 1.0, "use_dynamic_ntk": True, "use_logn_attn": True, "use_flash_attn": "auto",
    "tie_word_embeddings": False, "attn_dropout_prob": 0.0, "emb_dropout_prob": 0.0,
    "bf16": False, "fp16": False, "fp32": True, "scale_attn_weights": True, "use_cache": True,
    "visual": {
        "heads": 4, "image_size": 448, "image_start_id": 470, "layers": LAYERS, "mlp_ratio": 2.0,
        "output_dim": 256, "patch_size": 14, "width": 64,
    },
}  # fmt: skip


def first_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names of Qwen-VL's ``pytorch_model.bin.index.json``."""
    hidden, inner, width, vocabulary = 256, 256, 64, FIRST_CONFIG["vocab_size"]
    linear = {
        "attn.in_proj": (3 * width, width),
        "attn.out_proj": (width, width),
        "mlp.c_fc": (2 * width, width),
        "mlp.c_proj": (width, 2 * width),
    }
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocabulary, hidden)}
    for i in range(LAYERS):
        layer, block = f"transformer.h.{i}", f"transformer.visual.transformer.resblocks.{i}"
        shapes |= {f"{layer}.ln_{n}.weight": (hidden,) for n in (1, 2)}
        shapes |= {f"{layer}.attn.c_attn.weight": (3 * hidden, hidden)}
        shapes |= {f"{layer}.attn.c_attn.bias": (3 * hidden,)}
        shapes |= {f"{layer}.attn.c_proj.weight": (hidden, hidden)}
        shapes |= {f"{layer}.mlp.{n}.weight": (inner, hidden) for n in ("w1", "w2")}
        shapes |= {f"{layer}.mlp.c_proj.weight": (hidden, inner)}
        for name, size in linear.items():
            shapes |= {f"{block}.{name}.weight": size, f"{block}.{name}.bias": size[:1]}
        for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"):
            shapes[f"{block}.{name}"] = (width,)
    visual = {
        "positional_embedding": (256, width), "conv1.weight": (width, 3, 14, 14),
        "ln_pre.weight": (width,), "ln_pre.bias": (width,),
        "attn_pool.pos_embed": (256, hidden), "attn_pool.query": (256, hidden),
        "attn_pool.kv_proj.weight": (hidden, width),
        "attn_pool.attn.in_proj_weight": (3 * hidden, hidden),
        "attn_pool.attn.in_proj_bias": (3 * hidden,),
        "attn_pool.attn.out_proj.weight": (hidden, hidden),
        "attn_pool.attn.out_proj.bias": (hidden,),
        **{f"attn_pool.ln_{n}": (hidden,) for n in ("q.weight", "q.bias", "kv.weight", "kv.bias")},
        "ln_post.weight": (hidden,), "ln_post.bias": (hidden,), "proj": (hidden, hidden),
    }  # fmt: skip
    shapes |= {f"transformer.visual.{name}": size for name, size in visual.items()}
    shapes |= {"transformer.ln_f.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    random = np.random.RandomState(seed)  # the same numbers in every version of numpy
    weights = {}
    for name, size in shapes.items():
        values = torch.from_numpy(random.standard_normal(size)).float() * 0.1
        weights[name] = values + 1 if "ln_" in name and name.endswith("weight") else values
    return weights


def _build_first(kind: str, folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    weights = first_weights(seed)
    names = list(weights)
    files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    shards = dict(zip(files, (names[: len(names) // 2], names[len(names) // 2 :]), strict=True))
    for file, of_file in shards.items():
        torch.save({name: weights[name] for name in of_file}, folder / file)
    size = sum(weight.nbytes for weight in weights.values())
    index = {
        "metadata": {"total_size": size},
        "weight_map": {name: file for file, of_file in shards.items() for name in of_file},
    }
    tokens = [f"{base64.b64encode(bytes([i])).decode()} {i}" for i in range(256)]
    texts = {
        "pytorch_model.bin.index.json": json.dumps(index),
        "config.json": json.dumps(FIRST_CONFIG),
        "qwen.tiktoken": "\n".join(tokens) + "\n",
        "generation_config.json": json.dumps(
            {"chat_format": "chatml" if kind == "qwen_vl" else "raw", "eos_token_id": 256,
             "pad_token_id": 256, "do_sample": True, "top_p": 0.5, "max_window_size": 6144}
        ),
        "modeling_qwen.py": "raise SystemExit('code of the model folder was run')\n",
        "configuration_qwen.py": "raise SystemExit('code of the model folder was run')\n",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def _rewrite_as_of_2025(folder: Path) -> None:
    """The files as Qwen2.5-VL's repositories have them: a flat config, the pixel limits in
    ``preprocessor_config.json``, the template in ``chat_template.json``."""
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    config |= {key: value for key, value in text.items() if key not in ("model_type", "dtype")}
    config["rope_theta"] = rope["rope_theta"]
    config["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    config["torch_dtype"] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": QWEN2_TEMPLATE}))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "min_pixels": 4 * 784,
                "max_pixels": 64 * 784,
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2_5_VLProcessor",
            }
        )
    )
    for name in ("processor_config.json", "chat_template.jinja"):
        (folder / name).unlink()
