"""Numbers in the notebooks' and the guide's prose are those of the files that they are about."""

import json
import runpy
from pathlib import Path

import nbformat
import PIL.Image

import vlkit
from vlkit.media.video import MAX_FRAMES

ROOT = Path(__file__).resolve().parents[2]


def prose(number):
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_what_the_bundled_model_knows():
    words = runpy.run_path(str(ROOT / "pretraining" / "words.py"))
    trained = [row["english"] for row in words["PHOTOGRAPHS"] if row["use"] == "train"]
    kinds = len(set(trained))
    said = f"{len(words['NOUNS'])} everyday things as pictograms, the photographs of {kinds} kinds"
    assert said in prose("00")
    card = (ROOT / "data/tiny-qwen2-vl/README.md").read_text(encoding="utf-8")
    assert f"{len(trained)} cut-outs of {kinds} kinds" in card
    assert f"the photographs of {kinds} kinds" in card


def test_what_large_models_take():
    photo = vlkit.user("", PIL.Image.new("RGB", (4000, 3000)))
    tokens = vlkit.preflight("Qwen/Qwen2.5-VL-7B-Instruct", photo).usage.image_tokens
    assert f"12 megapixels is {tokens:,} tokens for Qwen2.5-VL-7B" in prose("00")
    assert f"one of 12 megapixels is some {round(tokens, -3):,} tokens" in prose("05")
    weights = vlkit.memory_table()["bfloat16, GB"]
    copies = 2 * weights["Qwen/Qwen2-VL-7B-Instruct"]
    assert f"two copies in bfloat16 are {copies:.0f} GB" in prose("05")
    assert weights["Qwen/Qwen2.5-VL-7B-Instruct"] < 24 < weights["Qwen/Qwen2.5-VL-32B-Instruct"]


def test_sizes_in_the_bundled_model():
    config = json.loads((ROOT / "data/tiny-qwen2-vl/config.json").read_text(encoding="utf-8"))
    wide = config.get("text_config", config)["hidden_size"]
    patch = config["vision_config"]["patch_size"]
    row = 2 * 3 * patch * patch
    assert f"a row has 2 × 3 × {patch} × {patch} = {row:,} numbers" in prose("08")
    assert f"has {wide} × {wide} = {wide * wide:,} numbers here" in prose("08")
    thin = 2 * 16 * wide
    assert f"`B` is {wide}×16: {thin:,} numbers in place of {wide * wide:,}" in prose("05")
    clip = vlkit.clips()["moves_right"]
    usage = vlkit.preflight("tiny", vlkit.user("", vlkit.Video(clip.path, frames=2))).usage
    assert f"pays {usage.video_tokens} tokens for every two frames" in prose("02")
    assert f"`max_frames` ({MAX_FRAMES} by default)" in prose("02")


def test_the_share_of_rows_of_easy_vqa():
    (path,) = (ROOT / "notebooks").glob("05_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    (tagged,) = (cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    names: dict = {}
    exec(tagged.source, names)
    assert f"This run sees {names['ROWS'] / 18_000:.0%} of the rows".replace("%", " %") in prose(
        "05"
    )


def test_what_a_class_needs():
    file = ROOT / "benchmarks/results/classroom.json"
    measured = json.loads(file.read_text(encoding="utf-8"))
    guide = (ROOT / "docs/teaching.md").read_text(encoding="utf-8")
    whole, each = measured["classroom_megabytes"], measured["visitor_megabytes"]["after_an_answer"]
    assert measured["visitors"] == 10 and "those of ten visitors" in guide
    assert f"{whole} MB, {each} MB each after an answer" in guide
    assert f"{whole / 1000:.1f} GB of memory, and {each / 1000:.1f} GB for each visitor" in guide
