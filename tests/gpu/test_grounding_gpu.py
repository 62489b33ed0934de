"""Attention maps and log-probabilities on a CUDA GPU: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vlkit

pytestmark = pytest.mark.gpu
MESSAGE = vlkit.user("Locate the red circle.", vlkit.sample("three_shapes"))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def pair(request):
    return request.param, [vlkit.load(device=d, dtype=request.param) for d in ("cpu", "cuda:0")]


def test_the_model_looks_where_it_looks_on_the_cpu(pair):
    dtype, vlms = pair
    # without a token: all of the answer's; rounding of bfloat16 differs between the devices
    cpu, gpu = (vlkit.attention_map(vlm, MESSAGE, token=5) for vlm in vlms)
    atol = 1e-4 if dtype == "float32" else 0.05
    np.testing.assert_allclose(gpu.values, cpu.values, atol=atol)
    assert gpu.inside(vlkit.samples()["three_shapes"].boxes[0]) > 0


def test_it_is_as_sure_as_on_the_cpu(pair):
    dtype, vlms = pair
    reply = vlkit.generate(vlms[0], MESSAGE)
    cpu, gpu = (vlkit.token_logprobs(vlm, MESSAGE, answer=reply) for vlm in vlms)
    assert list(cpu.ids) == list(gpu.ids)
    atol = 1e-3 if dtype == "float32" else 0.5
    np.testing.assert_allclose(gpu.logprobs, cpu.logprobs, atol=atol)


def test_memory_is_bounded_and_the_attention_restored():
    """Of a prompt of 4,000 tokens only the chosen layer's step is kept, not (tokens × tokens)."""
    vlm = vlkit.load(device="cuda:0", dtype="bfloat16")
    before = vlm.model.config._attn_implementation
    words = "circle " * 3500
    message = vlkit.user(f"{words} Locate the red circle.", vlkit.sample("three_shapes"))
    vlkit.generate(vlm, message, max_new_tokens=4)
    torch.cuda.reset_peak_memory_stats()
    reply = vlkit.generate(vlm, message, max_new_tokens=4)
    plain = torch.cuda.max_memory_allocated()
    assert reply.usage.prompt_tokens > 3500
    torch.cuda.reset_peak_memory_stats()
    vlkit.attention_map(vlm, message, token=1, layers=1, max_new_tokens=4)
    assert torch.cuda.max_memory_allocated() < plain + 2**25
    assert vlm.model.config._attn_implementation == before
