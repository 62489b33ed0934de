"""Small steps of a layer: one GPU kernel each, or plain torch.

Between the matrix products of a decoding step lie a dozen operations on a few numbers, and each
launch costs more than its arithmetic. Written in Triton, which comes with torch for CUDA.
"""

from functools import cache
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch

BLOCK = 1024
ONE_ROW, ONE_ROW_BLOCK = 2, 2048  # values of a one-row product at a time, and of their sums


def add_rms_norm(hidden: Any, update: Any, norm: Any) -> tuple[Any, Any]:
    """``hidden + update`` and its RMS norm.

    Args:
        hidden: (rows, width), contiguous; on a GPU it is added to in place.
        update: (rows, width), contiguous, or None.
        norm: a module as :func:`rms_norm` takes it.

    Returns:
        The sum and the normed sum, (rows, width).
    """
    if not use_kernels(hidden):
        hidden = hidden if update is None else hidden + update
        return hidden, rms_norm(hidden, norm)
    normed, width = torch.empty_like(hidden), hidden.shape[-1]
    weight, epsilon = _weight_and_epsilon(norm)
    _kernels().add_rms_norm[(len(hidden),)](
        hidden, hidden if update is None else update, weight, normed, width,
        epsilon, update is not None, _power_of_two(width),
        num_warps=8 if width > BLOCK else 4,
    )  # fmt: skip
    return hidden, normed


def rms_norm(hidden: Any, norm: Any) -> Any:
    """The RMS norm over the last dimension; ``norm`` is transformers' module."""
    weight, epsilon = _weight_and_epsilon(norm)
    if weight.dtype != hidden.dtype:
        values = torch.nn.functional.rms_norm(hidden.float(), weight.shape, weight, epsilon)
        return values.to(hidden.dtype)
    return torch.nn.functional.rms_norm(hidden, weight.shape, weight, epsilon)


def _weight_and_epsilon(norm: Any) -> tuple[Any, float]:
    if hasattr(norm, "variance_epsilon"):
        return norm.weight, norm.variance_epsilon
    return norm.weight.float() + 1, norm.eps  # Qwen3.5's are zero where the others are one


def rotate(states: Any, heads: int, cos: Any, sin: Any) -> None:
    """Apply the rotary embedding (RoPE) to the first ``heads`` heads, in place.

    Args:
        states: (rows, at least ``heads``, head size), contiguous.
        heads: queries and keys.
        cos, sin: (rows, rotated size), contiguous, their two halves equal; Qwen3.5 rotates the
            first quarter of a head.
    """
    size = cos.shape[-1]
    if size == states.shape[-1] and use_kernels(states):
        _kernels().rotate[(len(states), -(-heads // 16))](
            states, cos, sin, states.stride(0), size, heads, 16, _power_of_two(size // 2)
        )
        return
    part, half = states[:, :heads, :size], size // 2
    signed = torch.cat([-sin[:, :half], sin[:, half:]], -1)[:, None]
    part.copy_(part.roll(half, -1).mul_(signed).addcmul_(part, cos[:, None]))


def rotate_and_store(states: Any, heads: int, kv_heads: int, angles: Any, cache: Any, lengths: Any):
    """Apply RoPE to queries and keys, and put keys and values into the cache.

    Args:
        states: (rows, heads + 2 × kv_heads, head size), contiguous; rotated in place.
        heads, kv_heads: of queries, and of keys as of values.
        angles: cosines and sines, (rows, rotated size) each, contiguous.
        cache: (at least ``rows``, length, 2 × kv_heads, head size).
        lengths: (rows,) where in each row of the cache.
    """
    turned, size = heads + kv_heads, states.shape[-1]
    if angles[0].shape[-1] != size or not use_kernels(states):
        rotate(states, turned, *angles)
        cache[torch.arange(len(states), device=states.device), lengths] = states[:, heads:]
        return
    _kernels().rotate_and_store[(len(states), states.shape[1])](
        states, *angles, cache, lengths, states.stride(0), cache.stride(0), size, heads, turned,
        _power_of_two(size // 2), num_warps=1,
    )  # fmt: skip


def can_attend(states: Any) -> bool:
    """Whether :func:`attend` takes these queries: on a GPU, of a usual head size and type."""
    size = states.shape[-1]
    return use_kernels(states) and states.element_size() == 2 and size in (64, 128, 256)


def attend(states: Any, heads: int, kv_heads: int, cache: Any, lengths: Any, span: int) -> Any:
    """Attention of one query token per row to its part of the cache, read once per head group.

    Args:
        states: (rows, at least ``heads``, head size), contiguous, queries first.
        heads, kv_heads: of queries, and of keys as of values.
        cache: (at least ``rows``, length, 2 × kv_heads, head size), keys first.
        lengths: (rows,) the index of each row's last token.
        span: more than any of ``lengths``.

    Returns:
        (rows, heads × head size).
    """
    rows, size = len(states), states.shape[-1]
    splits = max(1, min(span // 64, 128 // (rows * kv_heads)))
    chunk = -(-span // (64 * splits)) * 64
    output = states.new_empty(rows, heads * size)
    parts = states.new_empty(rows, heads, splits, size, dtype=torch.float32)
    tops, sums = parts.new_empty(2, rows, heads, splits)
    _kernels().attend[(rows, kv_heads, splits)](
        states, cache, lengths, parts, tops, sums, output, states.stride(0), cache.stride(0),
        size**-0.5, chunk, heads, kv_heads, size, max(16, _power_of_two(heads // kv_heads)), 64,
        splits == 1,
    )  # fmt: skip
    if splits > 1:
        _kernels().merge[(rows * heads,)](
            parts, tops, sums, output, splits, _power_of_two(splits), size
        )
    return output


def gated(rows: Any, gate: Any, up: Any) -> Any:
    """``silu(gate(rows)) * up(rows)``."""
    if _find_packed(rows, gate) is not None:
        return silu_multiply(*linear(rows, gate, up).chunk(2, -1))
    plain = type(gate) is type(up) is torch.nn.Linear and gate.bias is up.bias is None
    if not (plain and len(rows) == 1 and use_kernels(rows)):
        return silu_multiply(gate(rows), up(rows))
    output = rows.new_empty(1, len(gate.weight))
    _kernels().one_row_gated[(-(-len(gate.weight) // ONE_ROW),)](
        rows, gate.weight, up.weight, output, *gate.weight.shape, ONE_ROW, ONE_ROW_BLOCK
    )
    return output


def linear(rows: Any, *modules: Any) -> Any:
    """What modules make of rows, one after the other; on a GPU faster than torch for one row."""
    module = modules[0]
    if (packed := _find_packed(rows, module)) is not None:
        return torch.ops.quantized.linear_dynamic_fp16.default._op(rows, packed)
    if len(modules) > 1:
        return torch.cat([module(rows) for module in modules], -1)
    if type(module) is not torch.nn.Linear or len(rows) > 1 or not use_kernels(rows):
        return module(rows)
    weight, bias = module.weight, module.bias
    output = rows.new_empty(1, len(weight))
    _kernels().one_row_linear[(-(-len(weight) // 4),)](
        rows, weight, weight if bias is None else bias, output, *weight.shape, bias is not None,
        4, ONE_ROW_BLOCK,
    )  # fmt: skip
    return output


_packed: WeakKeyDictionary[Any, tuple[list, Any]] = WeakKeyDictionary()  # by the first layer
_packing = Lock()


def pack(*layers: Any, fits: bool = True) -> bool:
    """Let :func:`linear` and :func:`gated` read float32 weights in 16 bits, on a CPU.

    A checkpoint in bfloat16 has weights that float16 holds, too. FBGEMM widens them and multiplies
    in float32, as exactly as torch does with the weights in float32. Of one row's time most goes
    into reading weights: it takes a quarter.

    Args:
        layers: that read the same rows.
        fits: whether there is memory for it, if it has not been done before.

    Returns:
        Whether they do; not where 16 bits do not hold the weights, nor for other layers, types and
        machines.
    """
    plain = all(type(layer) is torch.nn.Linear for layer in layers)
    if not plain or torch.backends.quantized.engine not in ("x86", "fbgemm"):
        return False
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    groups = [weights] if all(bias is None for bias in biases) else [weights, biases]
    parts = [part for group in groups for part in group]
    if any(p is None or (p.dtype, p.is_cpu) != (torch.float32, True) for p in parts):
        return False
    state = [(p.data_ptr(), _digest(p.detach())) for p in parts]
    with _packing:
        known, packed = _packed.get(layers[0], (None, None))
        if known != state and (fits or known):
            weight, *bias = (torch.cat([p.detach() for p in group]) for group in groups)
            error = (weight.half().float() - weight).abs().max()
            prepack = torch.ops.quantized.linear_prepack_fp16
            # 2**-25 is half of the smallest step
            packed = prepack(weight, *(bias or [None])) if error <= 2**-25 else None
            _packed[layers[0]] = state, packed
    return packed is not None


def _digest(weight: Any) -> tuple:
    """Changes with any value, however it is written: the sum of the bits, and some values."""
    flat = weight.flatten()
    paired = flat[: len(flat) // 2 * 2]
    bits = paired.view(torch.int64) if paired.storage_offset() % 2 == 0 else paired
    return bits.sum().item(), flat[-1].item(), flat[:: 1 + len(flat) // 32].tolist()


def _find_packed(rows: Any, module: Any) -> Any:
    if not rows.is_cpu or rows.element_size() != 4:
        return None
    return _packed.get(module, (None, None))[1]


def silu_multiply(gate: Any, up: Any) -> Any:
    """``silu(gate) * up``; on a GPU for contiguous tensors."""
    if not use_kernels(gate):
        return torch.nn.functional.silu(gate) * up
    output, count = torch.empty_like(gate), gate.numel()
    _kernels().silu_multiply[(-(-count // BLOCK),)](gate, up, output, count, BLOCK)
    return output


def silu_multiply_backward(gradient: Any, gate: Any, up: Any, d_gate: Any) -> Any:
    """The gradients of :func:`silu_multiply`.

    Args:
        gradient: of its result, contiguous; becomes that of ``up`` in place.
        gate, up: what it was given, contiguous.
        d_gate: where the gradient of ``gate`` is written, contiguous.

    Returns:
        ``d_gate``.
    """
    if use_kernels(gate):
        count = gate.numel()
        _kernels().silu_multiply_backward[(-(-count // BLOCK),)](
            gradient, gate, up, d_gate, count, BLOCK
        )
        return d_gate
    torch.mul(gradient, up, out=d_gate)
    torch.ops.aten.silu_backward.grad_input(d_gate, gate, grad_input=d_gate)
    gradient.mul_(torch.nn.functional.silu(gate))
    return d_gate


def quick_gelu(values: Any) -> Any:
    """``x * sigmoid(1.702 x)``, in place; on a GPU for a contiguous tensor."""
    if not use_kernels(values):
        return values.mul_((1.702 * values).sigmoid_())
    count = values.numel()
    _kernels().quick_gelu[(-(-count // BLOCK),)](values, count, BLOCK)
    return values


def use_kernels(tensor: Any) -> bool:
    """Whether a tensor's work is done by the Triton kernels."""
    return tensor.is_cuda and _kernels() is not None


@cache
def _kernels() -> Any:
    try:
        from vlkit.engine import triton_kernels
    except ImportError:
        return None
    return triton_kernels


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
