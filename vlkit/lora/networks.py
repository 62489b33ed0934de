"""Which layers are trained (``target=``), by LoRA or whole; lean forward."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy, linear, rms_norm

from vlkit.engine.kernels import silu_multiply, silu_multiply_backward
from vlkit.engine.vision import replaced_forwards
from vlkit.errors import ModelError, VlkitError, check_whole
from vlkit.inputs import check_loaded
from vlkit.models.load import VLM, load_here

_LOGITS = 2**25  # at once, while the loss is computed
_LARGE = 2**20  # bytes of a tensor that is worth to be moved
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
        hidden = inner if gate is None else silu_multiply(gate, inner)
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
        needs_input = ctx.needs_input_grad[0] or (gate is not None and ctx.needs_input_grad[1])
        d_hidden = d_output @ weight if needs_input else None
        hidden = inner if gate is None else silu_multiply(gate, inner)
        d_down = d_up = d_gate = None
        if down is not None:
            d_low = (d_output @ up.to(d_output.dtype)).mul_(ctx.scale)
            d_down = (d_low.T @ hidden.reshape(-1, hidden.shape[-1])).to(down.dtype)
            d_up = (d_output.T @ low).to(up.dtype).mul_(ctx.scale)
            if d_hidden is not None:
                d_hidden.addmm_(d_low, down.to(d_output.dtype))
        if d_hidden is not None:
            d_hidden = d_hidden.view_as(inner)
            if gate is not None:
                d_gate = silu_multiply_backward(d_hidden, gate, inner, hidden)
        return d_hidden, d_gate, None, None, d_down, d_up, None


class _Loss(torch.autograd.Function):
    """The summed cross-entropy of labelled tokens, without their logits all at once.

    Args:
        hidden: (tokens, width), what the output layer takes.
        weight: (vocabulary, width), not trained.
        labels: (tokens,).
    """

    @staticmethod
    def forward(ctx, hidden, weight, labels):
        total = torch.zeros((), device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = max(1, _LOGITS // len(weight))
        for start in range(0, len(hidden), size):
            some = slice(start, start + size)
            logits = linear(hidden[some], weight).float()
            total += cross_entropy(logits, labels[some], reduction="sum")
            if gradient is not None:
                torch.softmax(logits, -1, out=logits)
                logits.scatter_add_(1, labels[some, None], logits.new_full((len(logits), 1), -1.0))
                torch.mm(logits.to(weight.dtype), weight, out=gradient[some])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, scale):
        (gradient,) = ctx.saved_tensors
        return gradient * scale.to(gradient.dtype), None, None


@contextmanager
def lean_loss(model: Any) -> Iterator[None]:
    """The model's loss without logits of the whole vocabulary for all tokens; restored on exit.

    Where the output layer is trained, quantized or spread over devices, nothing changes.

    Args:
        model: the transformers model, without an adapter's wrapper.
    """
    head = model.lm_head
    parts = _parts(head) if "forward" not in vars(head) else None
    if not parts or parts[1] is not None:
        yield
        return
    before = vars(model).get("_loss_function")
    model.loss_function = partial(_token_loss, head.weight)
    try:
        with temporary_forwards({head: lambda hidden: hidden}):
            yield
    finally:
        if before is None:
            del model._loss_function
        else:
            model.loss_function = before


def _token_loss(weight, logits, labels, *, shift_labels, num_items_in_batch=None, **_):
    """As transformers' loss functions are called; ``logits`` are what the output layer takes."""
    chosen = shift_labels != -100
    count = chosen.sum() if num_items_in_batch is None else num_items_in_batch
    return _Loss.apply(logits[chosen], weight, shift_labels[chosen]) / count


@contextmanager
def checkpoints_in_main_memory(model: Any) -> Iterator[None]:
    """What a forward pass on a GPU keeps for its backward pass waits in main memory.

    With gradient checkpointing, that is each layer's input.

    Args:
        model: whose weights stay where they are.
    """
    streams: dict[Any, Any] = {}
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(tensor: Any) -> Any:
        if not tensor.is_cuda or tensor.nbytes < _LARGE or tensor.data_ptr() in weights:
            return tensor
        stream = streams.setdefault(tensor.device, torch.cuda.Stream(tensor.device))
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copy.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)
        return copy, tensor.device, stream

    def unpack(packed: Any) -> Any:
        if not isinstance(packed, tuple):
            return packed
        copy, device, stream = packed
        torch.cuda.current_stream(device).wait_stream(stream)
        return copy.to(device, non_blocking=True)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


@contextmanager
def lean_layers(model: Any) -> Iterator[None]:
    """The language model's layers compute the same in fewer steps; restored on exit.

    Layers of other kinds (quantized, spread over devices) are not changed.

    Args:
        model: the transformers model, its adapters in place.
    """
    forwards = {
        module: forward
        for module in model.model.language_model.modules()
        if "forward" not in vars(module) and (forward := _lean_forward(module))
    }
    with replaced_forwards(forwards):
        yield


@contextmanager
def temporary_forwards(forwards: Mapping[Any, Callable]) -> Iterator[None]:
    """Modules compute in another way; a forward of their own (accelerate's) returns on exit."""
    before = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:
                module.forward = forward


def _lean_forward(module: Any) -> Any:
    if type(module).__name__ in _NORMS:
        return partial(_norm, module)
    if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        is_silu = type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")
        return partial(_mlp, module) if is_silu and _parts(module.down_proj) else None
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
    adapter = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    return base.weight, base.bias, *adapter


PARTS = ("language model", "vision tower", "merger")


TARGETS = {"language": PARTS[:1], "vision": PARTS[1:], "all": PARTS}


@dataclass(frozen=True)
class Part:
    """What is trained in one part of the model.

    Attributes:
        name: of ``PARTS``.
        modules: names of the layers that get an adapter (or are trained themselves).
        trained: number of parameters that are trained in it.
        parameters: number of its parameters, without adapters.
    """

    name: str
    modules: tuple[str, ...]
    trained: int
    parameters: int


def plan_parts(vlm: VLM, target: str, rank: int | None) -> tuple[Part, ...]:
    """What is trained in each part of a model.

    Args:
        vlm: a model without an adapter.
        target: ``language``, ``vision`` (tower and merger), ``all``, or a regular expression that
            matches whole names of layers, as PEFT's ``target_modules``.
        rank: of the adapters; None trains the layers themselves.

    Raises:
        VlkitError: a target that matches no linear layer, or a rank below 1.
    """
    check_loaded(vlm)
    if hasattr(vlm.model, "peft_config"):
        raise VlkitError(f"{vlm.name} already has an adapter; load it without adapter=")
    check_whole("rank", rank, 1, optional=True)
    chosen = find_modules(vlm.model, target)
    parameters = list(vlm.model.named_parameters())
    parts = []
    for part in PARTS:
        layers = {name: layer for name, layer in chosen.items() if part_of(name) == part}
        trained = sum(_trained(layer, rank) for layer in layers.values())
        size = sum(_size(parameter) for name, parameter in parameters if part_of(name) == part)
        parts.append(Part(part, tuple(layers), trained, size))
    return tuple(parts)


def find_modules(model: Any, target: str) -> dict[str, Any]:
    """The linear layers that a target names, in the model's order; never the output layer.

    Raises:
        VlkitError: it matches no layer, or is a malformed regular expression.
    """
    layers = linear_layers(model)
    if isinstance(target, str) and target in TARGETS:
        return {n: layer for n, layer in layers.items() if part_of(n) in TARGETS[target]}
    try:
        pattern = re.compile(target)
    except (re.error, TypeError) as error:
        why = f"is neither one of {list(TARGETS)} nor a regular expression ({error})"
        raise VlkitError(f"target={target!r} {why}") from None
    chosen = {name: layer for name, layer in layers.items() if pattern.fullmatch(name)}
    if not chosen:
        remedy = f"choose one of {list(TARGETS)}, or match whole names such as {min(layers)!r}"
        raise VlkitError(f"target={target!r} matches no linear layer; {remedy}")
    return chosen


def linear_layers(model: Any) -> dict[str, Any]:
    """The linear layers by name, in the model's order, without the output layer."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.rpartition(".")[2] != "lm_head"
    }


def part_of(name: str) -> str:
    """The one of ``PARTS`` to which a layer or parameter of this name belongs."""
    if ".visual." not in f".{name}":
        return PARTS[0]
    return PARTS[2] if "merger" in name or "attn_pool" in name else PARTS[1]


def _trained(layer: Any, rank: int | None) -> int:
    if rank is None:
        return sum(_size(parameter) for parameter in layer.parameters())
    return rank * (layer.in_features + layer.out_features)


def _size(parameter: Any) -> int:
    """The number of a parameter's values; a 4-bit one packs two in a byte and knows its shape."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()


def quantized(vlm: VLM, quantize: Literal["4bit", "8bit"] | None, rank: int | None) -> VLM:
    """The same model with its weights in 4 or 8 bits, loaded again if they are not so yet.

    Raises:
        VlkitError: quantized layers cannot be trained themselves (``rank=None``).
        ModelError: bitsandbytes is missing.
    """
    check_quantized(vlm, quantize, rank)
    packed = getattr(vlm.model, "is_quantized", False)
    if hasattr(vlm.model, "packed_bits"):
        remedy = 'load the model without quantize=, and pass quantize="8bit" to train'
        raise VlkitError(f'layers packed by quantize="8bit" cannot be trained; {remedy}')
    if packed and getattr(vlm.model, "is_loaded_in_4bit", False):
        quantize = "4bit"
    on_cpu = quantize == "4bit" and vlm.model.device.type == "cpu"
    if quantize is None or (packed and not on_cpu):
        return vlm
    device, dtype = vlm.model.device, str(vlm.model.dtype).removeprefix("torch.")
    loaded = load_here(
        vlm.folder.path, quantize=quantize, device=str(device) if device.index else "auto",
        dtype=dtype, max_image_tokens=vlm.max_image_tokens, trained=True,
    )  # fmt: skip
    if on_cpu:
        for module in loaded.model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                # bitsandbytes would rearrange the weights for inference, and nothing be trained
                module.support_avx512bf16_for_cpu = False
    return replace(loaded, folder=vlm.folder)


def check_quantized(vlm: VLM, quantize: str | None, rank: int | None) -> None:
    """Raises VlkitError where quantized layers would be trained themselves."""
    if rank is None and (quantize or getattr(vlm.model, "is_quantized", False)):
        remedy = "pass a rank, or load and train it without quantize="
        raise VlkitError(f"rank=None trains the model's own weights, unquantized; {remedy}")


@contextmanager
def trainable(
    vlm: VLM, names: Sequence[str], rank: int | None, alpha: float | None
) -> Iterator[tuple[Any, Callable[..., float]]]:
    """The network to train, and a function that measures its largest change; undone on exit.

    The function returns the largest weight in the adapters' B, or the largest change of a layer's
    weights; of the weights that are passed, by their names, or else of the network's.

    Args:
        vlm: a model without an adapter.
        names: of its linear layers.
        rank: of the adapters; None trains the layers themselves.
        alpha: the adapters' scale times ``rank``; twice the rank by default.

    Raises:
        ModelError: peft is needed and missing.
    """
    needed = {name: p.requires_grad for name, p in vlm.model.named_parameters()}
    layers = _unfrozen(vlm, names) if rank is None else _adapted(vlm, names, rank, alpha)
    try:
        with layers as network_and_measure:
            yield network_and_measure
    finally:
        for module in vlm.model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.gradient_checkpointing = False
        vlm.model.eval()
        for name, parameter in vlm.model.named_parameters():
            parameter.requires_grad_(needed[name])
            parameter.grad = None


@contextmanager
def _adapted(vlm: VLM, names: Sequence[str], rank: int, alpha: float | None) -> Iterator[tuple]:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModelError('training needs peft: pip install "vlkit[lora]"') from error
    scale = 2 * rank if alpha is None else alpha
    config = LoraConfig(r=rank, lora_alpha=scale, target_modules=list(names))
    with warnings.catch_warnings():  # peft uses deprecated names
        warnings.simplefilter("ignore", FutureWarning)
        network = get_peft_model(vlm.model, config)
    config.base_model_name_or_path = vlm.name  # not a path of this machine
    # otherwise peft asks the hub at every checkpoint whether the embeddings were resized
    network.save_pretrained = partial(network.save_pretrained, save_embedding_layers=False)
    try:
        yield network, partial(_largest, network)
    finally:
        network.unload()


@contextmanager
def _unfrozen(vlm: VLM, names: Sequence[str]) -> Iterator[tuple]:
    vlm.model.requires_grad_(False)
    chosen = {
        f"{name}.{parameter_name}": parameter.requires_grad_(True)
        for name in names
        for parameter_name, parameter in vlm.model.get_submodule(name).named_parameters()
    }
    before = {name: weight.detach().to("cpu", copy=True) for name, weight in chosen.items()}
    try:
        yield vlm.model, partial(_change, before, chosen)
    finally:
        with torch.no_grad():
            for name, parameter in chosen.items():
                if parameter.shape == before[name].shape:  # not where it is sharded
                    parameter.copy_(before[name])


def _largest(network: Any, weights: Mapping[str, Any] | None = None) -> float:
    now = weights or dict(network.named_parameters())
    return max(weight.abs().max().item() for name, weight in now.items() if "lora_B" in name)


def _change(before: Mapping, chosen: Mapping, weights: Mapping | None = None) -> float:
    now = weights or chosen
    return max((now[n].detach().cpu() - old).abs().max().item() for n, old in before.items())
