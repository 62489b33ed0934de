"""Sizes from headers equal those of the loaded pictures, and no pixel is decoded for them."""

from __future__ import annotations

import base64
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
from PIL.ImageFile import ImageFile

import vlkit
from vlkit.errors import MediaError, ModelError
from vlkit.media.image import load_image, picture_size
from vlkit.models.families import family_of_name
from vlkit.models.memory import Memory

SIZE = (60, 40)
UPRIGHT = {turn: SIZE if turn < 5 else SIZE[::-1] for turn in range(1, 9)}  # by EXIF's definition


def exif(orientation: int) -> PIL.Image.Exif:
    data = PIL.Image.Exif()
    data[0x0112] = orientation
    return data


def encoded(kind: str, orientation: int = 1) -> bytes:
    buffer = io.BytesIO()
    options = {"exif": exif(orientation)} if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {}
    PIL.Image.new("RGB", SIZE, "teal").save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with_late(kind: bytes, data: bytes) -> bytes:
    """A PNG that has one more chunk behind its pixels."""
    plain = encoded("PNG")
    end = plain.rindex(b"IEND") - 4
    return plain[:end] + chunk(kind, data) + plain[end:]


@pytest.fixture
def no_decoding(monkeypatch):
    def refuse(self):
        raise AssertionError("pixels were decoded")

    for kind in (ImageFile, *ImageFile.__subclasses__()):
        if "load" in vars(kind):
            monkeypatch.setattr(kind, "load", refuse)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_counts(tmp_path, kind, orientation):
    path = tmp_path / f"picture.{kind.lower()}"
    path.write_bytes(encoded(kind, orientation))
    assert picture_size(path) == UPRIGHT[orientation] == load_image(path).size
    assert picture_size(path.read_bytes()) == UPRIGHT[orientation]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_no_pixel_is_decoded(tmp_path, kind, no_decoding):
    path = tmp_path / "picture"
    path.write_bytes(encoded(kind, 6))
    assert picture_size(path) in (SIZE, SIZE[::-1])
    with pytest.raises(AssertionError, match="decoded"):
        PIL.Image.open(path).load()


@pytest.mark.parametrize("kind", ["GIF", "BMP", "ICO", "PPM", "JPEG2000", "TGA", "AVIF"])
def test_other_formats(kind):
    data = encoded(kind)
    assert picture_size(data) == load_image(data).size


def test_orientation_behind_the_pixels_of_a_png():
    late = png_with_late(b"eXIf", exif(6).tobytes()[6:])
    assert picture_size(late) == load_image(late).size == SIZE[::-1]
    dated = png_with_late(b"tEXt", b"date:create\0today")
    assert picture_size(dated) == load_image(dated).size == SIZE


def test_a_date_behind_the_pixels_costs_no_decoding(no_decoding):
    assert picture_size(png_with_late(b"tEXt", b"date:create\0today")) == SIZE


def test_every_kind_of_source(tmp_path):
    path = tmp_path / "a picture.jpg"
    path.write_bytes(encoded("JPEG", 6))
    url = "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()
    sources = [path, str(path), path.as_uri(), url, PIL.Image.open(path), vlkit.Image(path)]
    assert {picture_size(source) for source in sources} == {SIZE[::-1]}
    assert picture_size(np.zeros((40, 60, 3), np.uint8)) == SIZE


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "picture.png"
    for size in ((30, 20), (50, 70)):
        PIL.Image.new("RGB", size).save(path)
        assert picture_size(path) == size


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "does not exist"),
        (b"", "empty"),
        (b"This is text.", "is not a picture"),
        (encoded("PNG")[:20], "truncated or damaged"),
    ],
)
def test_errors_are_those_of_the_loader(tmp_path, content, match):
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MediaError, match=match):
        picture_size(path)


def test_too_long_a_picture_is_refused(tmp_path):
    PIL.Image.new("RGB", (1, 1000)).save(tmp_path / "line.png")
    with pytest.raises(MediaError, match="200:1"):
        picture_size(tmp_path / "line.png")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Qwen/Qwen-VL", "qwen_vl"),
        ("Qwen/Qwen-VL-Chat-Int4", "qwen_vl"),
        ("Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl"),
        ("Qwen/QVQ-72B-Preview", "qwen2_vl"),
        ("Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "qwen2_5_vl"),
        ("Qwen/Qwen3-VL-235B-A22B-Thinking", "qwen3_vl"),
        ("Qwen/Qwen3.5-397B-A17B", "qwen3_5"),
        ("Qwen/Qwen3.6-35B-A3B", "qwen3_5"),
        ("Qwen/Qwen3.8-27B", "qwen3_5"),
        ("Qwen/Qwen3.8-Flash-Next", "qwen3_5"),
        ("Qwen/Qwen4-Exp", "qwen3_5"),
        ("someone/my-qwen2.5-vl-3b-finetune", "qwen2_5_vl"),
        # made from these; by model_type in their config.json
        ("unsloth/Qwen3-VL-8B-Instruct-unsloth-bnb-4bit", "qwen3_vl"),
        ("ByteDance-Seed/UI-TARS-7B-DPO", "qwen2_vl"),
        ("ByteDance-Seed/UI-TARS-1.5-7B", "qwen2_5_vl"),
        ("reducto/RolmOCR", "qwen2_5_vl"),
        ("nanonets/Nanonets-OCR-s", "qwen2_5_vl"),
        ("allenai/olmOCR-7B-0225-preview", "qwen2_vl"),
        ("allenai/olmOCR-7B-0825-FP8", "qwen2_5_vl"),
        ("allenai/olmOCR-2-7B-1025", "qwen2_5_vl"),
        ("nvidia/Cosmos-Reason1-7B", "qwen2_5_vl"),
        ("nvidia/Cosmos-Reason2-8B", "qwen3_vl"),
        ("OS-Copilot/OS-Atlas-Base-7B", "qwen2_vl"),
    ],
)
def test_families_by_name(name, family):
    assert family_of_name(name) == family


@pytest.mark.parametrize(
    "name",
    ["qwen-vl-max", "qwen-vl-ocr", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-8B", "llava-hf/llava-1.5-7b"],
)
def test_names_of_other_models(name):
    with pytest.raises(ModelError, match="does not show the model family"):
        family_of_name(name)


def test_a_known_id_needs_no_torch(tmp_path):
    path = tmp_path / "picture.png"
    PIL.Image.new("RGB", (640, 480)).save(path)
    code = (
        "import sys, vlkit\n"
        f"plan = vlkit.preflight('Qwen/Qwen2.5-VL-7B-Instruct', vlkit.user('Hi', {str(path)!r}))\n"
        "assert plan.usage.image_tokens == 23 * 17\n"  # 640 and 480 over 28, rounded
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("available", "factor", "fits"), [(60, 1.0, True), (59, 1.0, False), (119, 2.0, False)]
)
def test_memory_fits_or_not(available, factor, fits):
    memory = Memory(30, 20, 10, available, "RAM", factor)
    assert memory.total == 60 and memory.fits is fits
