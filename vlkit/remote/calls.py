"""Requests on one event loop in a thread of its own: time limits, tries, an end at any instant."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from vlkit.errors import RemoteError
from vlkit.remote.problems import NO_KEY, Place, Problem, describe_problem
from vlkit.remote.services import Service

CONNECT_SECONDS = 4.0
PATIENCE = 4.0  # seconds after which a connection that failed is not tried again
TRIES_AGAIN = 4  # of a single question: after 8 seconds its user is told
FIRST_PAUSE = 0.5  # seconds between two tries; each is twice as long as the one before
LONGEST_PAUSE = 16.0
LIST_SECONDS = 8.0  # for the list of models
_TICK = 0.05  # seconds between two looks at whether to stop


@dataclass
class Answer:
    """What has come of an answer so far; whole once ``finish_reason`` is another than cancelled."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    finish_reason: str = "cancelled"
    usage: Any = None
    pieces: int = 0

    def clear(self) -> None:
        """Begin anew."""
        self.content, self.reasoning, self.pieces = [], [], 0

    def take(self, message: Any, put: Callable[[str], None] | None = None) -> None:
        """Take a message, or a piece of one."""
        for name in ("reasoning_content", "reasoning"):  # DashScope's word, and vLLM's
            if isinstance(text := getattr(message, name, None), str) and text:
                self.reasoning.append(text)
                break
        if text := getattr(message, "refusal", None):
            raise RemoteError(f"the content was refused ({text:.200}); change the question")
        if text := getattr(message, "content", None):
            self.content.append(text)
            self.pieces += 1
            if put:
                put(text)


def open_client(base_url: str, key: str, timeout: float) -> Any:
    """The openai package's client; it tries nothing twice, since vlkit does that.

    Raises:
        RemoteError: the package is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise RemoteError(
            'hosted models need the openai package: pip install "vlkit[remote]"'
        ) from error
    limits = openai.Timeout(timeout, connect=CONNECT_SECONDS)
    here = urlsplit(base_url).hostname in ("localhost", "127.0.0.1", "::1")
    http_client = openai.DefaultAsyncHttpxClient(trust_env=not here)  # no proxy for this machine
    client = openai.AsyncOpenAI(
        api_key=key or NO_KEY, base_url=base_url, timeout=limits, max_retries=0,
        http_client=http_client,
    )  # fmt: skip
    weakref.finalize(client, _close, http_client).atexit = False  # once no model uses it
    return client


def _close(http_client: Any) -> None:
    loop = event_loop()
    loop.call_soon_threadsafe(lambda: asyncio.ensure_future(http_client.aclose(), loop=loop))


def place_of(remote: Any) -> Place:
    """Where a remote model is, for messages."""
    key = remote.client.api_key
    return Place(remote.model, remote.base_url, remote.service, remote.timeout, key, remote.served)


def list_models(client: Any, base_url: str, service: Service, model: str) -> dict[str, dict]:
    """What an endpoint says of its models, by their names; empty where it does not tell.

    Raises:
        RemoteError: it cannot be reached, or refuses the key.
    """
    place = Place(model, base_url, service, LIST_SECONDS, client.api_key)
    found, problem = run(_list_models(client, place))
    if problem and (problem.unreached or problem.keyless):
        raise problem.error
    return found


async def _list_models(client: Any, place: Place) -> tuple[dict, Problem | None]:
    try:
        async with asyncio.timeout(place.timeout):
            page = await client.models.list()
        return {entry.id: entry.model_dump() for entry in page.data}, None
    except Exception as error:  # whatever it is, it becomes a line
        return {}, describe_problem(error, place)


async def ask(
    remote: Any,
    body: dict,
    answer: Answer,
    put: Callable[[str], None] | None = None,
    patience: float = PATIENCE,
    retries: int = TRIES_AGAIN,
) -> None:
    """Send a request until it is answered or there is no more hope.

    Args:
        remote: whom to ask.
        body: fields of the request.
        answer: is filled; on a cancelled task it holds what has come.
        put: is given each piece of text.
        patience: seconds for which a connection is tried.
        retries: how often a request that was refused for now is sent again.

    Raises:
        RemoteError: in one line.
    """
    place, start, tries = place_of(remote), time.monotonic(), 0
    while True:
        problem = await _try(remote, body, answer, put, place)
        if problem is None:
            return
        tries += 1
        late = problem.unreached and time.monotonic() - start > patience
        begun = put is not None and answer.pieces
        if not problem.again or late or begun or (tries > retries and not problem.unreached):
            raise _told(problem, tries, begun)
        answer.clear()
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1)) * random.uniform(0.8, 1.1)
        await asyncio.sleep(pause if problem.wait is None else problem.wait)


def _told(problem: Problem, tries: int, begun: Any) -> RemoteError:
    if tries == 1 or begun:
        return problem.error
    return RemoteError(f"{problem.error} (asked {tries} times)", fatal=problem.error.fatal)


async def _try(remote: Any, body: dict, answer: Answer, put: Any, place: Place) -> Problem | None:
    """None once it is answered. Exceptions end here: those of clients hold the key."""
    try:
        if put is None and not remote.service.streams:
            await _ask_whole(remote, body, answer)
        else:
            await _stream(remote, body, answer, put)
    except Exception as error:  # as above
        problem = describe_problem(error, place)
        if isinstance(error, RemoteError):
            problem = Problem(place.tell(str(error)))
        if answer.pieces and put is not None:
            text = f"the answer broke off after {answer.pieces} pieces; {problem.error}"
            problem = Problem(RemoteError(text, fatal=problem.error.fatal))
        return problem
    if answer.finish_reason == "content_filter":
        return Problem(place.tell("the content was refused; change the question or picture"))
    return None


async def _ask_whole(remote: Any, body: dict, answer: Answer) -> None:
    async with asyncio.timeout(remote.timeout):
        completion = await remote.client.chat.completions.create(**body)
    choice = completion.choices[0]
    answer.take(choice.message)
    answer.usage = completion.usage
    answer.finish_reason = choice.finish_reason or "stop"


async def _stream(remote: Any, body: dict, answer: Answer, put: Any) -> None:
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with asyncio.timeout(remote.timeout):
        chunks = await remote.client.chat.completions.create(**body)
    async with chunks:
        pieces = aiter(chunks)
        reason = None
        while True:
            async with asyncio.timeout(remote.timeout):
                chunk = await anext(pieces, None)
            if chunk is None:
                break
            answer.usage = chunk.usage or answer.usage
            for choice in chunk.choices[:1]:
                answer.take(choice.delta, put)
                reason = choice.finish_reason or reason
    if reason is None:
        raise RemoteError("the answer broke off before its end; ask again")
    answer.finish_reason = reason


def run(work: Coroutine, stopped: threading.Event | None = None) -> Any:
    """Wait for work on the event loop; Ctrl-C or ``stopped`` cancels it, which closes connections.

    Returns:
        What the work returns; None if it was stopped.
    """
    ended = threading.Event()
    future = asyncio.run_coroutine_threadsafe(_to_end(work, ended), event_loop())
    try:
        while not concurrent.futures.wait([future], timeout=_TICK).done:
            if stopped is not None and stopped.is_set():
                future.cancel()
                ended.wait(1.0)  # nothing more is taken in after this
                return None
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def _to_end(work: Coroutine, ended: threading.Event) -> Any:
    try:
        return await work
    finally:
        ended.set()


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop on which all requests of this process run, in a thread of its own."""
    return _event_loop(os.getpid())


@lru_cache(1)
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="vlkit-remote", daemon=True).start()
    return loop
