"""Which layers get an adapter, and how many parameters that makes in each part of the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vlkit.errors import VlkitError
from vlkit.inputs import check_loaded
from vlkit.models import VLM

PARTS = ("language model", "vision tower", "merger")
TARGETS = {"language": PARTS[:1], "vision": PARTS[1:], "all": PARTS}


@dataclass(frozen=True)
class Part:
    """What is trained in one part of the model.

    Attributes:
        name: of ``PARTS``.
        modules: the layers that get an adapter (or, without one, are trained whole).
        trained: parameters that are trained there.
        parameters: that the part has, without adapters.
    """

    name: str
    modules: tuple[str, ...]
    trained: int
    parameters: int


def plan_parts(vlm: VLM, target: str, rank: int | None) -> tuple[Part, ...]:
    """What is trained in each part of a model.

    Args:
        vlm: a model without an adapter.
        target: ``language``, ``vision`` (tower and merger), ``all``, or a regular expression that
            matches whole names of layers, as PEFT's ``target_modules``.
        rank: of the adapters; None trains the layers themselves.

    Raises:
        VlkitError: a target that matches no linear layer, or a rank below 1.
    """
    check_loaded(vlm)
    if hasattr(vlm.model, "peft_config"):
        raise VlkitError(f"{vlm.name} has an adapter already; load it without adapter=")
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise VlkitError(f"rank={rank!r} must be a whole number, 1 or more, or None")
    chosen = find_modules(vlm.model, target)
    sizes = dict.fromkeys(PARTS, 0)
    for name, parameter in vlm.model.named_parameters():
        sizes[part_of(name)] += _size(parameter)
    parts = []
    for part in PARTS:
        own = {name: layer for name, layer in chosen.items() if part_of(name) == part}
        trained = sum(_trained(layer, rank) for layer in own.values())
        parts.append(Part(part, tuple(own), trained, sizes[part]))
    return tuple(parts)


def find_modules(model: Any, target: str) -> dict[str, Any]:
    """The linear layers that a target names, in the model's order; never the output layer.

    Raises:
        VlkitError: none, or a regular expression that is malformed.
    """
    import torch

    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.rpartition(".")[2] != "lm_head"
    }
    if isinstance(target, str) and target in TARGETS:
        return {n: layer for n, layer in layers.items() if part_of(n) in TARGETS[target]}
    try:
        pattern = re.compile(target)
    except (re.error, TypeError) as error:
        raise VlkitError(
            f"target={target!r} is neither of {list(TARGETS)} nor a regular expression ({error})"
        ) from None
    chosen = {name: layer for name, layer in layers.items() if pattern.fullmatch(name)}
    if not chosen:
        example = next(iter(layers), "")
        raise VlkitError(
            f"target={target!r} matches no linear layer; choose of {list(TARGETS)}, or match whole "
            f"names such as {example!r}"
        )
    return chosen


def part_of(name: str) -> str:
    """Of ``PARTS``, the one in which a layer or parameter of this name stands."""
    if ".visual." not in f".{name}":
        return PARTS[0]
    return PARTS[2] if "merger" in name else PARTS[1]


def _trained(layer: Any, rank: int | None) -> int:
    if rank is None:
        return sum(_size(parameter) for parameter in layer.parameters())
    return rank * (layer.in_features + layer.out_features)


def _size(parameter: Any) -> int:
    """A parameter's values; a quantized one packs two in a byte and knows its shape."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()
