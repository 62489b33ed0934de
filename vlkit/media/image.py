"""``Image``: any picture source to an upright 8-bit RGB picture."""

import hashlib
import io
import os
import re
import struct
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from PIL.ExifTags import Base as ExifTag
from PIL.ImageFile import ImageFile

from vlkit.errors import MediaError, check_whole, shorten, warn_user
from vlkit.grounding.boxes import Size
from vlkit.media.sources import hide_secrets, is_remote, is_url, local_path, read_bytes

MAX_ASPECT_RATIO = 200  # the processors of the whole family refuse more
_ROUNDING = 0.5 / 255  # how far interpolation may leave the range 0–1
_SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_NUMBER = re.compile(r"(\d+)")
_TURN = PIL.Image.Transpose
# by the EXIF orientation; PIL.ImageOps.exif_transpose writes all tags again, and fails on some
TURNS = {
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_90,
}
# what the files of pictures are called; any other file is a picture if Pillow knows its content
PICTURE_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".gif",
    ".tif", ".tiff", ".avif", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c", ".ppm", ".pgm",
    ".pbm", ".pnm", ".tga", ".ico", ".qoi", ".heic", ".heif", ".hif",
)  # fmt: skip
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif")
_NO_PICTURES = ("EPS", "MPEG")  # formats that Pillow names, but cannot or must not decode
_PLAIN = ("JPEG", "MPO", "WEBP", "BMP", "PNG", "GIF")  # their header has the size
_EXIF_TEXT = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # in PNG's text chunks


@dataclass(frozen=True)
class Image:
    """A picture and how to read it.

    Args:
        source: path, ``Path``, ``file://`` or http(s) URL, data URL, bytes, PIL image, numpy array
            (H, W), (H, W, 1|3|4) of bool, uint8, uint16 or float 0–1, or torch tensor (C, H, W).
        max_tokens: the most image tokens; a larger picture is shrunk to fit.
        min_tokens: the fewest image tokens; a smaller picture is enlarged.
        max_pixels, min_pixels: the same limits in pixels, as the model cards give them.
        strict: with False, a truncated file is read as far as it goes (the rest is grey or black).
    """

    source: Any
    max_tokens: int | None = None
    min_tokens: int | None = None
    strict: bool = True
    max_pixels: int | None = None
    min_pixels: int | None = None

    def __post_init__(self):
        for unit in ("tokens", "pixels"):
            least, most = (getattr(self, f"{end}_{unit}") for end in ("min", "max"))
            for name, value in ((f"max_{unit}", most), (f"min_{unit}", least)):
                check_whole(name, value, 1, optional=True, kind=MediaError)
            if most and least and least > most:
                raise MediaError(f"min_{unit}={least} exceeds max_{unit}={most}; swap them")

    def load(self) -> PIL.Image.Image:
        """The picture, upright, RGB. Raises MediaError."""
        return load_image(self.source, strict=self.strict)


def load_image(source: Any, *, strict: bool = True) -> PIL.Image.Image:
    """Read a picture from any source into a new upright 8-bit RGB PIL image.

    EXIF orientation is applied, alpha is composed on white, 16-bit grey is scaled, and of an
    animated file the first frame is read (of a PIL image, its present frame).

    Args:
        source: see :class:`Image`.
        strict: with False, a truncated file is read as far as it goes.

    Raises:
        MediaError: naming the source and the remedy.
    """
    if isinstance(source, Image):
        return load_image(source.source, strict=strict and source.strict)
    name, size = describe_source(source), None
    if isinstance(source, PIL.Image.Image):
        picture = source
    elif hasattr(source, "shape") and not isinstance(source, memoryview):
        picture = PIL.Image.fromarray(_array_to_uint8(source, name))
    else:
        data = read_bytes(source, name)
        picture, size = _open(data, name, strict), len(data)
    picture = _decode(picture, name, size, strict)
    picture.info.clear()  # so that orientation and transparency are not applied again
    check_shape(picture, name)
    if isinstance(source, str | os.PathLike) and not is_url(source):
        picture.filename = local_path(source)  # for names in messages and records
    return picture


def pixel_hash(picture: PIL.Image.Image) -> str:
    """A sha256, in hex, of size and pixels: the identity of a picture whatever its file is.

    Args:
        picture: upright and RGB, as :func:`load_image` returns it.
    """
    digest = hashlib.sha256(picture.tobytes()).hexdigest()
    return hashlib.sha256(f"{picture.width}×{picture.height} {digest}".encode()).hexdigest()


def remember_hash(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture, with its :func:`pixel_hash` for :func:`known_hash`."""
    vars(picture)["vlkit_hash"] = pixel_hash(picture)
    picture.readonly = 1  # Pillow then copies the pixels before it changes them, and sets it to 0
    return picture


def known_hash(source: Any) -> str:
    """The hash of a picture that has not changed since :func:`remember_hash`; else ``""``."""
    return getattr(source, "vlkit_hash", "") if getattr(source, "readonly", 0) else ""


def describe_source(source: Any) -> str:
    """A short name for messages and reports, on one line, without the content itself."""
    if isinstance(source, Image):
        return describe_source(source.source)
    if isinstance(source, str | os.PathLike):
        text = os.fsdecode(source)
        return shorten(hide_secrets(text) if is_remote(text) else text)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"picture of {len(source):,} bytes"
    if isinstance(source, PIL.Image.Image):
        file = getattr(source, "filename", "")
        return shorten(os.fsdecode(file)) if file else f"{source.width}×{source.height} PIL image"
    if hasattr(source, "shape"):
        return f"{type(source).__name__} of shape {source.shape!s:.60}"
    return f"{type(source).__name__} object"


# --- decoding ------------------------------------------------------------------------------------


def _open(data: bytes, name: str, strict: bool) -> PIL.Image.Image:
    if not data:
        raise MediaError(f"{name} is empty (0 bytes); save or download it again")
    is_heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS
    if is_heif and b"avif" not in data[:64] and not can_read_heif():
        raise MediaError(f"{name} is a HEIC picture; pip install 'vlkit[heic]' to read it")
    if not strict and data.startswith(b"\xff\xd8"):
        data += b"\xff\xd9"  # JPEG's end marker, so that the decoder returns what it has
    try:
        picture = PIL.Image.open(io.BytesIO(data))
    except PIL.Image.DecompressionBombError as error:
        raise MediaError(
            f"{name} unpacks to too many pixels ({error}); shrink it, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except Exception as error:  # a decoder may raise anything on hostile bytes
        size = f"{len(data):,} bytes"
        text = f"is truncated or damaged (it has {size}); save or download it again"
        if not is_heif and not data.startswith(_SIGNATURES):
            text = (
                f"is not a picture: its {size} begin with {repr(data[:12])[1:]}; "
                "expected PNG, JPEG, WebP, GIF, BMP, TIFF …"
            )
        raise MediaError(f"{name} {text}") from error
    if picture.format in _NO_PICTURES:
        raise MediaError(f"{name} is {picture.format}, not a picture; export it as PNG")
    return picture


@cache
def can_read_heif() -> bool:
    """Whether HEIC pictures can be read, which pillow-heif adds to Pillow."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def is_picture(file: Path) -> bool:
    """Whether a file is a picture by its name or, for an unusual name, by its first bytes."""
    if (suffix := file.suffix.lower()) in PICTURE_SUFFIXES:
        return suffix not in (".heic", ".heif", ".hif") or can_read_heif()
    try:
        with PIL.Image.open(file) as picture:
            return picture.format not in (*_NO_PICTURES, "TGA")  # which has no signature
    except Exception:  # a decoder may raise anything on other files
        return False


def pictures_of(folder: Path, name: str) -> list[Path]:
    """The picture files of a folder, in natural order: 2 before 10; a warning counts the others.

    Raises:
        MediaError: there is none, or the folder cannot be read.
    """

    def natural(path: Path) -> list:
        return [int(part) if part.isdecimal() else part for part in _NUMBER.split(path.name)]

    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    pictures = [path for path in files if path.is_file() and is_picture(path)]
    kinds = Counter(_kind_of(path) for path in {*files} - {*pictures})
    left_out = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
    if {".heic", ".heif", ".hif"} & {*kinds}:
        left_out += " (HEIC needs: pip install 'vlkit[heic]')"
    if not pictures:
        there = f"; it has {left_out}" if kinds else ""
        raise MediaError(
            f"{name} is a folder without pictures{there}; pass a folder that contains some"
        )
    if kinds:
        warn_user(
            f"{name}: left out {kinds.total():,} of {len(files):,} that cannot be read as "
            f"pictures: {left_out}"
        )
    return sorted(pictures, key=natural)


def _kind_of(path: Path) -> str:
    return "folder" if path.is_dir() else path.suffix.lower() or "without a suffix"


def _decode(picture: PIL.Image.Image, name: str, size: int | None, strict: bool):
    try:
        _load_pixels(picture, strict)
        return _flatten(_upright(picture), name)
    except MediaError:
        raise
    except Exception as error:  # as above
        if "truncated" not in str(error).lower():
            text = f"{name} cannot be decoded: {error}; re-save it as PNG"
            raise MediaError(text) from error
        after = f" after {size:,} bytes" if size else ""
        raise MediaError(
            f"{name} is truncated{after}; re-save it or pass "
            "vlkit.Image(…, strict=False) to read what is there"
        ) from error


def _load_pixels(picture: PIL.Image.Image, strict: bool) -> None:
    try:
        picture.load()
    except Exception:
        if strict or not isinstance(picture, ImageFile):
            raise
        # stop reading and keep the rows so far; Pillow's LOAD_TRUNCATED_IMAGES is for all threads
        picture.tile = []
        picture.load()


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    # not ImageOps.exif_transpose: it rewrites the EXIF, too, and fails where that is odd elsewhere
    try:
        turn = TURNS.get(picture.getexif().get(ExifTag.Orientation, 1))
    except Exception:  # EXIF that cannot be parsed says nothing about orientation
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _flatten(picture: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Any mode to a new RGB image: alpha on white, 16-bit and float grey scaled to 8 bits."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture)
        if picture.mode == "I" and 0 <= values.min() and values.max() <= 65535:
            values = values.astype(np.uint16)  # Pillow's container of some 16-bit files
        picture = PIL.Image.fromarray(_scale_to_uint8(values, name))
    elif picture.has_transparency_data:
        canvas = PIL.Image.new("RGBA", picture.size, "white")
        picture = PIL.Image.alpha_composite(canvas, picture.convert("RGBA"))
    return picture.convert("RGB")


def check_shape(picture: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """The picture itself. Raises MediaError where one side is too long for the other."""
    long, short = max(picture.size), min(picture.size)
    if not 0 < long <= MAX_ASPECT_RATIO * short:
        raise MediaError(
            f"{name} is {picture.width}×{picture.height} pixels; the models accept aspect ratios "
            f"up to {MAX_ASPECT_RATIO}:1, so crop or pad it"
        )
    return picture


# --- arrays --------------------------------------------------------------------------------------


def _array_to_uint8(source: Any, name: str) -> np.ndarray:
    """(H, W) or (H, W, 3|4) uint8 from a numpy array, a torch tensor or what numpy can read."""
    try:
        if hasattr(source, "detach"):
            source = source.detach().cpu()
            source = (source.float() if source.is_floating_point() else source).numpy()
            if source.ndim == 3 and source.shape[0] in (1, 3, 4):
                source = source.transpose(1, 2, 0)
        values = np.asarray(source)
    except Exception as error:  # quantized, sparse, on the meta device …
        raise MediaError(f"{name} cannot be read ({error}); pass a dense numpy array") from error
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.size == 0 or not (
        values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))
    ):
        raise MediaError(f"{name} is not one picture; expected (H, W), (H, W, 3) or (H, W, 4)")
    return np.ascontiguousarray(_scale_to_uint8(values, name))


def _scale_to_uint8(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return np.round(values.astype(np.float32) / 257).astype(np.uint8)  # 65535 → 255
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # also refuses NaN
            raise MediaError(
                f"{name} contains floats from {low:.4g} to {high:.4g}; floats must be in 0–1, "
                "so scale or clip them, or pass uint8"
            )
        return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    raise MediaError(
        f"{name} has dtype {values.dtype}; expected uint8, uint16 or float 0–1, so convert it"
    )


def picture_size(source: Any) -> Size:
    """The (width, height) that ``load_image(source)`` would have, upright.

    Only a file's header is read, so damage behind it goes unnoticed; formats whose header does not
    suffice are loaded.

    Raises:
        MediaError: as :func:`vlkit.load_image`.
    """
    image = source if isinstance(source, Image) else Image(source)
    source, name = image.source, describe_source(image.source)
    if isinstance(source, bytes | bytearray | memoryview) or is_url(source):
        source = read_bytes(source, name)  # a URL is fetched once
        opened = _header_size(io.BytesIO(source))
    elif isinstance(source, str | os.PathLike) and os.path.isfile(local_path(source)):
        with open(local_path(source), "rb") as stream:
            opened = _header_size(stream)
    else:
        opened = None
    if opened is None:
        return load_image(source, strict=image.strict).size
    size, picture = opened
    check_shape(picture, name)
    return size


def _header_size(stream: Any) -> tuple[Size, PIL.Image.Image] | None:
    """The upright size and the undecoded picture; None where the header does not suffice."""
    try:
        picture = PIL.Image.open(stream)
        if picture.format == "TIFF":  # Pillow gives its size upright
            return picture.size, picture
        if picture.format not in _PLAIN or (picture.format == "PNG" and _has_late_exif(stream)):
            return None
        # PNG's own getexif decodes the picture first
        turned = PIL.Image.Image.getexif(picture).get(ExifTag.Orientation, 1) in (5, 6, 7, 8)
        return (picture.size[::-1] if turned else picture.size), picture
    except Exception:  # a decoder may raise anything; load_image then reports it
        return None


def _has_late_exif(stream: Any) -> bool:
    """Whether a PNG has its orientation behind its pixels."""
    place, next_chunk, behind = stream.tell(), 8, False
    try:
        while True:
            stream.seek(next_chunk)
            head = stream.read(8)
            if len(head) < 8:
                return False
            length, kind = struct.unpack(">I4s", head)
            behind = behind or kind == b"IDAT"
            if behind and kind != b"IDAT":
                if kind == b"eXIf" or stream.read(min(length, 24)).startswith(_EXIF_TEXT):
                    return True
            next_chunk += 12 + length
    finally:
        stream.seek(place)


class Deferred(Sequence):
    """Media that are read from their sources on every access."""

    sources: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self._read(i) for i in range(len(self))[index])
        return self._read(index)

    @abstractmethod
    def _read(self, index: int) -> Any:
        """One of them."""


class DeferredImages(Deferred):
    """Upright originals, read from their sources on every access.

    Args:
        images: the sources, with how to read them.
        sizes: (width, height) of each upright original, known without reading.
    """

    def __init__(self, images: Sequence[Image], sizes: Sequence[Size]):
        self.sources = tuple(images)
        self.sizes: tuple[Size, ...] = tuple((int(w), int(h)) for w, h in sizes)

    def _read(self, index: int) -> PIL.Image.Image:
        return self.sources[index].load()
