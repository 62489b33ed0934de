"""The fast engine on a CUDA GPU: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

import types

import bare
import pytest
import torch

import vlkit
from vlkit.engine import kernels

pytestmark = pytest.mark.gpu


def rows() -> list:
    pictures = [str(sample.path) for sample in vlkit.samples().values()][:12]
    questions = [vlkit.user("Describe this image.", path) for path in pictures]
    return [*questions, vlkit.user("How many?", *pictures[:2]), "Who are you?"]


@pytest.mark.parametrize("batch_size", [1, 5, "auto"])
def test_float32_answers_are_those_of_one_by_one(batch_size):
    vlm = vlkit.load(device="cuda:0", dtype="float32")
    results = vlkit.generate_batch(vlm, rows(), max_new_tokens=40, batch_size=batch_size)
    alone = [vlkit.generate(vlm, row, max_new_tokens=40).raw for row in rows()]
    assert [reply.raw for reply in results] == alone


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"])
def test_float32_answers_of_newer_generations_are_transformers(tiny_folder, kind):
    """Captured steps too: a rehearsal must not move a state, and experts must not ask the CPU."""
    vlm = vlkit.load(tiny_folder(kind), device="cuda:0", dtype="float32")
    results = vlkit.generate_batch(vlm, rows(), max_new_tokens=24)
    assert results.report.path == "fast"
    assert [reply.raw for reply in results] == bare.answers(vlm, rows(), max_new_tokens=24)


def test_bfloat16_answers_are_those_of_one_by_one_nearly_always():
    vlm = vlkit.load(device="cuda:0", dtype="bfloat16")
    results = vlkit.generate_batch(vlm, rows(), max_new_tokens=40)
    alone = [vlkit.generate(vlm, row, max_new_tokens=40).raw for row in rows()]
    same = sum(reply.raw == raw for reply, raw in zip(results, alone, strict=True))
    assert same >= 0.75 * len(alone)  # rounding decides between nearly equal tokens


def test_a_second_call_takes_over_the_captured_graphs_and_new_weights():
    vlm = vlkit.load(device="cuda:0", dtype="float32")
    first = vlkit.generate_batch(vlm, rows()[:2], max_new_tokens=20)
    with torch.no_grad():
        for layer in vlm.model.model.language_model.layers:
            layer.self_attn.q_proj.weight.mul_(0.5)
    second = vlkit.generate_batch(vlm, rows()[:2], max_new_tokens=20)
    alone = [vlkit.generate(vlm, row, max_new_tokens=20).raw for row in rows()[:2]]
    assert [reply.raw for reply in second] == alone != [reply.raw for reply in first]


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(28, 4, 128), (6, 6, 64), (16, 2, 128)])
@pytest.mark.parametrize("rows", [1, 64])
def test_attention_is_torchs(rows, heads, kv_heads, size):
    torch.manual_seed(0)
    make = {"device": "cuda", "dtype": torch.bfloat16}
    states = torch.randn(rows, heads + 2 * kv_heads, size, **make)
    cache = torch.randn(rows, 512, 2 * kv_heads, size, **make)
    lengths = torch.randint(0, 448, (rows,), device="cuda")
    ours = kernels.attend(states, heads, kv_heads, cache, lengths, 448).view(rows, heads, size)
    keys, values = cache.transpose(1, 2).split(kv_heads, 1)
    mask = (torch.arange(512, device="cuda") <= lengths[:, None])[:, None, None]
    theirs = torch.nn.functional.scaled_dot_product_attention(
        states[:, :heads, None].float(), keys.float(), values.float(), attn_mask=mask,
        enable_gqa=True,
    )[:, :, 0]  # fmt: skip
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("width", "count"), [(3584, 4608), (18944, 3584), (384, 4097)])
def test_one_row_times_a_matrix_is_torchs(width, count, bias):
    torch.manual_seed(0)
    module = torch.nn.Linear(width, count, bias=bias, device="cuda", dtype=torch.bfloat16)
    row = torch.randn(1, width, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        ours, theirs = kernels.linear(row, module), module.float()(row.float())
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("count", [1, 64])
def test_small_kernels_are_torchs(count):
    torch.manual_seed(0)
    make = {"device": "cuda", "dtype": torch.bfloat16}
    gate, up = (torch.nn.Linear(3584, 1000, bias=False, **make) for _ in range(2))
    hidden, update = torch.randn(2, count, 3584, **make)
    norm = types.SimpleNamespace(weight=torch.randn(3584, **make), variance_epsilon=1e-6)
    with torch.no_grad():
        expected = torch.nn.functional.silu(gate(hidden).float()) * up(hidden).float()
        ours = kernels.gated(hidden, gate, up)
        summed = (hidden + update).float()
        scaled = summed * (summed.square().mean(-1, True) + 1e-6).rsqrt() * norm.weight.float()
        total, normed = kernels.add_rms_norm(hidden.clone(), update, norm)
    torch.testing.assert_close(ours.float(), expected, rtol=3e-2, atol=3e-2)
    torch.testing.assert_close(total.float(), summed, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(normed.float(), scaled, rtol=3e-2, atol=3e-2)
