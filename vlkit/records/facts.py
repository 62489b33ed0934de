"""What surrounds an answer: the machine, the packages, the state of the code, the model."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlkit.records.weights import weights_hash

PACKAGES = (
    "vlkit", "torch", "torchvision", "transformers", "tokenizers", "accelerate", "peft",
    "bitsandbytes", "flash-attn", "qwen-vl-utils", "openai", "numpy", "pillow", "av",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Python, packages and processor; nothing of the user or of the environment variables."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """``commit`` and ``dirty`` (tracked files differ from it) of a folder; None outside of git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": changes is None or bool(changes)}


def model_facts(vlm: Any) -> dict[str, Any]:
    """What is needed to load the same model again and to know that it is the same."""
    facts = {
        "name": vlm.name,
        "family": vlm.family,
        "max_image_tokens": getattr(vlm, "max_image_tokens", None),
    }
    folder = getattr(vlm, "folder", None)
    if folder is None:
        return facts | {"hosted": dict(getattr(vlm, "identity", {}))}
    adapter = adapter_facts(vlm.adapter) if vlm.adapter else None
    place = {"hub": folder.hub, "revision": folder.revision, "commit": _commit(folder.path)}
    return facts | place | {
        "weights": weights_hash(folder.path), "adapter": adapter, **_network_facts(vlm.model)
    }  # fmt: skip


def adapter_facts(name: str) -> dict[str, Any]:
    """An adapter's name and the hash of its weights, where it is a folder."""
    path = Path(name).expanduser()
    return {"name": name, **(weights_hash(path) if path.is_dir() else {})}


def memory_facts(vlm: Any) -> dict[str, int]:
    """Bytes that the process holds, and the most that it ever held on the model's GPUs."""
    import psutil

    facts = {"process": psutil.Process().memory_info().rss}
    device = getattr(getattr(vlm, "model", None), "device", None)
    if getattr(device, "type", "") == "cuda":
        import torch

        gpus = range(torch.cuda.device_count())
        facts["gpu_peak"] = sum(torch.cuda.max_memory_allocated(index) for index in gpus)
    return facts


def _network_facts(network: Any) -> dict[str, Any]:
    quantization = getattr(network.config, "quantization_config", None)
    bits = (
        getattr(quantization, "load_in_4bit", False),
        getattr(quantization, "load_in_8bit", False),
    )
    facts = {
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": str(network.device),
        "attention": network.config._attn_implementation,
        "quantize": "4bit" if bits[0] else "8bit" if bits[1] else None,
        "parameters": network.num_parameters(),
    }
    if network.device.type == "cuda":
        import torch

        facts["gpu"] = torch.cuda.get_device_name(network.device)
        facts["cuda"] = torch.version.cuda
    return facts


def _commit(path: Path) -> str | None:
    """The commit under which a hub's cache keeps a folder."""
    return path.name if path.parent.name == "snapshots" else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.partition(":")[2] for line in file if line.startswith("model name"))
            return next(names, "").strip() or platform.processor()
    except OSError:
        return platform.processor()


def _git(folder: Path | None, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=folder, capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
