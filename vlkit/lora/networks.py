"""Which layers are trained (``target=``), by LoRA or whole; layers and loss in fewer steps."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear, rms_norm

from vlkit.engine.kernels import rotate, silu_multiply, silu_multiply_backward
from vlkit.engine.vision import replaced_forwards
from vlkit.errors import ModelError, VlkitError, check_whole, needs_package
from vlkit.inputs import check_loaded
from vlkit.models.load import VLM, load_here

LOGITS = 2**25  # at once, while the loss is computed
_NORMS = ("Qwen2VLRMSNorm", "Qwen2_5_VLRMSNorm", "Qwen2RMSNorm", "Qwen3VLTextRMSNorm")
LEAN = {  # families with layers that LeanLayer knows: the class of their attention
    "qwen2_vl": "Qwen2VLAttention",
    "qwen2_5_vl": "Qwen2_5_VLAttention",
    "qwen3_vl": "Qwen3VLTextAttention",
}
_LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")
PROJECTIONS = tuple(f"self_attn.{name}_proj" for name in "qkvo") + tuple(
    f"mlp.{name}_proj" for name in ("gate", "up", "down")
)


@dataclass(frozen=True, eq=False)
class Projection:
    """A frozen linear layer and its adapter, as tensors.

    With x the input, W and b the layer, A (``down``) and B (``up``) the adapter and s its scale::

        y = x Wᵀ + b + s (x Aᵀ) Bᵀ

    Attributes:
        weight, bias: of the layer; the bias may be None.
        down, up: (rank, in) and (out, rank), trained; None without an adapter.
        scale: of the adapter.
    """

    weight: Any
    bias: Any
    down: Any = None
    up: Any = None
    scale: float = 1.0

    def forward(self, inner: Any) -> tuple[Any, Any]:
        """The output of (tokens, in), and x Aᵀ for the backward pass."""
        output = linear(inner, self.weight, self.bias)
        if self.down is None:
            return output, None
        low = linear(inner, self.down.to(inner.dtype))
        return output.addmm_(low, self.up.to(inner.dtype).T, alpha=self.scale), low

    def backward(self, d_output: Any, inner: Any, low: Any, d_inner: Any = None) -> tuple[Any, Any]:
        """The gradients: of x, added to ``d_inner`` in place where it is given; of A and B.

        With dy the gradient of y, and n = s dy B::

            dx = dy W + n A        dA = nᵀ x        dB = s dyᵀ (x Aᵀ)
        """
        if d_inner is None:
            d_inner = d_output @ self.weight
        else:
            d_inner.addmm_(d_output, self.weight)
        if self.down is None:
            return d_inner, ()
        d_low = (d_output @ self.up.to(d_output.dtype)).mul_(self.scale)
        d_up = (d_output.T @ low).to(self.up.dtype).mul_(self.scale)
        d_down = (d_low.T @ inner).to(self.down.dtype)
        return d_inner.addmm_(d_low, self.down.to(d_low.dtype)), (d_down, d_up)


def _projection(layer: Any) -> Projection | None:
    """None for layers that are trained themselves, quantized, or hooked by accelerate."""
    from peft.tuners.lora.layer import Linear

    if "forward" in vars(layer):
        return None
    if type(layer) is torch.nn.Linear:
        return None if layer.weight.requires_grad else Projection(layer.weight, layer.bias)
    if type(layer) is not Linear or type(layer.base_layer) is not torch.nn.Linear:
        return None
    base, name = layer.base_layer, layer.active_adapters[0]
    adapter = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    return Projection(base.weight, base.bias, *adapter)


class LeanLayer:
    """A layer of the language model, with attention and a gated MLP, in few steps.

    It computes what transformers' layer does, from tensors instead of some thirty modules, and its
    gradients are written by hand but for norms and attention: for each of these autograd keeps a
    graph of its own. With gradient checkpointing the layer's input alone is kept, on a GPU in main
    memory, and comes back while the layer after it is computed.

    Args:
        layer: transformers' decoder layer, its adapters in place.
        projections: of its linear layers, in the order of ``PROJECTIONS``.
        before: the layer before it.
    """

    def __init__(self, layer: Any, projections: Sequence[Projection], before: LeanLayer | None):
        self.layer, self.attention, self.before = layer, layer.self_attn, before
        self.query, self.key, self.value, self.output, self.gate, self.up, self.down = projections
        self.adapters = [w for p in projections if p.down is not None for w in (p.down, p.up)]
        self.parked: Parked | None = None

    def __call__(self, hidden: Any, *others: Any, **options: Any) -> Any:
        """As the layer's own forward, which is taken where no gradient is wanted."""
        trains = torch.is_grad_enabled() and options.get("past_key_values") is None and not others
        if not trains or getattr(self.layer.mlp.down_proj, "disable_adapters", False):
            return type(self.layer).forward(self.layer, hidden, *others, **options)
        options = {n: o for n, o in options.items() if n not in ("past_key_values", "use_cache")}
        return _Layer.apply(self, hidden, options, *self.adapters)

    def forward(self, hidden: Any, options: Mapping[str, Any], *, whole: bool = True) -> Kept:
        """What the backward pass needs; the layer's output (if ``whole``) is the last of it."""
        attention, kept = self.attention, Kept()
        shape, size = hidden.shape, attention.head_dim
        kept.normed, normed = _graph(_norm(self.layer.input_layernorm), hidden.flatten(0, 1))
        query, kept.query_low = self.query.forward(normed)
        key, kept.key_low = self.key.forward(normed)
        value, kept.value_low = self.value.forward(normed)
        heads = [states.view(len(states), -1, size) for states in (query, key, value)]
        if hasattr(attention, "q_norm"):
            norms = _norm(attention.q_norm), _norm(attention.k_norm)
            kept.heads = [_graph(norm, states) for norm, states in zip(norms, heads, strict=False)]
            heads[:2] = [states for _, states in kept.heads]
            kept.heads = [graph for graph, _ in kept.heads]
        for states in heads[:2]:
            rotate(states, states.shape[1], *_angles(options))
        heads = [states.view(*shape[:2], -1, size).transpose(1, 2) for states in heads]
        kept.attended, attended = _graph(partial(self._attend, options), *heads)
        output, kept.output_low = self.output.forward(attended.flatten(0, 1).flatten(1))
        output += hidden.flatten(0, 1)
        kept.mlp, normed = _graph(_norm(self.layer.post_attention_layernorm), output)
        kept.gate, kept.gate_low = self.gate.forward(normed)
        kept.up, kept.up_low = self.up.forward(normed)
        if whole:
            result, kept.down_low = self.down.forward(silu_multiply(kept.gate, kept.up))
            kept.result = (result + output).view(shape)
        elif self.down.down is not None:
            low = self.down.down.to(normed.dtype)
            kept.down_low = linear(silu_multiply(kept.gate, kept.up), low)
        return kept

    def _attend(self, options: Mapping[str, Any], query: Any, key: Any, value: Any) -> Any:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        attention = self.attention
        attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
        others = {n: o for n, o in options.items() if n != "position_embeddings"}
        mask = others.pop("attention_mask", None)
        return attend(attention, query, key, value, mask, scaling=attention.scaling, **others)[0]

    def backward(self, gradient: Any, kept: Kept, options: Mapping[str, Any]) -> list[Any]:
        """The gradients of the layer's input and of its adapters' weights, from its output's."""
        shape, found = gradient.shape, []
        d_result = gradient.flatten(0, 1)
        hidden = silu_multiply(kept.gate, kept.up)
        d_hidden, d_down = self.down.backward(d_result, hidden, kept.down_low)
        d_gate = silu_multiply_backward(d_hidden, kept.gate, kept.up, hidden)
        normed = kept.mlp.output
        d_normed, d_up = self.up.backward(d_hidden, normed, kept.up_low)
        d_normed, d_gate = self.gate.backward(d_gate, normed, kept.gate_low, d_normed)
        kept.gate = kept.up = hidden = d_hidden = None
        d_output = d_result + kept.mlp.backward(d_normed)[0]
        attended = kept.attended.output.flatten(0, 1).flatten(1)
        d_attended, d_out = self.output.backward(d_output, attended, kept.output_low)
        d_heads = kept.attended.backward(d_attended.view(kept.attended.output.shape))
        d_heads = [d.transpose(1, 2).flatten(0, 1).contiguous() for d in d_heads]
        cos, sin = _angles(options)
        for states in d_heads[:2]:
            rotate(states, states.shape[1], cos, -sin)
        if kept.heads:
            d_heads[:2] = [g.backward(d)[0] for g, d in zip(kept.heads, d_heads, strict=False)]
        normed, d_normed = kept.normed.output, None
        lows = kept.query_low, kept.key_low, kept.value_low
        inputs = self.query, self.key, self.value
        for projection, d_head, low in zip(inputs, d_heads, lows, strict=True):
            d_normed, trained = projection.backward(d_head.flatten(1), normed, low, d_normed)
            found += trained
        d_inner = d_output.add_(kept.normed.backward(d_normed)[0])
        return [d_inner.view(shape), *found, *d_out, *d_gate, *d_up, *d_down]


class Kept(SimpleNamespace):
    """What a layer's forward pass leaves for its backward pass."""

    heads: Any = None
    down_low: Any = None
    result: Any = None


@dataclass(frozen=True, eq=False)
class Graph:
    """A step whose gradient autograd computes.

    Attributes:
        inputs: leaves.
        output: what was computed from them.
    """

    inputs: Sequence[Any]
    output: Any

    def backward(self, gradient: Any) -> Sequence[Any]:
        """The inputs' gradients."""
        return torch.autograd.grad(self.output, self.inputs, gradient)


def _graph(step: Callable[..., Any], *inputs: Any) -> tuple[Graph, Any]:
    """A step's graph, and its output apart from it."""
    with torch.enable_grad():
        leaves = [states.detach().requires_grad_() for states in inputs]
        output = step(*leaves)
    return Graph(leaves, output), output.detach()


def _norm(norm: Any) -> Callable[[Any], Any]:
    return lambda states: rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _angles(options: Mapping[str, Any]) -> list[Any]:
    """Cosines and sines, (tokens, head size)."""
    return [angle.flatten(0, 1) for angle in options["position_embeddings"]]


class Parked:
    """A tensor that waits for its use, on a GPU in main memory; copied beside other work."""

    def __init__(self, tensor: Any):
        self.copy, self.stream, self.back = tensor, None, None  # type: Any, Any, Any
        if tensor.is_cuda:
            self.stream = _side_stream(tensor.device)
            self.copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.copy.copy_(tensor, non_blocking=True)
            tensor.record_stream(self.stream)

    def begin(self) -> None:
        """Start to bring it back."""
        if self.stream is None or self.back is not None:
            return
        with torch.cuda.stream(self.stream):
            self.back = self.copy.to(self.stream.device, non_blocking=True)

    def fetch(self) -> Any:
        """The tensor where it was."""
        if self.stream is None:
            return self.copy
        self.begin()
        here = torch.cuda.current_stream()
        here.wait_stream(self.stream)
        self.back.record_stream(here)
        tensor, self.back = self.back, None
        return tensor


@cache
def _side_stream(device: Any) -> Any:
    return torch.cuda.Stream(device)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, lean, hidden, options, *adapters):
        kept = lean.forward(hidden, options)
        result, kept.result = kept.result, None
        ctx.lean, ctx.options, ctx.kept = lean, options, kept
        if lean.layer.gradient_checkpointing and lean.layer.training:
            ctx.kept = lean.parked = Parked(hidden.detach())
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        lean, kept, ctx.kept = ctx.lean, ctx.kept, None
        if isinstance(kept, Parked):
            hidden = kept.fetch()
            if lean.before is not None and lean.before.parked is not None:
                lean.before.parked.begin()
            lean.parked = None
            kept = lean.forward(hidden, ctx.options, whole=False)
        d_hidden, *found = lean.backward(gradient, kept, ctx.options)
        return None, d_hidden, None, *found


@contextmanager
def lean_layers(model: Any) -> Iterator[None]:
    """The language model's layers compute the same in fewer steps; restored on exit.

    Of layers of other kinds (mixtures of experts, linear attention, quantized, trained themselves,
    spread over devices) only the norms are changed.

    Args:
        model: the transformers model, its adapters in place.
    """
    language, before = model.model.language_model, None
    forwards: dict[Any, Any] = {
        norm: _norm(norm) for norm in language.modules() if type(norm).__name__ in _NORMS
    }
    for layer in language.layers:
        projections = _projections(layer)
        before = LeanLayer(layer, projections, before) if projections else None
        if before is not None:
            forwards[layer] = before
    with replaced_forwards(forwards):
        yield


def _projections(layer: Any) -> list[Projection] | None:
    """Those of a layer that :class:`LeanLayer` knows, or None."""
    norms = [getattr(layer, name, None) for name in _LAYER_NORMS]
    attention: Any = getattr(layer, "self_attn", None)
    act = type(getattr(layer.mlp, "act_fn", None)).__name__
    known = type(attention).__name__ in LEAN.values() and act in ("SiLU", "SiLUActivation")
    known = known and all(type(norm).__name__ in _NORMS for norm in norms)
    if not known or attention.attention_dropout or "forward" in vars(layer):
        return None
    if attention.config._attn_implementation == "eager":
        return None
    layers = [layer.get_submodule(name) for name in PROJECTIONS]
    found = [projection for each in layers if (projection := _projection(each))]
    return found if len(found) == len(layers) else None


@contextmanager
def short_walks(network: Any, base: Any) -> Iterator[None]:
    """Trainer walks through all modules five times in each step; here only where it changes one.

    Args:
        network: that is trained, unsharded.
        base: the transformers model in it, which answers meanwhile (``eval``).
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    train = network.train

    def switch(mode: bool = True) -> Any:
        return network if network.training == base.training == mode else train(mode)

    network.parameters, network.train = lambda recurse=True: iter(trained), switch
    try:
        yield
    finally:
        del network.parameters, network.train


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
        size = max(1, LOGITS // len(weight))
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
    projection = _projection(head)
    if projection is None or projection.bias is not None:
        yield
        return
    before = vars(model).get("_loss_function")
    model.loss_function = partial(_token_loss, head.weight)
    try:
        with replaced_forwards({head: lambda hidden: hidden}):
            yield
    finally:
        if before is None:
            del model._loss_function
        else:
            model.loss_function = before


def _token_loss(weight, logits, *_, shift_labels, num_items_in_batch=None, **__):
    """As transformers' loss functions are called; ``logits`` are what the output layer takes."""
    chosen = shift_labels != -100
    count = chosen.sum() if num_items_in_batch is None else num_items_in_batch
    return _Loss.apply(logits[chosen], weight, shift_labels[chosen]) / count


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
    with needs_package("training needs peft", "lora", kind=ModelError):
        from peft import LoraConfig, get_peft_model
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
