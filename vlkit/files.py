"""Files and folders written whole or not at all; JSON, JSON lines, YAML."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from vlkit.errors import VlkitError, shorten

MOST_YAML_VALUES = 1_000_000  # 400 bytes with aliases can stand for billions


def read_text(path: Path, kind: type[VlkitError] = VlkitError) -> str:
    """A UTF-8 file. Raises ``kind``."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        why = f"is not UTF-8 text ({error.reason}); save it as UTF-8"
    except (OSError, ValueError) as error:  # the latter for a NUL in the path
        why = f"cannot be read ({getattr(error, 'strerror', None) or error}); check the path"
    raise kind(f"{shorten(os.fsdecode(path))} {why}")


def read_json(path: Path, kind: type[VlkitError] = VlkitError) -> Any:
    """A JSON file. Raises ``kind``."""
    return _parse(read_text(path, kind), str(path), kind)


def read_rows(path: Path) -> list[dict]:
    """The objects of a .jsonl, or of the list in a .json. Raises VlkitError naming the line."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        rows = list(enumerate(_parse(text, str(path)), start=1))
    else:
        lines = ((n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip())
        rows = [(n, _parse(line, f"{path}, line {n}")) for n, line in lines]
    for number, row in rows:
        if not isinstance(row, dict):
            raise VlkitError(f"{path}, row {number}: expected a JSON object, not {row!r:.40}")
    return [row for _, row in rows]


def first_json(path: Path) -> Any:
    """The first row of a JSON list or of JSON lines, or the one object of a .json; None if empty.

    Raises:
        VlkitError: the first line is not JSON either.
    """
    text = read_text(path).lstrip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        first = text.partition("\n")[0]
        value = _parse(first, f"{path}, line 1") if first else None
    return (value[0] if value else None) if isinstance(value, list) else value


def _parse(text: str, where: str, kind: type[VlkitError] = VlkitError) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise kind(f"{where} is not JSON: {error}") from None


def parse_yaml(text: str, where: str) -> Any:
    """YAML as plain values; ``where`` names its source in errors.

    Raises:
        VlkitError: it is not YAML, nested too deeply, or its aliases stand for too many values.
    """
    import yaml

    try:
        if _count_nodes(yaml.compose(text, yaml.SafeLoader), {}) <= MOST_YAML_VALUES:
            return yaml.safe_load(text)
        reason = f"its aliases stand for more than {MOST_YAML_VALUES:,} values; write fewer"
    except RecursionError:
        reason = "it is nested too deeply"
    except (yaml.YAMLError, ValueError) as error:  # the latter for a date such as 2026-99-99
        reason = shorten(" ".join(str(error).split()))
    raise VlkitError(f"{where} cannot be read as YAML: {reason}")


def _count_nodes(node: Any, counts: dict[int, int]) -> int:
    """The number of values that a node stands for; aliases share nodes, which are counted once."""
    if id(node) not in counts:
        parts = node.value if isinstance(getattr(node, "value", None), list) else []
        nodes = chain.from_iterable(p if isinstance(p, tuple) else (p,) for p in parts)
        counts[id(node)] = 1 + sum(_count_nodes(part, counts) for part in nodes)
    return counts[id(node)]


def write_whole(
    path: Path,
    content: str | bytes | Callable[[BinaryIO], Any],
    *,
    sync: bool = False,
    kind: type[VlkitError] = VlkitError,
) -> None:
    """Write a file whole or not at all: a reader sees the old file or the new one, never a part.

    Args:
        path: the file; its folder is created.
        content: text (written as UTF-8), bytes, or a function that writes to an open binary file.
        sync: return only when the content is on the disk, safe from a power cut.
        kind: what is raised.

    Raises:
        VlkitError: (or ``kind``) the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                if callable(content):
                    content(stream)
                else:
                    stream.write(content.encode() if isinstance(content, str) else content)
                if sync:
                    stream.flush()
                    os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise kind(f"{path} cannot be written: {error.strerror or error}") from error


def json_lines(path: Path) -> Iterator[tuple[bytes, Any]]:
    """Each line of a file and its value, None where it is not JSON; nothing without a file."""
    if path.is_file():
        with path.open("rb") as stream:
            for line in stream:
                try:
                    yield line, json.loads(line)
                except (ValueError, RecursionError):
                    yield line, None


def json_line(row: Any) -> bytes:
    """A row as a line of JSON in UTF-8; a lone surrogate is escaped, as JSON allows."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def write_rows(path: Path, rows: Iterable[Any], *, sync: bool = False) -> None:
    """Write rows as JSON lines, whole or not at all. Raises VlkitError."""
    write_whole(path, lambda stream: stream.writelines(map(json_line, rows)), sync=sync)


def relative(image: Path, target: Path) -> str:
    """A picture's path relative to the file that names it; absolute on another drive."""
    try:
        return Path(os.path.relpath(image, target.parent)).as_posix()
    except ValueError:  # another drive
        return image.as_posix()


def check_free(folder: Path) -> None:
    """Raises VlkitError where a folder is not empty, or is a file."""
    if folder.exists() and not folder.is_dir():
        raise VlkitError(f"{folder} is a file; name a folder")
    if folder.exists() and any(folder.iterdir()):
        raise VlkitError(f"{folder} already exists and is not empty; choose another folder")


def check_writable(folder: Path) -> None:
    """Raises VlkitError where a folder, existing or not, cannot be written to; creates nothing."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise VlkitError(f"{existing} is a file; name a folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        why = f"cannot be written ({error.strerror})"
        raise VlkitError(f"{folder} {why}; choose a folder that you can write to") from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill: it becomes ``path`` on success, and is deleted on an error.

    Raises:
        VlkitError: ``path`` is not empty, or cannot be written.
    """
    check_free(path)
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(dir=path.absolute().parent, prefix=f".{path.name}.")
        try:
            yield Path(made)
            os.chmod(made, 0o755)
            if path.is_dir():
                path.rmdir()
            os.rename(made, path)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    except OSError as error:
        raise VlkitError(f"{path} cannot be written: {error.strerror or error}") from None


def digest(content: Any) -> str:
    """The sha256 in hex of values for JSON; sets are sorted, other values are taken by repr."""
    text = json.dumps(content, sort_keys=True, default=_json_value)
    return hashlib.sha256(text.encode()).hexdigest()


def _json_value(value: Any) -> Any:
    return sorted(value, key=repr) if isinstance(value, set | frozenset) else repr(value)
