"""The batching policy: which rows, how many at a time, out of memory.

A batch and a server use the same :class:`Scheduler`; they differ in when they call ``admit``.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

import torch

from vlkit.engine.sampling import Sampling
from vlkit.engine.slots import ROOM, STEPS, Engine, Row
from vlkit.engine.vision import Encoder
from vlkit.errors import ModelError
from vlkit.inputs import TensorCache
from vlkit.models.load import weights_state
from vlkit.models.memory import available_memory, count_cost
from vlkit.threads import Cores

MOST_ROWS = {"cuda": 128, "cpu": 64}  # more rows at a time give little
PREFILL_TOKENS = {"cuda": 32_768, "cpu": 2048}
AHEAD_TOKENS = 4096  # on a CPU, of rows whose pictures are encoded together
ANSWER_TOKENS = 1024  # for which a single row's cache has room at once
HELD_BYTES = 10**9  # of pixels that wait for the model

# by slots; with the addresses of weights and the state of adapters that their graphs contain
_idle_engines: WeakKeyDictionary[Any, dict[int, tuple[Engine, Any]]] = WeakKeyDictionary()


class Scheduler:
    """The running rows of a model, and the memory that they share.

    Args:
        model: the transformers model, without an adapter's wrapper.
        sampling: how tokens are chosen.
        slots: the most rows at a time.
        fixed: keep ``slots`` as given; otherwise there are at most as many as two thirds of the
            free memory can hold.
        context: for a server, the most tokens of a row. Slots are counted for rows of this
            length, the cache grows as answers do, a row that does not fit fails alone, and on a
            CPU every computing thread has a share of the cores. Without it, memory is taken for
            the whole answers of the first rows, and when it runs out, all rows start again with
            half the slots.
        cache: of features and conversations, for one row at a time; it outlasts the scheduler.
            Memory is taken as the answer grows.
        state: the model's :func:`~vlkit.models.load.weights_state` where it is known.

    Attributes:
        prompts: lengths of the prompts that were computed together; the caller takes them out.
        notes: for the report.
    """

    def __init__(
        self,
        model: Any,
        sampling: Sampling,
        slots: int,
        *,
        fixed: bool = False,
        context: int | None = None,
        cache: TensorCache | None = None,
        state: list | None = None,
    ):
        self.model, self.sampling, self.slots = model, sampling, slots
        self.device = model.device
        self.encoder = Encoder(model, cache)
        self.prompts: list[list[int]] = []
        self.notes: list[str] = []
        self._fixed, self._alone, self._spare = fixed, cache is not None, cache is not None
        weights, adapters = state or weights_state(model)
        self._state = [address for address, _ in weights], adapters
        self._engine: Engine | None = None
        self._cost = count_cost(model.config, 0, value_bytes=model.dtype.itemsize)
        self._context = None if context is None else -(-(context + STEPS) // ROOM) * ROOM
        self._cores = Cores() if context and self.device.type == "cpu" else None
        if self._context is not None:
            self._fit_slots(self._context, 1)

    @property
    def rows(self) -> list[Row]:
        """The running rows."""
        return self._engine.rows if self._engine else []

    @property
    def free(self) -> int:
        """How many more rows fit."""
        return self.slots - len(self.rows)

    @property
    def busy_elsewhere(self) -> bool:
        """Whether other threads are encoding pictures ahead."""
        return bool(self._cores and self._cores.busy)

    # --- rows in, rows out -----------------------------------------------------------------------

    def admit(self, waiting: list[Row]) -> list[Row]:
        """Read the prompts of some rows and write their first tokens.

        Args:
            waiting: the rows to choose from; admitted rows are taken out. When memory runs out,
                rows that have to start again are put back.

        Returns:
            The rows that ended; those that failed have an ``error``.
        """
        group = choose_group(waiting, self.free, self._prefill_tokens())
        following = waiting[::-1][: self.free - len(group)]  # the longest come next
        totals = accumulate(row.length for row in following)
        ahead = sum(total <= AHEAD_TOKENS for total in totals)
        return self._prefill(group, waiting, following[:ahead])

    def advance(self, waiting: list[Row]) -> list[Row]:
        """Write a token of each running row, or a few on a GPU.

        Args:
            waiting: as for :meth:`admit`.

        Returns:
            The rows that ended; those that failed have an ``error``.
        """
        assert self._engine is not None
        with self._computing():
            try:
                return self._engine.advance()
            except Exception as error:
                if self._context is None and isinstance(error, torch.cuda.OutOfMemoryError):
                    return self._begin_again(waiting, self._engine.rows)
                ended = self._engine.advance_each(error)
        if not self._engine.rows:  # no row is left: start with a new cache
            self._engine = None
        return ended

    def encode_ahead(self, rows: Sequence[Row]) -> None:
        """Encode pictures before their rows are admitted, in the caller's thread.

        On a CPU one core for each of several pictures is faster than all cores for one picture at
        a time; on a GPU pictures are encoded when their rows are admitted.
        """
        if self.device.type == "cpu":
            self.encoder.encode_ahead(rows)

    def sharing(self) -> AbstractContextManager[None]:
        """Compute next to other threads; on a server's CPU each has its share of the cores."""
        return self._cores.share() if self._cores else nullcontext()

    def _prefill(self, rows: list[Row], waiting: list[Row], following: Sequence[Row] = ()):
        try:
            with self._computing():
                engine = self._ready_engine(rows)
                if self._context is None and self.device.type == "cpu":
                    self._encode_each([*rows, *following])
                for row in rows:
                    row.started = time.perf_counter()
                return engine.admit(rows)
        except Exception as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                if self._context is None:
                    return self._begin_again(waiting, [*self.rows, *rows])
                torch.cuda.empty_cache()
            return try_halves(rows, error, lambda half: self._prefill(half, waiting))

    def _begin_again(self, waiting: list[Row], rows: list[Row]) -> list[Row]:
        """Out of memory: all running rows wait again, for half as many slots."""
        rows = list(rows)
        self._engine = None
        _idle_engines.pop(self.model, None)
        torch.cuda.empty_cache()
        for row in rows:
            row.restart()
        if self._spare:  # there is more memory without what is remembered
            self._spare = False
            self.encoder.cache.clear()
            waiting += rows
            return []
        if self.slots == 1 or len(rows) == 1:
            for row in rows:
                row.error = ModelError(
                    f"out of memory at {row.length:,} prompt tokens, alone; lower max_image_tokens "
                    "or max_new_tokens"
                )
            return rows
        self.slots, self._fixed = max(1, min(self.slots, len(rows)) // 2), True
        self.notes.append(f"out of memory: continued with {self.slots} rows at a time")
        waiting += rows
        return []

    def _encode_each(self, rows: list[Row]) -> None:
        """A picture that the vision encoder cannot take fails later, in its row's prefill."""
        try:
            self.encoder.encode_ahead(rows)
        except Exception:
            for row in rows if len(rows) > 1 else []:
                self._encode_each([row])

    def forget(self) -> None:
        """Drop the features of pictures that were encoded."""
        self.encoder.cache.clear()

    def reset(self) -> None:
        """After an error that no single row caused: the running rows are lost."""
        self._engine = None

    # --- the engine and its memory ---------------------------------------------------------------

    def keep_engine(self) -> None:
        """Keep captured graphs for the next batch where they take little of the GPU's memory."""
        if self._engine is not None and self._engine.is_cheap():
            _idle_engines.setdefault(self.model, {})[self.slots] = self._engine, self._state

    @contextmanager
    def _computing(self) -> Iterator[None]:
        # Triton launches on the current GPU, whichever its tensors are on
        place = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with torch.inference_mode(), place, self.sharing():
            yield

    def _ready_engine(self, rows: Sequence[Row]) -> Engine:
        if self._engine is not None:
            return self._engine
        longest, most = max(row.length + row.limit for row in rows), self._context
        if self._context is not None:
            longest = max(row.length for row in rows) + STEPS
        elif self._alone:
            most = -(-(longest + STEPS) // ROOM) * ROOM
            longest = min(longest, rows[0].length + ANSWER_TOKENS)
        else:
            self._fit_slots(longest, len(rows))
        kept, state = _idle_engines.get(self.model, {}).pop(self.slots, (None, None))
        if kept is not None and (state, kept.sampling) == (self._state, self.sampling):
            kept.decoder.refresh()
            self._engine, kept.encoder, kept.most = kept, self.encoder, most
        else:
            self._engine = Engine(
                self.model, self.encoder, self.sampling, self.slots, longest, most=most
            )
        self._engine.computed = self.prompts
        return self._engine

    def _fit_slots(self, longest: int, least: int) -> None:
        """As many rows of ``longest`` tokens as two thirds of the free memory hold."""
        if self._fixed:
            return
        each = self._cost.cache_per_token * longest + self._cost.cache_per_row
        fitting = int(available_memory()[0] * 2 / 3 / each)
        self.slots = max(least, min(self.slots, fitting))

    def _prefill_tokens(self) -> int:
        """As many as fit into a quarter of the GPU's free memory while they are computed."""
        if self.device.type != "cuda":
            return PREFILL_TOKENS["cpu"]
        fitting = available_memory()[0] // (4 * self._cost.language_per_token)
        return max(1, min(PREFILL_TOKENS["cuda"], fitting))


def try_halves(
    rows: list[Row], error: Exception, run: Callable[[list[Row]], list[Row]]
) -> list[Row]:
    """After rows failed together: run each half, and give a row that failed alone the error."""
    if len(rows) == 1:
        rows[0].error = error
        return rows
    half = len(rows) // 2
    return [*run(rows[:half]), *run(rows[half:])]


def choose_group(waiting: list[Row], most_rows: int, most_tokens: int) -> list[Row]:
    """Take the longest rows out of ``waiting`` that together need under 10 % padding.

    Rows about the same pictures join their group, as they share the work on them.
    """
    waiting.sort(key=lambda row: row.length)
    group: list[Row] = []
    longest, total, leaders = waiting[-1].length, 0, 0
    while waiting and len(group) < most_rows:
        row = waiting[-1]
        area = longest * (leaders + 1)
        if group and (area > most_tokens or total + row.length < 0.9 * area):
            break
        group.append(waiting.pop())
        total, leaders = total + row.length, leaders + 1
        siblings = [other for other in waiting if row.media and other.contents == row.contents]
        for sibling in siblings[: most_rows - len(group)]:
            waiting.remove(sibling)
            group.append(sibling)
    return group


# --- reading ahead -------------------------------------------------------------------------------


class Feed:
    """Rows read ahead by threads, in no order, as many as memory allows.

    Args:
        load: reads one; what it raises comes out of :meth:`take`.
        indices: its arguments.
        ahead: how many are read before they are needed.
    """

    def __init__(self, load: Callable[[int], Any], indices: Sequence[int], ahead: int):
        self._load, self._left, self._ahead = load, deque(indices), ahead
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "vlkit-media")
        self._futures: set[Future[Any]] = set()

    @property
    def exhausted(self) -> bool:
        """Whether everything was taken."""
        return not self._left and not self._futures

    @property
    def reading(self) -> bool:
        """Whether something is being read; not where there is no room for more."""
        return bool(self._futures)

    def start(self, held: Sequence[Row] = ()) -> None:
        """Start to read, as many as there is room for in addition to those ``held``."""
        room = sum(row.bytes for row in held) < HELD_BYTES or not held
        while self._left and room and len(self._futures) + len(held) < self._ahead:
            self._futures.add(self._pool.submit(self._load, self._left.popleft()))

    def take(self, held: Sequence[Row], *, block: bool) -> list[Any]:
        """What is ready by now.

        Args:
            held: the rows that were taken before and still wait for the model.
            block: wait until something is ready.
        """
        self.start(held)
        done, self._futures = wait(self._futures, None if block else 0, FIRST_COMPLETED)
        ready = [future.result() for future in done]
        self.start([*held, *(row for row in ready if isinstance(row, Row))])
        return ready

    def close(self) -> None:
        """Start nothing new; running reads end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)
