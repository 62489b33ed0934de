"""Decoder layers and the loss in fewer steps, beside transformers' and PEFT's own."""

from __future__ import annotations

import pytest
import torch
from lora_talks import noise, talk
from peft import LoraConfig, get_peft_model

import vlkit
from vlkit.engine.kernels import silu_multiply, silu_multiply_backward
from vlkit.lora import label_example, networks
from vlkit.lora.batches import Collator
from vlkit.lora.networks import (
    LeanLayer,
    Parked,
    Projection,
    find_modules,
    lean_layers,
    lean_loss,
    short_walks,
)

KINDS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


def adapted(vlm, target):
    """An adapter whose two matrices both matter, so that each has a gradient."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(find_modules(vlm.model, target)))
    network = get_peft_model(vlm.model, config).train()
    random = torch.Generator().manual_seed(0)
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=random) * 0.1
    return network


def gradients(network, batch):
    network.zero_grad()
    loss = network(**batch, use_cache=False).loss
    loss.backward()
    return loss.item(), {
        n: w.grad.clone() for n, w in network.named_parameters() if w.requires_grad
    }


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("target", ["language", r".*layers\.1\.(self_attn\.v|mlp\.down)_proj"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_transformers_layers(
    tiny_folder, kind, target, checkpointed, monkeypatch
):
    """Of rows of different lengths; with adapters everywhere, and in two places of one layer."""
    vlm = vlkit.load(tiny_folder(kind))
    rows = [talk(("What?", noise(84, 56)), "Noise, and a lot of it."), talk("And?", "Nothing.")]
    batch = Collator(vlm.processor.tokenizer.pad_token_id)([label_example(vlm, r) for r in rows])
    network = adapted(vlm, target)
    loss, expected = gradients(network, batch)
    used, forward = [], LeanLayer.forward

    def count(lean, *inputs, **options):
        used.append(lean)
        return forward(lean, *inputs, **options)

    monkeypatch.setattr(LeanLayer, "forward", count)
    if checkpointed:
        vlm.model.gradient_checkpointing_enable()
    with lean_layers(vlm.model), lean_loss(vlm.model):
        lean_loss_value, found = gradients(network, batch)
    layers = vlm.model.config.get_text_config().num_hidden_layers
    assert len(used) == layers * (2 if checkpointed else 1)
    assert lean_loss_value == pytest.approx(loss, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    assert gradients(network, batch)[0] == pytest.approx(loss, rel=1e-6)  # all is as before


def test_a_mixture_of_experts_keeps_its_layers(tiny_folder):
    vlm = vlkit.load(tiny_folder("qwen3_vl_moe"))
    batch = Collator(vlm.processor.tokenizer.pad_token_id)(
        [label_example(vlm, talk("What?", "Nothing."))]
    )
    network = adapted(vlm, "language")
    loss, expected = gradients(network, batch)
    with lean_layers(vlm.model):
        again, found = gradients(network, batch)
    assert again == pytest.approx(loss, rel=1e-6)
    assert expected.keys() == found.keys()


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("trained", [True, False])
def test_the_loss_in_pieces_is_the_whole_loss(tiny_folder, at_once, trained, monkeypatch):
    vlm = vlkit.load(tiny_folder("qwen2_vl"))
    monkeypatch.setattr(networks, "LOGITS", at_once * len(vlm.model.lm_head.weight))
    rows = [talk("One?", "Yes, it is one of them."), talk("Two?", "No.")]
    batch = Collator(vlm.processor.tokenizer.pad_token_id)([label_example(vlm, r) for r in rows])
    network = adapted(vlm, "language")
    options = {"num_items_in_batch": torch.tensor(7)} if trained else {}
    loss, expected = gradients(network, batch | options)
    with lean_loss(vlm.model):
        pieces, found = gradients(network, batch | options)
    assert pieces == pytest.approx(loss, rel=1e-6)
    for name, gradient in expected.items():
        near = 1e-5 * gradient.abs().max()
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=near.item(), msg=name)
    assert network(**batch).logits.shape[-1] == len(vlm.model.lm_head.weight)


def test_rows_without_labels_cost_nothing(tiny_folder):
    """The rows of padding that an uneven number of processes gets."""
    vlm = vlkit.load(tiny_folder("qwen2_vl"))
    row = label_example(vlm, talk("One?", "Yes."))
    batch = Collator(vlm.processor.tokenizer.pad_token_id)([row])
    batch["shift_labels"] = batch["shift_labels"].clone().fill_(-100)
    network = adapted(vlm, "language")
    with lean_layers(vlm.model), lean_loss(vlm.model):
        loss, found = gradients(network, batch | {"num_items_in_batch": torch.tensor(3)})
    assert loss == 0 and not any(gradient.any() for gradient in found.values())


def test_gates_have_autograds_gradients():
    gate, up, above = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)).unbind()
    gate.requires_grad_(), up.requires_grad_()
    expected = torch.autograd.grad(silu_multiply(gate, up), (gate, up), above)
    d_up, d_gate = above.clone(), torch.empty_like(gate)
    with torch.no_grad():
        assert silu_multiply_backward(d_up, gate, up, d_gate) is d_gate
    torch.testing.assert_close((d_gate, d_up), expected)


def test_a_projection_has_autograds_gradients():
    random = torch.Generator().manual_seed(0)

    def values(*shape):
        return torch.randn(*shape, generator=random, requires_grad=True)

    inner, down, up, above = values(6, 5), values(2, 5), values(4, 2), torch.ones(6, 4)
    weight, bias = values(4, 5).detach(), values(4).detach()
    whole = torch.nn.functional.linear(inner, weight + 0.5 * up @ down, bias)
    expected = torch.autograd.grad(whole, (inner, down, up), above)
    projection = Projection(weight, bias, down, up, 0.5)
    with torch.no_grad():
        output, low = projection.forward(inner)
        d_inner, trained = projection.backward(above, inner, low)
    torch.testing.assert_close(output, whole)
    torch.testing.assert_close((d_inner, *trained), expected)


def test_what_is_parked_on_a_cpu_stays_there():
    tensor = torch.ones(3)
    parked = Parked(tensor)
    parked.begin()
    assert parked.fetch() is tensor


def test_a_network_is_switched_where_it_is_not_yet(tiny_folder):
    network = adapted(vlkit.load(tiny_folder("qwen2_vl")), "language")
    layer = network.get_base_model().model.language_model.layers[0]
    whole = sum(1 for _ in network.parameters())
    with short_walks(network, network.get_base_model()):
        assert 0 < len(list(network.parameters())) < whole
        assert network.eval() is network and not layer.training
        assert network.train() is network and layer.training
        network.get_base_model().eval()  # as an answer on the way does
        assert network.train().training and layer.training
    assert sum(1 for _ in network.parameters()) == whole
