"""The GPU kernels of ``vlkit.kernels``; imported only where Triton is installed."""

import triton
import triton.language as tl


@triton.jit
def add_rms_norm(
    hidden, update, weight, normed, width, epsilon, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    """A row of ``width`` values: ``hidden += update``, ``normed = rms_norm(hidden) * weight``."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    values = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        values = values + tl.load(update + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(hidden + place, values, mask=inside)
    scale = tl.rsqrt(tl.sum(values * values, 0) / width + epsilon)
    scaled = (values * scale) * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + place, scaled, mask=inside)


@triton.jit
def rotate(states, cos, sin, stride, size, HALF: tl.constexpr):
    """A head of a row, in place: (low, high) turned by the row's angles."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half = size // 2
    column = tl.arange(0, HALF)
    inside = column < half
    first = states + row * stride + head * size + column
    angle = row * size + column
    low = tl.load(first, mask=inside).to(tl.float32)
    high = tl.load(first + half, mask=inside).to(tl.float32)
    turn = tl.load(cos + angle, mask=inside).to(tl.float32)
    lift = tl.load(sin + angle, mask=inside).to(tl.float32)
    tl.store(first, low * turn - high * lift, mask=inside)
    tl.store(first + half, high * turn + low * lift, mask=inside)


@triton.jit
def silu_multiply(gate, up, output, count, BLOCK: tl.constexpr):
    """``silu(gate) * up``, value by value."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + place, value * tl.sigmoid(value) * other, mask=inside)


@triton.jit
def quick_gelu(values, count, BLOCK: tl.constexpr):
    """``x * sigmoid(1.702 x)``, in place."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(values + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(values + place, value * tl.sigmoid(1.702 * value), mask=inside)
