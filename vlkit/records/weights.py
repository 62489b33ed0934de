"""Which weights they are, told within a moment also for a large model."""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path

WHOLE_BYTES = 2 * 10**9  # of a folder; up to here the files themselves are summed
SAMPLES, SAMPLE_BYTES = 16, 1 << 16  # of each file of a larger one


def weights_hash(folder: Path) -> dict[str, str]:
    """``sha256`` of a folder's weights, and ``of`` what it is.

    ``"files"``: of the whole files, up to 2 GB together. ``"hub"``: of the sums that the hub
    itself gave for each file (its cache names files by them). ``"headers"``: of each file's size,
    its header (names, types and shapes of the tensors) and 16 samples of 64 KiB, which another
    training of the same model changes.
    """
    files = sorted(folder.glob("*.safetensors"))
    sums = [_hub_sum(file) for file in files]
    if all(sums):
        return {"sha256": _join(files, sums), "of": "hub"}
    whole = sum(file.stat().st_size for file in files) <= WHOLE_BYTES
    sums = [_file_sum(file, whole) for file in files]
    return {"sha256": _join(files, sums), "of": "files" if whole else "headers"}


def _join(files: list[Path], sums: list) -> str:
    lines = [f"{file.name} {each}" for file, each in zip(files, sums, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _hub_sum(file: Path) -> str | None:
    """Hugging Face's cache links each file to a blob that is named by its sha256."""
    if not file.is_symlink():
        return None
    name = os.path.basename(os.readlink(file))
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


def _file_sum(file: Path, whole: bool) -> str:
    status = file.stat()
    return _sum(str(file), whole, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sum(path: str, whole: bool, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        if whole:
            return hashlib.file_digest(file, "sha256").hexdigest()
        length = int.from_bytes(file.read(8), "little")
        digest = hashlib.sha256(f"{size} {length}".encode() + file.read(min(length, 1 << 27)))
        for index in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * index // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()
