"""A model made trainable for a while, by new adapters or in its own layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from vlkit.errors import ModelError, VlkitError
from vlkit.models import VLM


def quantized(vlm: VLM, quantize: Literal["4bit", "8bit"] | None, rank: int | None) -> VLM:
    """The same model with its weights in 4 or 8 bits; loaded anew where it is not so yet.

    Raises:
        VlkitError: layers are to be trained themselves, which whole numbers cannot be.
        ModelError: bitsandbytes is missing.
    """
    check_quantized(vlm, quantize, rank)
    packed = getattr(vlm.model, "is_quantized", False)
    if packed and getattr(vlm.model, "is_loaded_in_4bit", False):
        quantize = "4bit"
    anew = quantize == "4bit" and vlm.model.device.type == "cpu"
    if quantize is None or (packed and not anew):
        return vlm
    from vlkit.models import load_here

    device, dtype = vlm.model.device, str(vlm.model.dtype).removeprefix("torch.")
    loaded = load_here(
        vlm.folder.path, quantize=quantize, device=str(device) if device.index else "auto",
        dtype=dtype, max_image_tokens=vlm.max_image_tokens,
    )  # fmt: skip
    if anew:
        for module in loaded.model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                # else bitsandbytes lays the weights out anew for answers, and nothing is learnt
                module.support_avx512bf16_for_cpu = False
    return replace(loaded, folder=vlm.folder)


def check_quantized(vlm: VLM, quantize: str | None, rank: int | None) -> None:
    """Raises VlkitError where layers are to be trained themselves that are quantized."""
    if rank is None and (quantize or getattr(vlm.model, "is_quantized", False)):
        raise VlkitError(
            f"rank=None trains the model's own weights, which cannot be quantized ({quantize}); "
            "give a rank, or load and train it without quantize="
        )


@contextmanager
def trainable(
    vlm: VLM, names: Sequence[str], rank: int | None, alpha: float | None
) -> Iterator[tuple[Any, Callable[..., float]]]:
    """The network to train, and how to measure what has changed of it.

    The second is the largest weight in the adapters' B, or the largest change of a layer's own; of
    weights by their names, if it is given some, else of the network's.

    Args:
        vlm: a model without an adapter.
        names: of its linear layers.
        rank: of the adapters; None trains the layers themselves.
        alpha: the adapters' scale times ``rank``; twice the rank by default.

    Raises:
        ModelError: peft is needed and missing.
    """
    needed = {name: p.requires_grad for name, p in vlm.model.named_parameters()}
    make = _opened(vlm, names) if rank is None else _adapted(vlm, names, rank, alpha)
    try:
        with make as made:
            yield made
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
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModelError('training needs peft: pip install "vlkit[lora]"') from error
    scale = 2 * rank if alpha is None else alpha
    config = LoraConfig(r=rank, lora_alpha=scale, target_modules=list(names))
    with warnings.catch_warnings():  # peft uses names that are to go
        warnings.simplefilter("ignore", FutureWarning)
        network = get_peft_model(vlm.model, config)
    config.base_model_name_or_path = vlm.name  # not a path of this machine
    # else peft asks the hub, at every checkpoint, whether the embeddings have grown
    network.save_pretrained = partial(network.save_pretrained, save_embedding_layers=False)
    try:
        yield network, partial(_largest, network)
    finally:
        network.unload()


@contextmanager
def _opened(vlm: VLM, names: Sequence[str]) -> Iterator[tuple]:
    import torch

    vlm.model.requires_grad_(False)
    chosen = {
        f"{name}.{own}": parameter.requires_grad_(True)
        for name in names
        for own, parameter in vlm.model.get_submodule(name).named_parameters()
    }
    before = {name: each.detach().to("cpu", copy=True) for name, each in chosen.items()}
    try:
        yield vlm.model, partial(_change, before, chosen)
    finally:
        with torch.no_grad():
            for name, parameter in chosen.items():
                if parameter.shape == before[name].shape:  # not so where it is spread out
                    parameter.copy_(before[name])


def _largest(network: Any, weights: Mapping[str, Any] | None = None) -> float:
    now = weights or dict(network.named_parameters())
    return max(each.abs().max().item() for name, each in now.items() if "lora_B" in name)


def _change(before: Mapping, chosen: Mapping, weights: Mapping | None = None) -> float:
    now = weights or chosen
    return max((now[n].detach().cpu() - old).abs().max().item() for n, old in before.items())
