"""Facts of machine, code and model for a run; secrets left out."""

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Collection
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlkit.media.sources import LEFT_OUT, SECRET_NAME, file_hash, hide_secrets

_SHORTEST = 8  # characters; a shorter value is part of too many harmless words


_NOT_SECRET = ("PWD", "OLDPWD")  # folders


SECRET_FIELD = re.compile(  # the name of a field with a secret, in data and in texts
    r"pass(?:word|wd|phrase|code)|\bpwd|[_.-]pwd|secret|credential|authorization|bearer|cookie"
    r"|(?<![a-z])auth(?![a-z])|(?<![a-z])jwt(?![a-z])"
    r"|(?:api|access|private|auth|account)[\s_.-]?key|token(?!s|iz)|密码|密钥|口令",
    re.IGNORECASE,
)


_NAMED = re.compile(
    rf"""(?P<name>(?:{SECRET_FIELD.pattern})[\w.-]{{0,30}}\\?["']?\s{{0,3}}(?P<sign>[=:：])\s{{0,3}}
    (?P<scheme>(?:basic|bearer|digest)\s+)?)
    (?:(?P<quoted>\\?["'])[^"'\n]{{1,400}}?(?P<quote>\\?["'])|(?P<value>[^\s"',;&<>(){{}}\[\]\\|]+))""",
    re.IGNORECASE | re.VERBOSE,
)


_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s\"'<>`\\]+", re.IGNORECASE)


_SHAPES = re.compile(
    r"\bsk-[\w-]{16,}|\bhf_\w{20,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\b(?:AKIA|ASIA|LTAI)[0-9A-Za-z]{12,}|\bAIza[\w-]{30,}|\bxox[abprs]-[\w-]{10,}"
    r"|\beyJ[\w-]{5,}\.[\w-]{8,}\.[\w-]{4,}|(?<=[Bb]earer )[\w.~+/-]{12,}=*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.DOTALL,
)


def without_secrets(value: Any, known: Collection[str] = ()) -> Any:
    """A copy of plain data with ``[left out]`` in place of secrets.

    Secrets are the values of environment variables that are named like keys, tokens or passwords,
    and the ``known`` ones, both from 8 characters on; text in the format of a well-known service's
    keys; values under a name such as ``password``, ``api-key``, ``secret`` or ``authorization``, in
    nested data or in a text; and, in URLs, passwords and the values of parameters with such names.
    """
    named = (v for k, v in os.environ.items() if k not in _NOT_SECRET and SECRET_NAME.search(k))
    secrets = {text for text in (*named, *known) if len(text) >= _SHORTEST}
    return _clean(value, sorted(secrets, key=len, reverse=True))


def _clean(value: Any, secrets: list[str], named: bool = False) -> Any:
    """A copy without secrets; ``named``: the value is under a name such as password.

    All texts under such a name are secrets; numbers only directly under it, so that the counts of
    a label "password field" stay. A "token" may always be a number.
    """
    if isinstance(value, str):
        return LEFT_OUT if named and value else _clean_text(value, secrets)
    if isinstance(value, dict):
        copy = {}
        for name, item in value.items():
            field = SECRET_FIELD.search(str(name))
            is_number = isinstance(item, int) and not isinstance(item, bool)
            hidden = field and is_number and "token" not in field[0].lower()
            cleaned = LEFT_OUT if hidden else _clean(item, secrets, named or bool(field))
            copy[_clean(name, secrets)] = cleaned
        return copy
    if isinstance(value, list | tuple):
        if all(isinstance(item, int | float) for item in value):  # such as hundreds of token ids
            return list(value)
        return [_clean(item, secrets, named) for item in value]
    return value


def _clean_text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, LEFT_OUT)
    if "://" in text:
        text = _URL.sub(lambda match: hide_secrets(match[0]), text)
    return _NAMED.sub(_hide_named, _SHAPES.sub(LEFT_OUT, text))


def _hide_named(match: re.Match) -> str:
    """``password=hunter2`` without its value; ``password: see below`` stays."""
    value = match["value"]  # None where it is quoted
    if value and not match["scheme"]:
        has_digit = len(value) >= 6 and any(map(str.isdigit, value))
        is_assigned = match["sign"] == "=" and len(value) > 3
        if not has_digit and not is_assigned:
            return match[0]
    return match["name"] + (match["quoted"] or "") + LEFT_OUT + (match["quote"] or "")


WHOLE_BYTES = 2 * 10**9  # of a folder's weights; up to this size whole files are hashed


SAMPLES, SAMPLE_BYTES = 16, 1 << 16  # of each file of a larger folder


def weights_hash(folder: Path) -> dict[str, str]:
    """The ``sha256`` of a folder's weights, quick for large models too, and what it is ``of``.

    ``"files"``: the whole files, up to 2 GB together. ``"hub"``: the hub's own hashes of the files
    (its cache names files by them). ``"headers"``: each file's size, header (names, types and
    shapes of the tensors) and 16 samples of 64 KiB, which differ after any further training.
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    sums, of = [_hub_sum(file) for file in files], "hub"
    if not all(sums):
        whole = sum(file.stat().st_size for file in files) <= WHOLE_BYTES
        sums = [file_hash(file) if whole else _sample_hash(file) for file in files]
        of = "files" if whole else "headers"
    lines = [f"{file.name} {digest}" for file, digest in zip(files, sums, strict=True)]
    return {"sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(), "of": of}


def _hub_sum(file: Path) -> str | None:
    """Hugging Face's cache links each file to a blob that is named by its sha256."""
    name = os.path.basename(os.readlink(file)) if file.is_symlink() else ""
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


def _sample_hash(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        digest = hashlib.sha256(f"{size} {length}".encode() + file.read(min(length, 1 << 27)))
        for index in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * index // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()


PACKAGES = (
    "vlkit", "torch", "torchvision", "transformers", "tokenizers", "accelerate", "peft",
    "bitsandbytes", "flash-attn", "qwen-vl-utils", "openai", "numpy", "pillow", "av",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Python, packages and processor; nothing about the user, no environment variables."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "packages": {name: number for name in PACKAGES if (number := package_version(name))},
    }


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """``commit`` and ``dirty`` (tracked files differ from it) of a folder; None outside of git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": changes is None or bool(changes)}


def model_facts(vlm: Any) -> dict[str, Any]:
    """The facts to load the same model again, and to check that it is the same."""
    limit = getattr(vlm, "max_image_tokens", None)
    facts = {"name": vlm.name, "family": vlm.family, "max_image_tokens": limit}
    folder = getattr(vlm, "folder", None)
    if folder is None:
        return facts | {"hosted": dict(getattr(vlm, "identity", {}))}
    adapter = adapter_facts(vlm.adapter) if vlm.adapter else None
    is_cached = folder.path.parent.name == "snapshots"  # of a hub; its name is the commit
    commit = folder.path.name if is_cached else None
    place = {"hub": folder.hub, "revision": folder.revision, "commit": commit}
    loaded = {"weights": weights_hash(folder.path), "adapter": adapter}
    return facts | place | loaded | _network_facts(vlm.model)


def adapter_facts(name: str) -> dict[str, Any]:
    """An adapter's name and the hash of its weights, where it is a folder."""
    path = Path(name).expanduser()
    return {"name": name, **(weights_hash(path) if path.is_dir() else {})}


def memory_facts(vlm: Any) -> dict[str, int]:
    """Bytes of the process's memory, and of its peak on all GPUs."""
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
    bits = [n for n in ("4bit", "8bit") if getattr(quantization, f"load_in_{n}", False)]
    facts = {
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": str(network.device),
        "attention": network.config._attn_implementation,
        "quantize": bits[0] if bits else getattr(network, "packed_bits", None),
        "parameters": network.num_parameters(),
    }
    if network.device.type == "cuda":
        import torch

        facts["gpu"] = torch.cuda.get_device_name(network.device)
        facts["cuda"] = torch.version.cuda
    return facts


def package_version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _cpu_name() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        names = (line.partition(":")[2] for line in file if line.startswith("model name"))
        return next(names, "").strip() or platform.processor()
    return platform.processor()


def _git(folder: Path | None, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", *arguments]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(
            command, cwd=folder, stderr=subprocess.DEVNULL, text=True, timeout=20
        ).strip()
    return None
