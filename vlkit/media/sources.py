"""The bytes of files, http(s) and data URLs; limits on size and time."""

import base64
import hashlib
import os
import queue
import re
import stat
import string
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import lru_cache
from typing import Any

from vlkit.errors import MediaError

MAX_FILE_BYTES = 2**30
MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_TIMEOUT = 20.0  # seconds for the whole download
LEFT_OUT = "[left out]"  # written in place of a secret
SECRET_NAME = re.compile(  # of a URL's parameter, or an environment variable
    r"(?:^|[_.-])(?:api[_-]?key|access[_-]?key(?:[_-]?id)?|key|tokens?|secret|pass(?:word|wd|phrase)?"
    r"|pwd|credentials?|auth(?:orization)?|signature|sig|security|session|cookie|code|jwt)(?:$|[_.-])"
    r"|(?:key|token|secret|password|signature|credential|keyid)$",
    re.IGNORECASE,
)


def is_url(source: Any) -> bool:
    """Whether a source is an http(s) or data URL."""
    schemes = ("http://", "https://", "data:")
    return isinstance(source, str) and source[:8].lower().startswith(schemes)


def is_remote(source: Any) -> bool:
    """Whether a source has to be downloaded: an http(s) URL, not a data URL."""
    return is_url(source) and source[:5].lower() != "data:"


def clean_url(url: str) -> str:
    """A URL without user name, password and parameters."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    ending = "?…" if parts.query else ""
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", "")) + ending


def hide_secrets(url: str) -> str:
    """:func:`clean_url` of a URL that contains a password or a key, any other as it is."""
    try:
        parts = urllib.parse.urlsplit(url)
        parameters = f"{parts.query}&{parts.fragment}"
        names = [name for name, _ in urllib.parse.parse_qsl(parameters, keep_blank_values=True)]
    except ValueError:  # not a valid URL
        return url.partition("?")[0] if "@" not in url else LEFT_OUT
    if "@" in parts.netloc or any(map(SECRET_NAME.search, names)):
        return clean_url(url)
    return url


def local_path(source: str | os.PathLike) -> str:
    """A path as a plain string, with ``~`` expanded and ``file://`` URLs decoded."""
    path = os.fsdecode(source)
    if path[:7].lower() == "file://":
        path = path[7:].removeprefix("localhost")
        path = path if os.path.lexists(path) else urllib.request.url2pathname(path)
    return os.path.expanduser(path)


def read_bytes(source: Any, name: str, *, urlopen: Any = urllib.request.urlopen) -> bytes:
    """The bytes of a path, URL, data URL or bytes. Raises MediaError.

    Args:
        source: the medium.
        name: what errors call it.
        urlopen: opens http(s) URLs.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if is_url(source):
        if is_remote(source):
            return _download(source, name, urlopen)
        return _decode_data_url(source, name)
    if isinstance(source, str | os.PathLike):
        return _read_file(local_path(source), name)
    raise MediaError(
        f"cannot read a picture from a {type(source).__name__}; pass a path, URL, data URL, "
        "bytes, PIL image, numpy array, torch tensor or vlkit.Image"
    )


def file_hash(source: str | os.PathLike | bytes) -> str:
    """The sha256, in hex, of a file's bytes: one of the two identities that a medium has.

    A file is read again only where its size, time or inode has changed.

    Args:
        source: a path, or the bytes themselves.

    Raises:
        OSError: the file cannot be read or is not a regular one (a pipe would never end).
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return hashlib.sha256(source).hexdigest()
    path = local_path(source)
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is not a regular file")
    return _hash_file(path, status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=1 << 16)
def _hash_file(path: str, size: int, changed: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_file(path: str, name: str) -> bytes:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise MediaError(f"{name} is a directory; pass one picture file of it")
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(f"{name} is not a regular file; save the picture to disk first")
        if status.st_size > MAX_FILE_BYTES:
            raise MediaError(
                f"{name} has {status.st_size:,} bytes, too many for a picture; crop it"
            )
        with open(path, "rb") as file:
            return file.read(status.st_size)
    except (FileNotFoundError, NotADirectoryError) as error:
        where = "" if os.path.isabs(path) else f" in {os.path.abspath(os.curdir)}"
        raise MediaError(f"{name} does not exist{where}; check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(
            f"{name} cannot be read ({reason}); check the path and its permissions "
            "(base64 text needs a data URL: data:image/png;base64,…)"
        ) from error


def _decode_data_url(url: str, name: str) -> bytes:
    header, comma, payload = url.partition(",")
    try:
        if not comma:
            raise ValueError("no comma")
        data = urllib.parse.unquote_to_bytes(payload)
        if header.lower().endswith(";base64"):
            return base64.b64decode(b"".join(data.split()), validate=True)
        return data
    except ValueError as error:
        raise MediaError(
            f"{name} cannot be decoded ({error}); expected data:image/png;base64,…"
        ) from error


def _download(url: str, name: str, urlopen: Any) -> bytes:
    """Read a URL in another thread, as name look-up, redirects and headers may hang, too."""
    answers: queue.SimpleQueue = queue.SimpleQueue()
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT
    arguments = url, name, urlopen, deadline, answers
    threading.Thread(target=_fetch, args=arguments, daemon=True).start()
    try:
        answer = answers.get(timeout=DOWNLOAD_TIMEOUT)
    except queue.Empty:
        answer = _too_late(name)
    if isinstance(answer, MediaError):
        raise answer
    return answer


def _fetch(url: str, name: str, urlopen: Any, deadline: float, answers: queue.SimpleQueue) -> None:
    remedy = "check the address and the network, or pass a local file"
    try:
        if "@" in urllib.parse.urlsplit(url).netloc:
            raise MediaError(f"{name}: an address with a user name is not supported; {remedy}")
        quoted = urllib.parse.quote(url, safe=string.punctuation)
        request = urllib.request.Request(quoted, headers={"User-Agent": "vlkit"})
        with urlopen(request, timeout=DOWNLOAD_TIMEOUT) as response:
            answers.put(_read_response(response, name, deadline))
    except MediaError as error:
        answers.put(error)
    except urllib.error.HTTPError as error:
        answers.put(MediaError(f"{name} answered HTTP {error.code} {error.reason}; {remedy}"))
    except Exception as error:  # the waiting thread raises it
        reason = getattr(error, "reason", None) or error
        failed = MediaError(f"{name} could not be downloaded: {reason}; {remedy}")
        answers.put(_too_late(name) if isinstance(reason, TimeoutError) else failed)


def _read_response(response, name: str, deadline: float) -> bytes:
    data = bytearray()
    while chunk := response.read1(1 << 16):
        data += chunk
        if time.monotonic() > deadline:
            raise _too_late(name)
        if len(data) > MAX_DOWNLOAD_BYTES:
            raise MediaError(
                f"{name} is larger than {MAX_DOWNLOAD_BYTES:,} bytes; download and shrink it first"
            )
    if response.length:  # promised, but not sent
        promised = len(data) + response.length
        raise MediaError(f"{name} was cut off after {len(data):,} of {promised:,} bytes; try again")
    return bytes(data)


def _too_late(name: str) -> MediaError:
    return MediaError(
        f"{name} did not arrive within {DOWNLOAD_TIMEOUT:g} s; download it and pass the file"
    )
