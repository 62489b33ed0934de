"""8-bit weights on a CPU against transformers' generate in float32 and bfloat16, at true shapes.

    python benchmarks/eight_bits_cpu.py --output benchmarks/results/eight_bits_cpu.json

Random weights in the shape of Qwen2-VL-2B (or --shape), one question about one picture, every
recipe in a process of its own: tokens per second of the decoding steps (the time of a long answer
less that of one token), seconds to the first token, and the process's memory between questions.
The agreement of answers is measured with the bundled model, whose weights are trained.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

RECIPES = ("transformers, float32", "transformers, bfloat16", 'vlkit, quantize="8bit"')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="2b")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--recipe", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.recipe:
        print(json.dumps(measure(arguments)))
        return
    import psutil
    from reporting import report

    load = round(psutil.getloadavg()[0], 2)
    recipes = {name: run_alone(name, arguments) for name in RECIPES}
    ours, (float32, bfloat16) = recipes[RECIPES[2]], (recipes[name] for name in RECIPES[:2])
    result = {
        "command": " ".join(["python benchmarks/eight_bits_cpu.py", *sys.argv[1:]]),
        "shape": arguments.shape,
        "weights": "random; for the agreement trained (the bundled model)",
        "load_average_before": load,
        "recipes": recipes,
        "tokens_per_second_over_float32": ratio(ours, float32, "tokens_per_second"),
        "tokens_per_second_over_bfloat16": ratio(ours, bfloat16, "tokens_per_second"),
        "memory_over_float32": ratio(ours, float32, "memory_gb"),
        "agreement": agreement(),
    }
    report(result, arguments.output)


def ratio(ours: dict, theirs: dict, key: str) -> float:
    return round(ours[key] / theirs[key], 2)


def run_alone(name: str, arguments: argparse.Namespace) -> dict:
    options = ["--shape", arguments.shape, "--new-tokens", arguments.new_tokens]
    command = [sys.executable, __file__, *options, "--repeats", arguments.repeats, "--recipe", name]
    output = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(output.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict:
    import PIL.Image
    import psutil
    import torch
    import transformers
    from batch_inference import build_random, padded

    import vlkit
    from vlkit.models.int8 import pack
    from vlkit.models.memory import return_freed_memory

    ours = arguments.recipe == RECIPES[2]
    dtype = "float32" if "float32" in arguments.recipe else "bfloat16"
    vlm = build_random(arguments.shape, "cpu", dtype)
    vlm.model.generation_config.eos_token_id = None
    if ours:
        pack(vlm.model, arguments.shape)
    row = vlkit.user("What is this?", PIL.Image.effect_noise((280, 280), 60).convert("RGB"))

    def answer(tokens: int) -> float:
        start = time.perf_counter()
        if ours:
            vlkit.generate(vlm, row, max_new_tokens=tokens)
            vlm.cache.clear()
        else:
            padded(vlm, [row], tokens, 1)
        return time.perf_counter() - start

    answer(2)
    pairs = [(answer(1), answer(1 + arguments.new_tokens)) for _ in range(arguments.repeats)]
    return_freed_memory()
    return {
        "tokens_per_second": round(arguments.new_tokens / min(b - a for a, b in pairs), 2),
        "first_token_seconds": round(min(a for a, _ in pairs), 2),
        "memory_gb": round(psutil.Process().memory_info().rss / 1e9, 2),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def agreement() -> dict:
    """Equal answers of the bundled model with and without 8-bit weights, and equal boxes."""
    import vlkit

    questions = ("Describe this image.", "Detect all objects.", "这是什么？")
    paths = [str(sample.path) for sample in vlkit.samples().values()]
    rows = [vlkit.user(question, path) for path in paths for question in questions]
    plain, packed = (
        vlkit.generate_batch(vlm, rows, max_new_tokens=96, progress=False)
        for vlm in (vlkit.load(device="cpu"), vlkit.load(device="cpu", quantize="8bit"))
    )
    same = [a.text == b.text for a, b in zip(plain, packed, strict=True)]
    overlaps = [
        max((vlkit.iou(box, other) for other in b.boxes if other.label == box.label), default=0.0)
        for a, b in zip(plain, packed, strict=True)
        for box in a.boxes
    ]
    found = sum(value >= 0.9 for value in overlaps)
    return {
        "rows": len(rows),
        "same_text": round(sum(same) / len(same), 3),
        "boxes": len(overlaps),
        "boxes_found_again_at_iou_0.9": round(found / len(overlaps), 3),
    }


if __name__ == "__main__":
    main()
