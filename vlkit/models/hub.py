"""Where a model's folder comes from (local, cache, hub), and its checks."""

import errno
import fnmatch
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal

from vlkit.bundled import bundled_path
from vlkit.errors import ModelError, VlkitError, check_choice, one_line
from vlkit.files import read_json
from vlkit.models.families import family_of

Hub = Literal["auto", "huggingface", "modelscope"]

HUBS = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name
PROBE_SECONDS = 5.0  # how long a hub may take to say whether it has a model
NOT_NEEDED = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.onnx", "*.h5", "*.msgpack"]


def check_folder(path: Path) -> dict:
    """Check that a model folder is whole; return its ``config.json``.

    Raises:
        ModelError: no or a broken ``config.json``, a missing or cut-off shard, an unfinished
            download, or weights that are not safetensors (or, of Qwen-VL, PyTorch's ``.bin``).
    """
    config = read_config(path)
    shards = weight_files(path)
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        files = f"{missing[0]} is missing ({len(missing)} of {len(shards)} weight files are)"
        raise ModelError(f"{path} is incomplete: {files}; run `vlkit download` again")
    if not shards:
        raise ModelError(f"{path} contains no safetensors weights{_explain_missing(path)}")
    for shard in shards:
        check_shard(shard)
    return config


def _explain_missing(path: Path) -> str:
    # where modelscope, huggingface_hub with local_dir, and its cache keep unfinished files
    places = (path, path / ".cache" / "huggingface" / "download", path.parent.parent / "blobs")
    if any(file for place in places for file in place.glob("*.incomplete")):
        return ": its download is unfinished; run `vlkit download` again"
    others = [file.name for kind in NOT_NEEDED for file in sorted(path.glob(kind))]
    if others:
        return f", only {others[0]}; convert it with save_pretrained, or download safetensors"
    return "; download it again"


def read_config(path: Path) -> dict:
    """A folder's ``config.json``. Raises ModelError where it is missing or broken."""
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise ModelError(f'{path} is an adapter, not a model: vlkit.load(BASE, adapter="…")')
    return read_model_file(path / "config.json")


def read_model_file(file: Path) -> dict:
    """The object in a model folder's JSON file. Raises ModelError."""
    if not file.is_file():
        raise ModelError(f"{file.parent} contains no {file.name}; check the path or download it")
    try:
        content = read_json(file)
    except VlkitError as error:
        raise ModelError(f"{error}; download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} is not a JSON object; download it again")
    return content


def weight_files(path: Path) -> list[Path]:
    """The weight files that a folder should contain, whether they are there or not."""
    found = _shards(path, "model", ".safetensors")
    return found or (_shards(path, "pytorch_model", ".bin") if _is_pickled(path) else [])


def _is_pickled(path: Path) -> bool:
    """Whether this is Qwen-VL, the only one of the family published before safetensors."""
    config = path / "config.json"
    return config.is_file() and read_model_file(config).get("model_type") == "qwen"


def _shards(path: Path, stem: str, ending: str) -> list[Path]:
    index = path / f"{stem}{ending}.index.json"
    shards = sorted(path.glob(f"{stem}*{ending}"))
    if not index.is_file():
        is_numbered = any(re.search(r"-of-\d+$", shard.stem) for shard in shards)
        return [index, *shards] if is_numbered else shards
    try:
        return [path / name for name in sorted(set(read_model_file(index)["weight_map"].values()))]
    except (KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is broken ({error!r}); download it again") from error


def check_shard(shard: Path) -> None:
    """Compare a weight file's size with what its header promises; reads no tensor.

    Raises:
        ModelError: the file is cut off, or not what its name says.
    """
    from safetensors import SafetensorError, safe_open

    if shard.suffix == ".bin":
        if not zipfile.is_zipfile(shard):  # whose directory is at its end
            raise ModelError(f"{shard} is cut off or not a PyTorch file; download it again")
        return
    try:
        with safe_open(shard, "np"):
            return
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{shard} ({shard.stat().st_size:,} bytes) is cut off or is not a safetensors file "
            f"({error}); download it again"
        ) from error


@dataclass(frozen=True)
class ModelFolder:
    """A complete model folder on disk.

    Attributes:
        path: the folder.
        name: as the user wrote it.
        hub: ``bundled``, ``local``, ``huggingface`` or ``modelscope``.
        revision: the requested commit, branch or tag, or None.
        config: its ``config.json``.
    """

    path: Path
    name: str
    hub: str
    revision: str | None
    config: dict


def find_model(
    model: str | os.PathLike, *, hub: Hub = "auto", revision: str | None = None
) -> ModelFolder:
    """The checked folder of a model: bundled, local, cached, or downloaded where a hub answers.

    Args:
        model: ``"tiny"``, a folder, or a hub id such as ``Qwen/Qwen2-VL-2B-Instruct``.
        hub: ``"auto"`` looks in both caches, then asks both hubs.
        revision: commit, branch or tag on the hub.

    Raises:
        ModelError: with what to do.
    """
    name, hubs = os.fspath(model), _hubs(hub)
    path = bundled_path("tiny-qwen2-vl") if name == "tiny" else Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ModelError(f"revision={revision!r} is for hub ids; {name!r} is a folder")
        where = "bundled" if name == "tiny" else "local"
        return ModelFolder(path, name, where, None, check_folder(path))
    if path.exists():
        raise ModelError(f"{name!r} is a file; pass the model's folder, {str(path.parent)!r}")
    if isinstance(model, os.PathLike) or not HUB_ID.fullmatch(name):
        raise ModelError(
            f'{name!r} is neither a folder here nor a hub id (owner/name); check it, or use "tiny"'
        )
    return _find_on_hub(name, hubs, revision)


def _find_on_hub(name: str, hubs: Sequence[str], revision: str | None) -> ModelFolder:
    status = "it is neither a folder here nor in a hub's cache"
    for hub in hubs:
        if path := cached_folder(name, hub, revision):
            try:
                return ModelFolder(path, name, hub, revision, check_folder(path))
            except ModelError as error:
                status = f"its download is unfinished ({error})"
    hub = _first_answering(name, hubs, revision, status)
    path = _download(name, hub, revision)
    return ModelFolder(path, name, hub, revision, check_folder(path))


def _hubs(hub: Hub) -> tuple[str, ...]:
    check_choice("hub", hub, ("auto", *HUBS), kind=ModelError)
    return tuple(HUBS) if hub == "auto" else (hub,)


def download_model(
    name: str,
    patterns: Sequence[str] = (),
    *,
    hub: Hub = "auto",
    revision: str | None = None,
    local_dir: str | os.PathLike | None = None,
) -> Path:
    """Download a model, or some files of it, and verify its shards against the index.

    An interrupted download is resumed.

    Args:
        name: hub id, ``owner/name``.
        patterns: file names or globs; all files (weights as safetensors only) where empty.
        hub: ``"auto"`` takes whichever hub answers first that it has the model.
        revision: commit, branch or tag; the main branch where None.
        local_dir: the folder to fill; the hub's own cache where None.

    Returns:
        The folder with the files.

    Raises:
        ModelError: no hub answers, the model or a file does not exist, or the download failed.
    """
    if not HUB_ID.fullmatch(name):
        raise ModelError(f"{name!r} is not a hub id; expected owner/name")
    answering = _first_answering(name, _hubs(hub), revision, "nothing was downloaded")
    path = _download(name, answering, revision, patterns, local_dir)
    if not patterns:
        check_folder(path)
    files = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    for pattern in patterns:
        if not fnmatch.filter(files, pattern):
            raise ModelError(f"{name} on {HUBS[answering]} has no {pattern!r}; check its name")
    return path


def _download(name: str, hub: str, revision: str | None, patterns=(), local_dir=None) -> Path:
    if hub == "modelscope":
        from modelscope import snapshot_download
    else:
        from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(patterns) or None,
            ignore_patterns=None if patterns else NOT_NEEDED,
            local_dir=os.fspath(local_dir) if local_dir else None,
            cache_dir=str(_cache(hub)),
        )
    except Exception as error:  # each hub has other exceptions
        raise ModelError(_explain_download(name, hub, revision, error)) from error
    if not patterns and _is_pickled(Path(path)) and not any(Path(path).glob("*.safetensors")):
        return _download(name, hub, revision, ["pytorch_model*.bin"], local_dir)
    return Path(path)


def _explain_download(name: str, hub: str, revision: str | None, error: Exception) -> str:
    kind = type(error).__name__
    responses = [getattr(e, "response", None) for e in (error, error.__cause__)]
    status = next((r.status_code for r in responses if r is not None), None)
    login = "`hf auth login`" if hub == "huggingface" else "`modelscope login`"
    if "Gated" in kind or status == 403:
        advice = f"accept its licence on the hub's page and log in ({login})"
    elif "Revision" in kind:
        advice = f"revision {revision!r} does not exist there"
    elif "RepositoryNotFound" in kind or status in (401, 404):
        advice = f"check the id and the revision, try the other hub, or log in ({login})"
    elif getattr(error, "errno", None) == errno.ENOSPC:
        advice = "free some space, or choose another disk with --local-dir"
    else:
        advice = "try again: it continues where it stopped"
    return f"{name} could not be downloaded from {HUBS[hub]} ({one_line(error)}); {advice}"


def cached_folder(name: str, hub: str, revision: str | None = None) -> Path | None:
    """The snapshot in a hub's cache, complete or not; uses neither the hub's library nor a network.

    Layouts: ``models--owner--name/{refs,snapshots}`` (huggingface_hub), and of modelscope
    ``models/owner--name/snapshots/revision``, before its release 1.38 ``models/owner/name``.
    """
    if hub == "huggingface":
        repo = _cache(hub) / f"models--{name.replace('/', '--')}"
        ref = repo / "refs" / (revision or "main")
        commit = ref.read_text().strip() if ref.is_file() else revision
        folders = [repo / "snapshots" / commit] if commit else []
    else:
        cache = _cache(hub)
        snapshots = cache / "models" / name.replace("/", "--") / "snapshots"
        folders = [snapshots / ref for ref in ([revision] if revision else ["master", "main"])]
        if revision is None:
            owner, short = name.split("/")
            older = Path("models", owner, short.replace(".", "___"))
            folders += [cache / older, cache / "hub" / older]
    return next((folder for folder in folders if folder.is_dir()), None)


def _cache(hub: str) -> Path:
    from huggingface_hub import constants

    default = Path.home() / ".cache" / "modelscope"
    modelscope = os.environ.get("MODELSCOPE_CACHE") or default
    return Path(constants.HF_HUB_CACHE if hub == "huggingface" else modelscope).expanduser()


def _first_answering(name: str, hubs: Sequence[str], revision: str | None, before: str) -> str:
    """The first hub that says it has the model, otherwise one that answered at all.

    Raises:
        ModelError: after ``PROBE_SECONDS`` without any answer; ``before`` says what was tried.
    """
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def ask(hub: str) -> None:
        answers.put((hub, _probe(name, hub, revision)))

    for hub in hubs:  # daemons: a name server that never answers must not delay the exit
        threading.Thread(target=ask, args=(hub,), daemon=True).start()
    deadline = time.monotonic() + PROBE_SECONDS
    statuses: dict[str, int | None] = {}
    while len(statuses) < len(hubs) and (left := deadline - time.monotonic()) > 0:
        with suppress(queue.Empty):
            hub, status = answers.get(timeout=left)
            if status == 200:
                return hub
            statuses[hub] = status
    answered = [hub for hub in hubs if statuses.get(hub)]
    if not answered:
        raise ModelError(
            f"{name}: {before}, and {' and '.join(HUBS[hub] for hub in hubs)} did not answer; "
            f"check the network, or run `vlkit download {name} --local-dir DIR` on another "
            "machine, copy DIR here and load it by its path"
        )
    return min(answered, key=lambda hub: statuses[hub] == 404)


def _probe(name: str, hub: str, revision: str | None) -> int | None:
    """The HTTP status of a hub's answer for a model; None where it does not answer."""
    from huggingface_hub import constants

    if hub == "huggingface" and constants.HF_HUB_OFFLINE:
        return None
    pinned = urllib.parse.quote(revision, safe="") if revision else None
    if hub == "huggingface":
        url = f"{constants.ENDPOINT}/api/models/{name}" + (f"/revision/{pinned}" if pinned else "")
    else:
        base = os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn"
        base = base if "://" in base else f"https://{base}"
        url = f"{base.rstrip('/')}/api/v1/models/{name}"
        url += f"/repo/files?Revision={pinned}" if pinned else ""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "vlkit"})
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError, HTTPException):
        return None


def available_models() -> dict[str, Path]:
    """The models that :func:`vlkit.load` finds on this machine by name, and their folders.

    "tiny", and the complete models of the family in the hubs' caches, at their main revisions.
    """
    folders = {"tiny": bundled_path("tiny-qwen2-vl")}
    for hub in HUBS:
        for name in sorted(_cached_names(hub)):
            with suppress(ModelError, OSError):
                path = cached_folder(name, hub)
                if path and name not in folders:
                    family_of(check_folder(path), name)
                    folders[name] = path
    return folders


def _cached_names(hub: str) -> set[str]:
    if hub == "huggingface":
        folders = _cache(hub).glob("models--*--*")
        return {folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders}
    cache = _cache(hub)
    older = [*cache.glob("models/*/*"), *cache.glob("hub/models/*/*")]
    names = {f"{folder.parent.name}/{folder.name.replace('___', '.')}" for folder in older}
    return names | {folder.name.replace("--", "/", 1) for folder in cache.glob("models/*--*")}
