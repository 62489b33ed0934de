"""The fast way through a batch: rows come in as slots get free."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from vlkit.batching.choosing import Choice
from vlkit.batching.encoding import Encoder
from vlkit.batching.engine import Engine
from vlkit.batching.feeding import Feed, Waiting, choose_group, failure_of
from vlkit.batching.group import Row
from vlkit.batching.row_tensors import describe_row, split_media, split_rows
from vlkit.batching.settings import AHEAD_TOKENS, PREFILL_TOKENS, Settings, Tally, base_model
from vlkit.errors import VlkitError
from vlkit.generation import check_context, ending_tokens, make_reply
from vlkit.inputs import make_inputs
from vlkit.memory import available_memory, count_cost
from vlkit.messages import as_messages
from vlkit.models import VLM
from vlkit.replies import Failure, Reply

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
        self.choice = Choice(
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
        try:
            with torch.inference_mode(), launched_on(self.model.device):
                done = self.engine.advance()
        except torch.cuda.OutOfMemoryError:
            yield from self._halve([])
            return
        yield from self._finish(done)

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
            yield rows[0].index, failure_of(error)
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
                yield group[0].index, failure_of(error)
                return rows
            for each in group:
                rows += yield from self._tokenize([each])
        fitting = []
        for row in rows:
            try:
                check_context(self.vlm, row.length, self.limit)
                fitting.append(row)
            except VlkitError as error:
                yield row.index, failure_of(error)
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
            self.tally.new_tokens += len(row.tokens)
            yield row.index, _reply_of(self.vlm, row, self.limit)


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
