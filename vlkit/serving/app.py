"""HTTP: host and key checked, routes, responses in OpenAI's form."""

import asyncio
import hmac
import ipaddress
import json
import logging
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlkit.errors import VlkitError
from vlkit.generation.reply import Usage
from vlkit.models.load import VLM
from vlkit.serving.limits import Limits
from vlkit.serving.request import ChatRequest, Refusal, RequestError, describe_errors
from vlkit.serving.service import ChatService, ServedAnswer
from vlkit.serving.worker import AnswerPiece, Ended, TokenLogprobs

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class RequestGuard:
    """ASGI middleware: checks host, key, number and size of requests before the application.

    Args:
        app: the application.
        limits: of bodies.
        api_key: what ``Authorization: Bearer`` must contain. Without one, the Host header must
            name this machine.
        most_requests: gives how many requests may be in the application at once.
    """

    def __init__(
        self, app: Any, limits: Limits, api_key: str | None, most_requests: Callable[[], int]
    ):
        self._app, self._limits, self._most = app, limits, most_requests
        self._key = api_key.encode() if api_key else None
        self._requests = self._held_bytes = 0

    async def __call__(self, scope: Any, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        send = _with_request_id(send)
        try:
            headers = Headers(scope=scope)
            if self._key is None:
                _check_host(headers)
            elif scope["path"] != "/health":
                _check_authorization(headers, self._key)
            if scope["method"] == "POST":
                await self._run(scope, headers, receive, send)
            else:
                await self._app(scope, receive, send)
        except RequestError as error:
            await refuse(error)(scope, receive, send)

    async def _run(self, scope: Any, headers: Headers, receive: Callable, send: Callable) -> None:
        """Count the request for as long as the application works on it, and its body from before.

        Bodies that are sent slowly take no other request's place.
        """
        body, counted = bytearray(), False
        try:
            self._check_busy()
            if await self._read(headers, receive, body):
                self._check_busy()
                self._requests, counted = self._requests + 1, True
                await self._app(scope, _replay(body, receive), send)
        finally:
            self._requests -= counted
            self._held_bytes -= len(body)

    def _check_busy(self) -> None:
        if self._requests >= self._most():
            raise _busy(f"{self._requests} requests are running or waiting")

    async def _read(self, headers: Headers, receive: Callable, body: bytearray) -> bool:
        """Fill ``body``; False if the client has disconnected."""
        if headers.get("content-encoding", "identity") != "identity":
            text = "the body is compressed; send it without Content-Encoding"
            raise RequestError(text, status=415)
        most = self._limits.body_bytes
        if int(headers.get("content-length") or 0) > most:  # uvicorn has checked the number
            raise _too_large(most)
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while (message := await receive())["type"] == "http.request":
                    chunk = message.get("body", b"")
                    body += chunk
                    self._held_bytes += len(chunk)
                    if len(body) > most:
                        raise _too_large(most)
                    if self._held_bytes > self._limits.held_bytes:
                        raise _busy("its memory is full of other requests")
                    if not message.get("more_body"):
                        return True
        except TimeoutError:
            text = f"the body did not arrive within {self._limits.body_seconds:g} s"
            raise RequestError(text, status=408, headers={"Connection": "close"}) from None
        return False


def _check_authorization(headers: Headers, right_key: bytes) -> None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(key.strip().encode("latin-1", "replace"), right_key)
    if scheme.lower() != "bearer" or not right:
        text = "wrong key" if key else "no key; send Authorization: Bearer KEY"
        bearer = {"WWW-Authenticate": "Bearer"}
        raise RequestError(text, status=401, code="invalid_api_key", headers=bearer)


def _check_host(headers: Headers) -> None:
    """Against DNS rebinding: a web page may point its own domain at 127.0.0.1.

    Its scripts could then read this server's answers; but their Host header names the domain.
    """
    host = headers.get("host", "")
    if re.sub(r":\d+$", "", host) not in _LOCAL_NAMES:
        text = "is not this machine; a server without a key answers only to"
        raise RequestError(f"host {host!r:.80} {text} {', '.join(_LOCAL_NAMES)}", status=403)


def _with_request_id(send: Callable) -> Callable:
    """An ASGI ``send`` that adds the header by which OpenAI's clients name a request."""

    async def send_with_id(message: Any) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["x-request-id"] = f"req_{uuid.uuid4().hex}"
        await send(message)

    return send_with_id


def refuse(error: RequestError) -> JSONResponse:
    """The response for an error."""
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


def _busy(why: str) -> RequestError:
    text = f"the server is busy: {why}; try again"
    headers = {"Retry-After": "2"}
    return RequestError(text, status=429, code="rate_limit_exceeded", headers=headers)


def _too_large(most: int) -> RequestError:
    text = f"the body has more than {most:,} bytes; send smaller pictures"
    return RequestError(text, status=413)  # uvicorn discards the rest of the body


def _replay(body: bytearray, receive: Callable) -> Callable:
    """An ASGI ``receive``: the body in one message, then what comes later (the disconnect)."""
    messages = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def replay() -> Any:
        return messages.pop() if messages else await receive()

    return replay


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, but a header must arrive in time, and connections are limited."""

    limits: Limits
    _timer: asyncio.TimerHandle | None = None
    _since: float

    def connection_made(self, transport: Any) -> None:
        """Close a connection beyond the limits: the oldest one whose request is not here yet."""
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._since = self.loop.time()
        self._wait_for_header()
        host, most = (self.client or ("127.0.0.1",))[0], self.limits.connections
        others: Any = self.connections
        crowd = [each for each in others if each.client and not each.transport.is_closing()]
        if len(crowd) <= most:
            crowd = [each for each in crowd if each.client[0] == host]
            # a proxy on this machine has the connections of many clients
            if len(crowd) <= most * 2 // 3 or is_loopback(host):
                return
        waiting = (each for each in crowd if each._waits_for_client())  # this one does
        min(waiting, key=lambda each: each._since).transport.abort()

    def _waits_for_client(self) -> bool:
        return self._timer is not None or self.cycle.more_body or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Stop the timer once a header is complete; start it with the first bytes of the next."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self._timer is None and self.cycle is not None and self.cycle.response_complete:
            self._wait_for_header()

    def _wait_for_header(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_seconds, self.transport.abort)


_START_SECONDS = 60.0


class Server:
    """An OpenAI-compatible endpoint over a model; see :func:`vlkit.serving.start`.

    Attributes:
        url: the base URL for clients, as ``http://127.0.0.1:8000/v1``.
        name: what clients call the model.
    """

    def __init__(
        self,
        vlm: VLM,
        listener: socket.socket,
        *,
        limits: Limits,
        name: str | None,
        api_key: str | None,
    ):
        import uvicorn

        self._socket, self.name = listener, name or model_name(vlm.name)
        host, port = listener.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        app: Any = make_app(vlm, limits, self.name, api_key)
        protocol = type("LimitedProtocol", (PatientProtocol,), {"limits": limits})
        config = uvicorn.Config(
            app, lifespan="on", log_config=None, server_header=False, timeout_keep_alive=30,
            http=protocol, ws="none",
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM; finish running requests unless a second one comes."""
        # uvicorn raises the signal again at its end: ignored here, as the server has stopped
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            self._server.run(sockets=[self._socket])
        except KeyboardInterrupt:
            pass  # the same for SIGINT
        finally:
            signal.signal(signal.SIGTERM, before)

    def start(self) -> Self:
        """Serve in a thread; returns when the server answers requests."""
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise VlkitError(f"the server at {self.url} did not start; see its log")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """Finish the running requests, then stop."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Server({self.name!r} at {self.url})"


def open_socket(host: str, port: int, api_key: str | None) -> socket.socket:
    """A listening socket; an address that other machines can reach needs a key.

    Raises:
        VlkitError: the key or port is invalid, or the address cannot be used (in use already,
            say).
    """
    check_key(host, api_key)
    if not isinstance(port, int) or port not in range(65_536):
        raise VlkitError(f"port={port!r:.60} must be a whole number, 0 (any) to 65,535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VlkitError(
            f"cannot listen on {host} port {port}: {reason}; choose another --port (0 takes any)"
        ) from error


def check_key(host: str, api_key: str | None) -> None:
    """Raises VlkitError for an invalid key, or an address that needs a key."""
    if api_key is not None and (len(api_key) < 8 or not api_key.isascii() or " " in api_key):
        raise VlkitError("the API key must have at least 8 ASCII characters, without spaces")
    if api_key is None and not is_loopback(host):
        raise VlkitError(
            f"other machines can reach host {host}: set VLKIT_API_KEY (or --api-key), or use "
            "127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    with suppress(ValueError):  # a host name, which may mean any address
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    return False


def model_name(name: str) -> str:
    """What clients call a model: a hub id or ``tiny`` unchanged, a folder by its last part."""
    return Path(name).resolve().name if Path(name).exists() else name


_log = logging.getLogger("vlkit.serve")
_LINES_A_SECOND = 50


class RateLimit(logging.Filter):
    """Drops lines beyond a number a second, and says how many it dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._second = self._lines = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a line."""
        second = int(record.created)
        if second != self._second:
            if self._lines > _LINES_A_SECOND:
                record.msg = f"({self._lines - _LINES_A_SECOND:,} lines left out) {record.msg}"
            self._second, self._lines = second, 0
        self._lines += 1
        return self._lines <= _LINES_A_SECOND


def log_requests() -> None:
    """Log a line for each request to stderr: client, path and status, never the content."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(RateLimit())
    for name, level in (
        ("uvicorn.access", logging.INFO), ("uvicorn.error", logging.WARNING),
        ("vlkit.serve", logging.INFO), ("asyncio", logging.WARNING),
    ):  # fmt: skip
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)


class Disconnected(Exception):
    """The client has closed its connection."""


def make_app(vlm: VLM, limits: Limits, name: str, api_key: str | None = None) -> Any:
    """The ASGI application.

    Args:
        vlm: from :func:`vlkit.load`; nothing else may use it meanwhile.
        limits: what a request may cost and name.
        name: what clients call the model.
        api_key: what clients must send, or None.
    """
    services: list[ChatService] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services.append(ChatService(vlm, limits, name))
        yield
        await asyncio.to_thread(services[0].close)

    errors = (RequestError, RequestValidationError, HTTPException, Exception)
    app = FastAPI(
        title="vlkit serve", lifespan=lifespan, docs_url=None, redoc_url=None,
        exception_handlers=dict.fromkeys(errors, _explain),
        responses={status: {"model": Refusal} for status in (400, 404, "default")},
    )  # fmt: skip

    @app.get("/health")
    async def health() -> dict:
        return services[0].describe_state()

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [services[0].describe_model(name)]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict:
        return services[0].describe_model(model)

    @app.post("/v1/chat/completions")
    async def chat_completions(chat: ChatRequest, request: Request) -> Response:
        disconnect = asyncio.ensure_future(_wait_for_disconnect(request))
        answer: ServedAnswer | None = None
        try:
            answer = await _unless(disconnect, services[0].ask(chat))
            headers = {"x-vlkit-note": "; ".join(answer.notes)} if answer.notes else {}
            for note in answer.notes:
                _log.info("%s", note)
            if not chat.stream:
                content = await _unless(disconnect, _complete(answer, chat))
                return JSONResponse(content, headers=headers)
            return Chunks(answer, await _unless(disconnect, answer.next()), chat, headers)
        except Exception as error:
            if answer is not None:
                answer.cancel()
            if isinstance(error, Disconnected):
                return Response(status_code=499)  # nobody reads it
            raise
        finally:
            disconnect.cancel()

    guard = RequestGuard(app, limits, api_key, lambda: services[0].engine.slots + limits.waiting)
    if not limits.origins:
        return guard
    return CORSMiddleware(
        guard, allow_origins=limits.origins, allow_methods=["GET", "POST"], allow_headers=["*"],
        expose_headers=["x-request-id", "x-vlkit-note"],
    )  # fmt: skip


# --- errors --------------------------------------------------------------------------------------


async def _explain(request: Request, error: Exception) -> Response:
    """The response for any error, in OpenAI's form."""
    if isinstance(error, RequestValidationError):
        text, where = describe_errors(error.errors())
        error = RequestError(text, param=where or None)
    elif isinstance(error, HTTPException):
        text = f"{request.method} {request.url.path[:80]}: {error.detail}"
        if error.status_code in (404, 405):
            text += "; available: POST /v1/chat/completions, GET /v1/models and GET /health"
        error = RequestError(text, status=error.status_code, headers=dict(error.headers or {}))
    elif not isinstance(error, RequestError):
        error = RequestError(f"the server failed: {type(error).__name__}; see its log", status=500)
    return refuse(error)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless(disconnect: asyncio.Future, work: Awaitable) -> Any:
    """The result of some work; cancels it and raises Disconnected when the client leaves."""
    task = asyncio.ensure_future(work)
    await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return task.result()
    task.cancel()
    raise Disconnected


# --- answers -------------------------------------------------------------------------------------


def _head(chat: ChatRequest, kind: str) -> dict[str, Any]:
    name = f"chatcmpl-{uuid.uuid4().hex}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": chat.model}


async def _complete(answer: ServedAnswer, chat: ChatRequest) -> dict[str, Any]:
    """The response of a request that is not streamed: all answers, whole."""
    ended: dict[int, Ended] = {}
    while len(ended) < chat.n:
        index, event = await answer.next()
        if isinstance(event, Ended):
            ended[index] = event
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": None, "refusal": None, **_parts(chat, end)},
            "logprobs": _logprobs(answer, chat, end.logprobs),
            "finish_reason": end.reason,
        }
        for index, end in sorted(ended.items())
    ]
    head = _head(chat, "chat.completion")
    return {**head, "choices": choices, "usage": _usage([end.usage for end in ended.values()])}


def _parts(chat: ChatRequest, piece: AnswerPiece, *, first: bool = True) -> dict[str, Any]:
    """A piece of an answer as the fields of a message: thinking, text or a call of a function."""
    parts: dict[str, Any] = {"reasoning_content": piece.thinking} if piece.thinking else {}
    if not chat.function:
        return parts | {"content": piece.text}
    call: dict[str, Any] = {"function": {"arguments": piece.text}}
    if first:
        call |= {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
        call["function"]["name"] = chat.function.name
    return parts | {"tool_calls": [call | ({"index": 0} if chat.stream else {})]}


def _usage(usages: Sequence[Usage]) -> dict[str, Any]:
    """Token counts of one prompt and its answers."""
    first, new_tokens = usages[0], sum(usage.new_tokens for usage in usages)
    details = {"image_tokens": first.image_tokens, "video_tokens": first.video_tokens}
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": first.prompt_tokens + new_tokens,
        "prompt_tokens_details": details,
    }


def _logprobs(
    answer: ServedAnswer, chat: ChatRequest, tokens: list[TokenLogprobs]
) -> dict[str, Any] | None:
    if not chat.logprobs:
        return None

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = answer.decode([token])
        whole = "\ufffd" not in text  # a token may be a part of a character
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}

    content = [
        entry(token, logprob) | {"top_logprobs": [entry(*other) for other in top]}
        for token, logprob, top in tokens
    ]
    return {"content": content, "refusal": None}


class Chunks(StreamingResponse):
    """Answers as server-sent events; frees their slots when the client disconnects."""

    media_type = "text/event-stream"

    def __init__(self, answer: ServedAnswer, first: Any, chat: ChatRequest, headers: dict):
        self._answer = answer
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers}
        super().__init__(_write_events(answer, first, chat), headers=headers)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


async def _write_events(answer: ServedAnswer, first: tuple[int, AnswerPiece], chat: ChatRequest):
    head = _head(chat, "chat.completion.chunk")
    with_usage = chat.stream_options is not None and chat.stream_options.include_usage

    def chunk(index: int, delta: dict, logprobs: Any = None, reason: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return _event({**head, "choices": [choice]} | ({"usage": None} if with_usage else {}))

    for index in range(chat.n):
        yield chunk(index, {"role": "assistant", **_parts(chat, AnswerPiece("", "", []))})
    usages: list[Usage] = []
    index, piece = first
    try:
        while True:
            if piece.thinking or piece.text or piece.logprobs:
                logprobs = _logprobs(answer, chat, piece.logprobs)
                yield chunk(index, _parts(chat, piece, first=False), logprobs)
            if isinstance(piece, Ended):
                yield chunk(index, {}, reason=piece.reason)
                usages.append(piece.usage)
            if len(usages) == chat.n:
                break
            index, piece = await answer.next()
    except RequestError as error:  # the status line has been sent already
        yield _event(error.body)
        return
    if with_usage:
        yield _event({**head, "choices": [], "usage": _usage(usages)})
    yield "data: [DONE]\n\n"


def _event(content: dict) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
