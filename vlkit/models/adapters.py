"""LoRA adapters found, checked, attached."""

import json
import logging
import os
import random
import re
import warnings
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from vlkit.errors import ModelError, needs_package, one_line, warn_user
from vlkit.files import write_whole
from vlkit.models import hub
from vlkit.models.families import family_named, family_of

MARKS = "adapter_base.json"  # downloads of an adapter fetch adapter_*
WEIGHTS = "adapter_model.safetensors"
_MARKED = 64  # weights of which an adapter's marks have values, besides the embeddings
_RELATIVE = 2**-8  # twice the change by rounding to bfloat16
_ABSOLUTE = 1e-7  # near float16's smallest numbers
# names before transformers 4.52, and of a language model that was trained alone, to today's; PEFT
# takes its own prefix away first
_RENAMED = {
    r"^(?:model\.|language_model\.(?:model\.)?)?(layers|embed_tokens|norm)\.": (
        r"model.language_model.\1."
    ),
    r"^visual\.": "model.visual.",
}
# of a training, without effect on answers
_STATE = re.compile(r"adapter_model\.bin|(training_args|optimizer|scheduler|scaler|rng_state).*")

# peft imports bitsandbytes, which on a CPU asks a hub for a kernel and warns that there is none
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


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
    names = embeddings + random.Random(0).sample(others, min(_MARKED, len(others)))
    write_whole(folder / MARKS, json.dumps({name: values[name] for name in names}) + "\n")


def find_marks(path: Path) -> Path | None:
    """An adapter's file of marks, for a checkpoint its run's; None if vlkit did not make it."""
    folders = [path, path.parent] if path.name.startswith("checkpoint-") else [path]
    return next((folder / MARKS for folder in folders if (folder / MARKS).is_file()), None)


def check_base(path: Path, network: Any, folder: hub.ModelFolder) -> None:
    """Refuse an adapter made for other weights; one without marks passes.

    Values may differ as much as by rounding to bfloat16 or float16.

    Args:
        path: the adapter's folder.
        network: the transformers model, with or without adapters.
        folder: the model's, for messages.

    Raises:
        ModelError: a weight differs from when the adapter was made, or the marks are broken.
    """
    file = find_marks(path)
    if file is None:
        return
    marks, values = hub.read_model_file(file), base_values(network)
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
        base = hub.read_model_file(path / "adapter_config.json").get("base_model_name_or_path")
        raise ModelError(
            f"adapter {path} was made for {base!r}, whose weights were not those of {folder.name} "
            f"({min(changed)}); load the model that it was made for"
        )


def _plain(name: str) -> str:
    """A weight's name in today's model without adapters."""
    for part in ("base_model.model.", "base_layer.", "original_module."):
        name = name.replace(part, "")
    for pattern, replacement in _RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name


def _is_plain(weight: Any) -> bool:
    import torch

    is_float = weight.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    is_whole = type(weight) is torch.nn.Parameter  # quantized ones have other classes
    return is_float and is_whole and weight.device.type != "meta" and weight.numel() > 0


def _two_values(weight: Any) -> list[float]:
    flat = weight.detach().flatten()
    return flat[[flat.numel() // 3, 2 * flat.numel() // 3]].tolist()


def check_name(name: Any, argument: str) -> None:
    """Raises ModelError where a folder's or model's name is empty, or neither text nor Path."""
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise ModelError(f"{argument}={name!r} must name a folder or a model, as text or Path")


def find_adapter(adapter: str | os.PathLike, folder: hub.ModelFolder, family: str) -> Path:
    """The adapter's folder, checked as far as possible to be made for this model.

    Raises:
        ModelError: peft or the adapter is missing, or it was made for another generation.
    """
    with needs_package("adapter= needs peft", "lora", kind=ModelError):
        import peft  # noqa: F401
    check_name(adapter, "adapter")
    path = Path(adapter).expanduser()
    if not path.is_dir():
        if isinstance(adapter, os.PathLike) or not hub.HUB_ID.fullmatch(adapter):
            raise ModelError(f"adapter {os.fspath(adapter)!r} is neither a folder nor a hub id")
        cached = filter(None, (hub.cached_folder(adapter, name) for name in hub.HUBS))
        complete = next((folder for folder in cached if (folder / WEIGHTS).is_file()), None)
        path = complete or hub.download_model(adapter, ["adapter_*"])
    config = hub.read_model_file(path / "adapter_config.json")
    if not (path / WEIGHTS).is_file():
        raise ModelError(f"adapter {path} has no {WEIGHTS}; save or download it again")
    hub.check_shard(path / WEIGHTS)
    _refuse_other_base(config, path, folder, family)
    return path


def attach_adapter(network, path: Path, folder: hub.ModelFolder, *, name: str = "default"):
    """The network with the adapter's weights in place.

    Args:
        network: a model, or one that has adapters of other names.
        path: the adapter's folder.
        folder: the model's, for messages.
        name: of the adapter in the network.

    Raises:
        ModelError: the weights do not belong to this network's layers, have other shapes, or were
            trained for a network with other weights.
    """
    from peft import PeftModel

    check_base(path, network, folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its warnings are errors below
            attached = network
            if not isinstance(network, PeftModel):
                attached = PeftModel.from_pretrained(network, path, name, key_mapping=_RENAMED)
            # lists the weights that do not fit
            result = attached.load_adapter(path, name, key_mapping=_RENAMED)
    except Exception as error:  # peft raises any exception
        raise ModelError(
            f"adapter {path} does not fit {folder.name}: {one_line(error)}; load the model that "
            "it was made for"
        ) from error
    stray = [*result.missing_keys, *result.unexpected_keys]
    if stray:
        raise ModelError(
            f"adapter {path} does not fit {folder.name}: {len(stray)} of its weights are for other "
            f"layers ({stray[0]} …); load the model that it was made for"
        )
    return attached


def load_weights_beside(network: Any, path: Path, folder: hub.ModelFolder) -> None:
    """Load the base's own weights that were trained with an adapter and saved next to it.

    ms-swift writes such a ``vit.safetensors``. Files that are not safetensors, such as the
    ``non_lora_state_dict.bin`` of Qwen2-VL-Finetune, are named in a warning.

    Args:
        network: with the adapter.
        path: the adapter's folder.
        folder: the model's, for messages.

    Raises:
        ModelError: a file is damaged, or its weights are not of this model.
    """
    import torch
    from safetensors.torch import load_file

    kinds = (".safetensors", ".bin", ".pt", ".pth")
    files = [file for file in sorted(path.iterdir()) if file.suffix in kinds]
    others = [f for f in files if f.name != WEIGHTS and not _STATE.fullmatch(f.name)]
    unread = [file.name for file in others if file.suffix != ".safetensors"]
    if unread:
        warn_user(
            f"adapter {path}: {', '.join(unread)} may contain trained weights, but only "
            "safetensors are loaded; save it as safetensors, or merge it where it was made"
        )
    weights = {_plain(name): weight for name, weight in network.named_parameters()}
    for file in (file for file in others if file.suffix == ".safetensors"):
        hub.check_shard(file)
        for name, value in load_file(file).items():
            weight = weights.get(_plain(name))
            if weight is None or weight.shape != value.shape:
                raise ModelError(
                    f"{file}: {name} of shape {tuple(value.shape)} is not a weight of "
                    f"{folder.name}; load the model that it was made for, unquantized"
                )
            with torch.no_grad():
                weight.copy_(value)


def _refuse_other_base(config: dict, path: Path, folder: hub.ModelFolder, family: str) -> None:
    """An adapter of another generation often loads without an error; its config names its base.

    The name of a folder alone proves nothing: it is warned of, and weights and shapes decide.
    """
    made_for = family_of_adapter(config)
    if made_for in (None, family):
        return
    base = str(config.get("base_model_name_or_path") or made_for)
    text = f"adapter {path} was made for {base!r} ({made_for}), not for {folder.name} ({family})"
    if config.get("auto_mapping") or hub.HUB_ID.fullmatch(base) or os.path.isdir(base):
        raise ModelError(f"{text}; load the model that it was made for")
    warn_user(f"{text}, by its folder's name; its weights fit if no error follows")


def family_of_adapter(config: dict) -> str | None:
    """The family that an adapter was made for, or None if its config does not name one."""
    base = str(config.get("base_model_name_or_path") or "")
    mapping = config.get("auto_mapping")
    trained = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    with suppress(ModelError):
        return family_of(hub.read_config(Path(base)), base)
    return family_named(str(trained)) or family_named(PurePath(base.replace("\\", "/")).name)
