"""A language model's layers with adapters, in fewer steps and with less memory.

PEFT computes an adapter in float32 and keeps a float32 copy of its input for the backward pass;
transformers keeps four values of the MLP's width for each token. Here an adapted layer is one step
in the model's dtype (adapter weights stay float32) that keeps its input once; the MLP's product is
recomputed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear, rms_norm, silu

from vlkit.engine.vision import replaced_forwards

_NORMS = ("Qwen2VLRMSNorm", "Qwen2_5_VLRMSNorm", "Qwen2RMSNorm", "Qwen3VLTextRMSNorm")


class _Adapted(torch.autograd.Function):
    """A linear layer with its adapter, after an optional gate, as one step.

    With x the input, g the gate, W and b the layer, A (``down``) and B (``up``) the adapter and s
    its scale::

        h = x, or silu(g) ⊙ x where there is a gate
        y = h Wᵀ + b + s (h Aᵀ) Bᵀ

    With dy the gradient of y, and n = s dy B::

        dA = nᵀ h              dB = s dyᵀ (h Aᵀ)
        dh = dy W + n A        dx = dh, or silu(g) ⊙ dh        dg = silu'(g) ⊙ dh ⊙ x

    x and g are (…, in); h Aᵀ, of the adapter's rank, is kept for the backward pass, h is not.
    """

    @staticmethod
    def forward(ctx, inner, gate, weight, bias, down, up, scale):
        ctx.scale, low = scale, None
        hidden = inner if gate is None else silu(gate).mul_(inner)
        flat = hidden.reshape(-1, hidden.shape[-1])
        output = linear(flat, weight, bias)
        if down is not None:
            low = flat @ down.to(flat.dtype).T
            output.addmm_(low, up.to(flat.dtype).T, alpha=scale)
        ctx.save_for_backward(inner, gate, weight, down, up, low)
        return output.view(*inner.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient):
        inner, gate, weight, down, up, low = ctx.saved_tensors
        d_output = gradient.reshape(-1, gradient.shape[-1])
        opened = None if gate is None else silu(gate)
        needs_input = ctx.needs_input_grad[0] or (gate is not None and ctx.needs_input_grad[1])
        d_hidden = d_output @ weight if needs_input else None
        d_down = d_up = None
        if down is not None:
            hidden = inner if opened is None else opened * inner
            d_low = (d_output @ up.to(d_output.dtype)).mul_(ctx.scale)
            d_down = (d_low.T @ hidden.reshape(-1, hidden.shape[-1])).to(down.dtype)
            d_up = (d_output.T @ low).to(up.dtype).mul_(ctx.scale)
            if d_hidden is not None:
                d_hidden.addmm_(d_low, down.to(d_output.dtype))
        if d_hidden is None:
            return None, None, None, None, d_down, d_up, None
        d_hidden = d_hidden.view_as(inner)
        if opened is None:
            return d_hidden, None, None, None, d_down, d_up, None
        d_gate = torch.ops.aten.silu_backward(d_hidden * inner, gate)
        return opened.mul_(d_hidden), d_gate, None, None, d_down, d_up, None


@contextmanager
def lean_layers(model: Any) -> Iterator[None]:
    """The language model's layers compute the same in fewer steps; restored on exit.

    Layers of other kinds (quantized, spread over devices) are not changed.

    Args:
        model: the transformers model, its adapters in place.
    """
    forwards = {}
    for module in model.model.language_model.modules():
        forward = _lean_forward(module)
        if forward is not None and "forward" not in vars(module):
            forwards[module] = forward
    with replaced_forwards(forwards):
        yield


def _lean_forward(module: Any) -> Any:
    if type(module).__name__ in _NORMS:
        return partial(_norm, module)
    if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        known = _parts(module.down_proj) is not None
        return partial(_mlp, module) if known and _is_silu(module.act_fn) else None
    return partial(_layer, module) if hasattr(module, "base_layer") and _parts(module) else None


def _norm(norm: Any, hidden: Any) -> Any:
    return rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _layer(layer: Any, inner: Any, *_, **__) -> Any:
    if layer.disable_adapters:
        return layer.base_layer(inner)
    return _Adapted.apply(inner, None, *(_parts(layer) or ()))


def _mlp(mlp: Any, hidden: Any) -> Any:
    gate, up = mlp.gate_proj(hidden), mlp.up_proj(hidden)
    if getattr(mlp.down_proj, "disable_adapters", False):
        return mlp.down_proj(mlp.act_fn(gate) * up)
    return _Adapted.apply(up, gate, *(_parts(mlp.down_proj) or ()))


def _parts(layer: Any) -> tuple | None:
    """Weight, bias, the adapter's two weights (or None) and its scale; None for other layers."""
    from peft.tuners.lora.layer import Linear

    if type(layer) is torch.nn.Linear:
        frozen = not layer.weight.requires_grad
        return (layer.weight, layer.bias, None, None, 1.0) if frozen else None
    if type(layer) is not Linear or type(layer.base_layer) is not torch.nn.Linear:
        return None
    base, name = layer.base_layer, layer.active_adapters[0]
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return base.weight, base.bias, down, up, layer.scaling[name]


def _is_silu(activation: Any) -> bool:
    return type(activation).__name__ in ("SiLU", "SiLUActivation")
