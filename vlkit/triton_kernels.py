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


@triton.jit
def rotate_and_store(
    states, cos, sin, cache, lengths, stride, row_stride, size, heads, turned, HALF: tl.constexpr
):
    """A head of a row: queries and keys turned in place, keys and values put into the cache."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half = size // 2
    column = tl.arange(0, HALF)
    inside = column < half
    first = states + row * stride + head * size + column
    low = tl.load(first, mask=inside).to(tl.float32)
    high = tl.load(first + half, mask=inside).to(tl.float32)
    if head < turned:
        turn = tl.load(cos + row * size + column, mask=inside).to(tl.float32)
        lift = tl.load(sin + row * size + column, mask=inside).to(tl.float32)
        kept = low
        low = low * turn - high * lift
        high = high * turn + kept * lift
        tl.store(first, low, mask=inside)
        tl.store(first + half, high, mask=inside)
    if head >= heads:
        width = (tl.num_programs(1) - heads) * size
        place = cache + row * row_stride + tl.load(lengths + row) * width
        place += (head - heads) * size + column
        tl.store(place, low, mask=inside)
        tl.store(place + half, high, mask=inside)


@triton.jit
def one_row_linear(
    row, weight, bias, output, count, width,
    BIAS: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``weight @ row + bias`` for one row, ``OUT`` values of it."""
    out = tl.program_id(0) * OUT + tl.arange(0, OUT)
    column = tl.arange(0, BLOCK)
    real = out < count
    start = weight + out[:, None].to(tl.int64) * width + column[None]
    total = tl.zeros((OUT, BLOCK), tl.float32)
    for offset in range(0, width, BLOCK):
        inside = column + offset < width
        values = tl.load(row + offset + column, mask=inside, other=0.0).to(tl.float32)
        part = tl.load(start + offset, mask=real[:, None] & inside[None], other=0.0)
        total += part.to(tl.float32) * values[None]
    result = tl.sum(total, 1)
    if BIAS:
        result += tl.load(bias + out, mask=real, other=0.0).to(tl.float32)
    tl.store(output + out, result, mask=real)


@triton.jit
def one_row_gated(row, gate, up, output, count, width, OUT: tl.constexpr, BLOCK: tl.constexpr):
    """``silu(gate @ row) * (up @ row)`` for one row, ``OUT`` values of it."""
    out = tl.program_id(0) * OUT + tl.arange(0, OUT)
    column = tl.arange(0, BLOCK)
    real = out < count
    start = out[:, None].to(tl.int64) * width + column[None]
    first = tl.zeros((OUT, BLOCK), tl.float32)
    second = tl.zeros((OUT, BLOCK), tl.float32)
    for offset in range(0, width, BLOCK):
        inside = column + offset < width
        both = real[:, None] & inside[None]
        values = tl.load(row + offset + column, mask=inside, other=0.0).to(tl.float32)[None]
        first += tl.load(gate + start + offset, mask=both, other=0.0).to(tl.float32) * values
        second += tl.load(up + start + offset, mask=both, other=0.0).to(tl.float32) * values
    value = tl.sum(first, 1)
    tl.store(output + out, value * tl.sigmoid(value) * tl.sum(second, 1), mask=real)
