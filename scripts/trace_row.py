#!/usr/bin/env python3
"""Which files of vlkit a training row passes on its way from its file to the loss, and how often.

A function belongs to the way of a row if two rows call it more often than one row does. Prints each
stop (a change from one file to another between two such calls) with the functions called there.

    python scripts/trace_row.py
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import warnings
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import PIL.Image

import vlkit
from vlkit.lora import train

PACKAGE = Path(vlkit.__file__).parent
PROOF = ("Prover.__init__", "Prover.check")
Call = tuple[str, str]  # file, function


def write_rows(folder: Path, count: int) -> Path:
    """A file of rows about pictures of noise, each with a question and an answer with a box."""
    rows = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
        box = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(10,20),(300,400)<|box_end|>"
        talk = [
            {"from": "human", "value": f"<img>{number}.png</img>Where is cat {number}?"},
            {"from": "gpt", "value": box},
        ]
        rows.append(json.dumps({"conversations": talk}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(rows))
    return path


def calls_of(vlm: vlkit.VLM, count: int) -> list[Call]:
    """All calls within vlkit while ``count`` rows, one batch, are trained on, up to their loss."""
    calls: list[Call] = []
    in_proof = 0

    def note(frame, event, argument):
        nonlocal in_proof
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(str(PACKAGE)):
            return
        file = str(Path(code.co_filename).relative_to(PACKAGE))
        if code.co_qualname in PROOF:  # it labels a row of its own
            in_proof += 1 if event == "call" else -1
        elif event == "return" and code.co_name == "compute_loss":
            sys.setprofile(None)
        elif event == "call" and not in_proof and code.co_name != "__len__":
            calls.append((file, code.co_qualname.partition(".<locals>")[0]))

    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(Path(folder), count)
        threading.setprofile(note)
        sys.setprofile(note)
        train(vlm, rows, output_dir=Path(folder) / "run", batch_size=count)
        sys.setprofile(None)
        threading.setprofile(None)
    return calls


def main() -> None:
    """Print the stops of a row, and how many files and stops there are."""
    warnings.simplefilter("ignore")
    vlm = vlkit.load()
    calls_of(vlm, 1)  # what is computed once in a process
    one, two = calls_of(vlm, 1), calls_of(vlm, 2)
    more = Counter(two) - Counter(one)
    way = [call for call in one if call in more]
    stops = [(file, list(stop)) for file, stop in groupby(way, key=lambda call: call[0])]
    for file, stop in stops:
        print(f"{file:28} {', '.join(dict.fromkeys(name for _, name in stop))}")
    files = sorted({file for file, _ in stops})
    print(f"\n{len(files)} files, {len(stops)} stops: {', '.join(files)}")


if __name__ == "__main__":
    main()
