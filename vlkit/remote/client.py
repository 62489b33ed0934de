"""HTTP: retries, streaming, each failure as one line without the key."""

import asyncio
import codecs
import concurrent.futures
import email.utils
import json
import os
import random
import re
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast
from urllib.parse import urlsplit

from vlkit.errors import RemoteError, needs_package, one_line, warn_user
from vlkit.remote.services import Address, Endpoint

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


def _problem(source: Address, text: str, *, fatal: bool = False, **kind: Any) -> ServiceProblem:
    """A problem with an error that names the model; ``kind``: fields of ServiceProblem."""
    if source.client.api_key != NO_KEY:
        text = text.replace(source.client.api_key, "…")
    text = f"{source.model} at {source.base_url}: {_SECRET.sub('…', text)}"
    return ServiceProblem(RemoteError(text, fatal=fatal), **kind)


def describe_problem(error: Exception, source: Address) -> ServiceProblem:
    """The problem behind an exception of the openai package, or of packages that it uses."""
    import openai

    timed_out = isinstance(error, openai.APITimeoutError | TimeoutError)
    if timed_out and "Connect" not in type(error.__cause__).__name__:
        text = f"no answer within {source.timeout:g} s; load with a longer timeout=, or lower "
        return _problem(source, text + "max_new_tokens", no_response=True)
    if isinstance(error, openai.APIConnectionError):
        return _describe_no_connection(error, source)
    if isinstance(error, openai.APIStatusError):
        return _describe_refusal(error, error.status_code, source)
    if isinstance(error, RemoteError):
        return _problem(source, str(error))
    if isinstance(error, openai.APIError) and error.body:  # in a stream, or under HTTP 200
        code = str(error.code)
        status = int(code) if re.fullmatch(r"[45]\d\d", code) else 0
        return _describe_refusal(error, status, source)
    text = f"the response is not a chat completion ({one_line(error)}); check that base_url is an "
    return _problem(source, text + "OpenAI-compatible endpoint; most end in /v1")


def _describe_no_connection(error: Exception, source: Address) -> ServiceProblem:
    cause: Any = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__
    number = getattr(cause, "errno", None)
    reason = os.strerror(number) if number and number > 0 else one_line(cause)
    text = f"no connection ({reason}); check the network and base_url, and that the server runs"
    return _problem(source, text, fatal=True, retry=True, no_response=True)


def _describe_refusal(error: Any, status: int, source: Address) -> ServiceProblem:
    """The problem of an error in the service's own words; status 0 where it gives no number."""
    reason = _service_message(error.body)
    words = " ".join(str(part) for part in (error.code, error.type, reason) if part)
    throttled = status == 429 and source.service.name == "dashscope"  # its quotas are per minute
    if _QUOTA.search(words) and not throttled:
        text = f"the account's quota or balance is used up ({reason}); see the service's console"
        return _problem(source, text, fatal=True)
    if _CONTENT.search(words):
        text = f"the content was refused ({reason}); change the question or picture"
        return _problem(source, text)
    if status == 401 or "api_key" in words.lower() or "apikey" in words.lower():
        return _problem(source, _describe_wrong_key(source, reason), fatal=True, wrong_key=True)
    if status == 404 or _MODEL.search(words):
        text = f"no such model or address ({reason}); check the model's name and base_url"
        text += f"; it serves {', '.join(source.served[:4])}" if source.served else ""
        return _problem(source, text, fatal=True)
    if status == 403:
        text = f"the key has no access to this model ({reason}); request access"
        return _problem(source, text, fatal=True)
    if status in (408, 409, 429) or status >= 500:
        return _describe_busy(error, status, reason, source)
    if not status:
        text = f"the service ended the answer with an error ({reason}); try again, or see its log"
        return _problem(source, text)
    return _problem(source, f"the request was refused (HTTP {status}: {reason})")


def _describe_wrong_key(source: Address, reason: str) -> str:
    name = source.service.key_name
    if source.client.api_key == NO_KEY:
        return f"a key is needed ({reason}); set the environment variable {name} or pass api_key="
    where = "; keys differ by region" if source.service.name == "dashscope" else ""
    return f"the key is refused ({reason}); check {name} or api_key={where}"


def _describe_busy(error: Any, status: int, reason: str, source: Address) -> ServiceProblem:
    response = getattr(error, "response", None)  # none for an error in a stream
    wait = retry_after(response.headers) if response else None
    if status == 429:
        text = f"too many requests ({reason}); wait, or lower concurrency="
    else:
        text = f"the service failed (HTTP {status}: {reason}); try again later"
    if wait is not None and wait > MOST_WAIT:
        return _problem(source, f"{text}; the service asks to wait {wait:,.0f} s")
    return _problem(source, text, retry=True, wait=wait)


def retry_after(headers: Any) -> float | None:
    """The seconds to wait in a ``Retry-After`` header, which is a number or a date."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _service_message(body: Any) -> str:
    """The service's own words in an error's body, cut to a line."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if isinstance(body, Mapping):
        text = next((body[n] for n in ("message", "detail", "msg", "error") if body.get(n)), "")
        details = body.get("metadata")  # OpenRouter's: the words of the service behind it
        raw = details.get("raw") if isinstance(details, Mapping) else None
        if isinstance(text, Mapping):
            return _service_message(text)
        body = f"{text}: {raw}" if raw else text or dict(body)
    text = " ".join(str(body or "no reason given").split()).rstrip(".")
    text = "it sent a web page" if text.startswith("<") else text
    return text if len(text) <= 240 else text[:240] + "…"


# fields that vlkit adds by itself: one that the service refuses by name is left out from then on
OWN_FIELDS = {"skip_special_tokens", "top_k", "stream_options"}
_CLIP, _PREFILL = "the clip (send its frames as pictures)", "the assistant's message at the end"
_ASKED_WITH = {  # other fields, and what the user asked for
    "media_io_kwargs": _CLIP, "mm_processor_kwargs": _CLIP, "continue_final_message": _PREFILL,
    "add_generation_prompt": _PREFILL, "max_tokens": "max_new_tokens",
}  # fmt: skip


def refused_fields(error: Any, sent: Mapping[str, Any]) -> set[str]:
    """The fields of a request that the service refuses by name (HTTP 400 or 422)."""
    if getattr(error, "status_code", 0) not in (400, 422):
        return set()
    return {name for name in sent if re.search(rf"\b{re.escape(name)}\b", str(error.body))}


CONNECT_SECONDS = 4.0
PATIENCE = 4.0  # seconds after which a failed connection is not tried again
TRIES_AGAIN = 4  # retries of a single question: its user waits about 8 seconds
FIRST_PAUSE = 0.5  # seconds before the first retry; each later pause is twice as long
LONGEST_PAUSE = 16.0
LIST_SECONDS = 8.0  # for the list of models
_TICK = 0.05  # seconds between two checks of whether to stop


_WHOLE = "tool_calls function_call eos_token stop_sequence end_turn complete".split()
_REASONS = dict.fromkeys(_WHOLE, "stop") | {"max_tokens": "length", "model_length": "length"}
_THINKING_PARTS = ("thinking", "reasoning", "redacted_thinking")


@dataclass
class RawAnswer:
    """An answer so far.

    Attributes:
        parts: as the model wrote them; its thinking is between ``<think>`` and ``</think>``.
        thinks: whether the last part is thinking that the service sends apart from the answer.
        finish_reason: ``"stop"``, ``"length"`` or what else the service says; ``"cancelled"`` until
            it has said anything.
        usage: the service's counts of tokens, or None.
    """

    parts: list[str] = field(default_factory=list)
    thinks: bool = False
    finish_reason: str = "cancelled"
    usage: Any = None

    def clear(self) -> None:
        """Start again with nothing."""
        vars(self).update(vars(RawAnswer()))

    def take(self, response: Any, put: Callable[[str], None] | None = None) -> Any:
        """Add a response, or a chunk of a streamed one.

        Returns:
            The message in it, or None.

        Raises:
            openai.APIError: there is an error in it.
            RemoteError: the model refuses to answer, or calls a tool instead.
            ValueError: a part of it cannot be read.
        """
        import openai

        self.usage = response.get("usage") or self.usage
        choices = [c for c in response.get("choices") or () if isinstance(c, Mapping)]
        choice = next((c for c in choices if not c.get("index")), {})  # the first of several
        error = response.get("error") or choice.get("error")
        if error or (not choices and {"message", "detail", "msg"} & response.keys()):
            raise openai.APIError("", cast(Any, None), body=error or response)
        message = choice.get("message") or choice.get("delta", choice.get("message"))
        content = (message or {}).get("content")
        parts = content if isinstance(content, list) else [content]
        for part in (message, *parts):
            if isinstance(part, Mapping) and (text := part.get("refusal")):
                raise RemoteError(f"the content was refused ({text!s:.200}); change the question")
        if message and (message.get("tool_calls") or message.get("function_call")):
            raise RemoteError("the model called a tool instead of answering; ask without tools")
        if message:  # DashScope's name for thinking, and vLLM's and OpenRouter's
            thinking = message.get("reasoning_content") or message.get("reasoning")
            self._add(_text_of(thinking), True, put)
        for part in parts:
            thinks = isinstance(part, Mapping) and part.get("type") in _THINKING_PARTS
            self._add(_text_of(part), thinks, put)
        if reason := choice.get("finish_reason"):
            same = str(reason).lower()
            self.finish_reason = _REASONS.get(same, same)
        return message

    def take_whole(self, response: Any, put: Callable[[str], None] | None = None) -> None:
        """Add a response that is not streamed; one without a finish reason is complete."""
        if self.take(response, put) is None:
            raise ValueError(_service_message(response))
        if self.finish_reason == "cancelled":
            self.finish_reason = "stop"

    def _add(self, text: str, thinks: bool, put: Callable[[str], None] | None) -> None:
        if not text:
            return
        if thinks != self.thinks:
            text = f"<think>\n{text}" if thinks else f"\n</think>\n\n{text}"
        self.thinks = thinks
        self.parts.append(text)
        if put:
            put(text)


def _text_of(content: Any) -> str:
    """The text of a message's content, or of a part of it. Raises ValueError for other parts."""
    if isinstance(content, list):
        return "".join(map(_text_of, content))
    if isinstance(content, Mapping):
        if content.get("type") == "redacted_thinking":
            return ""
        names = [n for n in ("text", "thinking", "reasoning", "value", "content") if n in content]
        if not names:
            raise ValueError(f"a part of the type {content.get('type')!r:.40} contains no text")
        return _text_of(content[names[0]])
    return "" if content is None else str(content)


def _read_json(data: bytes) -> Mapping:
    """A JSON object. Raises ValueError with the service's own words where it is none."""
    try:
        response = json.loads(data)
    except ValueError:
        response = data.decode("utf-8", "replace")
    if not isinstance(response, Mapping):
        raise ValueError(_service_message(response))
    return response


def open_client(base_url: str, key: str, timeout: float) -> Any:
    """The openai package's client, without its retries; :func:`ask` retries instead.

    The package would also repeat a request that timed out, which is then paid twice. And it
    limits the number of tries where ``ask`` limits the time: a batch waits for a server to restart.

    Raises:
        RemoteError: the package is not installed.
    """
    with needs_package("hosted models need the openai package", "remote", kind=RemoteError):
        import openai
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


def list_models(source: Address) -> dict[str, dict]:
    """An endpoint's list of its models, by name; empty if it has no such list.

    Raises:
        RemoteError: the endpoint cannot be reached, or refuses the key.
    """
    try:
        return run(_list_models(source))
    except Exception as error:  # of any library
        problem = describe_problem(error, source)
    if problem.no_response or problem.wrong_key:
        raise problem.error
    return {}


async def _list_models(source: Address) -> dict[str, dict]:
    async with asyncio.timeout(source.timeout):
        page = await source.client.models.list()
    return {entry.id: entry.model_dump() for entry in page.data}


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
    start, tries = time.monotonic(), 0
    while True:
        problem = await _try(remote, body, answer, put)
        if problem is None:
            return
        tries += 1
        started = put is not None and bool(answer.parts)  # the user has seen a part of the answer
        seconds = time.monotonic() - start
        give_up = seconds > patience if problem.no_response else tries > retries
        if give_up or started or not problem.retry:
            if tries == 1 or started:
                raise problem.error
            raise RemoteError(f"{problem.error} (tried {tries} times)", fatal=problem.error.fatal)
        answer.clear()
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1)) * random.uniform(0.8, 1.1)
        await asyncio.sleep(pause if problem.wait is None else problem.wait)


async def _try(remote: Endpoint, body: dict, answer: RawAnswer, put: Any) -> ServiceProblem | None:
    """None if it is answered. Raises nothing: exceptions of clients may contain the key."""
    streams = put is not None or remote.service.streams
    sent = _sent_fields(remote, body, streams)
    try:
        await (_stream if streams else _ask_whole)(remote, sent, answer, put)
        problem = _describe_end(answer, remote)
    except Exception as error:  # of any library
        refused = refused_fields(error, sent["extra_body"])
        if own := refused & OWN_FIELDS - remote.extra_body.keys():
            _leave_out(remote, own)
            return await _try(remote, body, answer, put)
        problem = describe_problem(error, remote)
        if asked := sorted({_ASKED_WITH.get(name, name) for name in refused}):
            text = f"{problem.error}; change or leave out {' and '.join(asked)}"
            problem = ServiceProblem(RemoteError(text, fatal=problem.error.fatal))
    if problem and answer.parts and put is not None:
        text = f"the answer was interrupted after {len(answer.parts)} pieces; {problem.error}"
        return ServiceProblem(RemoteError(text, fatal=problem.error.fatal))
    return problem


def _sent_fields(remote: Endpoint, body: dict, streams: bool) -> dict[str, Any]:
    """A request without the fields that the user or the service does not want."""
    fields = {"stream_options": {"include_usage": True}} if streams else {}
    fields |= body["extra_body"]
    unwanted = remote.unsupported | {name for name, value in fields.items() if value is None}
    return {**body, "extra_body": {n: v for n, v in fields.items() if n not in unwanted}}


def _leave_out(remote: Endpoint, names: set[str]) -> None:
    if new := sorted(names - remote.unsupported):
        remote.unsupported.update(new)
        warn_user(
            f"{remote.base_url} does not accept {' and '.join(new)}; vlkit leaves it out from now "
            "on, and the service's default applies"
        )


def _describe_end(answer: RawAnswer, source: Address) -> ServiceProblem | None:
    reason = answer.finish_reason
    if reason == "content_filter":
        return _problem(source, "the content was refused; change the question or picture")
    if reason in ("stop", "length"):
        return None
    text = f"the service broke the answer off (finish_reason={reason!r}); try again"
    return _problem(source, text, retry=reason in ("error", "abort"))


async def _ask_whole(remote: Endpoint, sent: dict, answer: RawAnswer, put: Any) -> None:
    async with asyncio.timeout(remote.timeout):
        response = await remote.client.chat.completions.with_raw_response.create(**sent)
    answer.take_whole(_read_json(response.http_response.content), put)


async def _stream(remote: Endpoint, sent: dict, answer: RawAnswer, put: Any) -> None:
    """Read server-sent events; or a whole answer, which some services send instead."""
    async with asyncio.timeout(remote.timeout):
        create = remote.client.chat.completions.with_raw_response.create
        response = (await create(**sent, stream=True)).http_response
    async with aclosing(response):
        lines, event, others = _read_lines(response), list[bytes](), list[bytes]()
        while True:
            async with asyncio.timeout(remote.timeout):
                line = await anext(lines, None)
            name, colon, value = (line or b"").removeprefix(codecs.BOM_UTF8).partition(b":")
            if name == b"data":
                event.append(value.strip())
            elif name not in (b"", b"event", b"id", b"retry"):  # names of the protocol; comments
                others.append(name + colon + value)
            elif not name + value and event and (line is not None or event[-1][-1:] in b"}]"):
                data = b"\n".join(event)
                event.clear()
                if data.upper() == b"[DONE]":
                    break
                answer.take(_read_json(data), put)
            if line is None:
                break
    if others and not answer.parts:
        answer.take_whole(_read_json(b"\n".join(others)), put)
    if answer.finish_reason == "cancelled":
        raise RemoteError("the answer was interrupted; try again")


async def _read_lines(response: Any) -> AsyncIterator[bytes]:
    """The lines of a response; U+2028 and the like, which JSON may contain, end none."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = re.split(rb"\r\n|\n|\r", rest + data)
        for line in lines:
            yield line
    yield rest


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
    return _start_event_loop(os.getpid())


@lru_cache(1)
def _start_event_loop(process: int) -> asyncio.AbstractEventLoop:
    """``process`` is the key of the cache: after a fork, the child starts a loop of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="vlkit-remote", daemon=True).start()
    return loop
