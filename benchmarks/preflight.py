"""Preflight of 1,000 photographs from their headers, beside what else would tell their tokens.

    python benchmarks/preflight.py [--pictures 1000] [--output benchmarks/results/…json]

The pictures are JPEGs of 12 megapixels with an EXIF orientation, written to a temporary folder. The
others are timed on fewer of them and told per picture: decoding each and asking the processor's
`get_number_of_image_patches`, and running the processor. Models are only named: no weight is read.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageOps
from reporting import report

import vlkit

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
DIFFERENT = 8  # photographs; the rest are copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder), arguments.pictures)
        result = measure(paths, arguments.runs)
    report(result, arguments.output)


def write_photographs(folder: Path, count: int) -> list[Path]:
    random, exif = np.random.default_rng(0), PIL.Image.Exif()
    paths = [folder / f"{i:04}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        if i >= DIFFERENT:
            shutil.copyfile(paths[i % DIFFERENT], path)
            continue
        exif[0x0112] = i % 8 + 1
        coarse = random.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)
        picture = PIL.Image.fromarray(coarse).resize((4000, 3000 + 10 * i))
        picture.save(path, exif=exif, quality=85)
    return paths


def measure(paths: list[Path], runs: int) -> dict:
    conversation = [vlkit.user("What is it?", path) for path in paths]
    warm = vlkit.preflight(MODEL, conversation[:1])
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        plan = vlkit.preflight(MODEL, conversation)
        taken.append(time.perf_counter() - start)
    assert plan.pictures[0].tokens == warm.pictures[0].tokens
    decoded, processed = others(paths[:DIFFERENT], [v.tokens for v in plan.pictures])
    seconds = statistics.median(taken)
    return {
        "pictures": len(paths),
        "megapixels_each": 12,
        "preflight_seconds": round(seconds, 3),
        "preflight_ms_per_picture": round(1000 * seconds / len(paths), 3),
        "decode_and_count_ms_per_picture": round(1000 * decoded, 1),
        "processor_ms_per_picture": round(1000 * processed, 1),
        "times_faster_than_decoding": round(decoded * len(paths) / seconds),
        "times_faster_than_the_processor": round(processed * len(paths) / seconds),
    }


def others(paths: list[Path], expected: list[int]) -> tuple[float, float]:
    """Seconds a picture for decoding and counting, and for the processor; the same tokens."""
    from transformers import Qwen2VLImageProcessor

    size = {"shortest_edge": 4 * 28**2, "longest_edge": 16_384 * 28**2}
    processor = Qwen2VLImageProcessor(size=size)
    start = time.perf_counter()
    for path, tokens in zip(paths, expected, strict=False):
        picture = ImageOps.exif_transpose(PIL.Image.open(path).convert("RGB"))
        count = processor.get_number_of_image_patches(picture.height, picture.width, {})
        assert count // 4 == tokens
    decoded = (time.perf_counter() - start) / len(paths)
    start = time.perf_counter()
    for path, tokens in zip(paths, expected, strict=False):
        picture = ImageOps.exif_transpose(PIL.Image.open(path).convert("RGB"))
        grid = processor(images=[picture], return_tensors="pt")["image_grid_thw"]
        assert int(grid.prod()) // 4 == tokens
    return decoded, (time.perf_counter() - start) / len(paths)


if __name__ == "__main__":
    main()
