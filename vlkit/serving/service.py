"""A request to a row for the worker: prompt, limits, memory budget."""

import asyncio
import copy
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from vlkit.errors import ModelError, VlkitError
from vlkit.generation.generate import sampling_temperature, with_thinking
from vlkit.generation.reply import AnswerText, Thinking, count_usage
from vlkit.generation.rows import make_row, make_schema
from vlkit.inputs import LoadedMessages, ending_tokens, load_messages
from vlkit.media.sources import is_remote
from vlkit.media.video import ClipInfo
from vlkit.messages import opened_thought
from vlkit.models.load import VLM
from vlkit.models.memory import available_memory
from vlkit.serving.limits import Limits
from vlkit.serving.request import ChatRequest, ClipOptions, MediaReader, RequestError, too_long
from vlkit.serving.worker import AnswerPiece, Job, Logprobs, OutputPenalties, Worker, make_engine

MOST_CONTEXT = 32_768  # unless the server is started with another context
PIXEL_BYTES = 30  # of a pixel while it waits for the model: uint8, then float32 twice
DOWNLOADS = 16  # at the same time; other requests do not wait for them


def _processors(vlm: VLM, chat: ChatRequest, prompt: str) -> list[Any]:
    """What changes the logits of one answer before temperature and top_p."""
    from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopKLogitsWarper

    processors: list[Any] = [Logprobs(chat.top_logprobs)] if chat.logprobs else []
    if chat.repetition_penalty is not None:
        # the model's own penalty has been applied
        own = getattr(vlm.model.generation_config, "repetition_penalty", None) or 1.0
        processors.append(RepetitionPenaltyLogitsProcessor(chat.repetition_penalty / own))
    if chat.presence_penalty or chat.frequency_penalty:
        processors.append(OutputPenalties(chat.presence_penalty, chat.frequency_penalty))
    if chat.answer_schema is not None:
        processors.append(make_schema(vlm, chat.answer_schema, prompt))
    if chat.top_k > 0:
        processors.append(TopKLogitsWarper(chat.top_k))
    if chat.min_p > 0:  # before the temperature, by which all ratios change alike
        processors.append(MinPLogitsWarper(chat.min_p ** sampling_temperature(chat.temperature)))
    return processors


def _with_times(loaded: LoadedMessages, times: ClipOptions) -> LoadedMessages:
    """Give the request's one clip the frame times that the client sent, as vLLM's clients do."""
    if not times.frames_indices:
        return loaded
    indices = tuple(times.frames_indices)
    counts = [len(clip.indices) for clip in loaded.clips]
    if counts != [len(indices)] or times.fps is None:
        raise VlkitError(
            f"media_io_kwargs.video: {len(indices)} frames_indices for clips of "
            f"{counts} frames; send them with fps, for one clip with an even number of frames"
        )
    clip, total = loaded.clips[0], times.total_num_frames or max(indices) + 1
    info = ClipInfo(clip.info.size, times.fps, total)
    clip = replace(clip, indices=indices, range_frames=total, info=info)
    return replace(loaded, clips=[clip])


class ByteBudget:
    """A budget of bytes for all waiting requests; who finds it used up waits, first come first.

    Args:
        total: bytes. A request that needs more than this waits until it is alone.
    """

    def __init__(self, total: int):
        self._total, self._used, self._loop = total, 0, asyncio.get_running_loop()
        self._first, self._freed = asyncio.Lock(), asyncio.Event()

    async def take(self, size: int) -> Callable[[], None]:
        """Wait until ``size`` bytes are free.

        Returns:
            A function that gives them back: from any thread; a second call does nothing.
        """
        if not size:  # a text waits for nobody's pictures
            return lambda: None
        async with self._first:
            while self._used and self._used + size > self._total:
                self._freed.clear()
                await self._freed.wait()
            self._used += size
        taken = [size]

        def free() -> None:
            self._used -= taken.pop() if taken else 0
            self._freed.set()

        def release() -> None:
            self._loop.call_soon_threadsafe(free)

        return release


class ServedAnswer:
    """The events of one request, in order.

    Attributes:
        decode: ids to text, special tokens too.
        jobs: of its answers.
        notes: what the client should know of: fields without effect, say.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.decode = decode
        self._events: asyncio.Queue[tuple[int, AnswerPiece | RequestError]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.jobs: list[Job] = []
        self.notes: list[str] = []

    def send(self, index: int, event: AnswerPiece | RequestError) -> None:
        """Add an event of one answer. From any thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def next(self) -> tuple[int, AnswerPiece]:
        """The number of an answer, and its next event; the last one is Ended.

        Raises:
            RequestError: the request failed.
        """
        index, event = await self._events.get()
        if isinstance(event, RequestError):
            raise event
        return index, event

    def cancel(self) -> None:
        """The client has left."""
        for job in self.jobs:
            job.cancel()


class ChatService:
    """A model that answers requests; create it inside a running event loop.

    Args:
        vlm: from :func:`vlkit.load`; nothing else may use it meanwhile.
        limits: what a request may cost and name.
        name: what clients call the model.
    """

    def __init__(self, vlm: VLM, limits: Limits, name: str):
        self.vlm, self.limits, self.name = vlm, limits, name
        self.context = min(vlm.context_length, limits.context or MOST_CONTEXT)
        self.engine = make_engine(vlm, self.context)
        self.worker = Worker(self.engine)
        self._endings = frozenset(ending_tokens(vlm))
        # a copy, since other threads change the padding of the processor's tokenizer in place
        self._tokenizer = copy.deepcopy(vlm.processor.tokenizer).backend_tokenizer
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "vlkit-media")
        self._texts = ThreadPoolExecutor(1, "vlkit-text")  # does not wait for others' media
        self._downloads = ThreadPoolExecutor(DOWNLOADS, "vlkit-download")
        self._budget = ByteBudget(min(limits.held_bytes, available_memory()[0] // 4))

    def describe_model(self, name: str) -> dict[str, Any]:
        """The model's entry in ``/v1/models``; vlkit's own client reads the sizes there.

        Raises:
            RequestError: a model of another name is asked for.
        """
        if name != self.name:
            text = f"model {name!r:.80} is not served here; the model is {self.name!r}"
            raise RequestError(text, status=404, param="model", code="model_not_found")
        return {
            "id": self.name, "object": "model", "created": 0, "owned_by": "vlkit",
            "max_model_len": self.context,
            "vlkit": {"family": self.vlm.family, **asdict(self.vlm.rules)},
        }  # fmt: skip

    def describe_state(self) -> dict[str, Any]:
        """The answer of ``/health``."""
        counts = ("running", "waiting", "finished", "most_at_once")
        return {"status": "ok", **{name: getattr(self.worker, name) for name in counts}}

    async def ask(self, chat: ChatRequest) -> ServedAnswer:
        """Read a request's media and hand it to the model.

        Raises:
            RequestError: the request is refused.
        """
        self.describe_model(chat.model)
        answer = ServedAnswer(partial(self._tokenizer.decode, skip_special_tokens=False))
        self.worker.arriving += 1
        try:
            await self._make_jobs(chat, answer)
        except RequestError:
            raise
        except VlkitError as error:
            raise RequestError(str(error), param="messages") from error
        finally:
            self.worker.arriving -= 1
        for job in answer.jobs:
            self.worker.submit(job)
        return answer

    async def _make_jobs(self, chat: ChatRequest, answer: ServedAnswer) -> None:
        vlm, answer.notes = self.vlm, [f"{name} has no effect" for name in chat.noted]
        if chat.answer_schema is not None:  # refused before anything else is done
            await self._run(self._texts, self._check_schema, chat)
        try:
            vlm = with_thinking(vlm, chat.chat_template_kwargs.enable_thinking, chat.answer_schema)
        except ModelError as error:
            answer.notes.append(f"chat_template_kwargs has no effect ({error})")
        if chat.function:
            answer.notes.append("the model does not see the descriptions of tools")
        reader = MediaReader(chat, self.limits, self.vlm.rules, self.context)
        pool = self._pool if chat.urls else self._texts
        if any(map(is_remote, chat.urls)):
            pool = self._downloads
        messages = await self._run(pool, reader.read)
        answer.notes += sorted(set(reader.notes))
        release = await self._budget.take(PIXEL_BYTES * reader.pixels)
        try:
            pool = self._pool if reader.pixels else self._texts
            rows, usage, begun = await self._run(pool, self._prepare, vlm, chat, messages)
        except BaseException:
            release()
            raise
        if chat.new_tokens and chat.new_tokens > rows[0].limit:
            answer.notes.append(f"max_tokens={chat.new_tokens} lowered to {rows[0].limit}")
        for index, row in enumerate(rows):
            text = AnswerText(self._tokenizer, self._endings, chat.stops, chat.skip_special_tokens)
            job = Job(
                row, usage, text, Thinking(begun),
                streams=chat.stream, send=partial(answer.send, index), release=release,
            )  # fmt: skip
            answer.jobs.append(job)

    def _check_schema(self, chat: ChatRequest) -> None:
        try:
            make_schema(self.vlm, chat.answer_schema)
        except VlkitError as error:
            param = "tools" if chat.function else "response_format"
            raise RequestError(str(error), param=param) from error

    def _prepare(self, vlm: VLM, chat: ChatRequest, messages: list[dict]) -> Any:
        """Decode media, render the prompt and make its tensors.

        Args:
            vlm: whose processor it is.
            chat: the request.
            messages: its messages, from :class:`vlkit.serving.request.MediaReader`.

        Returns:
            A row for each answer (``n``), the usage of their prompt, and its end that opens a
            thought.

        Raises:
            VlkitError: for what is wrong with it.
        """
        with self.engine.sharing():
            loaded = _with_times(load_messages(vlm, messages), chat.media_io_kwargs.video)
            sampling = (sampling_temperature(chat.temperature), chat.top_p)
            row, inputs = make_row(vlm, loaded, 1, sampling)
            room, most = self.context - row.length, self.limits.new_tokens
            if room < 1:
                raise too_long(f"{row.length:,} prompt tokens and the answer", self.context)
            row.limit = min(chat.new_tokens or most, most, room)
            rows = [
                replace(
                    row, seed=None if chat.seed is None else (chat.seed + index) % 2**63, tokens=[],
                    processors=_processors(vlm, chat, loaded.prompt),
                )
                for index in range(chat.n)
            ]  # fmt: skip
            try:
                self.engine.encode_ahead(rows[:1])
            except Exception as error:  # as when the model reads the prompt
                raise RequestError.of(error) from error
        return rows, count_usage(vlm, inputs, 0), opened_thought(loaded.prompt)

    async def _run(self, pool: ThreadPoolExecutor, function: Callable, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    def close(self) -> None:
        """Finish the requests that were submitted."""
        for pool in (self._downloads, self._pool, self._texts):
            pool.shutdown(wait=True)
        self.worker.close()
