"""Where models live: bundled, in a local folder, or in the cache of ModelScope or Hugging Face."""

from __future__ import annotations

import json
import os
import re
import struct
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkit.bundled import bundled_path
from vlkit.errors import ModelError

Hub = Literal["auto", "huggingface", "modelscope"]
HUBS = ("huggingface", "modelscope")
PROBE_SECONDS = 5.0
_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NOT_NEEDED = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.onnx", "*.h5", "*.msgpack"]


@dataclass(frozen=True)
class ModelFolder:
    """A complete model folder on disk.

    Attributes:
        path: the folder.
        name: what the user called it.
        hub: ``bundled``, ``local``, ``huggingface`` or ``modelscope``.
        revision: the commit, branch or tag asked for, or None.
        config: its ``config.json``.
    """

    path: Path
    name: str
    hub: str
    revision: str | None
    config: dict


def find_model(model: str | os.PathLike, *, hub: Hub = "auto", revision: str | None = None):
    """The folder of a model: bundled, local, cached, or downloaded from whichever hub answers.

    Args:
        model: ``"tiny"``, a folder, or a hub id such as ``Qwen/Qwen2-VL-2B-Instruct``.
        hub: ``"auto"`` looks in both caches, then asks both hubs.
        revision: commit, branch or tag on the hub.

    Returns:
        A :class:`ModelFolder`, its files checked by :func:`check_folder`.

    Raises:
        ModelError: with what to do.
    """
    name = os.fspath(model)
    if hub not in ("auto", *HUBS):
        raise ModelError(f"hub={hub!r} is unknown; hubs = ['auto', 'huggingface', 'modelscope']")
    if name == "tiny":
        path = bundled_path("tiny-qwen2-vl")
        return ModelFolder(path, name, "bundled", None, check_folder(path))
    path = Path(name).expanduser()
    if path.is_dir():
        return ModelFolder(path, name, "local", revision, check_folder(path))
    if isinstance(model, os.PathLike) or not _ID.fullmatch(name) or name.startswith("."):
        raise ModelError(
            f"{name!r} is neither a folder here nor a hub id (owner/name); check the path, or use "
            '"tiny" for the bundled model'
        )
    return _find_on_hub(name, hub, revision)


def _find_on_hub(name: str, hub: Hub, revision: str | None) -> ModelFolder:
    hubs = HUBS if hub == "auto" else (hub,)
    incomplete = None
    for each in hubs:
        path = _cached(name, each, revision)
        if path is None:
            continue
        try:
            return ModelFolder(path, name, each, revision, check_folder(path))
        except ModelError as error:
            incomplete = error
    answering = _first_answering(name, hubs)
    if answering is None:
        where = " or ".join(
            {"huggingface": "Hugging Face", "modelscope": "ModelScope"}[h] for h in hubs
        )
        found = (
            f"its download is unfinished ({incomplete})"
            if incomplete
            else "it is not on this machine"
        )
        raise ModelError(
            f"{name}: {found}, and {where} did not answer; check the network, or run "
            f"`vlkit download {name} --local-dir DIR` where there is one, copy DIR here and load "
            "it by its path"
        )
    path = download_model(name, hub=answering, revision=revision)
    return ModelFolder(path, name, answering, revision, check_folder(path))


def download_model(
    name: str,
    patterns: Sequence[str] = (),
    *,
    hub: Hub = "auto",
    revision: str | None = None,
    local_dir: str | os.PathLike | None = None,
) -> Path:
    """Download a model, or some files of it, and verify its shards against the index.

    A broken download goes on where it stopped.

    Args:
        name: hub id, ``owner/name``.
        patterns: file names or globs; all files (weights as safetensors only) where empty.
        local_dir: the folder to fill; the hub's own cache where None.

    Returns:
        The folder that holds the files.
    """
    if hub == "auto":
        hub = _first_answering(name, HUBS) or "huggingface"
    ignored = None if patterns else _NOT_NEEDED
    options = {"revision": revision, "allow_patterns": list(patterns) or None}
    options |= {
        "ignore_patterns": ignored,
        "local_dir": os.fspath(local_dir) if local_dir else None,
    }
    try:
        path = Path(_snapshot_download(hub)(name, **options))
    except Exception as error:  # each hub has its own family of errors
        raise ModelError(_explain_download(name, hub, revision, error)) from error
    if not patterns:
        check_folder(path)
    return path


def _snapshot_download(hub: str):
    if hub == "modelscope":
        from modelscope import snapshot_download
    else:
        from huggingface_hub import snapshot_download
    return snapshot_download


def _explain_download(name: str, hub: str, revision: str | None, error: Exception) -> str:
    reason = first_line(error)
    kind = type(error).__name__
    if "Gated" in kind or "401" in reason or "403" in reason:
        advice = "accept its licence on the hub and log in (`hf auth login`, `modelscope login`)"
    elif "Revision" in kind:
        advice = f"revision {revision!r} does not exist there"
    elif "NotFound" in kind or "NotExist" in kind or "404" in reason:
        advice = "check the id, or try the other hub (--hub)"
    else:
        advice = "run the same call again: it goes on where it stopped"
    return f"{name} could not be downloaded from {hub} ({reason}); {advice}"


def _cached(name: str, hub: str, revision: str | None) -> Path | None:
    """The snapshot in a hub's cache, complete or not; no network."""
    if hub == "modelscope" and not _modelscope_cache_exists():
        return None  # saves the import of modelscope
    try:
        return Path(_snapshot_download(hub)(name, revision=revision, local_files_only=True))
    except Exception:  # absent: LocalEntryNotFoundError, CacheNotFound, ValueError …
        return None


def _modelscope_cache_exists() -> bool:
    default = Path.home() / ".cache" / "modelscope"
    return Path(os.environ.get("MODELSCOPE_CACHE", default)).expanduser().is_dir()


def _first_answering(name: str, hubs: Sequence[str]) -> str | None:
    """The hub that first says that it has the model, else one that answered at all, else None."""
    pool = ThreadPoolExecutor(len(hubs))
    probes = {pool.submit(_probe, name, hub): hub for hub in hubs}
    answered = None
    try:
        for probe in as_completed(probes, timeout=PROBE_SECONDS + 1):
            status = probe.result()
            if status == 200:
                return probes[probe]
            if status is not None:
                answered = probes[probe]
    except TimeoutError:
        pass
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return answered


def _probe(name: str, hub: str) -> int | None:
    if hub == "huggingface":
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
            return None
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        url = f"{endpoint.rstrip('/')}/api/models/{name}"
    else:
        endpoint = os.environ.get("MODELSCOPE_ENDPOINT", "https://modelscope.cn")
        url = f"{endpoint.rstrip('/')}/api/v1/models/{name}"
    try:
        with urllib.request.urlopen(url, timeout=PROBE_SECONDS) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return None


def first_line(error: Exception) -> str:
    """The first line of an error's message, for errors that name a library's own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# --- what is in a folder -------------------------------------------------------------------------


def check_folder(path: Path) -> dict:
    """Check that a model folder is whole; return its ``config.json``.

    Raises:
        ModelError: no or a broken ``config.json``, a missing or cut-off shard, an unfinished
            download, or weights that are not safetensors.
    """
    config = read_config(path)
    unfinished = [*path.glob("*.incomplete"), *path.glob("*.part"), *path.glob("*.tmp")]
    shards = _shards(path)
    missing = [s.name for s in shards if not s.is_file()]
    if missing or (unfinished and not shards):
        raise ModelError(
            f"{path} is incomplete: {', '.join(missing[:3]) or unfinished[0].name} is missing or "
            f"half downloaded ({len(missing)} of {len(shards)} files); run `vlkit download` again"
        )
    if not shards:
        others = [p.name for pattern in _NOT_NEEDED for p in path.glob(pattern)]
        raise ModelError(
            f"{path} holds no safetensors weights"
            + (f", only {others[0]}; convert them with save_pretrained" if others else "")
        )
    for shard in shards:
        _check_shard(shard)
    return config


def read_config(path: Path) -> dict:
    """A folder's ``config.json``. Raises ModelError where it is missing or broken."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = ""
        if (path / "adapter_config.json").is_file():
            hint = '; it is an adapter: vlkit.load(BASE, adapter="…")'
        raise ModelError(f"{path} holds no config.json, so it is no model folder{hint}") from error
    except ValueError as error:
        raise ModelError(f"{path / 'config.json'} is not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path / 'config.json'} is not a JSON object")
    return config


def _shards(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(path.glob("model*.safetensors"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is broken ({error!r}); download it again") from error
    return [path / name for name in names]


def _check_shard(shard: Path) -> None:
    """Compare the file's size with what its header promises, without reading the tensors."""
    size = shard.stat().st_size
    try:
        with shard.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            if length > size:
                raise ValueError("header longer than the file")
            header = json.loads(stream.read(length))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{shard} is no safetensors file ({error}); download it again") from error
    if size != expected:
        raise ModelError(f"{shard} has {size:,} of {expected:,} bytes; download it again")


def available_models() -> dict[str, Path]:
    """Models on this machine: the bundled one and whole vision models in the hubs' caches."""
    found = {"tiny": bundled_path("tiny-qwen2-vl")}
    hf_home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")).expanduser()
    hf_cache = Path(os.environ.get("HF_HUB_CACHE", hf_home / "hub")).expanduser()
    scope = Path(os.environ.get("MODELSCOPE_CACHE", Path.home() / ".cache" / "modelscope"))
    for folder in sorted(hf_cache.glob("models--*--*/snapshots/*")):
        _add_if_whole(found, folder.parent.parent.name.removeprefix("models--"), folder)
    for root in (scope.expanduser(), scope.expanduser() / "hub"):
        for folder in sorted(root.glob("models/*--*/snapshots/*")):
            _add_if_whole(found, folder.parent.parent.name, folder)
    return found


def _add_if_whole(found: dict[str, Path], folder_name: str, folder: Path) -> None:
    try:
        config = check_folder(folder)
    except (ModelError, OSError):
        return
    if "vision_config" in config:
        found[folder_name.replace("--", "/", 1)] = folder
