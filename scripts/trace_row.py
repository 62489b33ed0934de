#!/usr/bin/env python3
"""Which files of vlkit a training row passes on its way from its file to the loss, and how often.

A function is on the way of a row if rows call it one by one and what it returns differs from row to
row. Checks, and facts of the model, return the same for each row and are left out, and so is the
wording of errors. Prints each stop (a change from one file to another between two such calls) with
the functions called there. Fails where there are more than MOST_FILES.

    python scripts/trace_row.py
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import PIL.Image

import vlkit
from vlkit.lora import train

MOST_FILES = 12
PACKAGE = Path(vlkit.__file__).parent
WORDING = "errors.py"
PROOF = ("Prover.__init__", "Prover.check")
Call = tuple[str, str]  # file, function


def write_rows(folder: Path, numbers: Sequence[int]) -> Path:
    """A file of rows about pictures of noise, each with a question and an answer with a box."""
    rows = []
    for number in numbers:
        shape = (64 + 32 * number, 96, 3)
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
        box = f"<|box_start|>(10,{20 + number}),(300,400)<|box_end|>"
        talk = [
            {"from": "human", "value": f"<img>{number}.png</img>Where is cat {number}?"},
            {"from": "gpt", "value": f"<|object_ref_start|>cat {number}<|object_ref_end|>{box}"},
        ]
        rows.append(json.dumps({"conversations": talk}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(rows))
    return path


def trace(vlm: vlkit.VLM, *numbers: int) -> tuple[list[Call], dict[Call, list[str]]]:
    """Train on rows, one batch, up to their loss: vlkit's calls, and each function's results."""
    calls: list[Call] = []
    results: dict[Call, list[str]] = defaultdict(list)
    in_proof = 0

    package = f"{PACKAGE}/"

    def note(frame, event, argument):
        nonlocal in_proof
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(package):
            return
        file = code.co_filename.removeprefix(package)
        call = file, code.co_qualname.partition(".<locals>")[0]
        if code.co_qualname in PROOF:  # it labels a row of its own
            in_proof += 1 if event == "call" else -1
        elif event == "return" and code.co_name == "compute_loss":
            sys.setprofile(None)
        elif not in_proof and event == "call":
            calls.append(call)
        elif not in_proof:
            results[call].append(repr(argument))

    threading.setprofile(note)
    learn(vlm, numbers, lambda: sys.setprofile(note))
    sys.setprofile(None)
    threading.setprofile(None)
    return calls, results


def learn(vlm: vlkit.VLM, numbers: Sequence[int], begin: Callable[[], object] = bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(Path(folder), numbers)
        begin()
        train(vlm, rows, output_dir=Path(folder) / "run", batch_size=len(numbers))


def main() -> None:
    """Print the stops of a row, and how many files and stops there are."""
    warnings.simplefilter("ignore")
    vlm = vlkit.load()
    learn(vlm, [0])  # what is computed once in a process
    (calls, results), (_, others), (both, _) = trace(vlm, 1), trace(vlm, 2), trace(vlm, 1, 2)
    more = Counter(both) - Counter(calls)
    differ = {call for call in more if set(results[call]) != set(others[call])}
    way = [call for call in calls if call in differ and call[0] != WORDING]
    stops = [(file, list(stop)) for file, stop in groupby(way, key=lambda call: call[0])]
    for file, stop in stops:
        print(f"{file:28} {', '.join(dict.fromkeys(name for _, name in stop))}")
    files = sorted({file for file, _ in stops})
    print(f"\n{len(files)} files, {len(stops)} stops: {', '.join(files)}")
    if len(files) > MOST_FILES:
        raise SystemExit(f"more than {MOST_FILES} files: merge what lives together")


if __name__ == "__main__":
    main()
