"""Any source becomes the right upright RGB picture, or a MediaError of one line with a remedy."""

import base64
import hashlib
import io
import os
import pathlib
import random
import struct
import sys
import threading
import urllib.parse
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest

import vlkit
from vlkit.errors import MediaError
from vlkit.media import sources
from vlkit.media.image import (
    can_read_heif,
    describe_source,
    load_image,
    picture_size,
    pictures_of,
    pixel_hash,
)

RED, GREEN, BLUE, YELLOW = (230, 30, 30), (30, 160, 60), (30, 60, 220), (240, 220, 40)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def corners(width=48, height=32):
    """A picture whose four quarters differ: red and green above, blue and yellow below."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = RED
    pixels[: height // 2, width // 2 :] = GREEN
    pixels[height // 2 :, : width // 2] = BLUE
    pixels[height // 2 :, width // 2 :] = YELLOW
    return PIL.Image.fromarray(pixels)


def encode(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def assert_corners(picture, size=(48, 32), tolerance=0):
    assert (picture.mode, picture.size) == ("RGB", size)
    width, height = size
    for x, y, color in (
        (width // 4, height // 4, RED),
        (3 * width // 4, height // 4, GREEN),
        (width // 4, 3 * height // 4, BLUE),
        (3 * width // 4, 3 * height // 4, YELLOW),
    ):
        np.testing.assert_allclose(picture.getpixel((x, y)), color, atol=tolerance)


def refusal(source, **options):
    """The text of the MediaError that a source gives."""
    with pytest.raises(MediaError) as caught:
        load_image(source, **options)
    text = str(caught.value)
    assert text.isprintable() and 20 < len(text) < 600
    return text


PNG = encode(corners(), "PNG")
JPEG = encode(corners(480, 320), "JPEG", quality=95, subsampling=0)
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory and home, with corner pictures in it."""
    for name in ("corners.png", "my photo #1 100%.png", "图片.png", "100%25.png"):
        (tmp_path / name).write_bytes(PNG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


# --- sources that work ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "corners.png",
        "./corners.png",
        pathlib.Path("corners.png"),
        "~/corners.png",
        pathlib.Path("~/corners.png"),
        "my photo #1 100%.png",
        "图片.png",
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        DATA_URL,
        DATA_URL.replace("data:image/png", "DATA:"),
        "data:image/png," + urllib.parse.quote_from_bytes(PNG),
        "data:image/png;base64," + urllib.parse.quote(base64.b64encode(PNG)),
        "data:image/png;base64," + base64.encodebytes(PNG).decode(),
        corners(),
        np.asarray(corners()),
        vlkit.Image("corners.png"),
        vlkit.Image(vlkit.Image(PNG)),
    ],
    ids=lambda source: describe_source(source)[:40],
)
def test_source_loads(folder, source):
    assert_corners(load_image(source))
    assert_corners(vlkit.Image(source).load())


@pytest.mark.parametrize("name", ["corners.png", "my photo #1 100%.png", "图片.png", "100%25.png"])
@pytest.mark.parametrize("host", ["", "localhost"])
def test_file_urls_load_quoted_and_plain(folder, name, host):
    assert_corners(load_image(f"file://{host}{folder / name}"))
    assert_corners(load_image(f"file://{host}{urllib.parse.quote(str(folder / name))}"))
    assert_corners(load_image((folder / name).as_uri()))


def test_unknown_home_is_taken_as_a_name(folder):
    (folder / "~nobody-has-this-name").write_bytes(PNG)
    assert_corners(load_image("~nobody-has-this-name"))


def test_result_is_new_and_carries_nothing_along():
    source = corners()
    source.info["transparency"] = RED
    loaded = load_image(source)
    assert loaded is not source and loaded.info == {}
    loaded.paste(BLACK, (0, 0, 48, 32))
    assert source.getpixel((0, 0)) == RED
    assert_corners(load_image(load_image(corners())))


# --- orientation ---------------------------------------------------------------------------------

# EXIF 2.3, 4.6.4 A: on which side of the upright picture the stored first row and column lie
ROW_AND_COLUMN = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored(upright, orientation):
    """The pixels that a camera stores for an upright picture."""
    pixels = np.asarray(upright)
    row, column = ROW_AND_COLUMN[orientation]
    if row in ("left", "right"):
        pixels = pixels.transpose(1, 0, 2)
    pixels = pixels[::-1] if row in ("bottom", "right") else pixels
    pixels = pixels[:, ::-1] if column in ("bottom", "right") else pixels
    return PIL.Image.fromarray(np.ascontiguousarray(pixels))


def with_orientation(kind, orientation, **options):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a description"
    return encode(stored(corners(), orientation), kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", ROW_AND_COLUMN)
@pytest.mark.parametrize(
    "kind, options",
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
    ids=["JPEG", "PNG", "WebP", "TIFF", "TIFF-LZW"],
)
def test_orientation(orientation, kind, options, tmp_path):
    data = with_orientation(kind, orientation, **options)
    path = tmp_path / "picture"
    path.write_bytes(data)
    opened = PIL.Image.open(io.BytesIO(data))
    already_read = PIL.Image.open(io.BytesIO(data))
    already_read.load()
    for source in (data, path, opened, already_read):
        assert_corners(load_image(source), tolerance=12)
        assert_corners(load_image(load_image(source)), tolerance=12)


def test_orientation_of_a_pil_image_that_never_was_a_file():
    picture = stored(corners(), 6)
    picture.getexif()[0x0112] = 6
    assert_corners(load_image(picture))


@pytest.mark.parametrize("value", [0, 9, 65535, "6", (6, 6)])
def test_orientation_that_means_nothing(value):
    picture = corners()
    picture.getexif()[0x0112] = value
    assert_corners(load_image(picture))


def test_orientation_beside_broken_exif():
    # IFD0: a good orientation, then a GPS pointer that leads outside the block
    entries = struct.pack("<HHI2H", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x8825, 4, 1, 9999)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + b"\0\0\0\0"
    data = encode(stored(corners(), 6), "JPEG", quality=95, subsampling=0, exif=exif)
    assert_corners(load_image(data), tolerance=12)


def test_exif_of_garbage_is_no_orientation():
    data = encode(corners(), "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0garbage" * 3)
    assert_corners(load_image(data), tolerance=12)


# --- modes ---------------------------------------------------------------------------------------


def pixel(source):
    return load_image(source).getpixel((3, 3))


def flat(mode, color, size=(8, 8)):
    return PIL.Image.new(mode, size, color)


def palette_with_transparency():
    picture = flat("P", 1)
    picture.putpalette([*RED, *BLUE])
    picture.info["transparency"] = 1
    return picture


@pytest.mark.parametrize(
    "picture, expected",
    [
        (flat("RGBA", (255, 0, 0, 0)), WHITE),
        (flat("RGBA", (255, 0, 0, 255)), (255, 0, 0)),
        (flat("RGBA", (255, 0, 0, 51)), (255, 204, 204)),
        (flat("LA", (0, 0)), WHITE),
        (flat("LA", (0, 51)), (204, 204, 204)),
        (palette_with_transparency(), WHITE),
        (flat("L", 77), (77, 77, 77)),
        (flat("1", 1), WHITE),
        (flat("1", 0), BLACK),
        (flat("I;16", 32896), (128, 128, 128)),
        (flat("I;16", 65535), WHITE),
        (flat("I", 32896), (128, 128, 128)),
        (flat("F", 0.5), (128, 128, 128)),
        (flat("CMYK", (0, 0, 0, 0)), WHITE),
        (flat("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
        (flat("YCbCr", (128, 128, 128)), (128, 128, 128)),
        (flat("HSV", (0, 255, 255)), (255, 0, 0)),
        (flat("LAB", (255, 128, 128)), WHITE),
    ],
    ids=lambda value: f"{value.mode}-{value.getpixel((0, 0))}" if hasattr(value, "mode") else "",
)
def test_mode(picture, expected):
    np.testing.assert_allclose(pixel(picture), expected, atol=1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_in_a_file_is_white(kind):
    assert pixel(encode(flat("RGBA", (255, 0, 0, 0)), kind)) == WHITE


def test_palette_file_with_transparency_is_white():
    data = encode(palette_with_transparency(), "PNG", transparency=1)
    assert PIL.Image.open(io.BytesIO(data)).mode == "P"
    assert pixel(data) == WHITE


def test_transparent_color_of_an_rgb_png_is_white_once():
    data = encode(flat("RGB", RED), "PNG", transparency=RED)
    once = load_image(data)
    assert once.getpixel((3, 3)) == WHITE
    once.paste(RED, (0, 0, 8, 8))  # such as a drawn box: it must not turn transparent
    assert pixel(once) == RED


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut(kind):
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    data = encode(PIL.Image.fromarray(ramp), kind)
    loaded = np.asarray(load_image(data))
    np.testing.assert_allclose(loaded[..., 0].ravel(), np.arange(256), atol=1)
    np.testing.assert_array_equal(loaded[..., 0], loaded[..., 2])
    np.testing.assert_array_equal(loaded, load_image(PIL.Image.open(io.BytesIO(data))))


def test_big_endian_sixteen_bits():
    picture = PIL.Image.frombytes("I;16B", (4, 4), struct.pack(">H", 0x8080) * 16)
    np.testing.assert_allclose(pixel(picture), (128,) * 3, atol=1)


def test_cmyk_jpeg():
    data = encode(corners().convert("CMYK"), "JPEG", quality=100)
    assert PIL.Image.open(io.BytesIO(data)).mode == "CMYK"
    assert_corners(load_image(data), tolerance=12)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(kind):
    later = flat("RGB", BLACK, (48, 32))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(corners(), kind, save_all=True, append_images=[later, later], **options)
    assert PIL.Image.open(io.BytesIO(data)).n_frames >= 2
    assert_corners(load_image(data))


def test_pil_image_keeps_the_frame_it_stands_at():
    data = encode(corners(), "GIF", save_all=True, append_images=[flat("RGB", BLACK, (48, 32))])
    animation = PIL.Image.open(io.BytesIO(data))
    animation.seek(1)
    assert pixel(animation) == BLACK
    assert animation.tell() == 1


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM", "TGA", "ICO"])
def test_lossless_formats(kind):
    options = {"sizes": [(48, 32)]} if kind == "ICO" else {}
    assert_corners(load_image(encode(corners(), kind, **options)))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_lossy_formats(kind):
    data = encode(corners(480, 320), kind, quality=95) if kind != "JPEG2000" else None
    data = data or encode(corners(480, 320), kind)
    assert_corners(load_image(data), (480, 320), tolerance=12)


# --- arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.full((8, 8), 77, np.uint8), (77,) * 3),
        (np.full((8, 8, 1), 77, np.uint8), (77,) * 3),
        (np.full((8, 8, 3), RED, np.uint8), RED),
        (np.full((8, 8, 4), (*RED, 0), np.uint8), WHITE),
        (np.full((8, 8), 32896, np.uint16), (128,) * 3),
        (np.full((8, 8, 3), 65535, ">u2"), WHITE),
        (np.ones((8, 8), bool), WHITE),
        (np.full((8, 8, 3), 0.5, np.float32), (128,) * 3),
        (np.full((8, 8), 1.0, np.float16), WHITE),
        (np.full((8, 8), 1 + 1e-6), WHITE),
        (np.full((8, 8), -1e-6), BLACK),
        (np.zeros((8, 16, 3), np.uint8)[:, ::-2], BLACK),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if hasattr(value, "dtype") else "",
)
def test_array(array, expected):
    np.testing.assert_allclose(pixel(array), expected, atol=1)
    assert load_image(array).size == (8, 8)


@pytest.mark.parametrize(
    "array, words",
    [
        (np.full((8, 8), 200.0), ("200", "0–1", "scale")),
        (np.full((8, 8), -0.5), ("-0.5", "0–1")),
        (np.full((8, 8), np.nan), ("nan", "0–1")),
        (np.full((8, 8), np.inf), ("inf", "0–1")),
        (np.zeros((8, 8), np.int64), ("int64", "uint8", "convert")),
        (np.zeros((8, 8), np.int8), ("int8", "convert")),
        (np.zeros((8, 8), complex), ("complex128", "convert")),
        (np.zeros((8, 8), object), ("object", "convert")),
        (np.zeros((3, 8, 8), np.uint8), ("(3, 8, 8)", "(H, W, 3)")),
        (np.zeros((2, 8, 8, 3), np.uint8), ("(2, 8, 8, 3)", "one picture")),
        (np.zeros((8, 8, 2), np.uint8), ("(8, 8, 2)", "(H, W, 3)")),
        (np.zeros((0, 8, 3), np.uint8), ("(0, 8, 3)",)),
        (np.zeros(8, np.uint8), ("(8,)",)),
        (np.uint8(3), ("uint8", "()")),
        (np.zeros((2, 801, 3), np.uint8), ("801×2", "200:1", "crop")),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if hasattr(value, "dtype") else "",
)
def test_array_refused(array, words):
    text = refusal(array)
    assert all(word in text for word in words), text


# --- refusals ------------------------------------------------------------------------------------


def bomb(width, height):
    """A PNG of few bytes that promises many pixels."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


@pytest.mark.parametrize(
    "source, words",
    [
        ("missing.png", ("missing.png does not exist", "check the path")),
        ("corners.png/inside.png", ("corners.png/inside.png does not exist", "check the path")),
        (pathlib.Path("missing.png"), ("missing.png does not exist", "check the path")),
        ("file:///missing.png", ("file:///missing.png does not exist", "check the path")),
        (".", (". is a directory", "one picture file")),
        ("", ("''", "check the path")),
        ("bad\nname\x1b[31m.png", (r"'bad\nname\x1b[31m.png'", "does not exist")),
        (pathlib.Path("bad\rname.png"), (r"'bad\rname.png'", "does not exist")),
        ("null\0byte.png", (r"null\x00byte", "check the path")),
        ("\ud800.png", (r"\ud800", "check the path")),
        ("x" * 100_000, ("xxx…xxx", "cannot be read", "check the path")),
        (base64.b64encode(PNG * 40).decode(), ("data:image/png;base64,…",)),
        (b"", ("0 bytes", "empty", "save")),
        (b"photo.jpg", ("9 bytes", "not a picture", "photo.jpg", "expected PNG")),
        (b"<!doctype html><title>404</title>", ("<!doctype ht", "expected PNG")),
        (b"\x89PNG\r\n\x1a\n", ("truncated or damaged", "8 bytes", "again")),
        (b"\xff\xd8\xff", ("truncated or damaged", "3 bytes", "again")),
        (bomb(60_000, 60_000), ("too many pixels", "3600000000", "MAX_IMAGE_PIXELS")),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", ("export", "PNG")),
        ("data:image/png;base64,????", ("data URL of 26 characters", "data:image/png;base64,…")),
        ("data:image/png;base64,iVBORw0KGgo", ("data URL", "data:image/png;base64,…")),
        ("data:image/png", ("data URL of 14 characters", "no comma", "expected")),
        ("data:,", ("data URL of 6 characters", "empty")),
        ("http://", ("http://", "address")),
        ("http://[::1", ("http://[::1", "address")),
        ("https://127.0.0.1:99999/a.png", ("99999", "address")),
        (flat("RGB", RED, (1, 1000)), ("1×1000", "200:1", "crop or pad")),
        (flat("RGB", RED, (0, 0)), ("0×0",)),
        (flat("RGB", RED, (0, 9)), ("0×9",)),
        (flat("I", 70_000), ("8×8 PIL image", "convert it")),
        (flat("F", 200.0), ("8×8 PIL image", "200", "0–1")),
        (flat("La", (1, 1)), ("8×8 PIL image", "cannot be decoded")),
        (None, ("NoneType", "pass a path")),
        (7, ("int", "pass a path")),
        (["a.png", "b.png"], ("list", "pass a path")),
        (object, ("type", "pass a path")),
    ],
    ids=lambda value: describe_source(value)[:30] if not isinstance(value, tuple) else "",
)
def test_refused(folder, source, words):
    text = refusal(source)
    assert all(word in text for word in words), text
    assert refusal(vlkit.Image(source)) == text


def test_limits_of_the_aspect_ratio():
    assert load_image(flat("RGB", RED, (2, 400))).size == (2, 400)
    assert "2×401" in refusal(flat("RGB", RED, (2, 401)))


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("empty.png", b"", ("empty.png is empty (0 bytes)", "again")),
        ("notes.jpg", b"These are my notes.", ("notes.jpg is not a picture", "These are my")),
        ("page.jpg", b"<html><body>Not found</body></html>", ("page.jpg is not a pic", "<html>")),
        ("cut.jpg", JPEG[:3000], ("cut.jpg is truncated after 3,000 bytes", "strict=False")),
        ("cut.png", PNG[:-30], (f"cut.png is truncated after {len(PNG) - 30} bytes", "strict=F")),
        ("long.tif", encode(flat("RGB", RED, (1, 1000)), "TIFF"), ("long.tif is 1×1000", "crop")),
    ],
)
def test_file_refused(folder, name, content, words):
    (folder / name).write_bytes(content)
    text = refusal(name)
    assert all(word in text for word in words), text


@pytest.mark.timeout(30)
def test_pipes_and_devices_do_not_hang(folder):
    os.mkfifo(folder / "pipe.png")
    for name in ("pipe.png", "/dev/zero", "/dev/tty"):
        assert f"{name} is not a regular file; save" in refusal(name)
    assert "/proc/self/status is empty" in refusal("/proc/self/status")


def test_link_that_leads_in_a_circle(folder):
    (folder / "loop.png").symlink_to("loop.png")
    assert "loop.png cannot be read" in refusal("loop.png")


def test_file_without_permission(folder, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(sources, "open", refuse, raising=False)  # as root no file is closed
    text = refusal("corners.png")
    assert "corners.png cannot be read (Permission denied)" in text and "permissions" in text


def test_file_too_large(folder, monkeypatch):
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", len(PNG) - 1)
    assert f"corners.png has {len(PNG)} bytes, too many" in refusal("corners.png")


@pytest.mark.parametrize(
    "name, value", [("max_tokens", 0), ("min_tokens", 1.5), ("max_tokens", "9")]
)
def test_image_limits_refused(name, value):
    with pytest.raises(MediaError, match=f"{name}={value!r} must be a whole number"):
        vlkit.Image(PNG, **{name: value})


def test_image_limits_that_cross():
    with pytest.raises(MediaError, match="min_tokens=9 exceeds max_tokens=4"):
        vlkit.Image(PNG, max_tokens=4, min_tokens=9)


def test_names_of_sources_never_hold_content():
    assert describe_source(DATA_URL) == f"data URL of {len(DATA_URL)} characters"
    assert describe_source(PNG) == f"picture of {len(PNG)} bytes"
    assert len(describe_source("x" * 10_000)) < 200
    assert describe_source(vlkit.Image("a.png")) == "a.png"


# --- truncated files -----------------------------------------------------------------------------

SOFT = PIL.Image.fromarray(
    np.stack([*np.mgrid[0:120, 0:160], np.full((120, 160), 90)], -1).astype(np.uint8)
)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP"])
def test_truncated_file_is_read_as_far_as_it_goes(kind):
    data = encode(SOFT, kind)
    cut = data[: len(data) * 3 // 4]
    text = refusal(cut)
    assert f"is truncated after {len(cut):,} bytes" in text and "strict=False" in text
    loaded = load_image(cut, strict=False)
    assert loaded.size == SOFT.size
    whole = np.asarray(load_image(data)).astype(int)
    same = np.abs(np.asarray(loaded) - whole).mean(axis=(1, 2)) < 3
    assert 0.3 < same.mean() < 1
    lenient = vlkit.Image(cut, strict=False)
    for same_again in (lenient.load(), load_image(lenient), vlkit.Image(lenient).load()):
        np.testing.assert_array_equal(loaded, same_again)


def test_progressive_jpeg_that_is_cut_shows_a_coarse_picture():
    data = encode(SOFT, "JPEG", progressive=True)
    loaded = load_image(data[: len(data) * 3 // 4], strict=False)
    difference = np.abs(np.asarray(loaded).astype(int) - np.asarray(SOFT))
    assert difference.mean() < 20


def test_truncated_pil_image():
    cut = JPEG[:3000]
    assert "480×320 PIL image is truncated; re-save" in refusal(PIL.Image.open(io.BytesIO(cut)))
    opened = PIL.Image.open(io.BytesIO(cut))
    assert load_image(opened, strict=False).getpixel((5, 5))[0] > 200


def test_whole_file_is_the_same_without_strict():
    np.testing.assert_array_equal(load_image(JPEG, strict=False), load_image(JPEG))


def test_strict_and_not_strict_in_parallel():
    cut = JPEG[: len(JPEG) // 2]
    start = threading.Barrier(8)

    def work(i):
        start.wait()
        for _ in range(25):
            if i % 2:
                assert load_image(cut, strict=False).size == (480, 320)
            else:
                assert "is truncated" in refusal(cut)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


# --- hostile bytes -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "kind, options",
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("GIF", {"save_all": True, "append_images": [corners()]}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
    ],
    ids=["PNG", "JPEG", "GIF", "WebP", "TIFF", "TIFF-LZW", "BMP"],
)
def test_mutated_files_load_or_are_refused(kind, options):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = encode(corners(), kind, exif=exif, **options)
    chance = random.Random(20240918)
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(300):
        mutated = bytearray(data)
        for _ in range(chance.choice((1, 2, 8, 40))):
            mutated[chance.randrange(len(mutated))] = chance.randrange(256)
        if chance.random() < 0.3:
            del mutated[chance.randrange(len(mutated)) :]
        try:
            picture = load_image(bytes(mutated), strict=chance.random() < 0.5)
            assert picture.mode == "RGB"
            outcomes["loaded"] += 1
        except MediaError as error:
            assert str(error).isprintable()
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 5


def test_pixels_know_a_picture_whatever_its_file_is(tmp_path):
    picture = corners()
    turned = picture.transpose(PIL.Image.Transpose.ROTATE_90)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned back when it is read
    turned.save(tmp_path / "turned.png", exif=exif)
    picture.save(tmp_path / "plain.bmp")
    hashes = {pixel_hash(load_image(tmp_path / name)) for name in ("turned.png", "plain.bmp")}
    assert hashes == {pixel_hash(picture)}
    grey = [PIL.Image.new("RGB", size) for size in ((48, 32), (32, 48))]  # the same bytes
    assert len({*hashes, *map(pixel_hash, grey)}) == 3


def test_bytes_know_a_file_and_a_change_is_noticed(tmp_path):
    path = tmp_path / "a b.png"
    for content in (b"first", b"other", b"longer than before"):
        path.write_bytes(content)
        expected = hashlib.sha256(content).hexdigest()
        assert expected == sources.file_hash(path) == sources.file_hash(content)
        assert sources.file_hash(path.as_uri()) == expected
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    os.mkfifo(tmp_path / "pipe")
    for refused in ("pipe", "missing", "."):
        with pytest.raises(OSError):
            sources.file_hash(tmp_path / refused)


# --- folders -------------------------------------------------------------------------------------


KINDS = {
    "a.png": "PNG", "b.avif": "AVIF", "c.gif": "GIF", "d.jfif": "JPEG", "e.jp2": "JPEG2000",
    "f.mpo": "MPO", "g.ppm": "PPM", "h.tga": "TGA", "i.qoi": "QOI", "j.JPG": "JPEG", "k": "PNG",
    "l.image": "WEBP",
}  # fmt: skip


def test_a_folder_takes_every_picture_that_can_be_read(tmp_path, recwarn):
    for name, kind in KINDS.items():
        corners().save(tmp_path / name, kind)
    assert [path.name for path in pictures_of(tmp_path, "x")] == list(KINDS)
    assert len(vlkit.read_conversations(tmp_path, "?")) == len(KINDS)
    for name in KINDS:
        assert load_image(tmp_path / name).size == (48, 32)
    assert not [w for w in recwarn if w.category is UserWarning]


def test_a_folder_says_what_it_leaves_out(tmp_path):
    corners().save(tmp_path / "10.png")
    corners().save(tmp_path / "9.png")
    for name in ("a.txt", "b.txt", "c.mp4", "noise", ".hidden"):
        (tmp_path / name).write_bytes(b"no picture" * 9)
    (tmp_path / "more").mkdir()
    with pytest.warns(UserWarning, match="left out 5 of 7 that cannot be read") as warned:
        assert [path.name for path in pictures_of(tmp_path, "x")] == ["9.png", "10.png"]
    text = str(warned[0].message)
    for part in ("2 .txt", "1 .mp4", "1 without a suffix", "1 folder"):
        assert part in text
    with pytest.raises(MediaError, match=r"without pictures; it has 2 \.txt"):
        for path in tmp_path.glob("*.png"):
            path.unlink()
        pictures_of(tmp_path, "x")


@pytest.fixture
def without_pillow_heif(monkeypatch):
    can_read_heif.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    yield
    can_read_heif.cache_clear()


@pytest.fixture
def heic(tmp_path):
    import pillow_heif

    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    turned = corners().transpose(PIL.Image.Transpose.ROTATE_90)
    pillow_heif.from_pillow(turned).save(tmp_path / "x.heic", quality=95, exif=exif.tobytes())
    return tmp_path / "x.heic"


def test_heic_is_upright(heic):
    for source in (heic, heic.read_bytes()):
        assert_corners(load_image(source), tolerance=12)
        assert picture_size(source) == (48, 32)
    assert pictures_of(heic.parent, "x") == [heic]


def test_heic_of_every_orientation_and_depth(tmp_path):
    import pillow_heif

    turn = PIL.Image.Transpose
    stored = (turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE,
              turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270)  # fmt: skip
    for orientation, way in enumerate(stored, 2):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        file = pillow_heif.from_pillow(corners().transpose(way))
        file.save(tmp_path / "x.heic", quality=95, exif=exif.tobytes())
        assert_corners(load_image(tmp_path / "x.heic"), tolerance=12)
    deep = np.asarray(corners(), np.uint16) * 257
    size = corners().size
    file = pillow_heif.from_bytes(mode="RGB;16", size=size, data=deep.tobytes())
    file.add_from_pillow(PIL.Image.new("RGB", (16, 16)))  # the first is the one that is shown
    file.save(tmp_path / "deep.heic", quality=95)
    assert_corners(load_image(tmp_path / "deep.heic"), tolerance=12)


def test_a_damaged_heic_is_one_line(heic):
    data = heic.read_bytes()
    assert "is truncated or damaged" in refusal(data[: len(data) // 2])
    corners().save(heic.parent / "x.tga")
    (heic.parent / "x.tga").rename(heic.parent / "x.obu")
    with pytest.warns(UserWarning, match=r"left out 1 of 2 .*1 \.obu"):  # TGA has no signature
        assert pictures_of(heic.parent, "x") == [heic]


def test_heic_without_its_package_is_one_line(heic, without_pillow_heif):
    assert refusal(heic).endswith("is a HEIC picture; pip install 'vlkit[heic]' to read it")
    with pytest.raises(MediaError, match=r"1 \.heic \(HEIC needs: pip install 'vlkit\[heic\]'\)"):
        pictures_of(heic.parent, "x")
    corners().save(heic.parent / "y.avif")
    with pytest.warns(UserWarning, match="HEIC needs: pip install"):
        assert [path.name for path in pictures_of(heic.parent, "x")] == ["y.avif"]
