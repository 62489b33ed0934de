"""One decoding step of many rows: the text layers and the KV cache.

transformers' step repeats keys and values for every query head and launches over a thousand small
kernels. This one reads the cache once for all heads of a group, launches about a third of them,
and on a GPU is captured as a CUDA graph, so that nothing waits for Python.
"""

from __future__ import annotations

import copy
import math
import sys
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn.functional import conv1d, silu, softplus
from torch.nn.functional import scaled_dot_product_attention as attend_to

from vlkit.engine import kernels
from vlkit.models.load import list_modules
from vlkit.models.memory import available_memory, mlp_width
from vlkit.threads import on_one_core

_KNOWN_ATTENTION = ("sdpa", "eager", "flash_attention_2")  # equal to the decoder's own
SPAN = 64  # the cache is read up to the longest row, rounded up to this many tokens
SMALL = 2**20  # multiplications in an MLP's layer for which a second core is not worth waking
# layers of one module that read the same rows
_PACKED = ("q_proj k_proj v_proj", "o_proj", "out_proj", "gate_proj up_proj", "down_proj")


class Decoder:
    """The text layers of a Qwen2-VL to Qwen3.5 with a cache of ``slots`` rows.

    The cache of a layer has the shape (slots, length, 2 × key-value heads, head size), keys first.
    Layers with linear attention have a state instead (:attr:`linear`).

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
        self.device, self.dtype = self.norm.weight.device, self.norm.weight.dtype
        self.linear: dict[int, LinearAttention] = {}
        self.attentions: dict[int, Any] = {}  # what each of the other layers attends with
        for index, layer in enumerate(self.layers):
            if hasattr(layer, "linear_attn"):
                self.linear[index] = LinearAttention(layer.linear_attn, slots)
            else:
                self.attentions[index] = layer.self_attn
        self.head_size = next(iter(self.attentions.values())).head_dim
        self.joined = {index: _join(part) for index, part in self.attentions.items()}
        packed = self.device.type == "cpu" and _pack(text, self.lm_head)
        self.few = SMALL // (config.hidden_size * mlp_width(config)) if packed else 0
        self.slots, self.narrowed = slots, False
        self.cache = {index: self._allocate(slots, length) for index in self.attentions}

    def refresh(self) -> None:
        """Take over weights that were changed in place."""
        for index, joined in self.joined.items():
            if joined is not None:
                _join(self.attentions[index], *joined)

    @property
    def asks_the_gpu(self) -> bool:
        """Whether a step waits to learn which experts it needs, which no CUDA graph can contain.

        transformers' grouped products do so in all types but bfloat16.
        """
        experts = [layer.mlp.experts for layer in self.layers if hasattr(layer.mlp, "experts")]
        kinds = {getattr(part.config, "_experts_implementation", None) for part in experts}
        return not kinds <= ({"batched_mm", "grouped_mm"} if self.dtype.itemsize == 2 else set())

    @property
    def length(self) -> int:
        """The most tokens of a row."""
        return next(iter(self.cache.values())).shape[1]

    @property
    def states(self) -> list[Any]:
        """What the layers with linear attention hold, by slot."""
        return [part for layer in self.linear.values() for part in layer.states]

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(part.nbytes for part in [*self.cache.values(), *self.states])

    def _allocate(self, slots: int, length: int):
        shape = (slots, length, 2 * self.kv_heads, self.head_size)
        if self.device.type != "cpu":
            return torch.zeros(shape, device=self.device, dtype=self.dtype)
        zeros = np.zeros(math.prod(shape) * self.dtype.itemsize, np.uint8)
        return torch.from_numpy(zeros).view(self.dtype).view(shape)  # no memory before it is used

    def grow(self, length: int, used: int) -> None:
        """Make room for longer rows; the first ``used`` slots stay, also where memory runs out."""
        if self.narrowed:
            raise torch.cuda.OutOfMemoryError("no memory for the cache of a longer answer")
        before = self.length
        try:
            for index, old in self.cache.items():
                self.cache[index] = self._allocate(self.slots, length)
                self.cache[index][:used, :before] = old[:used]
        except Exception:
            self.cache = {index: layer[:, :before] for index, layer in self.cache.items()}
            raise

    def narrow(self, slot: int, rows: int = 1) -> Decoder:
        """A decoder of one slot, for one or several rows, over the same memory; it cannot grow."""
        one = copy.copy(self)
        one.slots, one.narrowed = 1, True
        one.cache = {
            index: layer[slot : slot + 1].expand(rows, -1, -1, -1)
            for index, layer in self.cache.items()
        }
        one.linear = {index: layer.narrow(slot) for index, layer in self.linear.items()}
        return one

    def clean(self, slot: int, length: int) -> None:
        """Zero a slot that a row has left if it contains NaN or infinity.

        A later row masks these places, but a masked NaN is still NaN.
        """
        layers = list(self.cache.values())
        if not layers[-1][slot, :length].isfinite().all():
            for layer in layers:
                layer[slot] = 0

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one slot's first tokens, and its states, to another slot."""
        for layer in self.cache.values():
            layer[target, :length] = layer[source, :length]
        for state in self.states:
            state[target] = state[source]

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
        rows, length, width = hidden.shape
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
            kernels.rotate(states, self.heads + self.kv_heads, *angles)
            states = states.view(rows, length, -1, self.head_size)
            if starts is None:  # causal attention never looks at padding after a token: no mask
                cache[first : first + rows, :length] = states[:, :, self.heads :]
                sizes = [self.heads, self.kv_heads, self.kv_heads]
                query, keys, values = states.transpose(1, 2).split(sizes, 1)
                output = attend_to(query, keys, values, is_causal=True, enable_gqa=group > 1)
            else:
                cache[slots, places] = states[:, :, self.heads :]
                query = states[:, :, : self.heads].transpose(1, 2)
                query = query.reshape(rows, self.kv_heads, group * length, self.head_size)
                held = cache[first : first + rows, :span].transpose(1, 2)
                keys, values = held.split(self.kv_heads, 1)
                output = attend_to(query, keys, values, attn_mask=mask)
                output = output.view(rows, self.heads, length, self.head_size)
            return output.transpose(1, 2).reshape(rows * length, -1)

        fresh = torch.ones_like(last, dtype=torch.bool) if starts is None else starts == 0

        def recur(layer, normed):
            return layer.read(normed.view(rows, length, width), last + 1, first, fresh)

        angles = [angle.reshape(-1, angle.shape[-1]) for angle in angles]
        return self._run(hidden.reshape(-1, width), attend, recur, kept, deep)

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
        count = len(tokens)
        hidden = self.embed(tokens)
        positions = (lengths + deltas)[None, :, None].expand(3, -1, 1)
        angles = [angle[:, 0].contiguous() for angle in self.rotary(hidden[:, None], positions)]
        group, mask = self.heads // self.kv_heads, None
        if count == 1 and self.device.type == "cpu":
            span = int(lengths[0]) + 1
        else:
            unseen = torch.arange(span, device=self.device) > lengths[:, None]
            mask = torch.zeros(unseen.shape, device=self.device, dtype=self.dtype)
            mask.masked_fill_(unseen, float("-inf"))
            mask = mask[:, None, None].expand(-1, self.kv_heads, group, -1)

        def attend(states, cache):
            """The heads of a group attend as if they were tokens, so no key is repeated."""
            kernels.rotate_and_store(states, self.heads, self.kv_heads, angles, cache, lengths)
            if kernels.can_attend(states):
                return kernels.attend(states, self.heads, self.kv_heads, cache, lengths, span)
            query = states[:, : self.heads].view(count, self.kv_heads, group, self.head_size)
            keys, values = cache[:count, :span].transpose(1, 2).split(self.kv_heads, 1)
            return attend_to(query, keys, values, attn_mask=mask).reshape(count, -1)

        with on_one_core() if count <= self.few else nullcontext():
            return self._run(hidden, attend, LinearAttention.step)

    def _run(self, hidden, attend, recur, kept=None, deep: dict | None = None):
        """All layers over (tokens, width); of the last layer's output only ``kept`` tokens."""
        update, last = None, len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            hidden, normed = kernels.add_rms_norm(hidden, update, layer.input_layernorm)
            if index in self.linear:
                mixed, close = recur(self.linear[index], normed), layer.linear_attn.out_proj
            else:
                states, gate = self._project(layer.self_attn, self.joined[index], normed)
                mixed, close = attend(states, self.cache[index]), layer.self_attn.o_proj
                mixed = mixed if gate is None else mixed * gate.sigmoid()
            if kept is not None and index == last:
                hidden, mixed = hidden[kept], mixed[kept]
            mixed = kernels.linear(mixed, close)
            hidden, normed = kernels.add_rms_norm(hidden, mixed, layer.post_attention_layernorm)
            update = _feed_forward(layer.mlp, normed)
            if deep and index in deep:
                update = update + deep[index]
        return kernels.linear(kernels.add_rms_norm(hidden, update, self.norm)[1], self.lm_head)

    def _project(self, attention, joined, hidden):
        """Queries, keys and values, (tokens, heads + 2 × key-value heads, head size).

        Also Qwen3.5's gate of the output, (tokens, heads × head size); otherwise None.
        """
        if joined is not None:
            states = torch.nn.functional.linear(hidden, *joined)
        else:
            states = kernels.linear(hidden, attention.q_proj, attention.k_proj, attention.v_proj)
        states, gate = states.view(len(hidden), -1, self.head_size), None
        if states.shape[1] > self.heads + 2 * self.kv_heads:  # a gate after each query
            query, gate = states[:, : 2 * self.heads].unflatten(1, (-1, 2)).unbind(2)
            states = torch.cat([query, states[:, 2 * self.heads :]], 1)
            gate = gate.reshape(len(hidden), -1)
        if hasattr(attention, "q_norm"):
            query, key, value = states.split([self.heads, self.kv_heads, self.kv_heads], 1)
            query = kernels.rms_norm(query, attention.q_norm)
            key = kernels.rms_norm(key, attention.k_norm)
            states = torch.cat([query, key, value], 1)
        return states, gate


def _feed_forward(mlp: Any, hidden: Any) -> Any:
    """A layer's MLP over (tokens, width), or its mixture of experts."""
    if hasattr(mlp, "experts"):
        return mlp(hidden[None])[0]
    return kernels.linear(kernels.gated(hidden, mlp.gate_proj, mlp.up_proj), mlp.down_proj)


def can_decode(model: Any) -> str:
    """Why this decoder cannot run a model, or an empty string."""
    text = getattr(getattr(model, "model", None), "language_model", None)
    kind = model.config.model_type
    known = {"full_attention"}
    if kind in ("qwen3_5", "qwen3_5_moe"):
        known.add("linear_attention")
    elif kind not in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"):
        text = None
    if text is None:
        return f"{kind} has layers that it does not know"
    kinds = set(getattr(text.config, "layer_types", None) or ["full_attention"])
    if not kinds <= known or "full_attention" not in kinds:
        return "the model has layers with a sliding window"
    if getattr(text.config, "hidden_act", "silu") != "silu":
        return f"the model's layers use {text.config.hidden_act}"
    if (attention := text.config._attn_implementation) not in _KNOWN_ATTENTION:
        return f"the model's attention is {attention!r}"
    places = set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    if len(places) > 1:
        return f"the model is spread over {len(places)} devices"
    if not any(map(_is_changed, list_modules(model))):
        return ""
    names = (name for name, part in model.named_modules() if _is_changed(part))
    return f"{next(names) or 'the model'} has a forward hook"


def _is_changed(module: Any) -> bool:
    """Whether a user's hooks watch or change what a module computes."""
    hooks = *module._forward_hooks.values(), *module._forward_pre_hooks.values()
    return any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks)


def _pack(text: Any, head: Any) -> bool:
    """Let a CPU read weights in 16 bits where an eighth of the free memory holds them."""
    modules = list_modules(text)
    parts = [p for module in modules for p in module._parameters.values() if p is not None]
    fits = sum(part.numel() * 2 for part in parts) <= available_memory()[0] // 8
    packed = [kernels.pack(head, fits=fits)]
    for module in modules:
        for names in _PACKED:
            layers = [module._modules.get(name) for name in names.split()]
            if None not in layers:
                packed.append(kernels.pack(*layers, fits=fits))
    return all(packed)


def _join(attention: Any, weight=None, bias=None):
    """One weight and bias (or None) for queries, keys and values, written into those given.

    None where one product does not pay: on a CPU, or where layers are not plain linear ones.
    """
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    if not all(type(part) is torch.nn.Linear and part.weight.is_cuda for part in parts):
        return None
    weight = torch.cat([part.weight.detach() for part in parts], out=weight)
    if parts[0].bias is not None:
        bias = torch.cat([part.bias.detach() for part in parts], out=bias)
    return weight, bias


# --- linear attention ----------------------------------------------------------------------------


class LinearAttention:
    """One layer's linear attention (Qwen3.5's gated delta rule) over the states of all slots.

    A row has a state of one size, and no keys and values.

    Args:
        module: of transformers, with its projections, convolution, gates and norm.
        slots: the most rows at a time.

    Attributes:
        inputs: (slots, channels, kernel - 1), the last inputs of the convolution.
        state: (slots, value heads, key size, value size), float32.
    """

    def __init__(self, module: Any, slots: int):
        self.module, weight = module, module.conv1d.weight
        channels, _, kernel = weight.shape
        self.key_size, self.value_size = module.head_k_dim, module.head_v_dim
        self.heads, self.group = module.num_v_heads, module.num_v_heads // module.num_k_heads
        self.widths = [module.key_dim, module.key_dim, module.value_dim]
        self.inputs = weight.new_zeros(slots, channels, kernel - 1)
        shape = (slots, self.heads, self.key_size, self.value_size)
        self.state = torch.zeros(shape, dtype=torch.float32, device=weight.device)
        # flash-linear-attention's kernel where transformers found it
        plain = sys.modules[type(module).__module__].torch_chunk_gated_delta_rule
        self.read_chunks = getattr(module, "chunk_gated_delta_rule", plain)

    @property
    def states(self) -> tuple[Any, Any]:
        """What a row needs to continue, by slot."""
        return self.inputs, self.state

    def narrow(self, slot: int) -> LinearAttention:
        """The same layer for one slot, over the same memory."""
        one = copy.copy(self)
        one.inputs, one.state = (part[slot : slot + 1] for part in self.states)
        return one

    def read(self, hidden: Any, lengths: Any, first: int, fresh: Any) -> Any:
        """Read several tokens of some rows, padded on the right.

        Args:
            hidden: (rows, length, width), normed.
            lengths: (rows,) tokens without padding.
            first: the first row's slot.
            fresh: (rows,) True where a prompt begins; other rows continue from their slot's state.

        Returns:
            (rows × length, value heads × value size), before the output projection.
        """
        rows, length, _ = hidden.shape
        inputs, state = (part[first : first + rows] for part in self.states)
        inputs.masked_fill_(fresh[:, None, None], 0)
        state.masked_fill_(fresh[:, None, None, None], 0)
        window = torch.cat([inputs, self.module.in_proj_qkv(hidden).transpose(1, 2)], 2)
        ends = lengths[:, None] + torch.arange(inputs.shape[2], device=hidden.device)
        inputs.copy_(window.gather(2, ends[:, None].expand_as(inputs)))
        weight = self.module.conv1d.weight
        mixed = conv1d(window, weight, groups=len(weight)).transpose(1, 2)
        padding = (torch.arange(length, device=hidden.device) >= lengths[:, None])[..., None]
        decay, beta = (gate.masked_fill(padding, 0) for gate in self._gates(hidden))
        output, after = self.read_chunks(
            *self._heads(mixed), g=decay, beta=beta, initial_state=state,
            output_final_state=True, use_qk_l2norm_in_kernel=True,
        )  # fmt: skip
        state.copy_(after)
        return self._gated_norm(output, hidden)

    def step(self, hidden: Any) -> Any:
        """Read one token of each of the first rows, (rows, width); the result as of :meth:`read`.

        Everything is written in place, so that a CUDA graph can hold it.
        """
        rows = len(hidden)
        inputs, state = (part[:rows] for part in self.states)
        window = torch.cat([inputs, self.module.in_proj_qkv(hidden)[..., None]], 2)
        inputs.copy_(window[..., 1:])
        weight = self.module.conv1d.weight[:, 0]
        query, key, value = (part.float() for part in self._heads((window * weight).sum(-1)))
        decay, beta = self._gates(hidden)
        query, key = (_unit_length(part).view(-1, 1, self.key_size) for part in (query, key))
        state.mul_(decay.exp()[..., None, None])
        flat = state.view(-1, self.key_size, self.value_size)
        known = torch.bmm(key, flat)
        new = (value.reshape(known.shape) - known) * beta.float().reshape(-1, 1, 1)
        flat.baddbmm_(key.transpose(1, 2), new)
        output = torch.bmm(query * self.key_size**-0.5, flat)
        output = output.view(rows, self.heads, self.value_size).to(hidden.dtype)
        return self._gated_norm(output, hidden)

    def _heads(self, mixed: Any) -> list[Any]:
        """Queries, keys and values, (..., value heads, size), from the convolution's output."""
        parts = silu(mixed).split(self.widths, -1)
        sizes = self.key_size, self.key_size, self.value_size
        parts = [part.unflatten(-1, (-1, size)) for part, size in zip(parts, sizes, strict=True)]
        return [*(part.repeat_interleave(self.group, -2) for part in parts[:2]), parts[2]]

    def _gates(self, hidden: Any) -> tuple[Any, Any]:
        """Logarithm of the decay in float32, and how much of a token is written: per value head."""
        module = self.module
        width = softplus(module.in_proj_a(hidden).float() + module.dt_bias)
        return -module.A_log.float().exp() * width, module.in_proj_b(hidden).sigmoid()

    def _gated_norm(self, output: Any, hidden: Any) -> Any:
        gate = self.module.in_proj_z(hidden).reshape(-1, self.value_size)
        normed = self.module.norm(output.reshape(-1, self.value_size), gate)
        return normed.view(-1, self.heads * self.value_size)


def _unit_length(vectors: Any) -> Any:
    """As transformers and flash-linear-attention do it: 1e-6 under the root."""
    return vectors * (vectors.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
