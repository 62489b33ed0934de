"""A batch that is killed again and again: ``python killed_batch.py MODEL OUT KILLS``.

One process loads the model; its forks do the work, and each is killed at a random instant.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

import vlkit

ROWS = 96
BAD = ROWS - 2  # the row that cannot be answered
OPTIONS = {"max_new_tokens": 6, "batch_size": 2, "progress": False}


def conversations() -> list:
    """Rows of none to three pictures; one is bad, and the last is the first again."""
    pictures = [vlkit.sample(name) for name in ("red_circle", "hello", "three_shapes")]
    rows = [vlkit.user(f"Question {i}?", *pictures[: i % 4]) for i in range(BAD)]
    return [*rows, vlkit.user("What?", "nope.png"), rows[0]]


def count_lines(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return file.read().count(b"\n")
    except FileNotFoundError:
        return 0


def work(vlm, out: str) -> int:
    """The process that does the rows that are left."""
    child = os.fork()
    if child == 0:
        try:
            vlkit.generate_batch(vlm, conversations(), out=out, **OPTIONS)
        finally:
            os._exit(0)
    return child


def main(folder: str, out: str, kills: str) -> None:
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    vlm = vlkit.load(folder)
    random.seed(0)
    for kill in range(int(kills)):
        before, child = count_lines(out), work(vlm, out)
        while kill % 2 and count_lines(out) == before:  # half of them while rows are written
            time.sleep(0.0005)
        time.sleep(random.uniform(0, 0.02 if kill % 2 else 0.2))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it had ended before it was killed"
        print(count_lines(out), flush=True)
    os.waitpid(work(vlm, out), 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
