"""Memory and time of a training step; the batch size that fits."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from vlkit.lora.batches import Labelled
from vlkit.lora.networks import LEAN, LOGITS, Part, linear_layers
from vlkit.models.families import FAMILIES
from vlkit.models.load import VLM, base_model
from vlkit.models.memory import available_memory, mlp_width
from vlkit.plotting.html import byte_text

# the time of a training step, in forward passes of the language model or of the whole model
STEP, STEP_WITH_VISION, RECOMPUTED = 1.4, 2.4, 0.9
PACKED = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}  # bytes of a weight, including its block's scale
AUTO = 8  # rows of an update
CHECKPOINTS = 10  # of a run, or as many as it has epochs
_USED = 0.9  # of the free memory
_GELUS = {"qwen2_vl": 2, "qwen2_5_vl": 3}  # values of the vision MLP kept for the backward pass


@dataclass(frozen=True)
class TrainingMemory:
    """An estimate for one training step, in bytes.

    Attributes:
        weights: the model's.
        state: trained parameters in float32 with their gradients and AdamW's two moments.
        activations: what the layers keep for the backward pass.
        logits: of as many trained tokens as the loss takes at a time, in the model's dtype and in
            float32, with their gradient.
        available: free on this machine, plus what the model uses unless it is loaded again.
        place: ``"GPU"`` or ``"RAM"``, where ``available`` was looked up.
    """

    weights: int
    state: int
    activations: int
    logits: int
    available: int
    place: str

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.state + self.activations + self.logits

    @property
    def fits(self) -> bool:
        """Whether it fits what is free on this machine."""
        return self.total <= self.available


def estimate_training(
    vlm: VLM, parts: Sequence[Part], *, rank: int | None, tokens: int, learnt: int, patches: int,
    gradient_checkpointing: bool = False, quantize: str | None = None,
) -> TrainingMemory:  # fmt: skip
    """The memory of a step, from what each layer keeps for its backward pass.

    Adapters of the vision tower keep a float32 copy of their input, as in PEFT; attention scores
    are not kept (sdpa, flash attention). Layers of linear attention count as full attention.

    Args:
        vlm: the model that is trained.
        parts: from :func:`vlkit.lora.networks.plan_parts`.
        rank: of the adapters, or None for full training.
        tokens: of the longest batch, including padding.
        learnt: those with labels.
        patches: of its pictures and clips.
        gradient_checkpointing: only each layer's input is kept, and all of one layer at a time.
        quantize: with ``"4bit"`` or ``"8bit"`` the model is loaded a second time.
    """
    config, value = vlm.model.config, vlm.model.dtype.itemsize
    text, vision = config.get_text_config(), config.vision_config
    language, tower, merger = (bool(part.modules) for part in parts)
    is_quantized = getattr(vlm.model, "is_quantized", False)
    loads_again = quantize is not None and not is_quantized
    free, place = available_memory()
    packed_base = loads_again or is_quantized
    inner, width = mlp_width(text), text.hidden_size
    layer = _language_layer(vlm.family, text, value, bool(rank) or not language)
    if language and packed_base:  # PEFT's layers keep float32
        layer += 4 * (5 * width + 2 * inner)
    block = _vision_block(vlm.family, vision, value, rank or 0) if tower else 0
    held = _layers(text.num_hidden_layers, layer, width * value, gradient_checkpointing)
    lean = vlm.family in LEAN and not packed_base and bool(rank) and language
    if lean and gradient_checkpointing and place == "GPU":  # the layers' inputs are in main memory
        held = layer + 3 * width * value
    seen = _layers(vision.depth, block, _width(vision) * value, gradient_checkpointing)
    joined = 3 * 4 * _width(vision) if tower or merger else 0  # of the merger
    weights = vlm.model.get_memory_footprint()
    if loads_again:  # all linear layers but the last, packed
        packed, layers = PACKED[str(quantize)], linear_layers(vlm.model).values()
        weights -= int(sum(n.weight.numel() * (n.weight.itemsize - packed) for n in layers))
    trained = sum(part.trained for part in parts)
    at_once = min(learnt, max(1, LOGITS // text.vocab_size))
    return TrainingMemory(
        weights=weights,
        state=trained * (16 if rank else 3 * value),
        activations=held * tokens + (seen * tower + joined) * patches,
        logits=at_once * text.vocab_size * (12 + (value if value < 4 else 0)),
        available=free + (0 if loads_again else weights),
        place=place,
    )


def _layers(count: int, layer: int, hidden: int, checkpointed: bool) -> int:
    return count * hidden + layer if checkpointed else count * layer


def _language_layer(family: str, text: Any, value: int, lean: bool) -> int:
    """Bytes that one layer keeps for one token; see :mod:`vlkit.lora.networks`."""
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    hidden, query, inner = text.hidden_size, heads * head, mlp_width(text)
    # from Qwen3-VL on queries and keys have norms, too
    normed = 2 * hidden
    if FAMILIES[family].patch_size == 16:
        normed += query + text.num_key_value_heads * head
    attended = 4 * query  # queries, keys and values repeated to their width, and the result
    if not lean or family == "qwen3_5":  # transformers' layers, with norms in float32
        return 4 * normed + value * (attended + 3 * inner + 2 * hidden + inner)
    return value * (normed + 2 * hidden + attended + 2 * inner)


def _vision_block(family: str, vision: Any, value: int, rank: int) -> int:
    """Bytes that one block of the tower keeps for one patch, until the backward pass.

    Args:
        value: bytes of a number in the model's dtype.
        rank: of LoRA's matrices; 0 where the block's own weights are trained.
    """
    width = _width(vision)
    inner = getattr(vision, "intermediate_size", None) or int(vision.mlp_ratio * width)
    norms = 2 * width * (4 if family == "qwen2_5_vl" else value)  # RMS norms are in float32
    results = value * (4 * width + _GELUS.get(family, 1) * inner)  # of attention and the MLP
    inputs = (3 * width + inner) * (4 if rank else value)  # of the linear layers; LoRA's in float32
    return norms + results + inputs


def _width(vision: Any) -> int:
    return getattr(vision, "embed_dim", None) or vision.hidden_size


def time_forward(vlm: VLM, labelled: Labelled) -> tuple[float, float]:
    """Seconds of one forward pass over an example, and of its vision tower alone.

    The second of two passes is measured; the first is a warm-up.
    """
    from transformers import BatchFeature

    model = base_model(vlm)
    tower: list[float] = []
    visual = model.model.visual
    before = visual.register_forward_pre_hook(lambda *_: tower.append(-_now(model)))
    after = visual.register_forward_hook(lambda *_: tower.append(_now(model)))
    tensors = BatchFeature(labelled.tensors).to(model.device, model.dtype)
    for _ in range(2):
        tower.clear()
        start = _now(model)
        with torch.inference_mode():
            model(**tensors, use_cache=False).logits[0, -1, 0].item()  # waits for the device
    seconds = _now(model) - start
    before.remove()
    after.remove()
    return seconds, sum(tower)


def _now(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def estimate_seconds(
    parts: Sequence[Part], forward: tuple[float, float], *, rows: float, pictured: int,
    gradient_checkpointing: bool,
) -> float:  # fmt: skip
    """Seconds of training.

    Args:
        parts: from :func:`vlkit.lora.networks.plan_parts`.
        forward: from :func:`time_forward`, of a row of mean length.
        rows: that are trained on, in all epochs.
        pictured: rows with different pictures; a tower that is not trained encodes each once.
        gradient_checkpointing: layers are computed again in the backward pass.
    """
    whole, tower = forward
    recomputed = RECOMPUTED if gradient_checkpointing else 0.0
    if any(part.modules for part in parts[1:]):
        return rows * whole * (STEP_WITH_VISION + recomputed)
    return rows * (whole - tower) * (STEP + recomputed) + pictured * tower


@dataclass(frozen=True)
class BatchSize:
    """Rows at a time.

    Attributes:
        batch: rows of a batch.
        accumulation: batches of an update of the weights.
        auto: whether batches may be smaller.
    """

    batch: int
    accumulation: int
    auto: bool = False

    @property
    def rows(self) -> int:
        """Rows of an update."""
        return self.batch * self.accumulation

    def smaller(self) -> BatchSize | None:
        """As many rows in batches of half the size; None where that is not possible."""
        if not self.auto or self.batch % 2:
            return None
        return replace(self, batch=self.batch // 2, accumulation=2 * self.accumulation)


def choose_batch(
    vlm: VLM, parts: Sequence[Part], lengths: Sequence[float], batch_size: int | str,
    accumulation: int, **setting: Any,
) -> BatchSize:  # fmt: skip
    """Rows of a batch; ``auto`` takes eight an update, in batches that fit a GPU's memory.

    Args:
        vlm, parts, **setting: as for :func:`estimate_training`.
        lengths: of the rows.
        batch_size, accumulation: as for :func:`vlkit.lora.train`.
    """
    if batch_size != "auto":
        return BatchSize(int(batch_size), accumulation)
    size = BatchSize(AUTO, accumulation, auto=True)
    longest = sorted(lengths)[-AUTO:]
    while vlm.model.device.type == "cuda" and (smaller := size.smaller()):
        tokens = int(longest[-1] * size.batch)
        row: dict[str, Any] = {"tokens": tokens, "learnt": tokens // 4, "patches": 4 * tokens}
        memory = estimate_training(vlm, parts, **row, **setting)
        if memory.total <= _USED * memory.available:
            break
        size = smaller
    return size


def estimate_batch(
    vlm: VLM, parts: Sequence[Part], size: BatchSize, row: tuple[int, int, int], *,
    rank: int | None, gradient_checkpointing: bool, quantize: str | None,
) -> TrainingMemory:  # fmt: skip
    """The memory of the longest batch; a warning where it does not fit names a setting that does.

    Args:
        vlm, parts, rank, gradient_checkpointing, quantize: as for :func:`estimate_training`.
        size: rows of a batch.
        row: tokens, trained tokens and patches of the longest row.
    """

    def estimate(rows: int, checkpointed: bool, packed: str | None) -> TrainingMemory:
        tokens, learnt, patches = (count * rows for count in row)
        return estimate_training(
            vlm, parts, rank=rank, tokens=tokens, learnt=learnt, patches=patches,
            gradient_checkpointing=checkpointed, quantize=packed,
        )  # fmt: skip

    memory = estimate(size.batch, gradient_checkpointing, quantize)
    if memory.fits:
        return memory
    remedy = "no setting fits it; take a smaller model, or load(…, max_image_tokens=…)"
    packs = rank and quantize is None and not getattr(vlm.model, "is_quantized", False)
    quantizations = (quantize, "4bit") if packs and memory.place == "GPU" else (quantize,)
    for packed, rows in product(quantizations, dict.fromkeys((size.batch, 1))):
        other = estimate(rows, True, packed)
        if other.total <= memory.available:
            shown = []
            if rows < size.batch:
                shown = [f"batch_size={rows}", f"gradient_accumulation={size.rows}"]
            if not gradient_checkpointing:
                shown.append("gradient_checkpointing=True")
            if packed != quantize:
                shown.append(f"a model from load(…, quantize={packed!r})")
            remedy = f"about {byte_text(other.total)} with {', '.join(shown)}"
            break
    warnings.warn(
        f"training {vlm.name} needs about {byte_text(memory.total)} of {memory.place} memory, and "
        f"{byte_text(memory.available)} are free: {remedy}",
        stacklevel=4,
    )
    return memory


def count_steps(rows: int, batch_size: int, gradient_accumulation: int, epochs: float) -> int:
    """Updates of the weights, as the Trainer counts them."""
    batches = math.ceil(rows / batch_size)
    return math.ceil(math.ceil(batches / gradient_accumulation) * epochs)


def checkpoint_every(steps: int, epochs: float) -> int:
    """Steps between two checkpoints, and between two evaluations."""
    return min(math.ceil(steps / CHECKPOINTS), math.ceil(steps / max(epochs, 1)))
