"""Rows read ahead: media are decoded by worker threads while the model is busy."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any
from weakref import WeakKeyDictionary

import PIL.Image

from vlkit.engine.slots import (
    Engine,
    Row,
    Sampling,
    advance_each,
    describe_row,
    split_media,
    split_rows,
)
from vlkit.engine.vision import Encoder
from vlkit.errors import VlkitError
from vlkit.generation.reply import Failure, Reply, attempt, make_reply
from vlkit.inputs import check_context, count_tokens, ending_tokens, load_messages, make_inputs
from vlkit.messages import as_messages
from vlkit.models.load import VLM, base_model
from vlkit.models.memory import available_memory, count_cost

HELD_BYTES = 10**9  # of decoded media that wait for the model


@dataclass(eq=False)
class Waiting:
    """A row whose media are read.

    Attributes:
        index: its place in the batch.
        messages: its conversation.
        loaded: LoadedMessages, or a Failure that says why there is none.
        tokens: how long the prompt will be, media included.
        digests: of the content of its pictures, then of its clips.
    """

    index: int
    messages: Any
    loaded: Any
    tokens: int = 0
    digests: tuple[bytes, ...] = ()

    @property
    def bytes(self) -> int:
        """Of decoded media."""
        if isinstance(self.loaded, Failure):
            return 0
        frames = sum(clip.frames.nbytes for clip in self.loaded.clips)
        return frames + sum(3 * image.width * image.height for image in self.loaded.images)


class Feed:
    """Rows as they become ready, in no order, so many read ahead as memory and need allow."""

    def __init__(self, load: Callable[[int], Waiting], indices: Sequence[int], ahead: int):
        self._load, self._left, self._ahead = load, deque(indices), ahead
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "vlkit-media")
        self._futures: set[Future[Waiting]] = set()

    @property
    def exhausted(self) -> bool:
        """No row will come any more."""
        return not self._left and not self._futures

    def start(self, held: Sequence[Waiting] = ()) -> None:
        """Begin to read rows, as many as there is room for beside those ``held``."""
        room = sum(row.bytes for row in held) < HELD_BYTES or not held
        while self._left and room and len(self._futures) + len(held) < self._ahead:
            self._futures.add(self._pool.submit(self._load, self._left.popleft()))

    def take(self, held: Sequence[Waiting], *, block: bool) -> list[Waiting]:
        """The rows that are ready by now.

        Args:
            held: rows taken before that still wait for the model.
            block: wait until there is one.
        """
        self.start(held)
        timeout = None if block else 0
        done, self._futures = wait(self._futures, timeout, FIRST_COMPLETED)
        return [future.result() for future in done]

    def close(self) -> None:
        """Begin nothing new; what is being read is left to end by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def feeding(
    vlm: VLM, conversations: Sequence[Any], indices: Sequence[int], ahead: int
) -> Iterator[Feed]:
    """A feed of some of the conversations; its threads end with the block."""
    feed = Feed(lambda index: _load(vlm, index, conversations[index]), indices, ahead)
    try:
        yield feed
    finally:
        feed.close()


def _load(vlm: VLM, index: int, messages: Any) -> Waiting:
    row = attempt(_read, vlm, index, messages)
    return Waiting(index, messages, row) if isinstance(row, Failure) else row


def _read(vlm: VLM, index: int, messages: Any) -> Waiting:
    loaded = load_messages(vlm, messages)
    contents: list[Any] = [
        *map(PIL.Image.Image.tobytes, loaded.images),
        *(c.frames for c in loaded.clips),
    ]
    digests = tuple(hashlib.sha256(content).digest() for content in contents)
    return Waiting(index, messages, loaded, count_tokens(vlm, loaded), digests)


def choose_group(waiting: list[Waiting], most_rows: int, most_tokens: int) -> list[Waiting]:
    """Take the longest rows out of ``waiting`` that go together with under 10 % padding.

    Rows about the same pictures come along: they share the work on them.
    """
    waiting.sort(key=lambda row: row.tokens)
    group: list[Waiting] = []
    longest, total, leaders = waiting[-1].tokens, 0, 0
    while waiting and len(group) < most_rows:
        row = waiting[-1]
        area = longest * (leaders + 1)
        if group and (area > most_tokens or total + row.tokens < 0.9 * area):
            break
        group.append(waiting.pop())
        total, leaders = total + row.tokens, leaders + 1
        siblings = [each for each in waiting if row.digests and each.digests == row.digests]
        for sibling in siblings[: most_rows - len(group)]:
            waiting.remove(sibling)
            group.append(sibling)
    return group


MOST_ROWS = {"cuda": 128, "cpu": 64}  # more rows at a time give little


PREFILL_TOKENS = {"cuda": 32_768, "cpu": 2048}


AHEAD_TOKENS = 4096  # on a CPU, of rows whose pictures are encoded together


@dataclass(frozen=True)
class Settings:
    """What holds for all rows.

    Attributes:
        options: for transformers' generate.
        seed: of row 0, or None.
        batch_size: the most rows at a time, or None.
        path: ``"fast"``, ``"library"`` or ``"remote"``.
        note: why it is not the fast one.
        stopped: set when it is to end.
    """

    options: dict[str, Any]
    seed: int | None
    batch_size: int | None
    path: str
    note: str
    stopped: Event | None = None

    def check_stopped(self) -> None:
        """End as Ctrl-C does, if that is asked for."""
        if self.stopped is not None and self.stopped.is_set():
            raise KeyboardInterrupt


@dataclass
class Tally:
    """Counted while the rows are answered."""

    new_tokens: int = 0
    computed: int = 0  # prompt tokens, padding included
    padded: int = 0
    batch_size: int = 0
    cost: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def padding(self) -> float:
        """Share of the computed prompt tokens that were padding."""
        return self.padded / self.computed if self.computed else 0.0

    def count_group(self, lengths: Sequence[int]) -> None:
        """Count a group of prompts that are computed together."""
        self.computed += max(lengths) * len(lengths)
        self.padded += max(lengths) * len(lengths) - sum(lengths)


_engines: WeakKeyDictionary[Any, dict[int, Engine]] = WeakKeyDictionary()  # by slots


def answer_fast(vlm: VLM, feed: Feed, capacity: int, settings: Settings, tally: Tally):
    run = _FastRun(vlm, capacity, settings, tally)
    feed.start()
    run.look_for_engine()
    while True:
        settings.check_stopped()
        block = run.idle and not feed.exhausted
        for row in feed.take(run.waiting, block=block):
            if isinstance(row.loaded, Failure):
                yield row.index, row.loaded
            else:
                run.waiting.append(row)
        if run.should_admit(feed.exhausted):
            yield from run.admit()
        elif run.active:
            yield from run.advance()
        elif feed.exhausted:
            run.keep_engine()
            return


class _FastRun:
    """The rows that wait, the engine, and what happens when memory runs out."""

    def __init__(self, vlm: VLM, capacity: int, settings: Settings, tally: Tally):
        self.vlm, self.capacity, self.settings, self.tally = vlm, capacity, settings, tally
        self.model = base_model(vlm)
        self.waiting: list[Waiting] = []
        self.ready: dict[int, Row] = {}  # of those that wait, by their index
        self.engine: Engine | None = None
        self.found: Engine | None = None  # of an earlier call
        options, config = settings.options, vlm.model.generation_config
        self.limit = options["max_new_tokens"]
        self.choice = Sampling(
            frozenset(ending_tokens(vlm)),
            options["temperature"] or 0.0,
            options["top_p"] or 1.0,
            getattr(config, "repetition_penalty", None) or 1.0,
        )

    @property
    def active(self) -> bool:
        return self.engine is not None and bool(self.engine.rows)

    @property
    def idle(self) -> bool:
        """Nothing is under way and there are not yet rows enough to begin with."""
        return not self.active and not self.should_admit(exhausted=False)

    def should_admit(self, exhausted: bool) -> bool:
        """Fill free slots, many at a time: each prefill holds up the rows under way."""
        free = self.engine.free if self.engine else self.capacity
        enough = exhausted or len(self.waiting) >= max(1, free // 2)
        return bool(self.waiting) and free >= max(1, self.capacity // 4) and enough

    def admit(self) -> Iterator[tuple[int, Reply | Failure]]:
        import torch

        free = self.engine.free if self.engine else self.capacity
        group = choose_group(self.waiting, free, self._prefill_tokens())
        yield from self._prepare(group, free)
        rows = [self.ready.pop(row.index) for row in group if row.index in self.ready]
        if not rows:
            return
        try:
            with torch.inference_mode(), launched_on(self.model.device):
                self.engine = self.engine or self._make_engine(rows)
                if self.model.device.type == "cpu":
                    self._encode_ahead(self.engine.encoder, [*rows, *self.ready.values()])
                done = self.engine.admit(rows)
        except torch.cuda.OutOfMemoryError:
            yield from self._halve(rows)
            return
        except Exception as error:  # a row that the model itself cannot take
            yield from self._single_out(rows, error)
            return
        for lengths in self.engine.computed:
            self.tally.count_group(lengths)
        self.engine.computed.clear()
        yield from self._finish(done)

    def advance(self) -> Iterator[tuple[int, Reply | Failure]]:
        import torch

        assert self.engine is not None
        with torch.inference_mode(), launched_on(self.model.device):
            try:
                done = self.engine.advance()
            except torch.cuda.OutOfMemoryError:
                done = None
            except Exception as error:
                done = advance_each(self.engine, error)
        yield from self._halve([]) if done is None else self._finish(done)

    def _make_engine(self, rows: list[Row]) -> Engine:
        self._fit_capacity(rows)
        longest = max(row.length for row in rows) + self.limit
        self.tally.batch_size = max(self.tally.batch_size, self.capacity)
        if self.found is None or self.found.slots != self.capacity:
            self.look_for_engine()
        return self.found or Engine(self.model, self.choice, self.capacity, longest)

    def look_for_engine(self) -> None:
        """The last call's, brought up to date; done while the first media are read."""
        import torch

        kept = _engines.get(self.model, {}).pop(self.capacity, None)
        with torch.inference_mode(), launched_on(self.model.device):
            self.found = kept if kept is not None and kept.fits(self.choice) else None

    def keep_engine(self) -> None:
        """Captured graphs serve the next call, too, where they hold little of the GPU's memory."""
        if self.engine is not None and self.engine.is_cheap():
            self.engine.encoder.forget()
            _engines.setdefault(self.model, {})[self.capacity] = self.engine

    def _prefill_tokens(self) -> int:
        """As many as a quarter of the GPU's free memory has room for while they are read."""
        if self.model.device.type != "cuda":
            return PREFILL_TOKENS["cpu"]
        cost = count_cost(self.model.config, 0, value_bytes=self.model.dtype.itemsize)
        fitting = available_memory()[0] // (4 * cost.language_per_token)
        return min(PREFILL_TOKENS["cuda"], fitting)

    def _single_out(self, rows: list[Row], error: Exception):
        """The failure of a row; of several, each is tried alone."""
        if len(rows) == 1:
            yield rows[0].index, Failure.of(error)
            return
        later = self.waiting
        for row in rows:
            self.waiting = [row.payload[0]]
            yield from self.admit()
        self.waiting += later

    def _fit_capacity(self, rows: list[Row]) -> None:
        """As many rows as the caches of two thirds of the free memory hold."""
        if self.settings.batch_size is not None:
            return
        size = self.model.dtype.itemsize
        cost = count_cost(self.model.config, 0, value_bytes=size)
        longest = max(row.length for row in rows) + self.limit
        free, _ = available_memory()
        fitting = int(free * 2 / 3 / (cost.cache_per_token * longest))
        self.capacity = max(len(rows), min(self.capacity, fitting))

    def _prepare(self, group: list[Waiting], free: int):
        """Make rows of a group; on a CPU of those that follow, too: many pictures go together."""
        new = [row for row in group if row.index not in self.ready]
        if new and self.model.device.type == "cpu":
            new += self._next_rows(free - len(group))
        rows = yield from self._tokenize(new)
        self.ready |= {row.index: row for row in rows}
        failed = {row.index for row in new} - self.ready.keys()
        self.waiting = [row for row in self.waiting if row.index not in failed]

    def _next_rows(self, most: int) -> list[Waiting]:
        """Those whose turn comes next, the longest first, as choose_group takes them."""
        chosen: list[Waiting] = []
        tokens = 0
        for row in reversed(self.waiting):
            tokens += row.tokens
            if len(chosen) >= most or tokens > AHEAD_TOKENS:
                break
            if row.index not in self.ready:
                chosen.append(row)
        return chosen

    def _encode_ahead(self, encoder: Encoder, rows: list[Row]) -> None:
        """A picture that the tower cannot take is left to its row's turn."""
        try:
            encoder.encode_ahead(rows)
        except Exception:
            for row in rows if len(rows) > 1 else []:
                self._encode_ahead(encoder, [row])

    def _tokenize(self, group: list[Waiting]):
        """Rows for the engine; failures are yielded. A group that fails is tried row by row."""
        rows: list[Row] = []
        try:
            rows = _make_rows(self.vlm, group, self.limit, self.settings.seed)
        except Exception as error:  # processors raise what they like
            if len(group) == 1:
                yield group[0].index, Failure.of(error)
                return rows
            for each in group:
                rows += yield from self._tokenize([each])
        fitting = []
        for row in rows:
            try:
                check_context(self.vlm, row.length, self.limit)
                fitting.append(row)
            except VlkitError as error:
                yield row.index, Failure.of(error)
        return fitting

    def _halve(self, rows: list[Row]) -> Iterator[tuple[int, Reply | Failure]]:
        """Out of memory: all that was under way waits again, for half as many slots."""
        import torch

        again = [*(self.engine.rows if self.engine else []), *rows]
        self.engine = self.found = None
        _engines.pop(self.model, None)
        torch.cuda.empty_cache()
        if self.capacity == 1 or len(again) == 1:
            for row in again:
                error = f"out of memory at {row.length:,} prompt tokens, alone; lower "
                error += "max_image_tokens or max_new_tokens"
                yield row.index, Failure(error, "ModelError")
            return
        self.capacity = max(1, min(self.capacity, len(again)) // 2)
        self.settings = replace(self.settings, batch_size=self.capacity)
        self.tally.notes.append(f"out of memory: went on with {self.capacity} rows at a time")
        self.waiting += [row.payload[0] for row in again]

    def _finish(self, rows: list[Row]) -> Iterator[tuple[int, Reply | Failure]]:
        for row in rows:
            if row.error is not None:
                yield row.index, Failure.of(row.error)
                continue
            self.tally.new_tokens += len(row.tokens)
            yield row.index, attempt(_reply_of, self.vlm, row, self.limit)


def launched_on(device: Any):
    """Triton launches on the current GPU, whichever its tensors are on."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _make_rows(vlm: VLM, group: list[Waiting], limit: int, seed: int | None) -> list[Row]:
    """The processor's tensors, a row each."""
    half = vlm.model.dtype.itemsize == 2 and vlm.model.device.type == "cuda"
    loaded, digests = [row.loaded for row in group], [row.digests for row in group]
    inputs = make_inputs(vlm, loaded, device=vlm.model.device if half else None, digests=digests)
    start, rows = time.perf_counter(), []
    media = split_media(inputs, digests)
    parts = zip(group, split_rows(inputs), media, inputs.input_sizes, strict=True)
    for row, tensors, its_media, sizes in parts:
        row_seed = None if seed is None else seed + row.index
        described = describe_row(row.loaded, tensors, sizes)
        payload = row, described, start
        rows.append(Row(row.index, tensors, its_media, limit, row_seed, payload=payload))
    return rows


def _reply_of(vlm: VLM, row: Row, limit: int) -> Reply:
    waiting, inputs, start = row.payload
    return make_reply(vlm, as_messages(waiting.messages), inputs, row.tokens, limit, start)
