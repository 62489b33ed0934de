"""The cores of a CPU, shared out among the threads that compute at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Cores:
    """As many of torch's threads for each of those who compute as there are cores for them.

    Otherwise every one has as many threads as there are cores, and each waits in every step for
    the slowest of its own, which waits for a core.

    Attributes:
        busy: how many compute.
    """

    def __init__(self) -> None:
        import torch

        self._all, self.busy, self._counting = torch.get_num_threads(), 0, Lock()

    @contextmanager
    def share(self) -> Iterator[None]:
        """Compute in the calling thread."""
        import torch

        torch.get_num_threads()  # else a new thread's first step would set what all begin with
        with self._counting:
            self.busy += 1
            torch.set_num_threads(max(1, self._all // self.busy))
        try:
            yield
        finally:
            with self._counting:
                self.busy -= 1
                torch.set_num_threads(self._all)  # what other threads of the process begin with


def compute_each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Work on every item, several at once with a share of the cores each.

    Two pictures on a core each are seen sooner than one after the other on both.
    """
    import torch

    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    if workers < 2:
        return [work(item) for item in items]

    def begin() -> None:
        torch.get_num_threads()  # else the first step would set what torch begins with
        torch.set_num_threads(threads // workers)

    def run(item: Item) -> Result:
        with torch.inference_mode():
            return work(item)

    pool = ThreadPoolExecutor(workers, "vlkit-cores", begin)
    try:
        return list(pool.map(run, items))
    finally:  # after Ctrl-C, or an item that fails, no other is begun
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
