"""Many rows answered: by the engine, or transformers' ``generate``."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from vlkit.engine.decoder import can_decode
from vlkit.engine.scheduler import MOST_ROWS, PREFILL_TOKENS, Feed, Scheduler, choose_group
from vlkit.engine.slots import Row, Sampling, pad_left
from vlkit.engine.vision import split_media
from vlkit.generation.generate import run_rows
from vlkit.generation.reply import Failure, Reply, attempt, make_reply
from vlkit.inputs import (
    LoadedMessages,
    ModelInputs,
    TensorCache,
    check_context,
    defer_media,
    ending_tokens,
    load_messages,
    make_inputs,
)
from vlkit.media.image import pixel_hash
from vlkit.messages import as_messages
from vlkit.models.load import VLM, base_model
from vlkit.threads import leave_busy_cores

Result = Reply | Failure

_HANDLED = {  # generation settings that the engine knows, or that change no answer
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
        stopped: is set to end the batch.
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
        """Raises KeyboardInterrupt, as Ctrl-C does, once ``stopped`` is set."""
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
        """Padding's share of the computed prompt tokens."""
        return self.padded / self.computed if self.computed else 0.0

    def count_group(self, lengths: Sequence[int]) -> None:
        """Count a group of prompts that are computed together."""
        computed = max(lengths) * len(lengths)
        self.computed += computed
        self.padded += computed - sum(lengths)


def choose_path(vlm: VLM) -> tuple[str, str]:
    """``"fast"`` for the engine, or ``"library"`` for transformers' own generate, and why."""
    reason = can_decode(base_model(vlm)) or _unknown_setting(vlm.model.generation_config)
    if not reason:
        return "fast", ""
    return "library", f"transformers' own generate is used: {reason}"


def _unknown_setting(config: Any) -> str:
    settings = config.to_diff_dict().items()
    unknown = sorted(name for name, value in settings if name not in _HANDLED and value is not None)
    return f"the model's generation config sets {', '.join(unknown)}" if unknown else ""


def sampling_of(vlm: VLM, temperature: float = 0.0, top_p: float = 1.0) -> Sampling:
    """How the engine chooses a model's tokens."""
    penalty = getattr(vlm.model.generation_config, "repetition_penalty", None) or 1.0
    return Sampling(frozenset(ending_tokens(vlm)), temperature, top_p, penalty)


def answer_rows_here(
    vlm: VLM, conversations: Sequence[Any], indices: Sequence[int], settings: Settings, tally: Tally
) -> Generator[tuple[int, Result], None, None]:
    """(index, result) of each row as it finishes."""
    if not indices:
        return
    kind = "cuda" if vlm.model.device.type == "cuda" else "cpu"
    capacity = min(settings.batch_size or MOST_ROWS[kind], len(indices))
    cache = TensorCache()
    leave_busy_cores(vlm.model)

    def read(index: int) -> Row | tuple[int, Failure]:
        row = attempt(_read_row, vlm, index, conversations[index], settings, cache)
        return (index, row) if isinstance(row, Failure) else row

    answer = _answer_fast if settings.path == "fast" else _answer_slowly
    with closing(Feed(read, indices, ahead=2 * capacity)) as feed:
        yield from answer(vlm, feed, capacity, settings, tally)


@dataclass(frozen=True, eq=False)
class _Question:
    """What a row's Reply needs besides the tokens."""

    index: int
    messages: Any
    inputs: ModelInputs


def _read_row(vlm: VLM, index: int, messages: Any, settings: Settings, cache: TensorCache) -> Row:
    messages = as_messages(messages)
    loaded = load_messages(vlm, messages)
    row, inputs = make_row(vlm, loaded, settings.limit, seed=settings.seed_of(index), cache=cache)
    check_context(vlm, row.length, row.limit)
    row.payload = _Question(index, messages, inputs)
    return row


def make_row(
    vlm: VLM,
    loaded: LoadedMessages,
    limit: int,
    *,
    seed: int | None = None,
    sampling: tuple[float, float] | None = None,
    cache: TensorCache | None = None,
) -> tuple[Row, ModelInputs]:
    """A conversation as a row for the engine, and the inputs that its Reply describes.

    Args:
        vlm: its processor and limits are used.
        loaded: from :func:`vlkit.inputs.load_messages`.
        limit: the most new tokens.
        seed: of its sampling.
        sampling: its temperature and top_p, or None for the engine's.
        cache: of pictures that other rows ask about as well.
    """
    # as on all other paths, so that answers are the same
    half = vlm.model.dtype.itemsize == 2 and vlm.model.device.type == "cuda"
    digests = [pixel_hash(image) for image in loaded.images]
    frames: list[Any] = [clip.frames for clip in loaded.clips]
    digests += [hashlib.sha256(clip).hexdigest() for clip in frames]
    device = vlm.model.device if half else None
    inputs = make_inputs(vlm, [loaded], device=device, digests=[digests], cache=cache)
    media = split_media(inputs.tensors, digests)
    row = Row(_text_tensors(inputs.tensors), media, limit, seed, sampling)
    images, clips = defer_media(loaded)
    ids = {"input_ids": row.tensors["input_ids"]}
    return row, ModelInputs(ids, [images], inputs.input_sizes, [clips], inputs.prompts)


def _text_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but pixels, grids on the CPU."""
    names = ("input_ids", "attention_mask", "mm_token_type_ids", "second_per_grid_ts")
    kept = {name: tensors[name] for name in names if name in tensors}
    grids = ("image_grid_thw", "video_grid_thw")
    return kept | {name: tensors[name].cpu() for name in grids if name in tensors}


def _take(feed: Feed, waiting: list[Row], *, block: bool) -> Iterator[tuple[int, Failure]]:
    """Append the rows that are ready to ``waiting``; failures are yielded."""
    for row in feed.take(waiting, block=block):
        if isinstance(row, Row):
            waiting.append(row)
        else:
            yield row


def _result(vlm: VLM, row: Row, tally: Tally) -> tuple[int, Result]:
    question = row.payload
    if row.error is not None:
        return question.index, Failure.of(row.error)
    tally.new_tokens += len(row.tokens)
    facts = question.messages, question.inputs, row.tokens, row.limit, row.started
    return question.index, attempt(make_reply, vlm, *facts)


def _answer_fast(vlm: VLM, feed: Feed, capacity: int, settings: Settings, tally: Tally):
    """Admit rows as slots get free, many at a time, since each prefill delays the running rows."""
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
        if should_admit(exhausted=not feed.reading):
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
        if waiting and (not feed.reading or len(waiting) >= capacity):
            group = choose_group(waiting, capacity, PREFILL_TOKENS["cuda"])
            for row in _generate_group(vlm, group, settings, tally):
                yield _result(vlm, row, tally)


def _generate_group(vlm: VLM, group: list[Row], settings: Settings, tally: Tally) -> list[Row]:
    """The rows, answered; a group that fails (out of memory, say) is halved down to one row."""
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
        return [row for part in halves for row in _generate_group(vlm, part, settings, tally)]
    tally.count_group([row.length for row in group])
    for row, tokens in zip(group, answers, strict=True):
        row.tokens, row.started = tokens, start
    return group
