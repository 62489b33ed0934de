"""The GPU kernels against plain torch, through Triton's interpreter; packed weights on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vlkit import threads
from vlkit.engine import kernels

CHECK = """
import types, torch
from vlkit.engine import kernels

torch.manual_seed(0)

def both(call):
    kernels.use_kernels = lambda tensor: True
    ours = call()
    kernels.use_kernels = lambda tensor: False
    return ours, call()

def same(ours, theirs, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)

for dtype in (torch.float32, torch.bfloat16):
    for width in (64, 100, 3584):
        norm = types.SimpleNamespace(weight=torch.randn(width, dtype=dtype), variance_epsilon=1e-6)
        hidden, update = torch.randn(2, 5, width, dtype=dtype)
        for each in (update, None):
            ours, theirs = both(lambda: kernels.add_rms_norm(hidden.clone(), each, norm))
            same(torch.stack(ours), torch.stack(theirs), dtype)
        same(*both(lambda: kernels.silu_multiply(hidden, update)), dtype)
        same(*both(lambda: kernels.quick_gelu(hidden.clone())), dtype)
    for heads, turned, size in ((3, 2, 64), (6, 4, 80), (12, 8, 128)):
        states = torch.randn(7, heads, size, dtype=dtype)
        angles = torch.randn(7, size // 2).repeat(1, 2)
        def call():
            mine = states.clone()
            kernels.rotate(mine, turned, angles.cos(), angles.sin())
            return mine
        ours, theirs = both(call)
        same(ours, theirs, dtype)
        assert (ours[:, turned:] == states[:, turned:]).all() and (ours != states)[:, :turned].any()
    for width, count in ((64, 20), (100, 8), (1100, 33)):
        row, one, two = (torch.randn(n, width, dtype=dtype) / width**0.5 for n in (1, count, count))
        layers = []
        for weight in (one, two):
            layers.append(torch.nn.Linear(width, count, bias=False, dtype=dtype))
            layers[-1].weight = torch.nn.Parameter(weight)
        with torch.no_grad():
            same(*both(lambda: kernels.gated(row, *layers)), dtype)
    states, angles = torch.randn(3, 10, 64, dtype=dtype), torch.randn(3, 32).repeat(1, 2)
    def store():
        mine, cache = states.clone(), torch.zeros(4, 9, 4, 64, dtype=dtype)
        lengths = torch.tensor([2, 0, 8])
        kernels.rotate_and_store(mine, 6, 2, (angles.cos(), angles.sin()), cache, lengths)
        return torch.cat([mine.flatten(), cache.flatten()])
    same(*both(store), dtype)

def attention(states, heads, kv_heads, cache, lengths):
    rows = []
    for row, last in enumerate(lengths.tolist()):
        keys, values = cache[row, : last + 1].split(kv_heads, 1)
        query = states[row, :heads].view(kv_heads, heads // kv_heads, -1)
        rows.append(torch.nn.functional.scaled_dot_product_attention(
            query, keys.transpose(0, 1), values.transpose(0, 1)).flatten())
    return torch.stack(rows)

for heads, kv_heads, size, span in ((7, 1, 64, 128), (28, 4, 128, 192), (6, 6, 64, 256)):
    states = torch.randn(3, heads + 2 * kv_heads, size)
    cache = torch.randn(4, 300, 2 * kv_heads, size)
    lengths = torch.tensor([span - 1, 0, span // 2])
    kernels.use_kernels = lambda tensor: True
    ours = kernels.attend(states, heads, kv_heads, cache, lengths, span)
    same(ours, attention(states, heads, kv_heads, cache, lengths), torch.float32)
print("equal")
"""


def test_kernels_do_what_plain_torch_does():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@pytest.fixture
def layers():
    torch.manual_seed(0)
    made = [torch.nn.Linear(96, width) for width in (40, 24)]
    for layer in made:
        layer.weight.data = layer.weight.data.bfloat16().float() * 2
    return made


def products(layers, rows):
    return torch.cat([layer(rows) for layer in layers], -1)


def packed_products(layers, rows):
    assert kernels.pack(*layers)
    return kernels.linear(rows, *layers)


@torch.no_grad()
def test_packed_weights_give_the_products_of_float32_until_they_change(layers):
    exact = torch.cat([layer.weight for layer in layers]).double()
    bias = torch.cat([layer.bias for layer in layers]).double()
    for count in (1, 5, 70):
        rows = torch.randn(count, 96)
        ours, right = packed_products(layers, rows).double(), rows.double() @ exact.T + bias
        torch.testing.assert_close(ours, right, rtol=1e-6, atol=2e-6)  # of sums of 96 float32
    changes = (
        lambda part: part.data.mul_(-1),
        lambda part: part.data.view(-1)[part.numel() // 2 - 3 :][:1].fill_(0.25),  # one value
        lambda part: part.zero_(),
    )
    for change in changes:
        for part in (layers[1].weight, layers[0].bias):
            change(part)
            torch.testing.assert_close(packed_products(layers, rows), products(layers, rows))


def test_weights_that_16_bits_do_not_hold_are_not_packed(layers):
    for value in (1 + 2**-20, 1e5, float("nan"), float("inf")):
        layers[0].weight.data[3, 5] = value
        assert not kernels.pack(*layers)
    assert not kernels.pack(layers[1].bfloat16())
    assert not kernels.pack(torch.nn.Sequential(layers[0]))


def test_one_core_is_for_the_calling_thread_alone():
    torch.set_num_threads(2)
    with threads.on_one_core():
        assert torch.get_num_threads() == 1
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
    assert torch.get_num_threads() == 2
