"""100 tokens of the bundled model on a machine that other programs use, too.

    python benchmarks/busy_machine.py [--processes 5] [--output benchmarks/results/…json]

Each answer comes from a fresh process that has answered once before, beside 0, 1 or 2 processes
that compute all the time:

* `vlkit`: vlkit is imported before torch and lets OpenMP's threads sleep while they wait.
* `torch first`: torch was imported earlier, so its threads spin, and vlkit chooses how many.
* `torch's default`: torch's threads spin, as many as there are cores.

The settings take turns, so that whatever else the machine does affects all of them. Before each
answer the benchmark waits up to `--patience` seconds for other programs to rest; the cores that
they still use then (median), and the load average at the start, are in the result.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from reporting import report

from vlkit.threads import busy_cores

NEW_TOKENS = 100
SETTINGS = {
    "vlkit": ("import vlkit", {}),
    "torch first": ("import torch, vlkit", {}),
    # a number of threads in the environment is a user's own, so vlkit leaves it
    "torch's default": ("import torch, vlkit", {"OMP_NUM_THREADS": str(os.cpu_count())}),
}
ANSWER = f"""
import time
import torch

vlm = vlkit.load()
vlm.model.generation_config.eos_token_id = None  # no answer ends by itself
message = vlkit.user("Describe this image.", vlkit.sample("six_shapes"))
for tokens in (10, {NEW_TOKENS}):
    vlm.cache.clear()
    start = time.perf_counter()
    assert vlkit.generate(vlm, message, max_new_tokens=tokens).usage.new_tokens == tokens
print(time.perf_counter() - start, torch.get_num_threads())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=5, help="for each setting")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--patience", type=float, default=20, help="seconds of waiting for quiet")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result = {
        "machine": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "new_tokens": NEW_TOKENS,
        "processes": arguments.processes,
        "load_average_before": round(os.getloadavg()[0], 2),
        "busy": {
            str(busy): measure(busy, arguments.processes, arguments.patience)
            for busy in arguments.busy
        },
    }
    report(result, arguments.output)


def measure(busy: int, processes: int, patience: float) -> dict:
    """Seconds of each setting; how many cores other programs used before its answers."""
    seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    threads: dict[str, set[int]] = {name: set() for name in SETTINGS}
    used = []
    for _ in range(processes):
        for name, (imports, environment) in SETTINGS.items():
            used.append(wait_until_quiet(patience))
            with ExitStack() as running:
                for _ in range(busy):
                    running.enter_context(busy_process())
                taken, count = answer(imports, environment)
            seconds[name].append(taken)
            threads[name].add(count)
    return {
        "cores_used_by_others": round(statistics.median(used), 1),
        "seconds": {
            name: {
                "median": round(statistics.median(values), 2),
                "fastest": round(min(values), 2),
                "slowest": round(max(values), 2),
                "threads": " or ".join(map(str, sorted(threads[name]))),
            }
            for name, values in seconds.items()
        },
    }


def wait_until_quiet(patience: float) -> float:
    """Wait until no other program computes, some seconds at most; the cores that they use."""
    until = time.monotonic() + patience
    while (used := busy_cores(1)) > 0.2 and time.monotonic() < until:
        pass
    return used


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that computes all the time."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def answer(imports: str, environment: dict[str, str]) -> tuple[float, int]:
    """Seconds of an answer in a fresh process, and torch's threads there."""
    prefixes = ("OMP_", "GOMP_", "KMP_", "MKL_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    done = subprocess.run(
        [sys.executable, "-c", imports + ANSWER],
        env=clean | environment, capture_output=True, text=True, check=True, timeout=1200,
    )  # fmt: skip
    seconds, count = done.stdout.split()
    return float(seconds), int(count)


if __name__ == "__main__":
    main()
