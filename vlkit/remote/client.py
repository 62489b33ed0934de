"""HTTP: retries, streaming, each failure as one line without the key."""

from __future__ import annotations

import asyncio
import concurrent.futures
import email.utils
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from vlkit.errors import RemoteError, one_line
from vlkit.remote.services import Endpoint, Service

NO_KEY = "none"  # the openai package needs a key, also for a server that needs none
MOST_WAIT = 60.0  # the longest Retry-After, in seconds, that is waited for

_QUOTA = re.compile(
    r"insufficient_quota|insufficient balance|arrearage|freetier|billing|overdue|good standing",
    re.I,
)
_CONTENT = re.compile(
    r"data_?inspection|content_?(policy|filter)|inappropriate content|moderation", re.I
)
_MODEL = re.compile(r"model_?not_?found|model.{0,80}(does ?n.t|not) (exist|found)", re.I)
_SECRET = re.compile(r"\b(sk|Bearer)[-_ ](?=[\w\-.]*[\d*])[\w\-*.]{6,}", re.I)


@dataclass(frozen=True)
class ServiceProblem:
    """A failed request.

    Attributes:
        error: for the user.
        retry: whether the same request may succeed later.
        wait: the seconds that the service asks to wait, or None.
        no_response: whether nothing came back at all.
        wrong_key: whether the key is wrong or missing.
    """

    error: RemoteError
    retry: bool = False
    wait: float | None = None
    no_response: bool = False
    wrong_key: bool = False


@dataclass(frozen=True)
class ErrorSource:
    """Which model at which service, for error messages.

    Attributes:
        model: its name at the service.
        base_url: the endpoint.
        service: the kind of service.
        timeout: seconds that an answer may take.
        key: to remove it from messages.
        served: names of the models that the service has, as far as known.
    """

    model: str
    base_url: str
    service: Service
    timeout: float
    key: str = field(repr=False)
    served: Sequence[str] = ()

    def problem(self, text: str, *, fatal: bool = False, **kind: Any) -> ServiceProblem:
        """A problem with an error that names the model; ``kind``: fields of ServiceProblem."""
        text = f"{self.model} at {self.base_url}: {self.hide_keys(text)}"
        return ServiceProblem(RemoteError(text, fatal=fatal), **kind)

    def hide_keys(self, text: str) -> str:
        """The text without the key, and without anything that looks like a key."""
        if self.key != NO_KEY:
            text = text.replace(self.key, "…")
        return _SECRET.sub("…", text)


def describe_problem(error: Exception, source: ErrorSource) -> ServiceProblem:
    """The problem behind an exception of the openai package, or of packages that it uses."""
    import openai

    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return _describe_timeout(error, source)
    if isinstance(error, openai.APIConnectionError):
        return _describe_no_connection(error, source)
    if isinstance(error, openai.APIStatusError):
        return _describe_refusal(error, source)
    if isinstance(error, RemoteError):
        return ServiceProblem(error)
    if isinstance(error, openai.APIError) and isinstance(error.body, dict):  # in a stream
        return _describe_stream_error(error, source)
    return source.problem(
        f"the response is not a chat completion ({one_line(error)}); check that base_url is an "
        "OpenAI-compatible endpoint; most end in /v1"
    )


def _describe_timeout(error: Exception, source: ErrorSource) -> ServiceProblem:
    if "Connect" in type(error.__cause__).__name__:
        return _describe_no_connection(error, source)
    text = f"no answer within {source.timeout:g} s; load with a longer timeout=, or lower "
    return source.problem(text + "max_new_tokens", no_response=True)


def _describe_no_connection(error: Exception, source: ErrorSource) -> ServiceProblem:
    cause: Any = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__
    number = getattr(cause, "errno", None)
    reason = os.strerror(number) if number and number > 0 else one_line(cause)
    text = f"no connection ({reason}); check the network and base_url, and that the server runs"
    return source.problem(text, fatal=True, retry=True, no_response=True)


def _describe_refusal(error: Any, source: ErrorSource) -> ServiceProblem:
    status, reason = error.status_code, _service_message(error)
    words = " ".join(str(part) for part in (error.code, error.type, reason) if part)
    throttled = status == 429 and source.service.name == "dashscope"  # its quotas are per minute
    if _QUOTA.search(words) and not throttled:
        text = f"the account's quota or balance is used up ({reason}); see the service's console"
        return source.problem(text, fatal=True)
    if _CONTENT.search(words):
        return source.problem(f"the content was refused ({reason}); change the question or picture")
    if status == 401 or "api_key" in words.lower() or "apikey" in words.lower():
        return source.problem(_describe_wrong_key(source, reason), fatal=True, wrong_key=True)
    if status == 404 or _MODEL.search(words):
        text = f"no such model or address ({reason}); check the model's name and base_url"
        text += f"; it serves {', '.join(source.served[:4])}" if source.served else ""
        return source.problem(text, fatal=True)
    if status == 403:
        text = f"the key has no access to this model ({reason}); request access"
        return source.problem(text, fatal=True)
    if status in (408, 409, 429) or status >= 500:
        return _describe_busy(error, status, reason, source)
    return source.problem(f"the request was refused (HTTP {status}: {reason})")


def _describe_wrong_key(source: ErrorSource, reason: str) -> str:
    name = source.service.key_name
    if source.key == NO_KEY:
        return f"a key is needed ({reason}); set the environment variable {name} or pass api_key="
    where = "; keys differ by region" if source.service.name == "dashscope" else ""
    return f"the key is refused ({reason}); check {name} or api_key={where}"


def _describe_stream_error(error: Any, source: ErrorSource) -> ServiceProblem:
    reason = _service_message(error)
    if _CONTENT.search(f"{error.code} {reason}"):
        return source.problem(f"the content was refused ({reason}); change the question or picture")
    return source.problem(f"the service ended the answer with an error ({reason}); try again")


def _describe_busy(error: Any, status: int, reason: str, source: ErrorSource) -> ServiceProblem:
    wait = retry_after(error.response.headers)
    if status == 429:
        text = f"too many requests ({reason}); wait, or lower concurrency="
    else:
        text = f"the service failed (HTTP {status}: {reason}); try again later"
    if wait is not None and wait > MOST_WAIT:
        return source.problem(f"{text}; the service asks to wait {wait:,.0f} s")
    return source.problem(text, retry=True, wait=wait)


def retry_after(headers: Any) -> float | None:
    """The seconds to wait in a ``Retry-After`` header, which is a number or a date."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _service_message(error: Any) -> str:
    """The service's error message, cut to a line."""
    body = error.body if isinstance(error.body, dict) else {}
    text = body.get("message") or body.get("detail") or body.get("msg")
    if not text:
        text = error.code or f"HTTP {getattr(error, 'status_code', '')}"
    text = " ".join(str(text).split()).rstrip(".")
    return text if len(text) <= 240 else text[:240] + "…"


CONNECT_SECONDS = 4.0
PATIENCE = 4.0  # seconds after which a failed connection is not tried again
TRIES_AGAIN = 4  # retries of a single question: its user waits about 8 seconds
FIRST_PAUSE = 0.5  # seconds before the first retry; each later pause is twice as long
LONGEST_PAUSE = 16.0
LIST_SECONDS = 8.0  # for the list of models
_TICK = 0.05  # seconds between two checks of whether to stop


@dataclass
class RawAnswer:
    """The parts of an answer so far; complete if ``finish_reason`` is not ``"cancelled"``."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    finish_reason: str = "cancelled"
    usage: Any = None
    pieces: int = 0

    def clear(self) -> None:
        """Start again with nothing."""
        self.content, self.reasoning, self.pieces = [], [], 0

    def take(self, message: Any, put: Callable[[str], None] | None = None) -> None:
        """Add a message, or a piece of one."""
        for name in ("reasoning_content", "reasoning"):  # DashScope's name, and vLLM's
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
    """The openai package's client, without its retries; :func:`ask` retries instead.

    The package would also repeat a request that timed out, which is then paid twice. And it
    limits the number of tries where ``ask`` limits the time: a batch waits for a server to restart.

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


def error_source(remote: Endpoint) -> ErrorSource:
    """The model and its address, for error messages."""
    return ErrorSource(
        remote.model, remote.base_url, remote.service, remote.timeout,
        key=remote.client.api_key, served=remote.served,
    )  # fmt: skip


def list_models(client: Any, base_url: str, service: Service, model: str) -> dict[str, dict]:
    """An endpoint's list of its models, by name; empty if it has no such list.

    Raises:
        RemoteError: the endpoint cannot be reached, or refuses the key.
    """
    source = ErrorSource(model, base_url, service, LIST_SECONDS, client.api_key)
    models, problem = run(_list_models(client, source))
    if problem and (problem.no_response or problem.wrong_key):
        raise problem.error
    return models


async def _list_models(client: Any, source: ErrorSource) -> tuple[dict, ServiceProblem | None]:
    try:
        async with asyncio.timeout(source.timeout):
            page = await client.models.list()
        return {entry.id: entry.model_dump() for entry in page.data}, None
    except Exception as error:  # of any library
        return {}, describe_problem(error, source)


async def ask(
    remote: Endpoint,
    body: dict,
    answer: RawAnswer,
    put: Callable[[str], None] | None = None,
    patience: float = PATIENCE,
    retries: int = TRIES_AGAIN,
) -> None:
    """Send a request, again where a later try may succeed, until it is answered.

    Args:
        remote: the endpoint.
        body: fields of the request.
        answer: is filled; if the task is cancelled, it has the parts that arrived.
        put: receives each piece of text.
        patience: seconds for which a failed connection is tried again.
        retries: how often a request is sent again that the service refused for now (429, 5xx).

    Raises:
        RemoteError: in one line.
    """
    source, start, tries = error_source(remote), time.monotonic(), 0
    while True:
        problem = await _try(remote, body, answer, put, source)
        if problem is None:
            return
        tries += 1
        started = put is not None and answer.pieces > 0  # the user has seen a part of the answer
        if problem.no_response:
            give_up = time.monotonic() - start > patience
        else:
            give_up = tries > retries
        if give_up or started or not problem.retry:
            if tries == 1 or started:
                raise problem.error
            raise RemoteError(f"{problem.error} (tried {tries} times)", fatal=problem.error.fatal)
        answer.clear()
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1)) * random.uniform(0.8, 1.1)
        await asyncio.sleep(pause if problem.wait is None else problem.wait)


async def _try(
    remote: Endpoint, body: dict, answer: RawAnswer, put: Any, source: ErrorSource
) -> ServiceProblem | None:
    """None if it is answered. Raises nothing: exceptions of clients may contain the key."""
    try:
        if put is None and not remote.service.streams:
            await _ask_whole(remote, body, answer)
        else:
            await _stream(remote, body, answer, put)
    except Exception as error:  # of any library
        problem = describe_problem(error, source)
        if isinstance(error, RemoteError):
            problem = source.problem(str(error))
        if answer.pieces and put is not None:
            text = f"the answer was interrupted after {answer.pieces} pieces; {problem.error}"
            problem = ServiceProblem(RemoteError(text, fatal=problem.error.fatal))
        return problem
    if answer.finish_reason == "content_filter":
        return source.problem("the content was refused; change the question or picture")
    return None


async def _ask_whole(remote: Endpoint, body: dict, answer: RawAnswer) -> None:
    async with asyncio.timeout(remote.timeout):
        completion = await remote.client.chat.completions.create(**body)
    choice = completion.choices[0]
    answer.take(choice.message)
    answer.usage = completion.usage
    answer.finish_reason = choice.finish_reason or "stop"


async def _stream(remote: Endpoint, body: dict, answer: RawAnswer, put: Any) -> None:
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
        raise RemoteError("the answer was interrupted; try again")
    answer.finish_reason = reason


def run(work: Coroutine, stopped: threading.Event | None = None) -> Any:
    """Run a coroutine on the event loop and wait; Ctrl-C or ``stopped`` cancels it.

    Returns:
        What the coroutine returns; None if it was stopped.
    """
    ended = threading.Event()
    future = asyncio.run_coroutine_threadsafe(_signal_end(work, ended), event_loop())
    try:
        while not concurrent.futures.wait([future], timeout=_TICK).done:
            if stopped is not None and stopped.is_set():
                future.cancel()
                ended.wait(1.0)  # afterwards the answer no longer changes
                return None
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def _signal_end(work: Coroutine, ended: threading.Event) -> Any:
    try:
        return await work
    finally:
        ended.set()


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop, in a thread of its own, on which all requests of this process run."""
    return _event_loop(os.getpid())


@lru_cache(1)
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="vlkit-remote", daemon=True).start()
    return loop
