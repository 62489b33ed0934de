"""Qwen3.5's linear attention, the gated delta rule: a state for each row, no keys and values."""

from __future__ import annotations

import copy
import sys
from typing import Any


class LinearAttention:
    """One layer's linear attention over the states of all slots.

    Args:
        module: of transformers, with its projections, convolution, gates and norm.
        slots: the most rows at a time.

    Attributes:
        inputs: (slots, channels, kernel - 1), the last inputs of the convolution.
        state: (slots, value heads, key size, value size), float32.
    """

    def __init__(self, module: Any, slots: int):
        import torch

        self.module, weight = module, module.conv1d.weight
        channels, _, kernel = weight.shape
        self.key_size, self.value_size = module.head_k_dim, module.head_v_dim
        self.heads, self.group = module.num_v_heads, module.num_v_heads // module.num_k_heads
        self.widths = [module.key_dim, module.key_dim, module.value_dim]
        self.inputs = weight.new_zeros(slots, channels, kernel - 1)
        shape = (slots, self.heads, self.key_size, self.value_size)
        self.state = torch.zeros(shape, device=weight.device)
        # flash-linear-attention's kernel where transformers found it
        plain = sys.modules[type(module).__module__].torch_chunk_gated_delta_rule
        self.read_chunks = getattr(module, "chunk_gated_delta_rule", plain)

    @property
    def states(self) -> tuple[Any, Any]:
        """What a row needs to go on, by slot."""
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
            fresh: (rows,) True where a prompt begins; other rows go on from their slot's state.

        Returns:
            (rows × length, value heads × value size), before the output projection.
        """
        import torch

        rows, length, _ = hidden.shape
        inputs, state = (part[first : first + rows] for part in self.states)
        inputs.masked_fill_(fresh[:, None, None], 0)
        state.masked_fill_(fresh[:, None, None, None], 0)
        window = torch.cat([inputs, self.module.in_proj_qkv(hidden).transpose(1, 2)], 2)
        ends = lengths[:, None] + torch.arange(inputs.shape[2], device=hidden.device)
        inputs.copy_(window.gather(2, ends[:, None].expand_as(inputs)))
        weight = self.module.conv1d.weight
        mixed = torch.nn.functional.conv1d(window, weight, groups=len(weight)).transpose(1, 2)
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
        import torch

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
        import torch

        parts = torch.nn.functional.silu(mixed).split(self.widths, -1)
        sizes = self.key_size, self.key_size, self.value_size
        parts = [part.unflatten(-1, (-1, size)) for part, size in zip(parts, sizes, strict=True)]
        return [*(part.repeat_interleave(self.group, -2) for part in parts[:2]), parts[2]]

    def _gates(self, hidden: Any) -> tuple[Any, Any]:
        """Logarithm of the decay in float32, and how much of a token is written: per value head."""
        import torch

        module = self.module
        width = torch.nn.functional.softplus(module.in_proj_a(hidden).float() + module.dt_bias)
        return -module.A_log.float().exp() * width, module.in_proj_b(hidden).sigmoid()

    def _gated_norm(self, output: Any, hidden: Any) -> Any:
        gate = self.module.in_proj_z(hidden).reshape(-1, self.value_size)
        normed = self.module.norm(output.reshape(-1, self.value_size), gate)
        return normed.view(-1, self.heads * self.value_size)


def _unit_length(vectors: Any) -> Any:
    """As transformers and flash-linear-attention do it: 1e-6 under the root."""
    return vectors * (vectors.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
