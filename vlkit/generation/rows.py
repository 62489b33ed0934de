"""Many rows answered: by the engine, or transformers' ``generate``."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from vlkit.engine.decoder import can_decode
from vlkit.engine.scheduler import MOST_ROWS, PREFILL_TOKENS, Feed, Scheduler, choose_group
from vlkit.engine.slots import Row, Sampling, make_row, pad_left
from vlkit.generation.generate import run_rows
from vlkit.generation.reply import Failure, Reply, attempt, make_reply
from vlkit.inputs import (
    ModelInputs,
    PixelCache,
    check_context,
    ending_tokens,
    load_messages,
)
from vlkit.messages import as_messages
from vlkit.models.load import VLM, base_model
from vlkit.threads import leave_busy_cores

Result = Reply | Failure

_HANDLED = {  # settings of generation that the engine knows, or that say nothing about the answer
    "bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k",
    "repetition_penalty", "max_new_tokens", "max_length", "transformers_version", "use_cache",
    "output_attentions", "output_hidden_states", "output_scores", "return_dict_in_generate",
    "_from_model_config",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What holds for all rows of a batch.

    Attributes:
        options: for transformers' generate.
        seed: of row 0, or None; row ``i`` has ``seed + i``.
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

    @property
    def limit(self) -> int:
        """The most new tokens."""
        return self.options["max_new_tokens"]

    def seed_of(self, index: int) -> int | None:
        """The seed of one row."""
        return None if self.seed is None else self.seed + index

    def check_stopped(self) -> None:
        """End as Ctrl-C does, if that was asked for."""
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


def choose_path(vlm: VLM) -> tuple[str, str]:
    """``"fast"`` for the engine, or ``"library"`` for transformers' own generate, and why."""
    reason = can_decode(base_model(vlm)) or _unknown_setting(vlm.model.generation_config)
    if not reason:
        return "fast", ""
    return "library", f"transformers' own generate is used: {reason}"


def _unknown_setting(config: Any) -> str:
    given = config.to_diff_dict()
    unknown = sorted(name for name in given if name not in _HANDLED and given[name] is not None)
    return f"the model's generation config sets {', '.join(unknown)}" if unknown else ""


def sampling_of(vlm: VLM, temperature: float = 0.0, top_p: float = 1.0) -> Sampling:
    """How the engine chooses a model's tokens."""
    penalty = getattr(vlm.model.generation_config, "repetition_penalty", None) or 1.0
    return Sampling(frozenset(ending_tokens(vlm)), temperature, top_p, penalty)


def answer_rows_here(
    vlm: VLM,
    conversations: Sequence[Any],
    indices: Sequence[int],
    settings: Settings,
    tally: Tally,
) -> Generator[tuple[int, Result], None, None]:
    """(index, result) of each row as it finishes."""
    if not indices:
        return
    kind = "cuda" if vlm.model.device.type == "cuda" else "cpu"
    capacity = min(settings.batch_size or MOST_ROWS[kind], len(indices))
    cache = PixelCache()
    leave_busy_cores(vlm.model)

    def read(index: int) -> Row | tuple[int, Failure]:
        row = attempt(_read_row, vlm, index, conversations[index], settings, cache)
        return (index, row) if isinstance(row, Failure) else row

    answer = _answer_fast if settings.path == "fast" else _answer_slowly
    with closing(Feed(read, indices, ahead=2 * capacity)) as feed:
        yield from answer(vlm, feed, capacity, settings, tally)


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a row's Reply needs to know besides its tokens."""

    index: int
    messages: Any
    inputs: ModelInputs


def _read_row(vlm: VLM, index: int, messages: Any, settings: Settings, cache: PixelCache) -> Row:
    loaded = load_messages(vlm, messages)
    row, inputs = make_row(vlm, loaded, settings.limit, seed=settings.seed_of(index), cache=cache)
    check_context(vlm, row.length, row.limit)
    row.payload = _Asked(index, messages, inputs)
    return row


def _take(feed: Feed, waiting: list[Row], *, block: bool) -> Iterator[tuple[int, Failure]]:
    """Put rows that are ready behind those that wait; failures are yielded."""
    for each in feed.take(waiting, block=block):
        if isinstance(each, Row):
            waiting.append(each)
        else:
            yield each


def _result(vlm: VLM, row: Row, tally: Tally) -> tuple[int, Result]:
    asked = row.payload
    if row.error is not None:
        return asked.index, Failure.of(row.error)
    tally.new_tokens += len(row.tokens)
    facts = as_messages(asked.messages), asked.inputs, row.tokens, row.limit, row.started
    return asked.index, attempt(make_reply, vlm, *facts)


def _answer_fast(vlm: VLM, feed: Feed, capacity: int, settings: Settings, tally: Tally):
    """Rows come in as slots get free, many at a time: each prefill holds up those under way."""
    options = settings.options
    sampling = sampling_of(vlm, options["temperature"] or 0.0, options["top_p"] or 1.0)
    fixed = settings.batch_size is not None
    scheduler = Scheduler(base_model(vlm), sampling, capacity, fixed=fixed)
    waiting: list[Row] = []

    def should_admit(exhausted: bool) -> bool:
        free, slots = scheduler.free, scheduler.slots
        enough = exhausted or len(waiting) >= max(1, free // 2)
        return bool(waiting) and free >= max(1, slots // 4) and enough

    feed.start()
    scheduler.reuse_engine()
    while not feed.exhausted or waiting or scheduler.rows:
        settings.check_stopped()
        idle = not scheduler.rows and not should_admit(exhausted=False)
        yield from _take(feed, waiting, block=idle and not feed.exhausted)
        ended: list[Row] = []
        if should_admit(feed.exhausted):
            ended = scheduler.admit(waiting)
            tally.batch_size = max(tally.batch_size, scheduler.slots)
        elif scheduler.rows:
            ended = scheduler.advance(waiting)
        for lengths in scheduler.prompts:
            tally.count_group(lengths)
        scheduler.prompts.clear()
        for row in ended:
            yield _result(vlm, row, tally)
    tally.notes += scheduler.notes
    scheduler.keep_engine()


def _answer_slowly(vlm: VLM, feed: Feed, capacity: int, settings: Settings, tally: Tally):
    """Groups padded on the left through ``model.generate``; sampled rows one by one."""
    if settings.options["do_sample"]:
        capacity = 1
    tally.batch_size = capacity
    waiting: list[Row] = []
    while not feed.exhausted or waiting:
        settings.check_stopped()
        yield from _take(feed, waiting, block=len(waiting) < capacity and not feed.exhausted)
        if waiting and (feed.exhausted or len(waiting) >= capacity):
            group = choose_group(waiting, capacity, PREFILL_TOKENS["cuda"])
            for row in _generate_group(vlm, group, settings, tally):
                yield _result(vlm, row, tally)


def _generate_group(vlm: VLM, group: list[Row], settings: Settings, tally: Tally) -> list[Row]:
    """The rows, answered; a group that fails, as out of memory, is halved down to one row."""
    start = time.perf_counter()
    try:
        tensors = pad_left(group, vlm.processor.tokenizer.pad_token_id)
        answers = run_rows(vlm, tensors, settings.options, group[0].seed)
    except Exception as error:  # models raise what they like
        if len(group) == 1:
            group[0].error = error
            return group
        half = len(group) // 2
        halves = group[:half], group[half:]
        return [row for each in halves for row in _generate_group(vlm, each, settings, tally)]
    tally.count_group([row.length for row in group])
    for row, tokens in zip(group, answers, strict=True):
        row.tokens, row.started = tokens, start
    return group
