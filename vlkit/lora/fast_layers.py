"""A language model's layers with adapters, in fewer steps and with less kept for the backward pass.

PEFT computes an adapter in float32 and keeps a float32 copy of its input for each; transformers
keeps four values of the MLP's width for each token. Here an adapted layer is one step, computed in
the model's own type (its weights stay float32), that keeps its input once; the MLP's product is
computed again when it is needed.
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
    """``inner @ weight.T + bias + scale × inner @ down.T @ up.T``.

    ``inner`` is (…, in); with ``gate`` of its shape it is ``silu(gate) × inner`` instead.
    """

    @staticmethod
    def forward(ctx, inner, gate, weight, bias, down, up, scale):
        ctx.scale, small = scale, None
        product = inner if gate is None else silu(gate).mul_(inner)
        flat = product.reshape(-1, product.shape[-1])
        output = linear(flat, weight, bias)
        if down is not None:
            small = flat @ down.to(flat.dtype).T
            output.addmm_(small, up.to(flat.dtype).T, alpha=scale)
        ctx.save_for_backward(inner, gate, weight, down, up, small)
        return output.view(*inner.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient):
        inner, gate, weight, down, up, small = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        wanted = ctx.needs_input_grad[0] or (gate is not None and ctx.needs_input_grad[1])
        passed = flat @ weight if wanted else None
        of_down = of_up = of_gate = None
        opened = None if gate is None else silu(gate)
        if down is not None:
            narrow = (flat @ up.to(flat.dtype)).mul_(ctx.scale)
            product = inner if opened is None else opened * inner
            of_down = (narrow.T @ product.reshape(-1, product.shape[-1])).to(down.dtype)
            of_up = (flat.T @ small).to(up.dtype).mul_(ctx.scale)
            if passed is not None:
                passed.addmm_(narrow, down.to(flat.dtype))
        if passed is not None:
            passed = passed.view_as(inner)
        if opened is not None and passed is not None:
            of_gate = torch.ops.aten.silu_backward(passed * inner, gate)
            passed = opened.mul_(passed)
        return passed, of_gate, None, None, of_down, of_up, None


@contextmanager
def lean_layers(model: Any) -> Iterator[None]:
    """The language model's layers do the same in fewer steps; as they were afterwards.

    Layers that are not of the usual kind (quantized, spread over devices) stay as they are.

    Args:
        model: the transformers model, its adapters in place.
    """
    changed = {}
    for module in model.model.language_model.modules():
        forward = _lean_forward(module)
        if forward is not None and "forward" not in vars(module):
            changed[module] = forward
    with replaced_forwards(changed):
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
    """Weight, bias, the adapter's two weights (or None) and its scale; None of other layers."""
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
