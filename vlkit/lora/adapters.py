"""An adapter for other programs: exported for PEFT, vLLM and ms-swift, or merged into a model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from vlkit.errors import ModelError
from vlkit.files import whole_folder
from vlkit.models.adapters import WEIGHTS, check_name, family_of_adapter, find_marks
from vlkit.models.hub import check_shard, read_model_file
from vlkit.models.load import load_here

CONFIG = "adapter_config.json"


def export_adapter(
    adapter: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    model: str | os.PathLike | None = None,
) -> Path:
    """Write an adapter alone, as PEFT, vLLM and ms-swift read it (docs/howto.md has the commands).

    Besides PEFT's two files it writes ``args.json``, which names the base model for ms-swift, and,
    from a run of :func:`vlkit.lora.train`, ``adapter_base.json``, by which ``load`` recognises the
    base. Checkpoints and the state of the training are left out.

    Args:
        adapter: the folder of an adapter, such as the ``output_dir`` of a run.
        folder: a new or empty one; it appears whole or not at all.
        model: the base's name for other programs, such as ``Qwen/Qwen2-VL-2B-Instruct``; by default
            the name in the adapter.

    Returns:
        The folder.

    Raises:
        ModelError: the adapter is incomplete, its base is unknown, or ``model`` is of another
            generation.
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
    return target


def _read_config(source: Path) -> dict:
    if not (source / CONFIG).is_file() or not (source / WEIGHTS).is_file():
        raise ModelError(f"{source} has no adapter: {CONFIG} and {WEIGHTS} are needed")
    check_shard(source / WEIGHTS)
    config = read_model_file(source / CONFIG)
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), int | float):
            raise ModelError(
                f"{source / CONFIG} is not of a LoRA adapter: {name} is {config.get(name)!r}"
            )
    return config


def _base_of(source: Path, config: dict, model: str | os.PathLike | None) -> tuple[str, str]:
    """The base's name for other programs, and its family. Raises ModelError."""
    trained_on = str(config.get("base_model_name_or_path") or "")
    base = trained_on if model is None else os.fspath(model)
    adapter_family = family_of_adapter(config)
    base_family = family_of_adapter({"base_model_name_or_path": base})
    family = adapter_family or base_family
    if base in ("", "tiny") or family is None:
        raise ModelError(
            f"{source} was made for {base!r}, a name that other programs do not know; pass model=, "
            "a folder or hub id"
        )
    if base_family not in (None, family):
        raise ModelError(
            f"{source} was made for {trained_on!r} ({family}), not for {base!r} ({base_family}); "
            "pass another name of the same model"
        )
    return base, family


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _swift_arguments(base: str, family: str) -> dict[str, Any]:
    """What ``swift infer --adapters`` reads from a training by ms-swift."""
    return {
        "model": base,
        "model_type": family,
        "template": family,
        "task_type": "causal_lm",
        "train_type": "lora",  # before version 4
        "tuner_type": "lora",
        "swift_version": "4.0.0",  # without it model_type is not read
    }


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
