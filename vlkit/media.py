"""One honest loader: any source in, an upright 8-bit RGB picture or a MediaError out."""

from __future__ import annotations

import base64
import binascii
import io
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageFile, ImageOps, UnidentifiedImageError

from vlkit.errors import MediaError

MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_TIMEOUT = 20.0  # seconds for the whole download
MAX_ASPECT_RATIO = 200  # the processors of the whole family refuse more
_truncation = threading.Lock()  # LOAD_TRUNCATED_IMAGES is a global of Pillow


@dataclass(frozen=True)
class Image:
    """A picture together with how it is to be read.

    Args:
        source: path, ``Path``, ``file://`` or http(s) URL, data URL, bytes, PIL image, numpy array
            (H, W), (H, W, 1|3|4) of uint8, uint16 or float 0–1, or torch tensor (C, H, W).
        max_tokens: the most image tokens that this picture may cost; it is shrunk to fit.
        min_tokens: the fewest; a smaller picture is enlarged.
        strict: with False, a truncated file is read as far as it goes (the rest is grey).
    """

    source: Any
    max_tokens: int | None = None
    min_tokens: int | None = None
    strict: bool = True

    def __post_init__(self):
        for name in ("max_tokens", "min_tokens"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise MediaError(f"{name}={value!r} must be a whole number of tokens, 1 or more")
        if self.max_tokens and self.min_tokens and self.min_tokens > self.max_tokens:
            raise MediaError(f"min_tokens={self.min_tokens} exceeds max_tokens={self.max_tokens}")

    def load(self) -> PIL.Image.Image:
        """The picture, upright, RGB. Raises MediaError."""
        return load_image(self.source, strict=self.strict)


def load_image(source: Any, *, strict: bool = True) -> PIL.Image.Image:
    """Read a picture from any source into an upright 8-bit RGB PIL image.

    EXIF orientation is applied, alpha is composed on white, 16-bit grey is scaled, and the first
    frame of an animation is taken.

    Args:
        source: see :class:`Image`.
        strict: with False, a truncated file is read as far as it goes.

    Raises:
        MediaError: naming the source and the remedy.
    """
    if isinstance(source, Image):
        return load_image(source.source, strict=strict and source.strict)
    name = describe_source(source)
    if isinstance(source, PIL.Image.Image):
        picture = _decode(source, name, strict)
    elif _is_array(source):
        picture = PIL.Image.fromarray(_array_to_uint8(source, name))
        picture = _flatten(picture)
    else:
        data = _read_bytes(source, name)
        picture = _decode(_open(data, name), name, strict)
    return _check_shape(picture, name)


def describe_source(source: Any) -> str:
    """A short name for messages and reports; never the content itself."""
    if isinstance(source, Image):
        return describe_source(source.source)
    if isinstance(source, os.PathLike):
        return os.fspath(source)
    if isinstance(source, str):
        return _shorten(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"picture of {len(source):,} bytes"
    if isinstance(source, PIL.Image.Image):
        return getattr(source, "filename", "") or f"{source.width}×{source.height} PIL image"
    if hasattr(source, "shape"):
        return f"{type(source).__name__} of shape {tuple(source.shape)}"
    return f"{type(source).__name__} object"


def _shorten(text: str) -> str:
    if text.startswith("data:"):
        return f"data URL of {len(text):,} characters"
    text = "".join(c if c.isprintable() else "�" for c in text)
    return text if len(text) <= 200 else text[:120] + "…" + text[-60:]


def _is_array(source: Any) -> bool:
    return isinstance(source, np.ndarray) or type(source).__module__.split(".")[0] == "torch"


# --- bytes ---------------------------------------------------------------------------------------


def _read_bytes(source: Any, name: str) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str):
        scheme = source[:8].lower()
        if scheme.startswith("data:"):
            return _decode_data_url(source, name)
        if scheme.startswith(("http://", "https://")):
            return _download(source, name)
        if scheme.startswith("file://"):
            source = urllib.request.url2pathname(urllib.parse.urlsplit(source).path)
    if isinstance(source, str | os.PathLike):
        return _read_file(Path(source).expanduser(), name)
    raise MediaError(
        f"cannot read a picture from a {type(source).__name__}; pass a path, URL, data URL, "
        "bytes, PIL image, numpy array, torch tensor or vlkit.Image"
    )


def _read_file(path: Path, name: str) -> bytes:
    try:
        if path.is_dir():
            raise MediaError(f"{name} is a directory; pass one picture file of it")
        if not path.exists():
            raise MediaError(f"{name} does not exist (looked in {Path.cwd()}); check the path")
        if not path.is_file():
            raise MediaError(f"{name} is not a regular file; save the picture to disk first")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{name} cannot be read: {reason}") from error


def _decode_data_url(url: str, name: str) -> bytes:
    header, comma, payload = url.partition(",")
    try:
        if not comma:
            raise ValueError("no comma")
        if header.lower().endswith(";base64"):
            return base64.b64decode(urllib.parse.unquote(payload), validate=True)
        return urllib.parse.unquote_to_bytes(payload)
    except (ValueError, binascii.Error) as error:
        raise MediaError(
            f"{name} is not valid base64 ({error}); expected data:image/png;base64,…"
        ) from error


def _download(url: str, name: str) -> bytes:
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT
    request = urllib.request.Request(url, headers={"User-Agent": "vlkit"})
    try:
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT / 2) as response:
            return _read_response(response, name, deadline)
    except urllib.error.HTTPError as error:
        raise MediaError(f"{name} answered HTTP {error.code} {error.reason}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise MediaError(
            f"{name} could not be downloaded: {reason}; check the address and the network, "
            "or pass a local file"
        ) from error


def _read_response(response, name: str, deadline: float) -> bytes:
    chunks, size = [], 0
    while chunk := response.read1(1 << 16):
        size += len(chunk)
        if size > MAX_DOWNLOAD_BYTES:
            limit = MAX_DOWNLOAD_BYTES // 2**20
            raise MediaError(f"{name} is larger than {limit} MiB; download it and shrink it first")
        if time.monotonic() > deadline:
            raise MediaError(
                f"{name} sent only {size:,} bytes in {DOWNLOAD_TIMEOUT:.0f} s; download it first"
            )
        chunks.append(chunk)
    return b"".join(chunks)


# --- decoding ------------------------------------------------------------------------------------


def _open(data: bytes, name: str) -> PIL.Image.Image:
    if not data:
        raise MediaError(f"{name} is empty (0 bytes); save or download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            picture = PIL.Image.open(io.BytesIO(data))
    except PIL.Image.DecompressionBombError as error:
        raise MediaError(
            f"{name} unpacks to too many pixels ({error}); shrink it, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except UnidentifiedImageError as error:
        raise MediaError(
            f"{name} is not a picture: its {len(data):,} bytes begin with {data[:12]!r}; "
            "expected PNG, JPEG, WebP, GIF, BMP, TIFF …"
        ) from error
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise MediaError(f"{name} cannot be decoded: {error}; re-save it as PNG") from error
    picture.info["vlkit_bytes"] = len(data)
    return picture


def _decode(picture: PIL.Image.Image, name: str, strict: bool) -> PIL.Image.Image:
    size = picture.info.get("vlkit_bytes")
    try:
        with _truncated_allowed(not strict):
            picture.seek(0) if getattr(picture, "is_animated", False) else None
            picture.load()
        return _flatten(_upright(picture))
    except MediaError:
        raise
    except Exception as error:  # as above
        if "truncated" in str(error).lower() or isinstance(error, EOFError | SyntaxError):
            after = f" after {size:,} bytes" if size else ""
            raise MediaError(
                f"{name} is truncated{after}; re-save it or pass "
                "vlkit.Image(…, strict=False) to read what is there"
            ) from error
        raise MediaError(f"{name} cannot be decoded: {error}; re-save it as PNG") from error


@contextmanager
def _truncated_allowed(allowed: bool):
    with _truncation:
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = allowed
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # EXIF that cannot be parsed says nothing about orientation
        return picture


def _flatten(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Any mode to RGB: alpha on white, 16-bit and float grey scaled to 8 bits."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return _flatten_wide(picture)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        canvas = PIL.Image.new("RGBA", picture.size, "white")
        return PIL.Image.alpha_composite(canvas, picture).convert("RGB")
    return picture.convert("RGB") if picture.mode != "RGB" else picture.copy()


def _flatten_wide(picture: PIL.Image.Image) -> PIL.Image.Image:
    values = np.asarray(picture)
    if picture.mode == "I":  # 32-bit container of 16-bit files
        if values.min() < 0 or values.max() > 65535:
            raise MediaError("32-bit grey values outside 0–65535; scale the picture to 8 bits")
        values = values.astype(np.uint16)
    return PIL.Image.fromarray(_scale_to_uint8(values, "picture")).convert("RGB")


def _check_shape(picture: PIL.Image.Image, name: str) -> PIL.Image.Image:
    width, height = picture.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise MediaError(
            f"{name} is {width}×{height} pixels; models of this family take sides of at most "
            f"{MAX_ASPECT_RATIO}:1, so crop or pad it"
        )
    return picture


# --- arrays --------------------------------------------------------------------------------------


def _array_to_uint8(source: Any, name: str) -> np.ndarray:
    """(H, W) or (H, W, 3|4) uint8 from a numpy array or a torch tensor."""
    if not isinstance(source, np.ndarray):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
        if source.ndim == 3 and source.shape[0] in (1, 3, 4):
            source = source.transpose(1, 2, 0)
    if source.ndim == 3 and source.shape[2] == 1:
        source = source[..., 0]
    if source.size == 0 or not (
        source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (3, 4))
    ):
        raise MediaError(f"{name} is not one picture; expected (H, W), (H, W, 3) or (H, W, 4)")
    return np.ascontiguousarray(_scale_to_uint8(source, name))


def _scale_to_uint8(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return np.round(values.astype(np.float32) / 257).astype(np.uint8)  # 65535 → 255
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # also refuses NaN
            raise MediaError(
                f"{name} holds floats from {low:.4g} to {high:.4g}; floats must lie in 0–1, "
                "so divide by the maximum or pass uint8"
            )
        return np.round(values * 255).astype(np.uint8)
    raise MediaError(f"{name} has dtype {values.dtype}; expected uint8, uint16 or float 0–1")
