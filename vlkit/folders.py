"""Model folders: checked before anything is loaded from them."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

from vlkit.errors import ModelError

NOT_NEEDED = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.onnx", "*.h5", "*.msgpack"]


def check_folder(path: Path) -> dict:
    """Check that a model folder is whole; return its ``config.json``.

    Raises:
        ModelError: no or a broken ``config.json``, a missing or cut-off shard, an unfinished
            download, or weights that are not safetensors.
    """
    config = read_config(path)
    shards = _shards(path)
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ModelError(
            f"{path} is incomplete: {missing[0]} is missing ({len(missing)} of {len(shards)} "
            "weight files are); run `vlkit download` again"
        )
    if not shards:
        raise ModelError(f"{path} holds no safetensors weights{_instead_of_shards(path)}")
    for shard in shards:
        check_shard(shard)
    return config


def _instead_of_shards(path: Path) -> str:
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
        raise ModelError(f'{path} is an adapter, no model: vlkit.load(BASE, adapter="…")')
    return read_json(path / "config.json")


def read_json(file: Path) -> dict:
    """The object in a JSON file. Raises ModelError where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        reason = f"{file.parent} holds no {file.name}; check the path, or download it again"
        raise ModelError(reason) from error
    except ValueError as error:
        raise ModelError(f"{file} is not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} is not a JSON object; download it again")
    return content


def _shards(path: Path) -> list[Path]:
    """The weight files that a folder should hold."""
    index = path / "model.safetensors.index.json"
    found = sorted(path.glob("model*.safetensors"))
    if not index.is_file():
        numbered = any(re.search(r"-of-\d+$", shard.stem) for shard in found)
        return [index, *found] if numbered else found
    try:
        return [path / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    except (KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is broken ({error!r}); download it again") from error


def check_shard(shard: Path) -> None:
    """Compare a safetensors file's size with what its header promises; reads no tensor.

    Raises:
        ModelError: the file is cut off or no safetensors file.
    """
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
        raise ModelError(
            f"{shard} ({size:,} bytes) is no whole safetensors file ({error}); download it again"
        ) from error
    if size != expected:
        raise ModelError(f"{shard} has {size:,} of {expected:,} bytes; download it again")
