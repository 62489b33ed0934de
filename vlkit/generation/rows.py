"""One or many rows answered: by the engine, or transformers' ``generate``."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch

from vlkit.engine import scheduler
from vlkit.engine.decoder import can_decode
from vlkit.engine.sampling import Sampling, SchemaProcessor, has_own_choice
from vlkit.engine.slots import Row, pad_left
from vlkit.engine.vision import split_media
from vlkit.errors import ModelError
from vlkit.generation.generate import generation_options
from vlkit.generation.reply import AnswerText, Failure, Reply, TextPieces, attempt, make_reply
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
from vlkit.media.image import known_hash, pixel_hash
from vlkit.messages import as_messages, opened_thought
from vlkit.models.load import VLM, Settings, Tally, base_model, weights_state
from vlkit.models.memory import available_memory
from vlkit.threads import leave_busy_cores

_HANDLED = {  # generation settings that the engine knows, or that change no answer
    "bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k",
    "repetition_penalty", "max_new_tokens", "max_length", "transformers_version", "use_cache",
    "output_attentions", "output_hidden_states", "output_scores", "return_dict_in_generate",
    "_from_model_config", "_commit_hash", "_original_object_hash",
}  # fmt: skip


def choose_path(vlm: VLM) -> tuple[str, str]:
    """``"fast"`` for the engine, or ``"library"`` for transformers' own generate, and why."""
    reason = can_decode(base_model(vlm)) or _unknown_setting(vlm.model.generation_config)
    if getattr(getattr(vlm.model, "active_peft_config", None), "is_prompt_learning", False):
        reason = "the adapter adds tokens to the prompt"
    if not reason:
        return "fast", ""
    return "library", f"transformers' own generate is used: {reason}"


def _unknown_setting(config: Any) -> str:
    settings, default = vars(config), vars(type(config)())
    changed = {name for name in settings if settings[name] not in (None, default.get(name))}
    unknown = sorted(changed - _HANDLED)
    return f"the model's generation config sets {', '.join(unknown)}" if unknown else ""


def sampling_of(vlm: VLM) -> Sampling:
    """How the engine chooses a model's tokens."""
    penalty = getattr(vlm.model.generation_config, "repetition_penalty", None) or 1.0
    return Sampling(frozenset(ending_tokens(vlm)), penalty)


def make_schema(vlm: VLM, schema: Mapping | str, prompt: str = "") -> SchemaProcessor:
    """What makes an answer follow a JSON schema; see :func:`vlkit.generate`.

    Args:
        vlm: the model.
        schema: the schema.
        prompt: the rendered chat template.
    """
    return SchemaProcessor(vlm.processor.tokenizer, ending_tokens(vlm), schema, prompt)


_caches: WeakKeyDictionary[Any, tuple[Any, TensorCache]] = WeakKeyDictionary()


def cache_of(vlm: VLM) -> TensorCache:
    """The keys and values that later prompts reuse; emptied if a weight or adapter has changed."""
    return _find_cache(base_model(vlm))[1]


def _find_cache(network: Any) -> tuple[list, TensorCache]:
    """The state of a model's weights, and its cache, which is empty if the state is a new one."""
    state = weights_state(network)
    old_state, cache = _caches.get(network) or (state, TensorCache(available_memory()[0] // 8))
    if old_state != state:
        cache.clear()
    _caches[network] = state, cache
    return state, cache


# --- one row -------------------------------------------------------------------------------------


def answer_here(
    vlm: VLM,
    messages: list[dict],
    options: dict,
    seed: int | None,
    put: Callable[[str], None] | None = None,
    stopped: Event | None = None,
) -> Reply:
    """The Reply of a model on this machine; arguments as for ``VLM.answer``."""
    start = time.perf_counter()
    settings = Settings(options, seed, 1, *choose_path(vlm))
    state, cache = _find_cache(base_model(vlm))
    row = _read_row(vlm, 0, messages, settings, cache)
    (_, checked, inputs), waiting = row.payload, [row]
    if checked.clips is not None:  # a Chat's: its turns are forgotten with it
        row.chat = ref(checked.clips, cache.drop)
    pieces = None
    if put is not None:
        pieces = TextPieces(put, opened_thought(inputs.prompts[0]), special=False)
        text = AnswerText(vlm.processor.tokenizer, ending_tokens(vlm), (), skip_special=True)
        row.watch = partial(_send_text, text, pieces, stopped)
    leave_busy_cores(vlm.model)
    engine = _make_engine(vlm, settings.path, 1, fixed=True, cache=cache, state=state)
    while waiting or engine.rows:
        (engine.admit if waiting else engine.advance)(waiting)
    engine.keep_engine()
    if row.error is not None:
        raise row.error
    if pieces is not None:
        pieces(text.finish(), last=True)
    return make_reply(vlm, checked, inputs, row.tokens, settings.limit, start, settings.note)


def _send_text(text: AnswerText, put: TextPieces, stopped: Event | None, row: Row) -> bool:
    put(text.push(row.tokens[text.read :]))
    return stopped is not None and stopped.is_set()


# --- the engine, and transformers' generate behind the same methods ------------------------------


def _make_engine(vlm: VLM, path: str, slots: int, **options: Any) -> scheduler.Scheduler | Library:
    if path != "fast":
        return Library(vlm, slots)
    return scheduler.Scheduler(base_model(vlm), sampling_of(vlm), slots, **options)


class Library:
    """transformers' ``generate`` with the methods of Scheduler, for what the engine cannot do.

    Args:
        vlm: the model.
        slots: the most rows at a time; sampled rows come one by one.
        watch: of rows that have none.
    """

    busy_elsewhere = False

    def __init__(self, vlm: VLM, slots: int, watch: Callable[[Row], bool] | None = None):
        self._vlm, self._watch = vlm, watch
        self.slots = self.free = slots
        self.rows: list[Row] = []  # none is running between two calls
        self.prompts: list[list[int]] = []
        self.notes: list[str] = []

    def admit(self, waiting: list[Row]) -> list[Row]:
        """Write the whole answers of some rows; arguments and result as of Scheduler."""
        most = 1 if has_own_choice(waiting) else self.slots
        return self._answer(scheduler.choose_group(waiting, most, scheduler.PREFILL_TOKENS["cuda"]))

    def _answer(self, rows: list[Row]) -> list[Row]:
        start = time.perf_counter()
        try:
            self._write(rows)
        except Exception as error:  # models raise what they like
            return scheduler.try_halves(rows, error, self._answer)
        self.prompts.append([row.length for row in rows])
        for row in rows:
            row.started = start
        return rows

    def _write(self, rows: list[Row]) -> None:
        from transformers import LogitsProcessorList, StoppingCriteriaList

        vlm, row, length = self._vlm, rows[0], max(row.length for row in rows)
        options = generation_options(row.limit, *row.sampling, None)
        tensors = pad_left(rows, vlm.processor.tokenizer.pad_token_id)
        tensors = tensors.to(vlm.model.device, dtype=vlm.model.dtype)
        options["logits_processor"] = LogitsProcessorList(row.processors)
        if watch := row.watch or self._watch:

            def look(ids: Any, scores: Any, **_: Any) -> Any:
                row.tokens = ids[0, length:].tolist()
                return torch.full((len(ids),), watch(row), dtype=torch.bool, device=ids.device)

            options["stopping_criteria"] = StoppingCriteriaList([look])
        try:
            with torch.inference_mode(), _seeded(row.seed, options["do_sample"]):
                output = vlm.model.generate(**tensors, **options)
        except torch.cuda.OutOfMemoryError as error:
            raise ModelError(
                f"out of GPU memory at {length:,} prompt tokens; lower max_image_tokens or "
                'max_new_tokens, or load with quantize="4bit"'
            ) from error
        endings = ending_tokens(vlm)
        for row, tokens in zip(rows, output[:, length:].tolist(), strict=True):
            end = next((i for i, token in enumerate(tokens) if token in endings), len(tokens))
            row.tokens = tokens[: end + 1]  # without padding

    def advance(self, waiting: list[Row]) -> list[Row]:
        """Nothing: no row is running."""
        return []

    def sharing(self) -> AbstractContextManager[None]:
        """Nothing: no other thread computes."""
        return nullcontext()

    def encode_ahead(self, rows: Sequence[Row]) -> None:
        """Nothing: pictures are encoded with their prompt."""

    def forget(self) -> None:
        """Nothing is kept."""

    reset = keep_engine = forget


_random_state = threading.Lock()  # torch's is one for the process


@contextmanager
def _seeded(seed: int | None, sampling: bool) -> Iterator[None]:
    """Makes sampling in this block repeatable; the global random state is restored on exit."""
    if seed is None or not sampling:
        yield
        return
    with _random_state, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


# --- many rows -----------------------------------------------------------------------------------


def answer_rows_here(
    vlm: VLM, conversations: Sequence[Any], indices: Sequence[int], settings: Settings, tally: Tally
) -> Generator[tuple[int, Reply | Failure], None, None]:
    """(index, result) of each row as it finishes."""
    if not indices:
        return
    if "schema" in settings.options:
        make_schema(vlm, settings.options["schema"])  # one that is not supported ends the batch
    kind = "cuda" if vlm.model.device.type == "cuda" else "cpu"
    capacity = min(settings.batch_size or scheduler.MOST_ROWS[kind], len(indices))
    cache = TensorCache()
    leave_busy_cores(vlm.model)

    def read(index: int) -> Row | tuple[int, Failure]:
        row = attempt(_read_row, vlm, index, conversations[index], settings, cache, deferred=True)
        return (index, row) if isinstance(row, Failure) else row

    engine = _make_engine(vlm, settings.path, capacity, fixed=settings.batch_size is not None)
    with closing(scheduler.Feed(read, indices, ahead=2 * capacity)) as feed:
        for row in _run(engine, feed, settings, tally):
            yield row if isinstance(row, tuple) else _result(vlm, row, tally, settings.note)
    tally.notes += engine.notes
    engine.forget()
    engine.keep_engine()


def _read_row(
    vlm: VLM, index: int, messages: Any, settings: Settings, cache: TensorCache,
    *, deferred: bool = False,
) -> Row:  # fmt: skip
    """A row whose payload is what its Reply needs: its index, checked messages, inputs."""
    messages = as_messages(messages)
    loaded = load_messages(vlm, messages)
    seed = settings.seed_of(index)
    row, inputs = make_row(vlm, loaded, settings.limit, settings.sampling, seed=seed, cache=cache)
    check_context(vlm, row.length, row.limit)
    if (schema := settings.options.get("schema")) is not None:
        row.processors = [make_schema(vlm, schema, loaded.prompt)]
    if deferred:
        images, clips = defer_media(loaded)
        inputs = replace(inputs, images=[images], clips=[clips])
    row.payload = index, messages, inputs
    return row


def make_row(
    vlm: VLM,
    loaded: LoadedMessages,
    limit: int,
    sampling: tuple[float, float],
    *,
    seed: int | None = None,
    cache: TensorCache | None = None,
) -> tuple[Row, ModelInputs]:
    """A conversation as a row for the engine, and the inputs that its Reply describes.

    Args:
        vlm: its processor and limits are used.
        loaded: from :func:`vlkit.inputs.load_messages`.
        limit: the most new tokens.
        sampling: temperature and top_p.
        seed: of its sampling.
        cache: of pictures that other rows ask about as well.
    """
    # on a GPU in half precision also the pictures are prepared there
    half = vlm.model.dtype.itemsize == 2 and vlm.model.device.type == "cuda"
    media = zip(loaded.pictures, loaded.images, strict=True)
    digests = [known_hash(picture.source) or pixel_hash(image) for picture, image in media]
    frames: list[Any] = [clip.frames for clip in loaded.clips]
    digests += [hashlib.sha256(clip).hexdigest() for clip in frames]
    device = vlm.model.device if half else None
    inputs = make_inputs(vlm, [loaded], device=device, digests=[digests], cache=cache)
    tensors = {  # everything but pixels
        name: torch.as_tensor(value).cpu()
        for name, value in inputs.tensors.items()
        if not name.startswith("pixel_values")
    }
    row = Row(tensors, split_media(inputs.tensors, digests), limit, seed, sampling)
    return row, replace(inputs, tensors={"input_ids": row.tensors["input_ids"]})


def _result(vlm: VLM, row: Row, tally: Tally, note: str) -> tuple[int, Reply | Failure]:
    index, messages, inputs = row.payload
    if row.error is not None:
        return index, Failure.of(row.error)
    tally.new_tokens += len(row.tokens)
    facts = messages, inputs, row.tokens, row.limit, row.started, note
    return index, attempt(make_reply, vlm, *facts)


def _run(
    engine: scheduler.Scheduler | Library, feed: scheduler.Feed, settings: Settings, tally: Tally
) -> Iterator:
    """Rows as they end, and (index, Failure) of those that cannot be read.

    A prefill delays the rows that are being answered, so rows are admitted many at a time: once a
    quarter of the slots is free, and half of these can be filled or no further row is being read.
    """
    waiting: list[Row] = []  # read, but not yet admitted

    def should_admit(more_to_come: bool) -> bool:
        enough = not more_to_come or len(waiting) >= max(1, engine.free // 2)
        return bool(waiting) and engine.free >= max(1, engine.slots // 4) and enough

    while not feed.exhausted or waiting or engine.rows:
        settings.check_stopped()
        nothing_to_do = not engine.rows and not should_admit(more_to_come=True)
        for row in feed.take(waiting, block=nothing_to_do and not feed.exhausted):
            if isinstance(row, Row):
                waiting.append(row)
            else:
                yield row
        if should_admit(more_to_come=feed.reading):
            yield from engine.admit(waiting)
            tally.batch_size = max(tally.batch_size, engine.slots)
        elif engine.rows:
            yield from engine.advance(waiting)
        for lengths in engine.prompts:
            tally.count_group(lengths)
        engine.prompts.clear()
