"""The cores of a CPU, shared out among the threads that compute at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


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
