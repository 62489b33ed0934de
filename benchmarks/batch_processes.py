"""Rows shared out over processes: one, then two, each with its own GPU where there are any.

    python benchmarks/batch_processes.py                             # bundled model, on the CPU
    python benchmarks/batch_processes.py --random-weights 2b --rows 1536

Runs the command that docs/tour.md shows, `accelerate launch … -m vlkit batch …`, on a folder
of pictures that are all different. `seconds` is what the command itself tells, without loading the
model; `whole_command_seconds` has that and the start of Python in it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import transformers
from batch_inference import SHAPES, build_random
from reporting import report

TOLD = re.compile(r"([\d,]+) rows, ([\d,]+) failed, ([\d.]+) s, ([\d,]+) tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random-weights", choices=SHAPES)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", default="64")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(measure(Path(folder), arguments), arguments.output)


def measure(folder: Path, arguments: argparse.Namespace) -> dict:
    model = "tiny"
    if arguments.random_weights:
        model = str(folder / "model")
        save_random(arguments.random_weights, model)
    draw_pictures(folder / "pictures", arguments.rows)
    runs = {n: run(n, folder, model, arguments) for n in arguments.processes}
    answers = [run.pop("answers") for run in runs.values()]
    first, last = (runs[n] for n in (arguments.processes[0], arguments.processes[-1]))
    same = sum(a == b for a, b in zip(answers[0], answers[-1], strict=True)) / len(answers[0])
    return {
        "command": " ".join(["python benchmarks/batch_processes.py", *sys.argv[1:]]),
        "model": arguments.random_weights or "tiny",
        "weights": "random" if arguments.random_weights else "trained",
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cpu_cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": arguments.rows,
        "new_tokens_at_most": arguments.new_tokens,
        "batch_size": arguments.batch_size,
        "runs": {f"{n} processes" if n > 1 else "1 process": run for n, run in runs.items()},
        "times_as_fast": round(first["seconds"] / last["seconds"], 2),
        "same_answers": round(same, 4),
    }


def run(processes: int, folder: Path, model: str, arguments: argparse.Namespace) -> dict:
    out = folder / f"{processes}.jsonl"
    command = [
        sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch",
        *(["--multi_gpu"] if processes > 1 else []), "--num_processes", str(processes),
        "--main_process_port", "0", "-m", "vlkit", "batch",
        str(folder / "pictures"), "--out", str(out), "--model", model,
        "--prompt", "Describe this image.", "--max-new-tokens", str(arguments.new_tokens),
        "--batch-size", arguments.batch_size,
    ]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    taken = time.perf_counter() - start
    told = TOLD.search(done.stdout)
    if done.returncode or not told:
        raise SystemExit(f"{' '.join(command)} failed\n{done.stdout}\n{done.stderr}")
    rows, failed, seconds, speed = (float(each.replace(",", "")) for each in told.groups())
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    records = {each["index"]: each.get("raw") for each in records if "index" in each}
    return {
        "seconds": seconds,
        "tokens_per_second": speed,
        "rows_per_second": round(rows / seconds, 2),
        "failed": int(failed),
        "whole_command_seconds": round(taken, 1),
        "answers": [records[index] for index in sorted(records)],
    }


def save_random(shape: str, folder: str) -> None:
    vlm = build_random(shape, "auto")
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    del vlm
    torch.cuda.empty_cache()


def draw_pictures(folder: Path, count: int) -> None:
    """Coloured clouds of 640×480 pixels, each another one."""
    folder.mkdir()

    def draw(index: int) -> None:
        colours = np.random.default_rng(index).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        picture = PIL.Image.fromarray(colours).resize((640, 480), PIL.Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:05}.jpg", quality=90)

    with ThreadPoolExecutor() as pool:
        list(pool.map(draw, range(count)))


if __name__ == "__main__":
    main()
