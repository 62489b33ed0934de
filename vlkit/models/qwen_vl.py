"""Qwen-VL, the first generation: its network and processor, as transformers has neither.

Published as ``Qwen/Qwen-VL`` and ``Qwen/Qwen-VL-Chat`` (https://arxiv.org/abs/2308.12966). The
language model is Qwen2's with as many key-value heads as heads. A picture is resized to 448 × 448
pixels and cut into 32 × 32 patches; after 48 layers of a vision encoder, 256 learnt queries read
them in one layer of cross-attention, so every picture costs 256 tokens. Names of the modules are
those of later generations; ``_CONVERSION`` renames published weights, and those that are saved.
Importing this module registers the classes with transformers.
"""

import base64
import math
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from tokenizers import normalizers
from torch import nn
from torch.nn.functional import gelu, interpolate, linear, scaled_dot_product_attention
from transformers import PreTrainedConfig, PreTrainedModel, Qwen2Config, modeling_outputs
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.utils.output_capturing import capture_outputs

from vlkit.files import read_json

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


# --- configuration -------------------------------------------------------------------------------


class QwenVLVisionConfig(PreTrainedConfig):
    """Shape of the vision encoder, in the words of ``config.json``; as published by default."""

    model_type = "qwen_vl_vision"
    base_config_key = "vision_config"
    attribute_map: ClassVar = {"hidden_size": "width", "depth": "layers", "num_heads": "heads"}

    width: int = 1664
    layers: int = 48
    heads: int = 16
    mlp_ratio: float = 4.9231
    output_dim: int = 4096
    patch_size: int = PATCH
    temporal_patch_size: int = 1
    spatial_merge_size: int = 2  # 4 patches for each query


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

    def __post_init__(self, visual: dict | None = None, **flat: Any):
        if visual is not None:
            first = visual["image_start_id"]
            self.vision_start_token_id, self.vision_end_token_id = first, first + 1
            self.image_token_id, self.video_token_id = first + 2, first - 7
        text = self.text_config or _read_text(flat)
        vision = self.vision_config or visual or {}
        self.text_config = Qwen2Config(**text) if isinstance(text, dict) else text
        self.vision_config = QwenVLVisionConfig(**vision) if isinstance(vision, dict) else vision
        super().__post_init__(**flat)


_TEXT = {  # published values, where Qwen2Config has others
    "max_position_embeddings": 8192, "seq_length": 2048, "use_logn_attn": True,
    "use_dynamic_ntk": True,
}  # fmt: skip


def _read_text(flat: dict) -> dict:
    """The language model's settings, taken out of the published ``config.json``."""
    same = (*_TEXT, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    text = _TEXT | {name: flat.pop(name) for name in same if name in flat}
    text["num_key_value_heads"] = text.get("num_attention_heads", 32)
    text["intermediate_size"] = flat.pop("intermediate_size", 22016) // 2  # there, of both halves
    text["rms_norm_eps"] = flat.pop("layer_norm_epsilon", 1e-6)
    return text | {"rope_theta": float(flat.pop("rotary_emb_base", 10000))}


# --- vision --------------------------------------------------------------------------------------


def sine_positions(width: int, side: int = 16) -> torch.Tensor:
    """2D positions of a grid, (side², width): of the column in the first half, then of the row."""
    angles = torch.arange(side)[:, None] * 10000.0 ** -(torch.arange(width // 4) / (width / 4))
    waves = torch.cat([angles.sin(), angles.cos()], -1)  # (side, width / 2)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([columns, rows], -1).flatten(0, 1)


def _random(rows: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, width) * width**-0.5)


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
        width, inner = config.width, int(config.width * config.mlp_ratio)
        self.input_layernorm, self.post_attention_layernorm = _norm(width), _norm(width)
        self.attn = _SelfAttention(width, config.heads)
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
        width = config.output_dim
        self.pos_embed = nn.Parameter(sine_positions(width), requires_grad=False)
        self.query = _random(QUERIES, width)
        same = config.width == width
        self.kv_proj = nn.Identity() if same else nn.Linear(config.width, width, bias=False)
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
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["Qwen2DecoderLayer", "QwenVLVisionBlock", "QwenVLResampler"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected: ClassVar = ["inv_freq", "masked_bias"]  # computed
    _supports_flash_attn = _supports_sdpa = _supports_attention_backend = True


class QwenVLVisionModel(QwenVLPreTrainedModel):
    """Patches of pictures to tokens of the language model."""

    config_class = QwenVLVisionConfig

    def __init__(self, config: QwenVLVisionConfig):
        super().__init__(config)
        self.spatial_merge_size = config.spatial_merge_size
        width, output = config.width, config.output_dim
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.positional_embedding = _random(QUERIES, width)
        self.ln_pre = _norm(width)
        self.transformer = nn.Module()
        blocks = [QwenVLVisionBlock(config) for _ in range(config.layers)]
        self.transformer.resblocks = nn.ModuleList(blocks)
        self.attn_pool, self.ln_post = QwenVLResampler(config), _norm(output)
        self.proj = _random(output, output)
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
        return modeling_outputs.BaseModelOutputWithPooling(pooler_output=x.flatten(0, 1))


# --- language ------------------------------------------------------------------------------------


class QwenVLAttention(qwen2.Qwen2Attention):
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
        query, key = qwen2.apply_rotary_pos_emb(query, key, cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        eager, name = qwen2.eager_attention_forward, self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
        output, weights = attend(
            self, query * scale, key, value, attention_mask, scaling=self.scaling, **options
        )
        return self.o_proj(output.flatten(2)), weights


class QwenVLTextModel(transformers.Qwen2Model):
    """Qwen2's language model, with Qwen's two rules for prompts beyond its training length.

    Both depend on the position alone, and neither holds in training: queries are scaled by
    log(position) / log(``seq_length``), and the base of the rotary embedding grows with the
    prompt's length, in steps of powers of two (dynamic NTK). The base of a prompt stays for its
    answer, so it is kept with the keys, in the cache.
    """

    _can_record_outputs: ClassVar = {
        "hidden_states": qwen2.Qwen2DecoderLayer, "attentions": QwenVLAttention,
    }  # fmt: skip

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
        """As transformers.Qwen2Model."""
        if use_cache and past_key_values is None:
            past_key_values = transformers.DynamicCache(config=self.config)
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
        return modeling_outputs.BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden), past_key_values=past_key_values
        )

    def _ntk_alpha(self, lengths: torch.Tensor) -> torch.Tensor:
        """1 up to the training length, 3 up to twice that, 7 up to four times …; (rows,)."""
        doublings = (lengths / self.config.seq_length).log2().ceil().clamp(min=0)
        grows = self.config.use_dynamic_ntk and not self.training
        return 2 ** (doublings * grows + 1) - 1

    def _rotate(self, positions: Any, alpha: Any, dtype: torch.dtype) -> tuple:
        """Cosines and sines (rows, tokens, head size); scales of queries (rows, 1, tokens, 1)."""
        size = self.config.hidden_size // self.config.num_attention_heads
        base = self.config.rope_parameters["rope_theta"] * alpha ** (size / (size - 2))
        exponents = torch.arange(0, size, 2, device=positions.device) / size
        frequencies = 1 / base[:, None] ** exponents  # (rows, size / 2)
        angles = positions[..., None] * frequencies[:, None]
        angles = torch.cat([angles, angles], -1)
        grows = self.config.use_logn_attn and not self.training
        scale = grows * (positions + 1).float().log() / math.log(self.config.seq_length)
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


class QwenVLForConditionalGeneration(QwenVLPreTrainedModel, transformers.GenerationMixin):
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
        is_prompt = past_key_values is None or not past_key_values.get_seq_length()
        if pixel_values is not None and is_prompt:
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
        return modeling_outputs.CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states, attentions=outputs.attentions,
        )  # fmt: skip


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
_SPLIT = {".attn.c_attn.": ".self_attn.", ".attn_pool.attn.in_proj_": ".attn_pool.attn."}
_JOINED = {  # queries, keys and values, published as one weight; where its three parts go
    f"{source}{kind}": [f"{target}{part}_proj.{kind}" for part in "qkv"]
    for source, target in _SPLIT.items()
    for kind in ("weight", "bias")
}
_CONVERSION = [
    *(WeightRenaming(old, new) for old, new in _RENAMED.items()),
    *(WeightConverter(old, new, operations=[Chunk(dim=0)]) for old, new in _JOINED.items()),
]
transformers.AutoConfig.register(QwenVLConfig.model_type, QwenVLConfig)
transformers.AutoModelForImageTextToText.register(QwenVLConfig, QwenVLForConditionalGeneration)
register_checkpoint_conversion_mapping(QwenVLConfig.model_type, _CONVERSION)


# --- processor -----------------------------------------------------------------------------------


class QwenVLImageProcessor(transformers.Qwen2VLImageProcessor):
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


def load_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerFast:
    """The tokenizer in ``qwen.tiktoken``, or the one that vlkit saved."""
    file: dict[str, Any] = {"tokenizer_file": str(folder / "tokenizer.json")}
    if (folder / "qwen.tiktoken").is_file():
        converter = _Converter(str(folder / "qwen.tiktoken"), _WORDS)
        converter.extra_special_tokens = _SPECIAL_TOKENS
        file = {"tokenizer_object": converter.converted()}
        file["tokenizer_object"].normalizer = normalizers.NFC()
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return transformers.PreTrainedTokenizerFast(**file, **names, padding_side="left")


def load_processor(folder: Path, **_: Any) -> transformers.Qwen2VLProcessor:
    """The processor of a folder, whose pictures have one size.

    The chat template is ``chat_template.jinja`` where the folder has one, else the one that
    ``generation_config.json`` names: ``chat_format`` is ``raw`` for the base model.
    """
    own, settings = folder / "chat_template.jinja", folder / "generation_config.json"
    plain = settings.is_file() and read_json(settings).get("chat_format") == "raw"
    template = Path(__file__).with_name(f"qwen_vl_{'base' if plain else 'chat'}.jinja")
    size = {"shortest_edge": SIDE**2, "longest_edge": SIDE**2}
    return transformers.Qwen2VLProcessor(
        QwenVLImageProcessor(size=size, patch_size=PATCH, temporal_patch_size=1),
        load_tokenizer(folder),
        transformers.Qwen2VLVideoProcessor(size=size),
        chat_template=(own if own.is_file() else template).read_text(encoding="utf-8"),
    )


def set_endings(network: QwenVLForConditionalGeneration) -> None:
    """An answer ends at its turn's end, or where another turn or text would begin."""
    first = network.config.vision_start_token_id - _SPECIAL_TOKENS.index("<img>")
    names = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
    network.generation_config = transformers.GenerationConfig(
        eos_token_id=[first + _SPECIAL_TOKENS.index(name) for name in names], pad_token_id=first
    )
