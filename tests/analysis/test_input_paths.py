"""compare_paths shows what FACTS say of the two usual paths: a row per test."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from clips import write_clip

import vlkit
from vlkit.analysis.input_paths import PATHS, PathComparison, compare_paths
from vlkit.inputs import prepare_inputs

TEMPLATE, UTILITIES, OURS = PATHS


def smooth(width: int = 300, height: int = 210) -> PIL.Image.Image:
    """A picture without sharp edges, which every library resizes alike."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 100 * np.sin(x / 40), 127 + 100 * np.cos(y / 30), 127 + 100 * np.sin(x / 90)]
    return PIL.Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def ask(**item) -> list[dict]:
    return [{"role": "user", "content": [item, {"type": "text", "text": "What is it?"}]}]


def row(comparison: PathComparison, name: str) -> dict:
    return comparison.table.loc[name].to_dict()


@pytest.fixture
def saved(tmp_path):
    def save(name: str, picture: PIL.Image.Image, **options) -> str:
        picture.save(tmp_path / name, **options)
        return str(tmp_path / name)

    return save


def test_ordinary_files_agree(vlm, saved):
    comparison = compare_paths(vlm, ask(type="image", image=saved("plain.png", smooth())))
    assert comparison.differences.empty and not comparison.errors
    assert set(comparison.tensors) == set(PATHS)
    assert row(comparison, "token ids as vlkit's")[UTILITIES] is True


def test_text_alone_agrees(vlm):
    assert compare_paths(vlm, "Hello").differences.empty
    assert compare_paths(vlm, {"role": "user", "content": "Hello"}).differences.empty


def test_an_exif_rotated_file_lies_on_its_side_in_qwen_vl_utils(vlm, saved):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    path = saved("rotated.jpg", smooth(), exif=exif, quality=95)
    comparison = compare_paths(vlm, ask(type="image", image=path))
    turned = row(comparison, "picture 1: orientation")
    assert [turned[name] for name in PATHS] == ["upright", "lying", "upright"]
    sizes = row(comparison, "picture 1: size")
    assert sizes[UTILITIES] == "308×224" and sizes[OURS] == sizes[TEMPLATE] == "224×308"
    assert "EXIF" in turned["note"]


def test_a_lying_picture_is_seen_through_a_double_resize(vlm):
    path = str(vlkit.sample("rotated"))  # ends at 280×224 there, at 224×308 here
    comparison = compare_paths(vlm, ask(type="image", image=path))
    assert row(comparison, "picture 1: orientation")[UTILITIES] == "lying"


def test_a_transparent_png_loses_its_alpha_in_the_template(vlm, saved):
    picture = smooth().convert("RGBA")
    picture.putalpha(0)
    comparison = compare_paths(vlm, ask(type="image", image=saved("clear.png", picture)))
    name = "picture 1: largest pixel difference of 255"
    assert comparison.differences.index.tolist() == [name]
    pixels = row(comparison, name)
    assert pixels[TEMPLATE] > 100 > 16 > pixels[UTILITIES]  # white by us and qwen_vl_utils


def test_a_pixel_difference_is_that_of_the_colours(vlm, saved):
    clear = PIL.Image.new("RGBA", (224, 168), (0, 0, 0, 0))  # white by us, black by the template
    comparison = compare_paths(vlm, ask(type="image", image=saved("black.png", clear)))
    pixels = row(comparison, "picture 1: largest pixel difference of 255")
    assert pixels[TEMPLATE] == pytest.approx(255, abs=0.5)


def test_a_16_bit_png_saturates_in_qwen_vl_utils(vlm, saved):
    ramp = np.tile(np.linspace(0, 65535, 300), (210, 1)).astype(np.uint16)
    comparison = compare_paths(
        vlm, ask(type="image", image=saved("deep.png", PIL.Image.fromarray(ramp)))
    )
    assert row(comparison, "picture 1: largest pixel difference of 255")[UTILITIES] > 200


@pytest.mark.parametrize("spelling", [{"max_pixels": 20 * 784}, {"max_tokens": 20}])
def test_limits_in_the_item_are_ignored_by_the_template(tiny_vlm, saved, spelling):
    path = saved("plain.png", smooth(224, 168))
    comparison = compare_paths(tiny_vlm("qwen2_vl"), ask(type="image", image=path, **spelling))
    tokens = row(comparison, "picture 1: tokens")
    assert tokens[TEMPLATE] == 8 * 6 and tokens[UTILITIES] == tokens[OURS] <= 20
    assert "ignored" in row(comparison, "picture 1: size")["note"]


def test_a_picture_above_the_processors_limit_is_resized_twice(tiny_vlm, saved):
    path = saved("large.png", smooth(900, 600))
    comparison = compare_paths(tiny_vlm("qwen2_vl"), ask(type="image", image=path))
    sizes = row(comparison, "picture 1: sizes on the way")
    assert sizes[UTILITIES].startswith("896×588 → ") and "→" not in sizes[OURS]
    assert sizes["differs"] and "twice" in sizes["note"]


def test_qwen_vl_utils_ignores_the_processors_cap_for_qwen3(tiny_vlm, saved):
    path = saved("large.png", smooth(900, 600))
    comparison = compare_paths(tiny_vlm("qwen3_vl"), ask(type="image", image=path))
    tokens = row(comparison, "picture 1: tokens")
    assert tokens[UTILITIES] == 28 * 19 > 64 >= tokens[OURS] == tokens[TEMPLATE]
    assert row(comparison, "patch size by default")[UTILITIES] == 14


@pytest.mark.parametrize(
    ("name", "template", "utilities"),
    [
        ("a.tiff", "RuntimeError", ""),
        ("path", "TypeError", "AttributeError: 'PosixPath' object has no attribute 'startswith'"),
        ("array", "", "AttributeError"),
        ("moving.gif", "ValueError: too many values to unpack", ""),
    ],
)
def test_sources_that_a_path_cannot_read(vlm, saved, tmp_path, name, template, utilities):
    if name == "a.tiff":
        source = saved(name, smooth())
    elif name == "moving.gif":
        frames = [smooth(width) for width in (300, 300)]
        frames[1].paste("red", (0, 0, 99, 99))
        source = saved(name, frames[0], save_all=True, append_images=frames[1:])
    else:
        saved("b.png", smooth())
        source = tmp_path / "b.png" if name == "path" else np.asarray(smooth())
    errors = compare_paths(vlm, ask(type="image", image=source)).errors
    assert errors.get(TEMPLATE, "").startswith(template) and bool(template) == (TEMPLATE in errors)
    assert errors.get(UTILITIES, "").startswith(utilities)
    assert bool(utilities) == (UTILITIES in errors) and OURS not in errors
    assert all("\n" not in error for error in errors.values())


def test_what_no_path_can_read_is_told_by_each(vlm):
    comparison = compare_paths(vlm, ask(type="image", image="/nowhere/at/all.png"))
    assert set(comparison.errors) == set(PATHS) and not comparison.tensors
    assert comparison.errors[UTILITIES].startswith("FileNotFoundError")
    assert "does not exist" in comparison.errors[OURS]
    assert row(comparison, "prompt tokens")[OURS] == "–"


def test_a_clip_file_through_each_path(tiny_vlm, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", frames=60, fps=20)
    comparison = compare_paths(tiny_vlm("qwen2_5_vl"), ask(type="video", video=str(path), fps=2))
    assert OURS not in comparison.errors
    # without the system's ffmpeg neither reads it; with it, 2.5's card fails on its fps
    assert UTILITIES in comparison.errors
    assert row(comparison, "clip 1: frames, by two")[OURS] == 3
    assert row(comparison, "clip 1: times")[OURS] == "1.00 s a step"


def test_frames_get_wrong_times_from_the_template(tiny_vlm):
    frames = [smooth(112, 84)] * 8
    comparison = compare_paths(tiny_vlm("qwen2_5_vl"), ask(type="video", video=frames))
    times = row(comparison, "clip 1: times")
    assert times[TEMPLATE] == f"{2 / 24:.2f} s a step"  # 24 frames a second assumed
    assert times[OURS] == "1.00 s a step" and times["differs"]
    assert "fps" in comparison.errors[UTILITIES]  # the card's **video_kwargs


def test_frames_are_dropped_and_bent_for_qwen3(tiny_vlm):
    frames = [smooth(160, 112)] * 8
    comparison = compare_paths(tiny_vlm("qwen3_vl"), ask(type="video", video=frames))
    steps = row(comparison, "clip 1: frames, by two")
    assert (steps[TEMPLATE], steps[UTILITIES], steps[OURS]) == (2, 4, 4)
    shape = {path: _ratio(row(comparison, "clip 1: size")[path]) for path in PATHS}
    assert shape[UTILITIES] == 1.0  # 160×112 becomes a square
    assert abs(shape[OURS] - 160 / 112) < 0.1
    assert row(comparison, "clip 1: times")[OURS] == "0.2 1.2 2.2 3.2"


def _ratio(size: str) -> float:
    width, height = map(int, size.split("×"))
    return width / height


def test_a_bare_processor_pads_on_the_wrong_side(tiny_vlm, tiny_folder, saved):
    from transformers import AutoProcessor

    for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        processor = AutoProcessor.from_pretrained(tiny_folder(kind), padding_side="right")
        message = ask(type="image", image=saved("plain.png", smooth()))
        comparison = compare_paths(processor, message)
        padding = row(comparison, "padding side")
        assert [padding[path] for path in PATHS] == ["right", "right", "left"]
        assert padding["differs"] and processor.tokenizer.padding_side == "right"
        ours = prepare_inputs(tiny_vlm(kind), [message]).tensors
        for name, tensor in comparison.tensors[OURS].items():
            assert torch.equal(tensor, ours[name])


def test_several_media_are_compared_one_by_one(vlm, saved):
    pictures = [saved("a.png", smooth()), saved("b.png", smooth(200, 300))]
    message = vlkit.user("Which?", *pictures, vlkit.Video([smooth(112, 84)] * 4))
    names = compare_paths(vlm, [vlkit.system("Be terse."), message]).table.index
    for name in ("picture 1: size", "picture 2: size", "clip 1: size"):
        assert name in names


def test_the_table_in_a_notebook(vlm, saved):
    page = compare_paths(vlm, ask(type="image", image=saved("<b>.tiff", smooth())))._repr_html_()
    assert "<b>" not in page and "background" not in page and page.count("<tr") > 5


def test_messages_are_left_as_they_were(vlm, saved):
    messages = ask(type="image", image=saved("plain.png", smooth()), max_pixels=20 * 784)
    before = repr(messages)
    compare_paths(vlm, messages)
    assert repr(messages) == before
