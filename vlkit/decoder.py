"""The next token of many rows at once: one step over a model's own text layers.

transformers' step repeats keys and values for every query head and launches over a thousand small
kernels. This one reads the cache once for all heads of a group, launches about a third of them,
and on a GPU is captured as a CUDA graph, so that nothing waits for Python.
"""

from __future__ import annotations

from typing import Any

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
        self.slots = slots
        self.cache = [self._allocate(slots, length) for _ in self.layers]

    @property
    def length(self) -> int:
        """The most tokens of a row."""
        return self.cache[0].shape[1]

    def _allocate(self, slots: int, length: int):
        import torch

        shape = (slots, length, 2 * self.kv_heads, self.head_size)
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    def grow(self, length: int) -> None:
        """Make room for longer rows; what is there stays."""
        for index, old in enumerate(self.cache):
            self.cache[index] = self._allocate(self.slots, length)
            self.cache[index][:, : old.shape[1]] = old

    def put(self, first: int, keys_and_values: Any, lengths: list[int]) -> None:
        """Copy a prefilled cache of transformers into the slots from ``first`` on.

        Its rows are padded on the right; what the padding left there is never looked at.
        """
        end, longest = first + len(lengths), max(lengths)
        for mine, layer in zip(self.cache, keys_and_values.layers, strict=True):
            mine[first:end, :longest, : self.kv_heads] = layer.keys.transpose(1, 2)
            mine[first:end, :longest, self.kv_heads :] = layer.values.transpose(1, 2)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one slot's first tokens to another slot."""
        for layer in self.cache:
            layer[target, :length] = layer[source, :length]

    def step(self, tokens, lengths, deltas, span: int):
        """Read one token a row and predict the next.

        Args:
            tokens: (rows,) the last token of each of the first slots.
            lengths: (rows,) tokens that are in the cache already.
            deltas: (rows,) what is added to a text token's index to get its rotary position.
            span: how much of the cache is looked at; more than any of ``lengths``.

        Returns:
            (rows, vocabulary) logits.
        """
        import torch

        rows = torch.arange(len(tokens), device=self.device)
        hidden = self.embed(tokens)
        positions = (lengths + deltas)[None, :, None].expand(3, -1, 1)
        cos, sin = (self._flat(each) for each in self.rotary(hidden, positions))
        half = self.head_size // 2
        turn = cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)
        seen = torch.arange(span, device=self.device) <= lengths[:, None]
        mask = torch.zeros(seen.shape, device=self.device, dtype=self.dtype)
        mask.masked_fill_(~seen, float("-inf"))
        mask = mask[:, None, None].expand(-1, self.kv_heads, self.heads // self.kv_heads, -1)
        for layer, joined, cache in zip(self.layers, self.joined, self.cache, strict=True):
            normed = _rms_norm(layer.input_layernorm, hidden)
            states = self._project(layer.self_attn, joined, normed)
            states = self._rotate(states, *turn)
            cache[rows, lengths] = states[:, self.heads :]
            attended = self._attend(states[:, : self.heads], cache[: len(tokens), :span], mask)
            hidden = hidden + layer.self_attn.o_proj(attended)
            hidden = hidden + layer.mlp(_rms_norm(layer.post_attention_layernorm, hidden))
        return self.lm_head(_rms_norm(self.norm, hidden))

    def _flat(self, angles):
        """(rows, 1, head size): text positions are the same along all three axes."""
        return (angles[0] if angles.ndim == 4 else angles).to(self.dtype)

    def _project(self, attention, joined, hidden):
        """Queries, keys and values, (rows, heads + 2 × key-value heads, head size)."""
        import torch

        if joined is not None:
            states = torch.nn.functional.linear(hidden, *joined)
        else:
            parts = attention.q_proj, attention.k_proj, attention.v_proj
            states = torch.cat([project(hidden) for project in parts], -1)
        states = states.view(len(hidden), -1, self.head_size)
        if hasattr(attention, "q_norm"):
            query, key, value = states.split([self.heads, self.kv_heads, self.kv_heads], 1)
            query, key = _rms_norm(attention.q_norm, query), _rms_norm(attention.k_norm, key)
            states = torch.cat([query, key, value], 1)
        return states

    def _rotate(self, states, cos, sin):
        """Rotate queries and keys in place."""
        turned = states[:, : self.heads + self.kv_heads]
        swapped = turned.roll(self.head_size // 2, -1)
        turned.mul_(cos).addcmul_(swapped, sin)
        return states

    def _attend(self, query, cache, mask):
        """The heads of a group are looked up as if they were tokens: nothing is repeated."""
        import torch

        keys, values = cache.transpose(1, 2).split(self.kv_heads, 1)
        query = query.view(len(query), self.kv_heads, -1, self.head_size)
        output = torch.nn.functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask
        )
        return output.reshape(len(query), -1)


def can_decode(model: Any) -> str:
    """Why this model's step cannot be taken here, or an empty string."""
    text = getattr(getattr(model, "model", None), "language_model", None)
    kind = model.config.model_type
    if kind not in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl") or text is None:
        return f"{kind} has layers that it does not know"
    if set(getattr(text.config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return "the model has layers with a sliding window"
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        return f"the model is spread over {len(devices)} devices"
    return ""


def _join(attention: Any):
    """One weight and bias for queries, keys and values; None where they are more than linear."""
    import torch

    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    if any(type(part) is not torch.nn.Linear for part in parts):
        return None
    weight = torch.cat([part.weight.detach() for part in parts])
    bias = None if parts[0].bias is None else torch.cat([part.bias.detach() for part in parts])
    return weight, bias


def _rms_norm(norm: Any, hidden):
    import torch

    return torch.nn.functional.rms_norm(
        hidden, norm.weight.shape, norm.weight, norm.variance_epsilon
    )
