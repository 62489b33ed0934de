"""What went wrong at a service, in one line without the key, and whether to ask again."""

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
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from vlkit.errors import RemoteError
from vlkit.remote.services import Service

NO_KEY = "none"  # what is sent where there is no key


MOST_WAIT = 60.0  # seconds that a service may ask to wait before it is told to the user instead


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
        error: what to tell.
        again: whether another try may go well.
        wait: the seconds that the service asks to wait, or None.
        unreached: whether nothing came back at all.
        keyless: whether the key is wrong, or lacking.
    """

    error: RemoteError
    again: bool = False
    wait: float | None = None
    unreached: bool = False
    keyless: bool = False


@dataclass(frozen=True)
class Place:
    """Who was asked, for messages.

    Attributes:
        model: what the service calls it.
        base_url: the endpoint.
        service: the kind of service.
        timeout: seconds that an answer may take.
        key: never told.
        served: names of the models that it serves, as far as known.
    """

    model: str
    base_url: str
    service: Service
    timeout: float
    key: str = field(repr=False)
    served: Sequence[str] = ()

    def tell(self, text: str, *, fatal: bool = False) -> RemoteError:
        """The error that says so."""
        return RemoteError(f"{self.model} at {self.base_url}: {self.clean(text)}", fatal=fatal)

    def clean(self, text: str) -> str:
        """Text in which neither the key nor anything like one stands."""
        if self.key != NO_KEY:
            text = text.replace(self.key, "…")
        return _SECRET.sub("…", text)


def describe_problem(error: Exception, place: Place) -> ServiceProblem:
    """What an exception of the openai package, or of what lies below it, means."""
    import openai

    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return _timeout(error, place)
    if isinstance(error, openai.APIConnectionError):
        return _unreached(error, place)
    if isinstance(error, openai.APIStatusError):
        return _refused(error, place)
    if isinstance(error, RemoteError):
        return ServiceProblem(error)
    if isinstance(error, openai.APIError) and isinstance(error.body, dict):  # within a stream
        return ServiceProblem(_broken(error, place))
    return ServiceProblem(
        place.tell(
            f"what came is no chat completion ({_first_line(error)}); check that base_url is an "
            "OpenAI-compatible endpoint, which mostly ends in /v1"
        )
    )


def _timeout(error: Exception, place: Place) -> ServiceProblem:
    if "Connect" in type(error.__cause__).__name__:
        return _unreached(error, place)
    return ServiceProblem(
        place.tell(
            f"no answer within {place.timeout:g} s; load with a longer timeout=, or lower "
            "max_new_tokens"
        ),
        unreached=True,
    )


def _unreached(error: Exception, place: Place) -> ServiceProblem:
    cause: Any = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__
    number = getattr(cause, "errno", None)
    reason = os.strerror(number) if number and number > 0 else _first_line(cause)
    text = f"no connection ({reason}); check the network and base_url, and that the server runs"
    return ServiceProblem(place.tell(text, fatal=True), again=True, unreached=True)


def _refused(error: Any, place: Place) -> ServiceProblem:
    status, said, tell = error.status_code, _said(error), place.tell
    code = " ".join(str(part) for part in (error.code, error.type, said) if part)
    throttled = status == 429 and place.service.name == "dashscope"  # its quota is one a minute
    if _QUOTA.search(code) and not throttled:
        text = f"the account's quota or balance is used up ({said}); look into its console"
        return ServiceProblem(tell(text, fatal=True))
    if _CONTENT.search(code):
        return ServiceProblem(
            tell(f"the content was refused ({said}); change the question or picture")
        )
    if status == 401 or "api_key" in code.lower() or "apikey" in code.lower():
        return ServiceProblem(tell(_wrong_key(place, said), fatal=True), keyless=True)
    if status == 404 or _MODEL.search(code):
        text = f"no such model or address ({said}); check the model's name and base_url"
        text += f"; it serves {', '.join(place.served[:4])}" if place.served else ""
        return ServiceProblem(tell(text, fatal=True))
    if status == 403:
        return ServiceProblem(
            tell(f"the key may not use this model ({said}); ask for access", fatal=True)
        )
    if status in (408, 409, 429) or status >= 500:
        return _busy(error, status, said, place)
    return ServiceProblem(tell(f"the request was refused (HTTP {status}: {said})"))


def _wrong_key(place: Place, said: str) -> str:
    name = place.service.key_name
    if place.key == NO_KEY:
        return f"it asks for a key ({said}); set the environment variable {name} or pass api_key="
    where = "; keys differ by region" if place.service.name == "dashscope" else ""
    return f"the key is refused ({said}); check {name} or api_key={where}"


def _broken(error: Any, place: Place) -> RemoteError:
    said = _said(error)
    if _CONTENT.search(f"{error.code} {said}"):
        return place.tell(f"the content was refused ({said}); change the question or picture")
    return place.tell(f"the service broke the answer off ({said}); ask again")


def _busy(error: Any, status: int, said: str, place: Place) -> ServiceProblem:
    wait = retry_after(error.response.headers)
    if status == 429:
        text = f"too many requests ({said}); wait, or lower concurrency="
    else:
        text = f"the service fails (HTTP {status}: {said}); try again later"
    if wait is not None and wait > MOST_WAIT:
        return ServiceProblem(place.tell(f"{text}; it asks to wait {wait:,.0f} s"))
    return ServiceProblem(place.tell(text), again=True, wait=wait)


def retry_after(headers: Any) -> float | None:
    """The seconds that a ``Retry-After`` header asks to wait, as a number or as a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _said(error: Any) -> str:
    """The service's own words, short."""
    body = error.body if isinstance(error.body, dict) else {}
    text = body.get("message") or body.get("detail") or body.get("msg")
    if not text:
        text = error.code or f"HTTP {getattr(error, 'status_code', '')}"
    return _shorten(str(text))


def _first_line(error: BaseException) -> str:
    lines = (str(error) or type(error).__name__).splitlines()
    return _shorten(lines[0]) if lines else type(error).__name__


def _shorten(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= 240 else text[:240] + "…"


CONNECT_SECONDS = 4.0


PATIENCE = 4.0  # seconds after which a connection that failed is not tried again


TRIES_AGAIN = 4  # of a single question: after 8 seconds its user is told


FIRST_PAUSE = 0.5  # seconds between two tries; each is twice as long as the one before


LONGEST_PAUSE = 16.0


LIST_SECONDS = 8.0  # for the list of models


_TICK = 0.05  # seconds between two looks at whether to stop


@dataclass
class RawAnswer:
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


async def _list_models(client: Any, place: Place) -> tuple[dict, ServiceProblem | None]:
    try:
        async with asyncio.timeout(place.timeout):
            page = await client.models.list()
        return {entry.id: entry.model_dump() for entry in page.data}, None
    except Exception as error:  # whatever it is, it becomes a line
        return {}, describe_problem(error, place)


async def ask(
    remote: Any,
    body: dict,
    answer: RawAnswer,
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


def _told(problem: ServiceProblem, tries: int, begun: Any) -> RemoteError:
    if tries == 1 or begun:
        return problem.error
    return RemoteError(f"{problem.error} (asked {tries} times)", fatal=problem.error.fatal)


async def _try(
    remote: Any, body: dict, answer: RawAnswer, put: Any, place: Place
) -> ServiceProblem | None:
    """None once it is answered. Exceptions end here: those of clients hold the key."""
    try:
        if put is None and not remote.service.streams:
            await _ask_whole(remote, body, answer)
        else:
            await _stream(remote, body, answer, put)
    except Exception as error:  # as above
        problem = describe_problem(error, place)
        if isinstance(error, RemoteError):
            problem = ServiceProblem(place.tell(str(error)))
        if answer.pieces and put is not None:
            text = f"the answer broke off after {answer.pieces} pieces; {problem.error}"
            problem = ServiceProblem(RemoteError(text, fatal=problem.error.fatal))
        return problem
    if answer.finish_reason == "content_filter":
        return ServiceProblem(place.tell("the content was refused; change the question or picture"))
    return None


async def _ask_whole(remote: Any, body: dict, answer: RawAnswer) -> None:
    async with asyncio.timeout(remote.timeout):
        completion = await remote.client.chat.completions.create(**body)
    choice = completion.choices[0]
    answer.take(choice.message)
    answer.usage = completion.usage
    answer.finish_reason = choice.finish_reason or "stop"


async def _stream(remote: Any, body: dict, answer: RawAnswer, put: Any) -> None:
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
