"""Qwen-VL, the first generation: its network and processor, as transformers has neither.

Published as ``Qwen/Qwen-VL`` and ``Qwen/Qwen-VL-Chat`` (https://arxiv.org/abs/2308.12966). The
language model is Qwen2's with as many key-value heads as heads. A picture is resized to 448 × 448
pixels and cut into 32 × 32 patches; after 48 layers of a vision encoder, 256 learnt queries read
them in one layer of cross-attention, so every picture costs 256 tokens. Names of the modules are
those of later generations; ``_CONVERSION`` renames published weights, and those that are saved.
Importing this module registers the classes with transformers.
"""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import gelu, interpolate, linear, scaled_dot_product_attention
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    initialization,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2Attention,
    Qwen2DecoderLayer,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils.output_capturing import capture_outputs

SIDE, PATCH, QUERIES = 448, 14, 256
_HEAD = 128  # of the cross-attention
_EXTRAS = 205  # tokens without use, <|extra_0|> …; the last one stands for clips, which it lacks
# as they are in qwen.tiktoken's tokenizer, but the padding of pictures, <imgpad> there, has the
# name that it has in later generations
_SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    *(f"<|extra_{i}|>" for i in range(_EXTRAS - 1)), "<|video_pad|>",
    "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<|image_pad|>",
]  # fmt: skip
_WORDS = (  # single digits, unlike transformers' default
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# <img> in a text is not a picture
_CONTENT = """{%- macro text(item) %}
{{- item.text | replace('<img>', '< img>') | replace('</img>', '< /img>') }}
{%- endmacro %}"""
CHAT_TEMPLATE = (
    _CONTENT
    + """
{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- set pictures = namespace(count=0) %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- for item in message.content %}
{%- if item.type == 'image' %}
{%- set pictures.count = pictures.count + 1 %}
{{- 'Picture ' ~ pictures.count ~ ': <img><|image_pad|></img>\\n' }}
{%- else %}{{- text(item) }}{%- endif %}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
)
PLAIN_TEMPLATE = (  # of the base model, which was trained on text alone
    _CONTENT
    + """
{%- for message in messages %}
{{- '' if loop.first else '\\n' }}
{%- for item in message.content %}
{%- if item.type == 'image' %}{{- '<img><|image_pad|></img>' }}{%- else %}{{- text(item) }}
{%- endif %}
{%- endfor %}
{%- endfor %}"""
)


# --- configuration -------------------------------------------------------------------------------


class QwenVLVisionConfig(PreTrainedConfig):
    """Shape of the vision encoder; the defaults are the published ones."""

    model_type = "qwen_vl_vision"
    base_config_key = "vision_config"

    depth: int = 48
    hidden_size: int = 1664
    intermediate_size: int = 8192
    num_heads: int = 16
    patch_size: int = PATCH
    temporal_patch_size: int = 1
    spatial_merge_size: int = 2  # 4 patches for each query
    out_hidden_size: int = 4096


class QwenVLConfig(PreTrainedConfig):
    """``config.json`` of Qwen-VL, in its flat form (``visual``) or as vlkit saves it.

    Attributes:
        text_config: transformers' Qwen2Config, with ``seq_length`` (the length in training),
            ``use_logn_attn`` and ``use_dynamic_ntk``.
        vision_config: of the vision encoder.
    """

    model_type = "qwen"
    sub_configs: ClassVar = {"text_config": Qwen2Config, "vision_config": QwenVLVisionConfig}

    text_config: Any = None
    vision_config: Any = None
    image_token_id: int = 151859
    video_token_id: int = 151850  # of no clip
    vision_start_token_id: int = 151857
    vision_end_token_id: int = 151858
    tie_word_embeddings: bool = False

    def __post_init__(self, visual: dict | None = None, **kwargs: Any):
        if visual is not None:
            self.text_config, self.vision_config = _read_flat(visual, kwargs)
            first = visual["image_start_id"]
            self.vision_start_token_id, self.vision_end_token_id = first, first + 1
            self.image_token_id, self.video_token_id = first + 2, first - 7
        text, vision = self.text_config or _read_flat({}, {})[0], self.vision_config or {}
        self.text_config = Qwen2Config(**text) if isinstance(text, dict) else text
        self.vision_config = QwenVLVisionConfig(**vision) if isinstance(vision, dict) else vision
        super().__post_init__(**kwargs)


def _read_flat(visual: dict, flat: dict) -> tuple[dict, dict]:
    """The text's and the vision encoder's settings, taken out of the published ``config.json``."""
    width, ratio = visual.get("width", 1664), visual.get("mlp_ratio", 4.9231)
    heads = flat.pop("num_attention_heads", 32)
    text = {
        "vocab_size": flat.pop("vocab_size", 151936),
        "hidden_size": flat.pop("hidden_size", 4096),
        "intermediate_size": flat.pop("intermediate_size", 22016) // 2,  # of both halves together
        "num_hidden_layers": flat.pop("num_hidden_layers", 32),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": flat.pop("max_position_embeddings", 8192),
        "rms_norm_eps": flat.pop("layer_norm_epsilon", 1e-6),
        "rope_parameters": {
            "rope_type": "default", "rope_theta": float(flat.pop("rotary_emb_base", 10000)),
        },
        "seq_length": flat.pop("seq_length", 2048),
        "use_logn_attn": flat.pop("use_logn_attn", True),
        "use_dynamic_ntk": flat.pop("use_dynamic_ntk", True),
    }  # fmt: skip
    vision = {
        "depth": visual.get("layers", 48),
        "hidden_size": width,
        "intermediate_size": int(width * ratio),
        "num_heads": visual.get("heads", 16),
        "out_hidden_size": visual.get("output_dim", 4096),
    }
    return text, vision


# --- vision --------------------------------------------------------------------------------------


def sine_positions(width: int, side: int) -> torch.Tensor:
    """2D positions of a grid, (side², width): of the column in the first half, then of the row."""
    frequencies = 10000.0 ** -(torch.arange(width // 4) / (width / 4))
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], -1)  # (side, width / 2)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([columns, rows], -1).flatten(0, 1)


def _resample(positions: torch.Tensor, count: int) -> torch.Tensor:
    """Positions of a square grid, (places, width), for a grid of ``count`` places."""
    old, new = math.isqrt(len(positions)), math.isqrt(count)
    if old == new:
        return positions
    grid = positions.float().view(1, old, old, -1).permute(0, 3, 1, 2)
    grid = interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return grid.flatten(2)[0].T.to(positions.dtype)


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6)


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # queries, keys and values of one head are next to each other
        parts = self.in_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, -1)
        return self.out_proj(scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class QwenVLVisionBlock(GradientCheckpointingLayer):
    """One layer of the vision encoder."""

    def __init__(self, config: QwenVLVisionConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.input_layernorm, self.post_attention_layernorm = _norm(width), _norm(width)
        self.attn = _SelfAttention(width, config.num_heads)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, inner), "down_proj": nn.Linear(inner, width)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(pictures, patches, width) to the same."""
        x = x + self.attn(self.input_layernorm(x))
        inner = gelu(self.mlp["c_fc"](self.post_attention_layernorm(x)))
        return x + self.mlp["down_proj"](inner)


class QwenVLResampler(nn.Module):
    """The patches of a picture to 256 vectors: learnt queries, one cross-attention."""

    def __init__(self, config: QwenVLVisionConfig):
        super().__init__()
        width = config.out_hidden_size
        self.pos_embed = nn.Parameter(torch.empty(QUERIES, width), requires_grad=False)
        self.query = nn.Parameter(torch.empty(QUERIES, width))
        same = config.hidden_size == width
        self.kv_proj = nn.Identity() if same else nn.Linear(config.hidden_size, width, bias=False)
        self.ln_q, self.ln_kv = _norm(width), _norm(width)
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.attn = nn.ModuleDict({name: nn.Linear(width, width) for name in names})

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(pictures, patches, width) to (pictures, 256, width of the language model)."""
        values = self.ln_kv(self.kv_proj(patches))
        keys = values + _resample(self.pos_embed, patches.shape[1])
        queries = (self.ln_q(self.query) + self.pos_embed).expand(len(patches), -1, -1)
        inputs = {"q_proj": queries, "k_proj": keys, "v_proj": values}
        projected = [self.attn[name](x) for name, x in inputs.items()]
        heads = [x.unflatten(-1, (-1, _HEAD)).transpose(1, 2) for x in projected]
        read = scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return self.attn["out_proj"](read)


class QwenVLPreTrainedModel(PreTrainedModel):
    """What the parts of Qwen-VL share."""

    config_class = QwenVLConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["Qwen2DecoderLayer", "QwenVLVisionBlock", "QwenVLResampler"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected: ClassVar = ["inv_freq", "masked_bias"]  # computed
    _supports_flash_attn = _supports_sdpa = _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, QwenVLResampler):
            count, width = module.pos_embed.shape
            initialization.copy_(module.pos_embed, sine_positions(width, math.isqrt(count)))
            initialization.normal_(module.query, std=0.02)
        if isinstance(module, QwenVLVisionModel):
            for weight in (module.positional_embedding, module.proj):
                initialization.normal_(weight, std=weight.shape[1] ** -0.5)


class QwenVLVisionModel(QwenVLPreTrainedModel):
    """Patches of pictures to tokens of the language model."""

    config_class = QwenVLVisionConfig

    def __init__(self, config: QwenVLVisionConfig):
        super().__init__(config)
        self.spatial_merge_size = config.spatial_merge_size
        width, output = config.hidden_size, config.out_hidden_size
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(QUERIES, width))
        self.ln_pre = _norm(width)
        self.transformer = nn.Module()
        blocks = [QwenVLVisionBlock(config) for _ in range(config.depth)]
        self.transformer.resblocks = nn.ModuleList(blocks)
        self.attn_pool, self.ln_post = QwenVLResampler(config), _norm(output)
        self.proj = nn.Parameter(torch.empty(output, output))
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, grid_thw: Any, **_: Any) -> Any:
        """Encode pictures.

        Args:
            pixel_values: (pictures × 1,024 patches, 3 × 14 × 14), row by row.
            grid_thw: (pictures, 3); each is (1, 32, 32).

        Returns:
            With ``pooler_output`` (pictures × 256, width of the language model).
        """
        side = SIDE // PATCH
        if any(grid != [1, side, side] for grid in grid_thw.tolist()):
            raise ValueError(f"Qwen-VL takes pictures of {SIDE} × {SIDE} pixels, not {grid_thw}")
        weight = self.conv1.weight.flatten(1)  # a convolution whose stride is its size
        x = linear(pixel_values.to(weight.dtype), weight).unflatten(0, (-1, side**2))
        x = self.ln_pre(x + _resample(self.positional_embedding, side**2))
        for block in self.transformer.resblocks:
            x = block(x)
        x = self.ln_post(self.attn_pool(x)) @ self.proj
        return BaseModelOutputWithPooling(pooler_output=x.flatten(0, 1))


# --- language ------------------------------------------------------------------------------------


class QwenVLAttention(Qwen2Attention):
    """Qwen2's attention whose queries are scaled by the logarithm of their position."""

    def forward(
        self, hidden_states: Any, position_embeddings: Any, attention_mask: Any = None,
        past_key_values: Any = None, **options: Any,
    ) -> tuple:  # fmt: skip
        """As Qwen2Attention; ``position_embeddings`` are cosines, sines, and the scale."""
        cos, sin, scale = position_embeddings
        shape = *hidden_states.shape[:-1], -1, self.head_dim
        query, key, value = (
            project(hidden_states).view(shape).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self, query * scale, key, value, attention_mask, scaling=self.scaling, **options
        )
        return self.o_proj(output.flatten(2)), weights


class QwenVLTextModel(Qwen2Model):
    """Qwen2's language model, with Qwen's two rules for prompts beyond its training length.

    Both depend on the position alone, and neither holds in training: queries are scaled by
    log(position) / log(``seq_length``), and the base of the rotary embedding grows with the
    prompt's length, in steps of powers of two (dynamic NTK). The base of a prompt stays for its
    answer, so it is kept with the keys, in the cache.
    """

    _can_record_outputs: ClassVar = {
        "hidden_states": Qwen2DecoderLayer,
        "attentions": QwenVLAttention,
    }

    def __init__(self, config: Qwen2Config):
        super().__init__(config)
        for index, layer in enumerate(self.layers):
            layer.self_attn = QwenVLAttention(config, index)
        del self.rotary_emb
        self.post_init()

    @capture_outputs
    def forward(
        self, inputs_embeds: Any = None, attention_mask: Any = None, position_ids: Any = None,
        past_key_values: Any = None, use_cache: bool | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        """As Qwen2Model."""
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = _positions(attention_mask, past, inputs_embeds)
        alpha = getattr(past_key_values, "ntk_alpha", None) if past else None
        if alpha is None:
            alpha = self._ntk_alpha(position_ids.amax(-1) + 1)
        if past_key_values is not None:
            past_key_values.ntk_alpha = alpha
        mask = create_causal_mask(
            config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask,
            past_key_values=past_key_values, position_ids=position_ids,
        )  # fmt: skip
        rotation = self._rotate(position_ids, alpha, inputs_embeds.dtype)
        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(
                hidden, attention_mask=mask, position_embeddings=rotation,
                position_ids=position_ids, past_key_values=past_key_values, **options,
            )  # fmt: skip
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden), past_key_values=past_key_values
        )

    def _ntk_alpha(self, lengths: torch.Tensor) -> torch.Tensor:
        """1 up to the training length, 3 up to twice that, 7 up to four times …; (rows,)."""
        if self.training or not self.config.use_dynamic_ntk:
            return torch.ones_like(lengths, dtype=torch.float32)
        ratio = lengths.float() / self.config.seq_length
        return (2 ** ((ratio.log2() + 1).ceil()) - 1).clamp(min=1)

    def _rotate(self, positions: Any, alpha: Any, dtype: torch.dtype) -> tuple:
        """Cosines and sines (rows, tokens, head size); scales of queries (rows, 1, tokens, 1)."""
        size = self.config.hidden_size // self.config.num_attention_heads
        base = self.config.rope_parameters["rope_theta"] * alpha ** (size / (size - 2))
        exponents = torch.arange(0, size, 2, device=positions.device) / size
        frequencies = 1 / base[:, None] ** exponents  # (rows, size / 2)
        angles = positions[..., None] * frequencies[:, None]
        angles = torch.cat([angles, angles], -1)
        scale = torch.ones_like(positions, dtype=torch.float32)
        if self.config.use_logn_attn and not self.training:
            scale = (positions + 1).float().log() / math.log(self.config.seq_length)
        scale = scale.clamp(min=1)[:, None, :, None]
        return angles.cos().to(dtype), angles.sin().to(dtype), scale.to(dtype)


def _positions(attention_mask: Any, past: int, inputs: torch.Tensor) -> torch.Tensor:
    """Of each token, counted from its row's first without padding; (rows, tokens)."""
    if attention_mask is None:
        places = torch.arange(past, past + inputs.shape[1], device=inputs.device)
        return places.expand(len(inputs), -1)
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs.shape[1] :]


class QwenVLModel(QwenVLPreTrainedModel):
    """Vision encoder and language model."""

    def __init__(self, config: QwenVLConfig):
        super().__init__(config)
        self.visual = QwenVLVisionModel(config.vision_config)
        self.language_model = QwenVLTextModel(config.text_config)
        self.post_init()

    def get_rope_index(self, input_ids: Any, attention_mask: Any = None, **_: Any) -> tuple:
        """Positions (rows, tokens), which pictures do not change, and None."""
        return _positions(attention_mask, 0, input_ids), None

    def get_input_embeddings(self) -> Any:
        """Of the language model."""
        return self.language_model.embed_tokens


class QwenVLForConditionalGeneration(QwenVLPreTrainedModel, GenerationMixin):
    """Qwen-VL as transformers would have it: ``generate``, ``save_pretrained``, PEFT, 4 bits."""

    def __init__(self, config: QwenVLConfig):
        super().__init__(config)
        text = config.text_config
        self.model = QwenVLModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None,
        past_key_values: Any = None, inputs_embeds: Any = None, pixel_values: Any = None,
        image_grid_thw: Any = None, mm_token_type_ids: Any = None, labels: Any = None,
        shift_labels: Any = None, logits_to_keep: Any = 0, **options: Any,
    ) -> Any:  # fmt: skip
        """Logits, and the loss where there are labels; arguments as transformers' models.

        Pictures are described at :meth:`QwenVLVisionModel.forward`.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            features = self.model.visual(pixel_values, grid_thw=image_grid_thw).pooler_output
            places = (input_ids == self.config.image_token_id)[..., None]
            inputs_embeds = inputs_embeds.masked_scatter(places, features.to(inputs_embeds))
        outputs = self.model.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, **options,
        )  # fmt: skip
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            size = self.config.text_config.vocab_size
            loss = self.loss_function(logits, labels, size, shift_labels=shift_labels)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states, attentions=outputs.attentions,
        )  # fmt: skip

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict:
        """Pictures are encoded with the prompt, not again for each token."""
        first = kwargs.get("is_first_iteration", False)
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return inputs if first else inputs | {"pixel_values": None}


def _split(source: str, target: str, end: str, kind: str) -> WeightConverter:
    """Queries, keys and values, which are published as one weight."""
    names = [f"{target}{part}_proj.{kind}" for part in "qkv"]
    return WeightConverter(f"{source}{end}{kind}", names, operations=[Chunk(dim=0)])


_RENAMED = {  # published names, from left to right, to those of later generations
    "^transformer.visual.": "^model.visual.",
    "^transformer.wte.": "^model.language_model.embed_tokens.",
    "^transformer.ln_f.": "^model.language_model.norm.",
    "^transformer.h.": "^model.language_model.layers.",
    ".ln_1.": ".input_layernorm.",
    ".ln_2.": ".post_attention_layernorm.",
    ".attn.c_proj.": ".self_attn.o_proj.",
    ".mlp.w1.": ".mlp.up_proj.",  # w1(x) · silu(w2(x))
    ".mlp.w2.": ".mlp.gate_proj.",
    ".mlp.c_proj.": ".mlp.down_proj.",
}
_CONVERSION = [
    *(WeightRenaming(old, new) for old, new in _RENAMED.items()),
    *(_split(".attn.c_attn.", ".self_attn.", "", kind) for kind in ("weight", "bias")),
    *(_split(".attn_pool.attn.", ".attn_pool.attn.", "in_proj_", k) for k in ("weight", "bias")),
]
AutoConfig.register(QwenVLConfig.model_type, QwenVLConfig)
AutoModelForImageTextToText.register(QwenVLConfig, QwenVLForConditionalGeneration)
register_checkpoint_conversion_mapping(QwenVLConfig.model_type, _CONVERSION)


# --- processor -----------------------------------------------------------------------------------


class QwenVLImageProcessor(Qwen2VLImageProcessor):
    """Every picture to 448 × 448 pixels, whatever its shape; patches row by row."""

    def resize(self, images: Any, size: Any, resample: Any, factor: int, **_: Any) -> Any:
        """(pictures, 3, height, width) to (pictures, 3, 448, 448)."""
        square = SizeDict(height=SIDE, width=SIDE)
        return TorchvisionBackend.resize(self, image=images, size=square, resample=resample)

    def patchify(self, images: Any, patch_size: int, merge_size: int, **_: Any) -> tuple:
        """(pictures, 3, 448, 448) to (pictures, 1024, 3 × 14 × 14)."""
        return super().patchify(images, patch_size, merge_size=1, temporal_patch_size=1)


class _Converter(TikTokenConverter):
    """Without the tiktoken package, which keeps files in a cache by their names."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        lines = Path(tiktoken_url).read_bytes().splitlines()
        pairs = (line.split() for line in lines if line)
        return {base64.b64decode(token): int(rank) for token, rank in pairs}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in ``qwen.tiktoken``, or the one that vlkit saved."""
    from tokenizers import normalizers

    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "padding_side": "left"}
    if not (folder / "qwen.tiktoken").is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)
    file = str(folder / "qwen.tiktoken")
    tokenizer = _Converter(file, _WORDS, extra_special_tokens=_SPECIAL_TOKENS).converted()
    tokenizer.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def load_processor(folder: Path) -> Qwen2VLProcessor:
    """The processor of a folder, whose pictures have one size.

    The chat template is ``chat_template.jinja`` where the folder has one, else what
    ``generation_config.json`` names: ``chat_format`` is ``chatml``, or ``raw`` for the base model.
    """
    template, settings = CHAT_TEMPLATE, folder / "generation_config.json"
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    elif settings.is_file() and json.loads(settings.read_text()).get("chat_format") == "raw":
        template = PLAIN_TEMPLATE
    size = {"shortest_edge": SIDE**2, "longest_edge": SIDE**2}
    return Qwen2VLProcessor(
        QwenVLImageProcessor(size=size, patch_size=PATCH, temporal_patch_size=1),
        load_tokenizer(folder),
        Qwen2VLVideoProcessor(size=size),
        chat_template=template,
    )


def set_endings(network: QwenVLForConditionalGeneration) -> None:
    """An answer ends at its turn's end, or where another turn or text would begin."""
    first = network.config.vision_start_token_id - _SPECIAL_TOKENS.index("<img>")
    endings = [first + _SPECIAL_TOKENS.index(f"<|{name}|>") for name in ("im_end", "im_start")]
    network.generation_config = GenerationConfig(eos_token_id=[*endings, first], pad_token_id=first)
