"""The GPU kernels of ``engine/kernels.py``, in Triton; for GPUs only."""

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
def rotate(states, cos, sin, stride, size, turned, HEADS: tl.constexpr, HALF: tl.constexpr):
    """RoPE of some heads of a row, in place: each pair (low, high) turned by the row's angle."""
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    half = size // 2
    column = tl.arange(0, HALF)[None]
    inside = (column < half) & (head < turned)
    first = states + row * stride + head * size + column
    angle = row * size + column
    low = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(first + half, mask=inside, other=0.0).to(tl.float32)
    cosine = tl.load(cos + angle, mask=column < half, other=0.0).to(tl.float32)
    sine = tl.load(sin + angle, mask=column < half, other=0.0).to(tl.float32)
    tl.store(first, low * cosine - high * sine, mask=inside)
    tl.store(first + half, high * cosine + low * sine, mask=inside)


@triton.jit
def silu_multiply(gate, up, output, count, BLOCK: tl.constexpr):
    """``silu(gate) * up``, value by value."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + place, value * tl.sigmoid(value) * other, mask=inside)


@triton.jit
def silu_multiply_backward(gradient, gate, up, d_gate, count, BLOCK: tl.constexpr):
    """With ``gradient`` of ``silu(gate) * up``: ``d_gate``, and in its own place that of ``up``."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    above = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    opened = tl.sigmoid(value)
    tl.store(d_gate + place, above * other * opened * (1 + value * (1 - opened)), mask=inside)
    tl.store(gradient + place, above * value * opened, mask=inside)


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
    """RoPE of a row's query or key head, in place; keys and values are put into the cache."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half = size // 2
    column = tl.arange(0, HALF)
    inside = column < half
    first = states + row * stride + head * size + column
    low = tl.load(first, mask=inside).to(tl.float32)
    high = tl.load(first + half, mask=inside).to(tl.float32)
    if head < turned:
        cosine = tl.load(cos + row * size + column, mask=inside).to(tl.float32)
        sine = tl.load(sin + row * size + column, mask=inside).to(tl.float32)
        before = low
        low = low * cosine - high * sine
        high = high * cosine + before * sine
        tl.store(first, low, mask=inside)
        tl.store(first + half, high, mask=inside)
    if head >= heads:
        width = (tl.num_programs(1) - heads) * size
        place = cache + row * row_stride + tl.load(lengths + row) * width
        place += (head - heads) * size + column
        tl.store(place, low, mask=inside)
        tl.store(place + half, high, mask=inside)


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


@triton.jit
def one_row_linear(
    row, weight, bias, output, count, width,
    BIAS: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``weight @ row + bias`` for one row, ``OUT`` values of it."""
    out = tl.program_id(0) * OUT + tl.arange(0, OUT)
    column = tl.arange(0, BLOCK)
    real = out < count
    start = out[:, None].to(tl.int64) * width + column[None]
    total = tl.zeros((OUT, BLOCK), tl.float32)
    for offset in range(0, width, BLOCK):
        inside = column + offset < width
        both = real[:, None] & inside[None]
        values = tl.load(row + offset + column, mask=inside, other=0.0).to(tl.float32)[None]
        total += tl.load(weight + start + offset, mask=both, other=0.0).to(tl.float32) * values
    value = tl.sum(total, 1)
    if BIAS:
        value += tl.load(bias + out, mask=real, other=0.0).to(tl.float32)
    tl.store(output + out, value, mask=real)


@triton.jit
def attend(
    states, cache, lengths, parts, tops, sums, output, stride, row_stride, scale, chunk,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """The query heads of one key head look at one chunk of a row's cache.

    ``parts`` get the chunk's sums of values, ``tops`` and ``sums`` its highest scores and sums of
    weights, for ``merge``; where there is one chunk (``ALONE``), ``output`` gets the result.
    """
    row, key_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    split, splits = tl.program_id(2), tl.num_programs(2)
    last = tl.load(lengths + row)
    member, column = tl.arange(0, GROUP), tl.arange(0, SIZE)
    real = member < HEADS // KV_HEADS
    head = key_head * (HEADS // KV_HEADS) + member
    query = states + row * stride + head[:, None] * SIZE + column[None]
    query = tl.load(query, mask=real[:, None], other=0.0)
    start = cache + row * row_stride + key_head * SIZE + column[None]
    top = tl.full((GROUP,), -1e30, tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    value = tl.zeros((GROUP, SIZE), tl.float32)
    first = split * chunk
    for offset in range(first, tl.minimum(first + chunk, last + 1), BLOCK):
        token = offset + tl.arange(0, BLOCK)
        seen = (token <= last) & (token < first + chunk)
        place = start + token[:, None] * (2 * KV_HEADS * SIZE)
        keys = tl.load(place, mask=seen[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(seen[None], scores, -1e30)
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        weights = tl.where(seen[None], weights, 0.0)
        shrink = tl.exp(top - higher)
        values = tl.load(place + KV_HEADS * SIZE, mask=seen[:, None], other=0.0)
        mixed = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        value = value * shrink[:, None] + mixed
        total = total * shrink + tl.sum(weights, 1)
        top = higher
    if ALONE:
        place = output + (row * HEADS + head[:, None]) * SIZE + column[None]
        tl.store(place, value / total[:, None], mask=real[:, None])
    else:
        place = (row * HEADS + head) * splits + split
        tl.store(parts + place[:, None] * SIZE + column[None], value, mask=real[:, None])
        tl.store(tops + place, top, mask=real)
        tl.store(sums + place, total, mask=real)


@triton.jit
def merge(parts, tops, sums, output, splits, SPLITS: tl.constexpr, SIZE: tl.constexpr):
    """One head of one row from the chunks of its cache."""
    head = tl.program_id(0).to(tl.int64)
    split, column = tl.arange(0, SPLITS), tl.arange(0, SIZE)
    real = split < splits
    place = head * splits + split
    top = tl.load(tops + place, mask=real, other=-1e30)
    share = tl.exp(top - tl.max(top, 0))
    total = tl.sum(tl.load(sums + place, mask=real, other=0.0) * share, 0)
    part = tl.load(parts + place[:, None] * SIZE + column[None], mask=real[:, None], other=0.0)
    tl.store(output + head * SIZE + column, tl.sum(part * share[:, None], 0) / total)
