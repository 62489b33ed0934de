"""The file of ``out=``: a JSON line for each finished row; the keys that find a row again."""

from __future__ import annotations

import glob
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from vlkit.errors import VlkitError, warn_user
from vlkit.files import digest, json_line, json_lines, write_rows
from vlkit.generation.reply import Failure, Reply, attempt, record_of
from vlkit.media.image import Image, describe_source, load_image, pictures_of, pixel_hash
from vlkit.media.sources import file_hash, is_url, local_path
from vlkit.messages import as_messages

SYNC_SECONDS = 1.0  # lost in a power cut at most; a killed process loses nothing it has written
_BEGINNING = b'{"key": "'  # of every line


class Journal:
    """Finished rows in a JSONL file that is only ever appended to, one writer at a time.

    A link to the file is the file. If another program deletes, replaces or cuts it under way, its
    rows are written again, with a warning.

    A line is written with a single call, so a reader sees whole rows. A kill can tear only the last
    line: it is cut off when the file is opened again, and its row is computed again. The parts that
    processes of a sharded run left are read, too; without ``part`` they are first merged into the
    file, one line a row, in the order of the rows.

    Args:
        path: the file; its folder must exist.
        resume: with False, a file with rows is refused (and never deleted).
        part: the number of a process in a sharded run, which writes ``path.part-…`` instead.

    Attributes:
        path: the file.
        finished: the records of all rows with an answer, by key; failed rows are not in it, so
            that they are tried again.

    Raises:
        VlkitError: the file cannot be written, contains something other than results, or another
            process is writing it.
    """

    def __init__(self, path: str | os.PathLike, *, resume: bool = True, part: int | None = None):
        self.path = _check_place(Path(path).expanduser())
        ending = "" if part is None else f".part-{part:05d}"
        self._written = self.path.with_name(self.path.name + ending)
        self._lock = _lock(self._written)
        try:
            if not resume:
                self._refuse_rows(part)
            records = _latest(self._files).items()
            self.finished = {key: record for key, record in records if "error" not in record}
            _cut_torn_line(self._written)
            if part is None:
                self._merge_parts()
            self._file = _open_to_append(self._written)
        except BaseException:
            _unlock(self._lock)
            raise
        self._size = os.fstat(self._file).st_size
        self._synced = time.monotonic()

    @property
    def parts(self) -> list[Path]:
        """The existing files of a sharded run's processes."""
        return sorted(self.path.parent.glob(glob.escape(self.path.name) + ".part-*[0-9]"))

    @property
    def _files(self) -> list[Path]:
        return [self.path, *self.parts]

    def _refuse_rows(self, part: int | None) -> None:
        # other processes may have begun their parts already
        for file in self._files if part is None else [self.path, self._written]:
            if file.exists() and file.stat().st_size:
                raise VlkitError(
                    f"{file} exists and resume=False; delete it, choose another file, or continue "
                    "it with resume=True"
                )

    def append(
        self, key: str, index: int, result: Reply | Failure, sources: Sequence[str] = ()
    ) -> Reply | Failure:
        """Write a row, whole or, on an error, not at all.

        Args:
            key: from :func:`row_key`.
            index: the row's number.
            result: the answer, or the reason why there is none.
            sources: the names of its media, for readers of the file.

        Returns:
            What the file now contains: the result, or the Failure of one that cannot be written.

        Raises:
            VlkitError: the disk is full, or the file can no longer be written.
        """
        written = attempt(_compose, result, index, key, sources)
        if isinstance(written, Failure):
            result, written = written, _compose(written, index, key, sources)
        record, line = written
        self._restore()
        self._size = _write_line(self._file, self._written, line)
        if not isinstance(result, Failure):
            self.finished[key] = record
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self._sync()
        return result

    def close(self) -> None:
        """Write everything to the disk and release the lock; a second call does nothing."""
        if self._file < 0:
            return
        try:
            self._restore()
            self._sync()
        finally:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
                _unlock(self._lock)

    def __del__(self):  # of a journal that nobody closed: its lock goes with the file
        with suppress(AttributeError, OSError):
            os.close(self._file)

    def _restore(self) -> None:
        """Write the finished rows again where the file is gone, another one, or shorter."""
        here = os.fstat(self._file)
        with suppress(OSError):
            if os.path.samestat(here, os.stat(self._written)) and here.st_size >= self._size:
                return
        warn_user(f"{self._written} was deleted or changed during the run; it is written again")
        os.close(self._file)  # and unlocks it, which may be the same file
        self._file = -1
        try:
            self._file = _open_to_append(self._written)
        except VlkitError:
            _unlock(self._lock)
            raise
        rows = b"".join(map(json_line, self.finished.values()))
        self._size = _write_line(self._file, self._written, rows)

    def _merge_parts(self) -> None:
        """The parts are deleted after the new file is complete, so a kill loses nothing."""
        parts = self.parts
        with ExitStack() as locks:
            for part in parts:
                locks.callback(_unlock, _lock(part))
            if parts:
                records = _latest([self.path, *parts]).values()
                in_order = sorted(records, key=lambda record: record["index"])
                write_rows(self.path, in_order, sync=True)
            for part in parts:
                part.unlink()

    def _sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


# --- reading -------------------------------------------------------------------------------------


def _latest(files: Sequence[Path]) -> dict[str, dict]:
    """The last record of each row; a failure never replaces an answer."""
    records: dict[str, dict] = {}
    for file in files:
        for record in _records(file):
            known = records.get(record["key"])
            if known is None or "error" in known or "error" not in record:
                records[record["key"]] = record
    return records


def _records(file: Path) -> Iterator[dict]:
    """The rows of complete lines; a process may be writing the last one.

    Other lines, as an editor may leave them, are skipped with a warning; a file without any row is
    refused.
    """
    rows, skipped = 0, []
    for number, (line, record) in enumerate(json_lines(file), 1):
        if _is_result(record) and line.endswith(b"\n"):
            rows += 1
            yield record
        elif line.endswith(b"\n"):
            skipped.append((number, line[:80]))
    if skipped and not rows:
        _refuse(file, *skipped[0])
    if skipped:
        numbers = ", ".join(str(number) for number, _ in skipped[:5]) + ", …" * (len(skipped) > 5)
        warn_user(f"{file}: line {numbers} is not a result of vlkit; it is skipped and asked again")


def _is_result(record: Any) -> bool:
    if not isinstance(record, dict) or not record.keys() & {"error", "raw"}:
        return False
    return isinstance(record.get("key"), str) and isinstance(record.get("index"), int)


def _refuse(file: Path, number: int, line: bytes) -> NoReturn:
    raise VlkitError(
        f"{file} contains something other than results of vlkit (line {number}: {line[:40]!r}); "
        "choose another file for out="
    )


# --- writing -------------------------------------------------------------------------------------


def _check_place(path: Path) -> Path:
    """The file itself, where the path is a link."""
    if not path.parent.is_dir():
        raise VlkitError(f"out={str(path)!r}: the folder {path.parent} does not exist; create it")
    try:
        is_other = path.exists() and not path.is_file()
    except OSError as error:  # a name that is too long
        raise VlkitError(f"out={str(path)!r:.80}: {error.strerror}; choose another file") from error
    if is_other:
        raise VlkitError(f"out={str(path)!r} is not a file; choose a .jsonl file")
    if path.suffix.lower() in (".csv", ".tsv", ".json", ".parquet", ".xlsx"):
        raise VlkitError(
            f"out={str(path)!r} must be a .jsonl file, as rows are written as JSON lines; write "
            "the table with vlkit.write_table"
        )
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a name with \0
        raise _unwritable(path, error) from error


def _lock(file: Path) -> FileLock:
    path = file.with_name(f".{file.name}.lock")
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        path.touch()  # where no file can be created, filelock would wait as if it were locked
        lock.acquire()
    except OSError as error:
        raise _unwritable(file, error) from error
    return lock


def _unwritable(file: Path, error: Exception) -> VlkitError:
    if isinstance(error, Timeout | BlockingIOError):
        text = "is being written by another process; wait for it, or choose another file"
        return VlkitError(f"{file} {text}")
    why = getattr(error, "strerror", None) or error
    return VlkitError(f"{file} cannot be written ({why}); choose a place that you can write to")


def _unlock(lock: FileLock) -> None:
    with suppress(OSError):
        os.unlink(lock.lock_file)  # before the release: nobody else holds it
    lock.release()


def _cut_torn_line(file: Path) -> None:
    content = file.read_bytes() if file.exists() else b""
    end = content.rfind(b"\n") + 1
    if not end:  # no whole line: accept only the beginning of a row
        torn = content[: len(_BEGINNING)].rstrip(b"\0")
        if not _BEGINNING.startswith(torn):
            _refuse(file, 1, torn)
    if end < len(content):
        os.truncate(file, end)


def _open_to_append(file: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(file, flags, 0o666)
    except OSError as error:
        raise _unwritable(file, error) from error
    if sys.platform != "win32":  # of this file under any name: hard links too
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise _unwritable(file, error) from error
        except OSError:  # a file system without locks
            pass
    return descriptor


def _compose(
    result: Reply | Failure, index: int, key: str, sources: Sequence[str]
) -> tuple[dict, bytes]:
    """A row's record and its line."""
    record = {"key": key, "index": index, **record_of(result)}
    record |= {"media": list(sources)} if sources else {}
    return record, json_line(record)


def _write_line(file: int, path: Path, line: bytes) -> int:
    """The size of the file afterwards."""
    size = os.fstat(file).st_size
    try:
        if os.write(file, line) == len(line):
            return size + len(line)
        reason = "the disk is full"
    except OSError as error:
        reason = error.strerror or str(error)
    os.ftruncate(file, size)
    raise VlkitError(f"{path} cannot be written ({reason}); free some space and call again")


# --- the key of a row -----------------------------------------------------------------------------


def row_key(vlm: Any, messages: Any, options: Mapping[str, Any]) -> str:
    """A sha256 in hex that changes with anything that the answer depends on.

    It covers the weights as they are in memory (so also an adapter, or training since they were
    loaded), their dtypes, the model's configuration and revision, the chat template, the limits of
    pictures and clips, the options, and the conversation: roles, texts, the media's bytes or
    pixels and their options. A URL counts by its address. Paths do not count, so files may
    move; a file that cannot be read counts by its name. Of a hosted model its name, address,
    family and fields count, never its API key.

    Args:
        vlm: from :func:`vlkit.load`.
        messages: text, one message or a list of messages; malformed ones get a key as well.
        options: of the generation, those that change answers; values for JSON.
    """
    return row_keys(vlm, [messages], options)[0]


def row_keys(
    vlm: Any, conversations: Sequence[Any], options: Mapping[str, Any], *, seed: int | None = None
) -> list[str]:
    """:func:`row_key` of every conversation; equal ones are numbered, so that all keys differ.

    Args:
        vlm, options: as for :func:`row_key`.
        conversations: all rows, also those that another process answers.
        seed: of row 0 where answers are sampled; that of row ``i`` is ``seed + i``.
    """
    common = [digest(vlm.identity), dict(options)]
    seen: Counter[str] = Counter()
    keys = []
    for index, messages in enumerate(conversations):
        key = _key_of_row(common, messages, None if seed is None else seed + index)
        seen[key] += 1
        keys.append(key if seen[key] == 1 else digest([key, seen[key]]))
    return keys


def _key_of_row(common: list, messages: Any, seed: int | None) -> str:
    """The key; for content that cannot be read a new one at each call."""
    try:
        return digest([*common, _conversation(messages), seed])
    except Exception:  # media may be any object
        return digest([*common, uuid.uuid4().hex, seed])


# --- the conversation ----------------------------------------------------------------------------


def _conversation(messages: Any) -> Any:
    try:
        checked = as_messages(messages)
    except VlkitError:
        return repr(messages)
    return [[message["role"], [_item(item) for item in message["content"]]] for message in checked]


def _item(item: dict) -> Any:
    kind = item["type"]
    if kind == "text":
        return item["text"]
    options = {key: item[key] for key in item if key not in ("type", kind)}
    return [kind, options, hash_medium(item[kind])]


def hash_medium(source: Any) -> Any:
    """The content of a picture or clip, or of each of a clip's frames."""
    if isinstance(source, Image):
        return [hash_medium(source.source), source.strict]
    if isinstance(source, list | tuple) or getattr(source, "ndim", 0) == 4:
        return [hash_medium(frame) for frame in source]
    if isinstance(source, bytes | bytearray | memoryview):
        return file_hash(bytes(source))
    if isinstance(source, str | os.PathLike):
        return ["url", source] if is_url(source) else _file(local_path(source))
    try:
        picture = load_image(source)
    except VlkitError as error:
        return ["unreadable", str(error)]
    return ["pixels", pixel_hash(picture)]


def _file(path: str) -> Any:
    try:
        if os.path.isdir(path):
            return [_file(str(file)) for file in pictures_of(Path(path), describe_source(path))]
        return file_hash(path)
    except (OSError, ValueError, VlkitError):
        return ["unreadable", path]
