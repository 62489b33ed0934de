"""One decoding step of many rows: the text layers and the KV cache.

transformers' step repeats keys and values for every query head and launches over a thousand small
kernels. This one reads the cache once for all heads of a group, launches about a third of them,
and on a GPU is captured as a CUDA graph, so that nothing waits for Python.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from vlkit.engine.kernels import (
    add_rms_norm,
    can_attend,
    gated,
    linear,
    rms_norm,
    rotate,
    rotate_and_store,
)
from vlkit.engine.kernels import attend as attend_on_gpu

_KNOWN_ATTENTION = ("sdpa", "eager", "flash_attention_2")  # equal to the decoder's own
SPAN = 64  # the cache is read up to the longest row, rounded up to this many tokens


class Decoder:
    """The text layers of a Qwen2-VL, 2.5 or 3 with a cache of ``slots`` rows.

    The cache of a layer has the shape (slots, length, 2 × key-value heads, head size), keys first.

    Args:
        model: the transformers model.
        slots: the most rows at a time.
        length: the most tokens of a row, prompt and answer.
    """

    def __init__(self, model: Any, slots: int, length: int):
        text = model.model.language_model
        self.embed, self.norm, self.rotary = text.embed_tokens, text.norm, text.rotary_emb
        self.layers, self.lm_head = list(text.layers), model.lm_head
        config = text.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = self.layers[0].self_attn.head_dim
        self.device, self.dtype = self.embed.weight.device, self.embed.weight.dtype
        self.joined = [_join(layer.self_attn) for layer in self.layers]
        self.slots, self.narrowed = slots, False
        self.cache = [self._allocate(slots, length) for _ in self.layers]

    def refresh(self) -> None:
        """Take over weights that were changed in place."""
        for layer, joined in zip(self.layers, self.joined, strict=True):
            if joined is not None:
                _join(layer.self_attn, *joined)

    @property
    def length(self) -> int:
        """The most tokens of a row."""
        return self.cache[0].shape[1]

    def _allocate(self, slots: int, length: int):
        import torch

        shape = (slots, length, 2 * self.kv_heads, self.head_size)
        if self.device.type != "cpu":
            return torch.zeros(shape, device=self.device, dtype=self.dtype)
        zeros = np.zeros(math.prod(shape) * self.dtype.itemsize, np.uint8)
        return torch.from_numpy(zeros).view(self.dtype).view(shape)  # no memory before it is used

    def grow(self, length: int) -> None:
        """Make room for longer rows; the contents stay, also where memory runs out."""
        import torch

        if self.narrowed:
            raise torch.cuda.OutOfMemoryError("no memory for the cache of a longer answer")
        before = self.length
        try:
            for index, old in enumerate(self.cache):
                self.cache[index] = self._allocate(self.slots, length)
                self.cache[index][:, :before] = old
        except Exception:
            self.cache = [layer[:, :before] for layer in self.cache]
            raise

    def narrow(self, slot: int) -> Decoder:
        """A decoder of one slot, over the same memory, which cannot grow."""
        one = copy.copy(self)
        one.slots, one.narrowed = 1, True
        one.cache = [layer[slot : slot + 1] for layer in self.cache]
        return one

    def clean(self, slot: int, length: int) -> None:
        """Zero a slot that a row has left if it contains NaN or infinity.

        A later row masks these places, but a masked NaN is still NaN.
        """
        if not self.cache[-1][slot, :length].isfinite().all():
            for layer in self.cache:
                layer[slot] = 0

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one slot's first tokens to another slot."""
        for layer in self.cache:
            layer[target, :length] = layer[source, :length]

    def read(
        self, hidden, angles, first: int, last, deep: dict | None = None, starts=None, span: int = 0
    ):
        """Read prompts, padded on the right, into the slots from ``first`` on.

        Args:
            hidden: (rows, length, width) embeddings.
            angles: cosines and sines, (rows, length, head size) each.
            first: the first slot.
            last: (rows,) the index in ``hidden`` of each prompt's last token.
            deep: Qwen3-VL's features after a layer, (rows, length, width), by the layer's number.
            starts: (rows,) tokens of each prompt that are in the cache already, and not in
                ``hidden``; None for whole prompts.
            span: with ``starts``, how much of the cache is read.

        Returns:
            (rows, vocabulary) logits of the last tokens.
        """
        import torch

        rows, length, width = hidden.shape
        attend_to = torch.nn.functional.scaled_dot_product_attention
        group = self.heads // self.kv_heads
        kept = torch.arange(rows, device=self.device) * length + last
        deep = {layer: values.view(-1, width) for layer, values in (deep or {}).items()}
        if starts is not None:
            places = starts[:, None] + torch.arange(length, device=self.device)
            seen = torch.arange(span, device=self.device) <= places[..., None]
            mask = seen[:, None, None].expand(-1, 1, group, -1, -1).reshape(rows, 1, -1, span)
            slots = first + torch.arange(rows, device=self.device)[:, None]
            places = places.clamp(max=self.length - 1)  # of padding; never read

        def attend(states, cache):
            rotate(states, self.heads + self.kv_heads, *angles)
            states = states.view(rows, length, -1, self.head_size)
            if starts is None:  # causal attention never looks at padding after a token: no mask
                cache[first : first + rows, :length] = states[:, :, self.heads :]
                parts = states.transpose(1, 2).split([self.heads, self.kv_heads, self.kv_heads], 1)
                output = attend_to(*parts, is_causal=True, enable_gqa=group > 1)
            else:
                cache[slots, places] = states[:, :, self.heads :]
                query = states[:, :, : self.heads].transpose(1, 2)
                query = query.reshape(rows, self.kv_heads, group * length, self.head_size)
                held = cache[first : first + rows, :span].transpose(1, 2)
                output = attend_to(query, *held.split(self.kv_heads, 1), attn_mask=mask)
                output = output.view(rows, self.heads, length, self.head_size)
            return output.transpose(1, 2).reshape(rows * length, -1)

        angles = [angle.reshape(-1, self.head_size) for angle in angles]
        return self._run(hidden.reshape(-1, width), attend, kept, deep)

    def step(self, tokens, lengths, deltas, span: int):
        """Read one token a row and predict the next.

        Args:
            tokens: (rows,) the last token of each of the first slots.
            lengths: (rows,) tokens that are in the cache already.
            deltas: (rows,) what is added to a text token's index to get its rotary position.
            span: how much of the cache is read; more than any of ``lengths``.

        Returns:
            (rows, vocabulary) logits.
        """
        import torch

        count = len(tokens)
        hidden = self.embed(tokens)
        positions = (lengths + deltas)[None, :, None].expand(3, -1, 1)
        angles = [angle[:, 0].contiguous() for angle in self.rotary(hidden[:, None], positions)]
        unseen = torch.arange(span, device=self.device) > lengths[:, None]
        mask = torch.zeros(unseen.shape, device=self.device, dtype=self.dtype)
        mask.masked_fill_(unseen, float("-inf"))
        group = self.heads // self.kv_heads
        mask = mask[:, None, None].expand(-1, self.kv_heads, group, -1)

        def attend(states, cache):
            """The heads of a group attend as if they were tokens, so no key is repeated."""
            rotate_and_store(states, self.heads, self.kv_heads, angles, cache, lengths)
            if can_attend(states):
                return attend_on_gpu(states, self.heads, self.kv_heads, cache, lengths, span)
            query = states[:, : self.heads].view(count, self.kv_heads, group, self.head_size)
            keys, values = cache[:count, :span].transpose(1, 2).split(self.kv_heads, 1)
            output = torch.nn.functional.scaled_dot_product_attention(
                query, keys, values, attn_mask=mask
            )
            return output.reshape(count, -1)

        return self._run(hidden, attend)

    def _run(self, hidden, attend, kept=None, deep: dict | None = None):
        """All layers over (tokens, width); of the last layer's output only ``kept`` tokens."""
        update, last = None, len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            hidden, normed = add_rms_norm(hidden, update, layer.input_layernorm)
            states = self._project(layer.self_attn, self.joined[index], normed)
            attended = attend(states, self.cache[index])
            if kept is not None and index == last:
                hidden, attended = hidden[kept], attended[kept]
            update = layer.self_attn.o_proj(attended)
            hidden, normed = add_rms_norm(hidden, update, layer.post_attention_layernorm)
            mlp = layer.mlp
            update = linear(gated(normed, mlp.gate_proj, mlp.up_proj), mlp.down_proj)
            if deep and index in deep:
                update = update + deep[index]
        return linear(add_rms_norm(hidden, update, self.norm)[1], self.lm_head)

    def _project(self, attention, joined, hidden):
        """Queries, keys and values, (tokens, heads + 2 × key-value heads, head size)."""
        import torch

        if joined is not None:
            states = torch.nn.functional.linear(hidden, *joined)
        else:
            parts = attention.q_proj, attention.k_proj, attention.v_proj
            states = torch.cat([project(hidden) for project in parts], -1)
        states = states.view(len(hidden), -1, self.head_size)
        if hasattr(attention, "q_norm"):
            query, key, value = states.split([self.heads, self.kv_heads, self.kv_heads], 1)
            query, key = rms_norm(query, attention.q_norm), rms_norm(key, attention.k_norm)
            states = torch.cat([query, key, value], 1)
        return states


def can_decode(model: Any) -> str:
    """Why this decoder cannot run a model, or an empty string."""
    text = getattr(getattr(model, "model", None), "language_model", None)
    kind = model.config.model_type
    if kind not in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl") or text is None:
        return f"{kind} has layers that it does not know"
    if set(getattr(text.config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return "the model has layers with a sliding window"
    if getattr(text.config, "hidden_act", "silu") != "silu":
        return f"the model's layers use {text.config.hidden_act}"
    if (attention := text.config._attn_implementation) not in _KNOWN_ATTENTION:
        return f"the model's attention is {attention!r}"
    places = set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    if len(places) > 1:
        return f"the model is spread over {len(places)} devices"
    changed = next((name for name, part in model.named_modules() if _is_changed(part)), None)
    return "" if changed is None else f"{changed or 'the model'} has a forward hook"


def _is_changed(module: Any) -> bool:
    """Whether a user's hooks watch or change what a module computes."""
    hooks = *module._forward_hooks.values(), *module._forward_pre_hooks.values()
    return any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks)


def _joinable(attention: Any) -> bool:
    """Whether one product for queries, keys and values pays: on a GPU, of plain linear layers."""
    import torch

    parts = attention.q_proj, attention.k_proj, attention.v_proj
    return all(type(part) is torch.nn.Linear and part.weight.is_cuda for part in parts)


def _join(attention: Any, weight=None, bias=None):
    """One weight and bias for queries, keys and values, written into those given.

    None where they are not :func:`_joinable`; the bias may be None.
    """
    import torch

    if not _joinable(attention):
        return None
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    weight = torch.cat([part.weight.detach() for part in parts], out=weight)
    if parts[0].bias is not None:
        bias = torch.cat([part.bias.detach() for part in parts], out=bias)
    return weight, bias
