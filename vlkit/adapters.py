"""Adapters: attached only to the model that they were made for."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path

from vlkit.errors import ModelError
from vlkit.families import family_of
from vlkit.hubs import ModelFolder, download_model, first_line, read_config


def attach_adapter(network, adapter: str | os.PathLike, folder: ModelFolder, family: str):
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError('adapter= needs peft: pip install "vlkit[lora]"') from error
    path = Path(adapter).expanduser()
    if not path.is_dir():
        if isinstance(adapter, os.PathLike) or not re.fullmatch(r"[\w.-]+/[\w.-]+", adapter):
            raise ModelError(f"adapter {os.fspath(adapter)!r} is neither a folder nor a hub id")
        path = download_model(adapter, ["adapter_*"])
    config = _read_adapter_config(path)
    _refuse_other_base(config, path, folder, family)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            attached = PeftModel.from_pretrained(network, path)
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(
            f"adapter {path} does not fit {folder.name}: {first_line(error)}"
        ) from error
    if any("missing adapter keys" in str(warning.message) for warning in caught):
        raise ModelError(
            f"adapter {path} does not fit {folder.name}: its weights belong to other layers; "
            f"it was made for {config.get('base_model_name_or_path')!r}"
        )
    return attached


def _read_adapter_config(path: Path) -> dict:
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"adapter {path} has no readable adapter_config.json") from error
    if not (path / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"adapter {path} has no adapter_model.safetensors; save or download it again"
        )
    return config


def _refuse_other_base(config: dict, path: Path, folder: ModelFolder, family: str) -> None:
    """An adapter of another generation often loads without a word; its own records tell."""
    base = str(config.get("base_model_name_or_path") or "")
    made_for = _family_named(base) or _family_of_class(config.get("auto_mapping") or {})
    if made_for is None and (Path(base) / "config.json").is_file():
        made_for = family_of(read_config(Path(base)), base)
    if made_for not in (None, family):
        raise ModelError(
            f"adapter {path} was made for {base or made_for!r} ({made_for}), not for "
            f"{folder.name} ({family}); load that model"
        )


def _family_named(name: str) -> str | None:
    match = re.search(r"Qwen(2\.5|2|3\.5|3)[-_]?(VL)?", name, re.IGNORECASE)
    if not match or not (match[2] or match[1] == "3.5"):
        return None
    return {"2": "qwen2_vl", "2.5": "qwen2_5_vl", "3": "qwen3_vl", "3.5": "qwen3_5"}[match[1]]


def _family_of_class(auto_mapping: dict) -> str | None:
    name = str(auto_mapping.get("base_model_class", ""))
    prefixes = {"Qwen2_5_VL": "qwen2_5_vl", "Qwen2VL": "qwen2_vl", "Qwen3VL": "qwen3_vl"}
    prefixes["Qwen3_5"] = "qwen3_5"
    return next((f for prefix, f in prefixes.items() if name.startswith(prefix)), None)
