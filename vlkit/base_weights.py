"""What an adapter was trained on: a few values of its base's weights, written beside it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlkit.datasets.files import write_whole
from vlkit.errors import ModelError
from vlkit.folders import read_json
from vlkit.hubs import ModelFolder

MARKS = "adapter_base.json"  # hubs are asked for adapter_*
_WEIGHTS = 64
_RELATIVE = 2**-8  # twice what rounding to bfloat16 changes
_ABSOLUTE = 1e-7  # of float16's smallest numbers
Values = Mapping[str, list[float]]  # of each weight, by its name in the model


def base_values(network: Any) -> dict[str, list[float]]:
    """Two values of each weight, by its name in the model without adapters.

    Adapters' own weights, quantized layers and weights that are not in memory are left out.

    Args:
        network: the transformers model, with or without adapters.
    """
    return {
        _plain(name): _two_values(weight)
        for name, weight in network.named_parameters()
        if "lora_" not in name and ".modules_to_save." not in name and _is_plain(weight)
    }


def write_marks(network: Any, folder: Path) -> None:
    """Write what :func:`check_base` compares: values of the embeddings and of 64 other weights.

    Args:
        network: the base.
        folder: the adapter's.
    """
    values = base_values(network)
    embeddings = [name for name in values if "embed" in name]  # never quantized
    others = sorted(values.keys() - embeddings)
    names = embeddings + random.Random(0).sample(others, min(_WEIGHTS, len(others)))
    write_whole(folder / MARKS, json.dumps({name: values[name] for name in names}) + "\n")


def find_marks(path: Path) -> Path | None:
    """An adapter's marks, of a checkpoint those of its run; None for one made by others."""
    places = [path, path.parent] if path.name.startswith("checkpoint-") else [path]
    return next((each / MARKS for each in places if (each / MARKS).is_file()), None)


def check_base(path: Path, network: Any, folder: ModelFolder) -> None:
    """:func:`check_values` of a network."""
    if find_marks(path):
        check_values(path, base_values(network), folder)


def check_values(path: Path, values: Values, folder: ModelFolder) -> None:
    """Refuse an adapter of other weights; one without marks passes.

    Values may differ by what rounding to bfloat16 or float16 makes of them.

    Args:
        path: the adapter's folder.
        values: from :func:`base_values`.
        folder: the model's, for messages.

    Raises:
        ModelError: a weight is another than when the adapter was made, or the marks are broken.
    """
    file = find_marks(path)
    marks = read_json(file) if file else {}
    try:
        changed = [
            f"{name}: {then:.4g}, here {now:.4g}"
            for name in marks.keys() & values.keys()
            for then, now in zip(marks[name], values[name], strict=True)
            if abs(then - now) > _RELATIVE * abs(then) + _ABSOLUTE
        ]
    except (TypeError, ValueError) as error:
        raise ModelError(f"{file} is broken ({error}); copy it again, or delete it") from error
    if changed:
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path")
        raise ModelError(
            f"adapter {path} was made for {base!r}, whose weights were not those of {folder.name} "
            f"({min(changed)}); load the model that it was made for"
        )


def _plain(name: str) -> str:
    for part in ("base_model.model.", "base_layer.", "original_module."):
        name = name.replace(part, "")
    return name


def _is_plain(weight: Any) -> bool:
    import torch

    known = weight.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    ours = type(weight) is torch.nn.Parameter  # quantized ones have classes of their own
    return known and ours and weight.device.type != "meta" and weight.numel() > 0


def _two_values(weight: Any) -> list[float]:
    flat = weight.detach().flatten()
    return flat[[flat.numel() // 3, 2 * flat.numel() // 3]].tolist()
