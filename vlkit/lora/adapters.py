"""An adapter handed on to PEFT, vLLM and ms-swift."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vlkit.errors import ModelError
from vlkit.files import whole_folder
from vlkit.models.adapters import WEIGHTS, check_name, family_of_adapter, find_marks
from vlkit.models.hub import check_shard, read_model_file
from vlkit.models.load import load_here

CONFIG = "adapter_config.json"


VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that its --max-lora-rank may have


_README = """# A LoRA adapter for {base}

Rank {rank}, alpha {alpha:g}, {layers} layers.

PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "{name}")
```

{vllm}

ms-swift (`args.json` tells it the model):

```sh
swift infer --adapters {name}
```
"""


_SERVE = """vLLM:

```sh
vllm serve {base} --enable-lora --max-lora-rank {most} --lora-modules {name}=./{name}
```"""


_MERGE = """vLLM reads {why} of an adapter not everywhere; merge this one, and serve what comes out:

```python
import vlkit

vlkit.lora.merge("{name}", "merged", model="{base}")
```"""


def export_adapter(
    adapter: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    model: str | os.PathLike | None = None,
) -> Path:
    """Write an adapter alone, as PEFT, vLLM and ms-swift read it, with the commands for it.

    Beside PEFT's two files there are ``args.json``, which tells ms-swift the base model,
    ``README.md`` with the commands and, from a run of :func:`vlkit.lora.train`,
    ``adapter_base.json``, by which ``load`` knows the base again. Checkpoints and the state of the
    training stay behind.

    Args:
        adapter: the folder of an adapter, such as the ``output_dir`` of a run.
        folder: a new or empty one; it appears whole or not at all.
        model: what others call the base, such as ``Qwen/Qwen2-VL-2B-Instruct``; by default what
            the adapter itself names.

    Returns:
        The folder.

    Raises:
        ModelError: there is no whole adapter, nothing tells what it was made for, or ``model`` is
            of another generation.
        VlkitError: the folder is in use.
    """
    named = {"adapter": adapter, "folder": folder}
    for argument, name in (named if model is None else named | {"model": model}).items():
        check_name(name, argument)
    source, target = Path(adapter).expanduser(), Path(folder).expanduser()
    config = _read_config(source)
    base, family = _base_of(source, config, model)
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    with whole_folder(target) as written:
        for file in (source / WEIGHTS, find_marks(source)):
            if file is not None:
                shutil.copyfile(file, written / file.name)
        _write(written / CONFIG, config)
        _write(written / "args.json", _swift_arguments(base, family))
        with safe_open(source / WEIGHTS, "np") as weights:
            text = _readme(config, list(weights.keys()), base, target.name)
        (written / "README.md").write_text(text, encoding="utf-8")
    return target


def _read_config(source: Path) -> dict:
    if not (source / CONFIG).is_file() or not (source / WEIGHTS).is_file():
        raise ModelError(f"{source} holds no adapter: {CONFIG} and {WEIGHTS} are needed")
    check_shard(source / WEIGHTS)
    config = read_model_file(source / CONFIG)
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), int | float):
            raise ModelError(
                f"{source / CONFIG} is no LoRA adapter's: {name} is {config.get(name)!r}"
            )
    return config


def _base_of(source: Path, config: dict, model: str | os.PathLike | None) -> tuple[str, str]:
    """What others call the base, and its family. Raises ModelError."""
    own = str(config.get("base_model_name_or_path") or "")
    base = own if model is None else os.fspath(model)
    made_for = family_of_adapter(config)
    named = family_of_adapter({"base_model_name_or_path": base})
    family = made_for or named
    if base in ("", "tiny") or family is None:
        raise ModelError(
            f"{source} was made for {base!r}, which other programs do not know by that name; pass "
            "model=, a folder or hub id"
        )
    if named not in (None, family):
        raise ModelError(
            f"{source} was made for {own!r} ({family}), not for {base!r} ({named}); pass another "
            "name of the same model"
        )
    return base, family


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _swift_arguments(base: str, family: str) -> dict[str, Any]:
    """What ``swift infer --adapters`` takes from a training of its own."""
    return {
        "model": base,
        "model_type": family,
        "template": family,
        "task_type": "causal_lm",
        "train_type": "lora",  # before version 4
        "tuner_type": "lora",
        "swift_version": "4.0.0",  # whose keys these are; else it leaves model_type out
    }


def _readme(config: dict, weights: list[str], base: str, name: str) -> str:
    if why := _unread_by_vllm(config, weights):
        vllm = _MERGE.format(why=why, name=name, base=base)
    else:
        most = min(rank for rank in VLLM_RANKS if rank >= config["r"])
        vllm = _SERVE.format(base=base, most=most, name=name)
    told = {"rank": config["r"], "alpha": config["lora_alpha"], "base": base, "name": name}
    layers = sum("lora_A" in weight for weight in weights)
    return _README.format(layers=layers, vllm=vllm, **told)


def _unread_by_vllm(config: dict, weights: list[str]) -> str:
    """What keeps vLLM's loader from using the whole adapter, or "".

    https://docs.vllm.ai/en/latest/features/lora.html
    """
    if any(".visual." in weight for weight in weights):
        return "the vision part"
    if config.get("modules_to_save"):
        return "whole layers"
    if config.get("use_dora"):
        return "DoRA's magnitudes"
    return f"rank {config['r']}" if config["r"] > VLLM_RANKS[-1] else ""


def merge(
    adapter: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    model: str | os.PathLike = "tiny",
    dtype: str = "auto",
    device: str = "cpu",
) -> Path:
    """Write a model with an adapter's changes in its weights, for AutoModel, vLLM or ``load``.

    Args:
        adapter: folder or hub id.
        folder: a new or empty one; it appears whole or not at all.
        model: the base that the adapter was made for, as for :func:`vlkit.load`.
        dtype: of the weights written, as for :func:`vlkit.load`.
        device: where they are merged.

    Returns:
        The folder.

    Raises:
        ModelError: the adapter was made for another model.
        VlkitError: the folder is in use.
    """
    for argument, name in {"adapter": adapter, "folder": folder, "model": model}.items():
        check_name(name, argument)
    target = Path(folder).expanduser()
    with whole_folder(target) as written:
        vlm = load_here(model, adapter=adapter, dtype=dtype, device=device)
        vlm.model.merge_and_unload().save_pretrained(written)
        vlm.processor.save_pretrained(written)
    return target
