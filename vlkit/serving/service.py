"""Between HTTP and the model: requests are read in threads, answers come back as events."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from vlkit.errors import VlkitError
from vlkit.generation import ending_tokens
from vlkit.inputs import size_rules
from vlkit.memory import available_memory
from vlkit.models import VLM
from vlkit.serving.content import read_messages
from vlkit.serving.engines import Joined, make_engine
from vlkit.serving.jobs import Ended, Event, Job, Text
from vlkit.serving.limits import Limits, RequestError
from vlkit.serving.preparing import Prepared, check_texts, prepare
from vlkit.serving.schema import ChatRequest
from vlkit.serving.worker import Worker, refusal

MOST_CONTEXT = 32_768  # unless more is asked for
PIXEL_BYTES = 30  # of a pixel while it waits for the model: uint8, then float32 twice


class Share:
    """Bytes that those who wait hold together; whoever finds none left waits in line."""

    def __init__(self, total: int):
        self._total, self._used, self._loop = total, 0, asyncio.get_running_loop()
        self._line, self._changed = asyncio.Lock(), asyncio.Condition()

    async def take(self, size: int) -> Callable[[], None]:
        """Wait for room; the result gives it back: from any thread, and once however often."""
        async with self._line, self._changed:
            await self._changed.wait_for(lambda: not self._used or self._used + size <= self._total)
            self._used += size
        held = [size]

        def give_back() -> None:
            self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._free(held)))

        return give_back

    async def _free(self, held: list[int]) -> None:
        async with self._changed:
            if held:
                self._used -= held.pop()
                self._changed.notify_all()


class Answer:
    """Events of one request, in order; the last is Ended, or a RequestError is raised."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.job: Job | None = None

    def send(self, event: Event) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> str | Ended:
        """The next event."""
        event = await self._events.get()
        if isinstance(event, RequestError):
            raise event
        return event

    def cancel(self) -> None:
        """Nobody listens any more."""
        if self.job is not None:
            self.job.cancel()


class Service:
    """A model that answers requests; to be made inside of a running event loop.

    Args:
        vlm: from :func:`vlkit.load`; nobody else uses it meanwhile.
        limits: what a request may cost and name.
        name: what clients call the model.
    """

    def __init__(self, vlm: VLM, limits: Limits, name: str):
        self.vlm, self.limits, self.name = vlm, limits, name
        self.context = min(vlm.context_length, limits.context or MOST_CONTEXT)
        self.engine = make_engine(vlm, self.context)
        self.worker = Worker(self.engine)
        self._endings = frozenset(ending_tokens(vlm))
        # its own, since the processor's changes its padding in place, in other threads
        self._tokenizer = copy.deepcopy(vlm.processor.tokenizer).backend_tokenizer
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "vlkit-media")
        self._share = Share(min(limits.held_bytes, available_memory()[0] // 4))

    @property
    def most_requests(self) -> int:
        """As many as may be under way and wait."""
        return self.engine.slots + self.limits.waiting

    def describe_model(self) -> dict[str, Any]:
        """The entry of ``/v1/models``; vlkit's own client reads the sizes there."""
        return {
            "id": self.name, "object": "model", "created": 0, "owned_by": "vlkit",
            "max_model_len": self.context,
            "vlkit": {"family": self.vlm.family, **asdict(size_rules(self.vlm))},
        }  # fmt: skip

    def describe_state(self) -> dict[str, Any]:
        """What ``/health`` says."""
        worker = self.worker
        return {
            "status": "ok", "running": worker.running, "waiting": worker.waiting,
            "finished": worker.finished, "most_at_once": worker.most_at_once,
        }  # fmt: skip

    async def ask(self, chat: ChatRequest) -> Answer:
        """Read a request's media and hand it to the model.

        Raises:
            RequestError: it is refused.
        """
        if chat.model != self.name:
            text = f"model {chat.model!r:.80} is not served here; this is {self.name!r}"
            raise RequestError(text, status=404, param="model", code="model_not_found")
        answer = Answer()
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

    async def _make_job(self, chat: ChatRequest, answer: Answer) -> Job:
        messages, pixels = await self._run(read_messages, chat.messages, self.limits)
        check_texts(messages, self.context)
        let_go = await self._share.take(PIXEL_BYTES * pixels)
        try:
            prepared = await self._run(self._prepare, chat, messages)
        except BaseException:
            let_go()
            raise
        text = Text(self._tokenizer, self._endings, chat.stops, chat.skip_special_tokens)
        return Job(
            prepared.waiting, prepared.row, prepared.usage, text,
            streams=chat.stream, send=answer.send, let_go=let_go,
        )  # fmt: skip

    def _prepare(self, chat: ChatRequest, messages: list[dict]) -> Prepared:
        fast = isinstance(self.engine, Joined)
        with self.engine.sharing():
            prepared = prepare(self.vlm, chat, messages, self.limits, self.context, fast)
            try:
                self.engine.look(prepared.row)
            except Exception as error:  # as where the model reads its prompt
                raise refusal(error) from error
        return prepared

    async def _run(self, function: Callable, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def close(self) -> None:
        """Finish what was handed over."""
        self._pool.shutdown(wait=True)
        self.worker.close()
