"""A request to a row for the worker: prompt, limits, memory budget."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

from vlkit.engine.slots import Row
from vlkit.errors import VlkitError
from vlkit.generation.generate import sampling_temperature
from vlkit.generation.reply import Usage, count_usage
from vlkit.generation.rows import make_row
from vlkit.inputs import LoadedMessages, ending_tokens, load_messages
from vlkit.media.video import ClipInfo
from vlkit.models.load import VLM
from vlkit.models.memory import available_memory
from vlkit.serving.limits import Limits
from vlkit.serving.request import ChatRequest, ClipTimes, RequestError, read_messages
from vlkit.serving.worker import AnswerText, Ended, Event, Job, Worker, make_engine

_TOKEN_CHARACTERS = 16  # a text with more characters per token of context is not tokenized
MOST_CONTEXT = 32_768  # unless the server is started with another context
PIXEL_BYTES = 30  # of a pixel while it waits for the model: uint8, then float32 twice


def check_texts(messages: list[dict], context: int) -> None:
    """Raises RequestError for texts that cannot fit, before they are tokenized."""
    items = [item for message in messages for item in message["content"]]
    characters = sum(len(item["text"]) for item in items if item["type"] == "text")
    if characters > _TOKEN_CHARACTERS * context:
        raise _too_long(f"{characters:,} characters", context)


def prepare(
    vlm: VLM, chat: ChatRequest, messages: list[dict], limits: Limits, context: int
) -> tuple[Row, Usage]:
    """Decode media, render the prompt and make its tensors: a row, and the usage of its prompt.

    Args:
        vlm: whose processor it is.
        chat: the request.
        messages: its messages, from :func:`vlkit.serving.request.read_messages`.
        limits: of the server.
        context: the most tokens of prompt and answer.

    Raises:
        VlkitError: for what is wrong with it.
    """
    loaded = _with_times(load_messages(vlm, messages), chat.clip_times)
    sampling = (sampling_temperature(chat.temperature), chat.top_p)
    row, inputs = make_row(vlm, loaded, 1, sampling, seed=chat.seed)
    row.limit = _answer_limit(chat, limits, context, row.length)
    return row, count_usage(vlm, inputs, 0)


def _answer_limit(chat: ChatRequest, limits: Limits, context: int, length: int) -> int:
    limit, room = chat.new_tokens, context - length
    if limit is not None and limit > limits.new_tokens:
        text = f"max_tokens={limit:,}: this server writes at most {limits.new_tokens:,}"
        raise RequestError(text, param="max_tokens")
    if room < (limit or 1):
        raise _too_long(f"{length:,} prompt tokens and {limit or 1:,} of the answer", context)
    return limit or min(limits.new_tokens, room)


def _too_long(what: str, context: int) -> RequestError:
    text = f"{what} exceed the context of {context:,} tokens; send less, or smaller pictures"
    return RequestError(text, param="messages", code="context_length_exceeded")


def _with_times(loaded: LoadedMessages, times: ClipTimes | None) -> LoadedMessages:
    """Give the request's one clip the frame times that the client sent, as vLLM's clients do."""
    if times is None:
        return loaded
    indices, counts = tuple(times.frames_indices), [len(clip.indices) for clip in loaded.clips]
    if counts != [len(indices)]:
        raise VlkitError(
            f"media_io_kwargs.video: {len(indices)} frames_indices for clips of "
            f"{counts} frames; send them for one clip with an even number of frames"
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
        self._first, self._changed = asyncio.Lock(), asyncio.Condition()

    async def take(self, size: int) -> Callable[[], None]:
        """Wait until ``size`` bytes are free.

        Returns:
            A function that gives them back: from any thread; a second call does nothing.
        """
        async with self._first, self._changed:
            await self._changed.wait_for(lambda: not self._used or self._used + size <= self._total)
            self._used += size
        taken = [size]

        def release() -> None:
            self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._free(taken)))

        return release

    async def _free(self, taken: list[int]) -> None:
        async with self._changed:
            if taken:
                self._used -= taken.pop()
                self._changed.notify_all()


class ServedAnswer:
    """The events of one request, in order; the last is Ended, or a RequestError is raised."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.job: Job | None = None

    def send(self, event: Event) -> None:
        """Add an event. From any thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> str | Ended:
        """The next event."""
        event = await self._events.get()
        if isinstance(event, RequestError):
            raise event
        return event

    def cancel(self) -> None:
        """The client has left."""
        if self.job is not None:
            self.job.cancel()


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
        self._budget = ByteBudget(min(limits.held_bytes, available_memory()[0] // 4))

    @property
    def most_requests(self) -> int:
        """How many may run and wait together."""
        return self.engine.slots + self.limits.waiting

    def describe_model(self) -> dict[str, Any]:
        """The entry of ``/v1/models``; vlkit's own client reads the sizes there."""
        return {
            "id": self.name, "object": "model", "created": 0, "owned_by": "vlkit",
            "max_model_len": self.context,
            "vlkit": {"family": self.vlm.family, **asdict(self.vlm.rules)},
        }  # fmt: skip

    def describe_state(self) -> dict[str, Any]:
        """The answer of ``/health``."""
        worker = self.worker
        return {
            "status": "ok", "running": worker.running, "waiting": worker.waiting,
            "finished": worker.finished, "most_at_once": worker.most_at_once,
        }  # fmt: skip

    async def ask(self, chat: ChatRequest) -> ServedAnswer:
        """Read a request's media and hand it to the model.

        Raises:
            RequestError: the request is refused.
        """
        if chat.model != self.name:
            text = f"model {chat.model!r:.80} is not served here; the model is {self.name!r}"
            raise RequestError(text, status=404, param="model", code="model_not_found")
        answer = ServedAnswer()
        self.worker.arriving += 1
        try:
            answer.job = await self._make_job(chat, answer)
        except RequestError:
            raise
        except VlkitError as error:
            raise RequestError(str(error), param="messages") from error
        finally:
            self.worker.arriving -= 1
        self.worker.submit(answer.job)
        return answer

    async def _make_job(self, chat: ChatRequest, answer: ServedAnswer) -> Job:
        messages, pixels = await self._run(read_messages, chat.messages, self.limits)
        check_texts(messages, self.context)
        release = await self._budget.take(PIXEL_BYTES * pixels)
        try:
            row, usage = await self._run(self._prepare, chat, messages)
        except BaseException:
            release()
            raise
        text = AnswerText(self._tokenizer, self._endings, chat.stops, chat.skip_special_tokens)
        return Job(row, usage, text, streams=chat.stream, send=answer.send, release=release)

    def _prepare(self, chat: ChatRequest, messages: list[dict]) -> tuple[Row, Usage]:
        with self.engine.sharing():
            row, usage = prepare(self.vlm, chat, messages, self.limits, self.context)
            try:
                self.engine.encode_ahead([row])
            except Exception as error:  # as when the model reads the prompt
                raise RequestError.of(error) from error
        return row, usage

    async def _run(self, function: Callable, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def close(self) -> None:
        """Finish the requests that were submitted."""
        self._pool.shutdown(wait=True)
        self.worker.close()
