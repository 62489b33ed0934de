"""8-bit weights on a CPU."""

from __future__ import annotations

import pytest
import torch

import vlkit
from vlkit.errors import ModelError, VlkitError
from vlkit.lora.networks import quantized
from vlkit.models.int8 import Int8Embedding, Int8Linear, pack

pytestmark = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="this CPU has no 8-bit products"
)


def rounded(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().double() * scale.double()


@pytest.mark.parametrize("rows", [1, 2, 37])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_are_exact_but_for_the_rounding_of_the_weights(rows, with_bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(192, 80, bias=with_bias)
    values = torch.randn(rows, 192)
    values[0, 5] = 900  # an outlier must not drown the others
    expected = values.double() @ rounded(layer.weight.detach()).T
    expected += layer.bias.detach() if with_bias else 0
    packed = Int8Linear(layer.weight, layer.bias)
    assert torch.allclose(packed(values).double(), expected, rtol=0, atol=2e-2)
    small = values[-1:] if rows > 1 else values[:, :] * 0 + 1
    exact = small.double() @ rounded(layer.weight.detach()).T
    exact += layer.bias.detach() if with_bias else 0
    assert torch.allclose(packed(small).double(), exact, rtol=0, atol=2e-4)


def test_shapes_types_zeros_and_nan():
    layer = Int8Linear(torch.randn(6, 4), torch.ones(6))
    assert layer(torch.randn(2, 3, 4)).shape == (2, 3, 6)
    assert layer(torch.randn(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert (layer(torch.zeros(1, 4)) == 1).all()
    values = torch.ones(2, 4)
    values[1, 2] = float("nan")
    assert layer(values)[0].isfinite().all() and layer(values)[1].isnan().all()


def test_embeddings_are_rounded_by_token():
    weight = torch.randn(9, 16) * torch.logspace(-3, 3, 9)[:, None]
    tokens = torch.tensor([[0, 8], [3, 3]])
    assert torch.allclose(Int8Embedding(weight)(tokens).double(), rounded(weight)[tokens], 1e-5)


def test_a_loaded_model_answers_nearly_the_same(vlm):
    packed = vlkit.load(quantize="8bit", device="cpu")
    assert type(packed.model.lm_head) is Int8Linear and packed.model.dtype == torch.float32
    paths = [str(sample.path) for sample in vlkit.samples().values()][:10]
    rows = [vlkit.user("Detect all objects.", path) for path in paths]
    pairs = [vlkit.generate_batch(each, rows, max_new_tokens=64) for each in (vlm, packed)]
    assert pairs[1].report.path == "fast"
    same = [a.text == b.text for a, b in zip(*pairs, strict=True)]
    assert sum(same) >= 7
    alone = vlkit.generate(packed, rows[0], max_new_tokens=64)
    assert alone.raw == pairs[1][0].raw
    with pytest.raises(VlkitError, match="cannot be trained; load the model without quantize="):
        quantized(packed, None, 8)


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen3_5"])
def test_other_generations(tiny_folder, kind):
    packed = vlkit.load(tiny_folder(kind), quantize="8bit", device="cpu")
    rows = ["Who are you?", vlkit.user("What is this?", str(vlkit.sample("circles")))]
    results = vlkit.generate_batch(packed, rows, max_new_tokens=6)
    assert [r.raw for r in results] == [
        vlkit.generate(packed, r, max_new_tokens=6).raw for r in rows
    ]


def test_what_cannot_be_packed_is_said(tiny_folder, monkeypatch):
    with pytest.raises(ModelError, match=r'mixture of experts.*load it with dtype="bfloat16"'):
        vlkit.load(tiny_folder("qwen3_5_moe"), quantize="8bit", device="cpu")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ModelError, match="needs its 8-bit products"):
        pack(torch.nn.Linear(2, 2), "it")
