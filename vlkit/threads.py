"""Threads and CPU cores: how OpenMP's threads wait, how threads share the cores.

By default OpenMP's threads spin while they wait. On a busy machine a thread then spins on the core
that the thread it waits for needs, and an answer takes many times as long
(``benchmarks/busy_machine.py``).
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Event, Lock, Thread, get_ident
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
_COUNTS = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}
TEMPLATE_SECONDS = 20.0  # for rendering a chat template, which takes milliseconds
LOOK_FOR_ENDS = 0.5  # seconds between two looks at the blocks whose time is limited
LOOK_AGAIN = 10.0  # seconds for which a count of busy cores holds

spinning = False  # whether torch's threads spin, because torch was imported before vlkit
_all = 0  # how many threads torch starts with, once seen
_chosen = 0  # how many it was given here
_looked = float("-inf")

_ends: dict[object, tuple[float, int]] = {}  # of blocks under way, when their time ends; threads
_watching, _begun = Lock(), Event()
_watcher: Thread | None = None


@contextmanager
def limit_time(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in this thread where Python code in the block runs longer.

    One thread watches all blocks, twice a second; a thread for each would cost more than most
    blocks, above all where many threads compute.
    """
    global _watcher
    block = object()
    with _watching:
        _ends[block] = time.monotonic() + seconds, get_ident()
        if _watcher is None or not _watcher.is_alive():  # a forked process has none
            _watcher = Thread(target=_watch_blocks, name="vlkit-limits", daemon=True)
            _watcher.start()
    _begun.set()
    try:
        yield
    finally:
        with _watching:
            _ends.pop(block, None)


def _watch_blocks() -> None:
    while _begun.wait():
        time.sleep(LOOK_FOR_ENDS)
        with _watching:
            if not _ends:
                _begun.clear()
            for block, (end, thread) in list(_ends.items()):
                if time.monotonic() > end:
                    del _ends[block]
                    error = ctypes.c_ulong(thread), ctypes.py_object(TimeoutError)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(*error)


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait, here and in child processes.

    OpenMP reads the variable once, as torch is imported. A user's own setting stays.
    """
    global spinning
    if not _WAITING & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        spinning = "torch" in sys.modules


def leave_busy_cores(model: Any) -> None:
    """Where threads spin, give torch at most as many as there are idle cores.

    Called when a model on a CPU is loaded, and before it answers. A number that the user has set
    stays: the environment's, or one that is neither torch's default nor chosen here.
    """
    global _all, _chosen, _looked
    if not spinning or model.device.type != "cpu" or _COUNTS & os.environ.keys():
        return
    import psutil
    import torch

    present = torch.get_num_threads()
    # torch's builds start with a thread for each core, or for each physical one
    if present not in {_chosen, len(_cores()), psutil.cpu_count(logical=False) or 1}:
        return
    _all = _all or present
    if time.monotonic() - _looked > LOOK_AGAIN:
        _chosen = max(1, min(_all, len(_cores()) - round(busy_cores())))
        _looked = time.monotonic()
    if present != _chosen:
        torch.set_num_threads(_chosen)


def busy_cores(seconds: float = 0.1) -> float:
    """How many of the cores that this process may use are busy with other processes."""
    busy_before, own_before, start = _busy_seconds(), time.process_time(), time.perf_counter()
    time.sleep(seconds)
    others = _busy_seconds() - busy_before - (time.process_time() - own_before)
    return max(0.0, others / (time.perf_counter() - start))


def _busy_seconds() -> float:
    import psutil

    cores = psutil.cpu_times(percpu=True)
    used = [cores[core] for core in _cores() if core < len(cores)]
    return sum(times.user + times.system + getattr(times, "nice", 0.0) for times in used)


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class Cores:
    """Shares the CPU's cores among the threads that compute: torch's threads for each of them.

    Without it each of them has as many of torch's threads as there are cores; in every step it
    waits for the slowest, which waits for a core.

    Attributes:
        busy: how many threads compute.
    """

    def __init__(self) -> None:
        import torch

        self._all, self.busy, self._counting = torch.get_num_threads(), 0, Lock()

    @contextmanager
    def share(self) -> Iterator[None]:
        """While the block computes, its thread uses an equal share of the cores."""
        import torch

        torch.get_num_threads()  # otherwise a new thread's first step would set all threads' start
        with self._counting:
            self.busy += 1
            torch.set_num_threads(max(1, self._all // self.busy))
        try:
            yield
        finally:
            with self._counting:
                self.busy -= 1
                torch.set_num_threads(self._all)  # other threads of the process start with this


@contextmanager
def on_one_core() -> Iterator[None]:
    """Compute in the calling thread alone: a small product takes less time than waking another.

    OpenMP's own function is called, since torch's also sets what new threads start with.
    """
    import torch

    # among what torch has loaded; Windows does not look there
    limit = getattr(_libraries(torch._C.__file__), "omp_set_num_threads", lambda count: None)
    threads = torch.get_num_threads()
    limit(1)
    try:
        yield
    finally:
        limit(threads)


_libraries = cache(ctypes.CDLL)


def compute_each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Work on all items, several at once, each on a share of the cores.

    Two pictures on one core each are faster than one after the other on both cores.
    """
    import torch

    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    if workers < 2:
        return [work(item) for item in items]

    def begin() -> None:
        torch.get_num_threads()  # otherwise the first step would set what torch starts with
        torch.set_num_threads(threads // workers)

    def run(item: Item) -> Result:
        with torch.inference_mode():
            return work(item)

    pool = ThreadPoolExecutor(workers, "vlkit-cores", begin)
    try:
        return list(pool.map(run, items))
    finally:  # after Ctrl-C, or an item that fails, no other is started
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
