"""The rows of a batch, asked of a remote model so many at a time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlkit.errors import RemoteError
from vlkit.generation.reply import Failure, Reply
from vlkit.generation.rows import Settings, Tally
from vlkit.remote.answer import make_reply
from vlkit.remote.client import PATIENCE, RawAnswer, ask, event_loop
from vlkit.remote.endpoint import Endpoint
from vlkit.remote.request import make_request

LATER_PATIENCE = 120.0  # seconds for which a connection is tried that has worked before


_TICK = 0.1  # seconds between two looks at whether to stop


Row = tuple[int, Reply | Failure]


def answer_rows_remotely(
    remote: Endpoint,
    conversations: Sequence[Any],
    indices: Sequence[int],
    settings: Settings,
    tally: Tally,
) -> Generator[Row, None, None]:
    """(index, result) of each row as it finishes; closing it closes all connections.

    Once the key, the model's name or the network is known to be wrong, the rows that are left
    fail with the same line and are not sent.
    """
    capacity = min(settings.batch_size or remote.concurrency, len(indices))
    tally.batch_size = capacity
    state = _State(remote, conversations, iter(indices), settings)
    future = asyncio.run_coroutine_threadsafe(_answer_all(state, capacity), event_loop())
    try:
        for _ in indices:
            index, result = _next_row(state, future, settings)
            _count(result, tally)
            yield index, result
    finally:
        future.cancel()


@dataclass
class _State:
    """What the workers of a batch share; they all run on the event loop."""

    remote: Endpoint
    conversations: Sequence[Any]
    waiting: Iterator[int]
    settings: Settings
    finished: queue.SimpleQueue[Row] = field(default_factory=queue.SimpleQueue)
    answered: int = 0
    fatal: Failure | None = None


def _next_row(state: _State, future: concurrent.futures.Future, settings: Settings) -> Row:
    while True:
        settings.check_stopped()
        try:
            return state.finished.get(timeout=_TICK)
        except queue.Empty:
            if future.done() and state.finished.empty():
                future.result()  # raises what ended the workers


def _count(result: Reply | Failure, tally: Tally) -> None:
    if isinstance(result, Failure):
        return
    tally.new_tokens += result.usage.new_tokens
    if result.cost is not None:
        tally.cost = (tally.cost or 0.0) + result.cost


async def _answer_all(state: _State, count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(_work(state))


async def _work(state: _State) -> None:
    for index in state.waiting:
        result = state.fatal or await _answer(state, index)
        state.finished.put((index, result))


async def _answer(state: _State, index: int) -> Reply | Failure:
    settings, answer, start = state.settings, RawAnswer(), time.perf_counter()
    seed = None if settings.seed is None else settings.seed + index
    try:
        request = await asyncio.to_thread(
            make_request, state.remote, state.conversations[index], settings.options, seed
        )
        patience = LATER_PATIENCE if state.answered else PATIENCE
        await ask(
            state.remote, request.body, answer, patience=patience, retries=state.remote.retries
        )
        state.answered += 1
        return make_reply(state.remote, request, answer, start, keep=False)
    except Exception as error:  # one row must never end the batch
        failure = Failure.of(error)
        if isinstance(error, RemoteError) and error.fatal:
            state.fatal = failure
        return failure
