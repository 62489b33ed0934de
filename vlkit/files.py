"""Whole files and folders, JSON and JSON lines: written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlkit.errors import VlkitError, shorten


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises VlkitError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        why = f"is not UTF-8 text ({error.reason}); save it as UTF-8"
    except (OSError, ValueError) as error:  # the latter of a NUL in the path
        why = f"cannot be read ({getattr(error, 'strerror', None) or error}); check the path"
    raise VlkitError(f"{shorten(os.fsdecode(path))} {why}")


def read_json(path: Path) -> Any:
    """A JSON file. Raises VlkitError."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise VlkitError(f"{path} is no JSON: {error}") from None


def read_rows(path: Path) -> list[dict]:
    """The objects of a .jsonl, or of the list in a .json. Raises VlkitError naming the line."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        rows = list(enumerate(read_json(path), start=1))
    else:
        lines = ((n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip())
        rows = [(n, _parse_line(path, n, line)) for n, line in lines]
    for number, row in rows:
        if not isinstance(row, dict):
            raise VlkitError(f"{path}, row {number}: expected a JSON object, not {row!r:.40}")
    return [row for _, row in rows]


def first_json(path: Path) -> Any:
    """The whole of a .json that holds one object, else its first row. None where there is none."""
    text = read_text(path).lstrip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        first = text.partition("\n")[0]
        value = _parse_line(path, 1, first) if first else None
    return (value[0] if value else None) if isinstance(value, list) else value


def _parse_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise VlkitError(f"{path}, line {number} is no JSON: {error}") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file so that at no time half of it is there. Raises VlkitError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise VlkitError(f"{path} cannot be written: {error.strerror}") from None


def dump_lines(rows: Iterable[dict]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def relative(image: Path, target: Path) -> str:
    """A picture's path as seen from the file that names it, where that is possible."""
    try:
        return Path(os.path.relpath(image, target.parent)).as_posix()
    except ValueError:  # another drive
        return image.as_posix()


def check_free(folder: Path) -> None:
    """Raises VlkitError where something is in the folder, or it is a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise VlkitError(f"{folder} is there already; name a new or empty folder")


def check_writable(folder: Path) -> None:
    """Raises VlkitError where a folder, there or not, cannot be written to; makes nothing."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        raise VlkitError(f"{there} is a file; name a folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise VlkitError(
            f"{folder} cannot be written ({error.strerror}); name a folder of your own"
        ) from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``path`` at the end, or vanishes. Raises VlkitError."""
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
