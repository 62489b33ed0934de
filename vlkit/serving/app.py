"""Who may come in: the key, the host's name, the length of a body, the number of requests."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import signal
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from vlkit.errors import VlkitError
from vlkit.generation.reply import Usage
from vlkit.models.load import VLM
from vlkit.serving.limits import Limits
from vlkit.serving.request import ChatRequest, RequestError, describe_errors
from vlkit.serving.service import ChatService, ServedAnswer
from vlkit.serving.worker import Ended

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Door:
    """An ASGI application around another.

    Args:
        app: what is inside.
        limits: of bodies.
        api_key: what ``Authorization: Bearer`` must hold. Without one, requests must name this
            machine as the host, so that no web page can reach in through a name of its own.
        most_requests: gives how many may be inside at once.
    """

    def __init__(
        self, app: Any, limits: Limits, api_key: str | None, most_requests: Callable[[], int]
    ):
        self._app, self._limits, self._most = app, limits, most_requests
        self._key = api_key.encode() if api_key else None
        self._inside = self._held = 0

    async def __call__(self, scope: Any, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            if scope["path"] != "/health":
                self._check_key(headers)
            if scope["method"] == "POST":
                await self._enter(scope, headers, receive, send)
                return
        except RequestError as error:
            await refuse(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _enter(self, scope: Any, headers: Headers, receive: Callable, send: Callable) -> None:
        """Count the request and its body while they are inside."""
        if self._inside >= self._most():
            raise _busy(f"{self._inside} requests are under way or wait")
        body = bytearray()
        self._inside += 1
        try:
            if await self._read(headers, receive, body):
                await self._app(scope, _replay(body, receive), send)
        finally:
            self._inside -= 1
            self._held -= len(body)

    async def _read(self, headers: Headers, receive: Callable, body: bytearray) -> bool:
        """Fill ``body``; False where the client has gone."""
        most = self._limits.body_bytes
        if int(headers.get("content-length") or 0) > most:  # the server has checked that it is one
            raise _too_large(most)
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while (message := await receive())["type"] == "http.request":
                    chunk = message.get("body", b"")
                    body += chunk
                    self._held += len(chunk)
                    if len(body) > most:
                        raise _too_large(most)
                    if self._held > self._limits.held_bytes:
                        raise _busy("the bodies of other requests fill the memory")
                    if not message.get("more_body"):
                        return True
        except TimeoutError:
            seconds = self._limits.body_seconds
            raise RequestError(
                f"the body did not arrive within {seconds:g} s",
                status=408,
                headers={"Connection": "close"},
            ) from None
        return False

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._key is None and name not in _LOCAL_NAMES:
            raise RequestError(
                f"host {host!r:.80} is not this machine; a server without a key answers only "
                f"to {', '.join(_LOCAL_NAMES)}",
                status=403,
            )

    def _check_key(self, headers: Headers) -> None:
        if self._key is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._key)
        if scheme.lower() != "bearer" or not right:
            text = "wrong key" if given else "no key; send Authorization: Bearer KEY"
            bearer = {"WWW-Authenticate": "Bearer"}
            raise RequestError(text, status=401, code="invalid_api_key", headers=bearer)


def refuse(error: RequestError) -> JSONResponse:
    """The response to a request that is refused."""
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


def _busy(why: str) -> RequestError:
    text = f"the server is busy: {why}; try again"
    headers = {"Retry-After": "2"}
    return RequestError(text, status=429, code="rate_limit_exceeded", headers=headers)


def _too_large(most: int) -> RequestError:
    text = f"a body of more than {most:,} bytes; send smaller pictures"
    return RequestError(text, status=413)  # what still comes of it is thrown away


def _replay(body: bytearray, receive: Callable) -> Callable:
    """The body in one message, then whatever else comes: that the client has gone."""
    waiting = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def replay() -> Any:
        return waiting.pop() if waiting else await receive()

    return replay


_START_SECONDS = 60.0


class Server:
    """An OpenAI-compatible endpoint over a model; see :func:`vlkit.serving.start`.

    Attributes:
        url: the base URL for clients, as ``http://127.0.0.1:8000/v1``.
        name: what clients call the model.
    """

    def __init__(
        self, vlm: VLM, listener: socket.socket, *, limits: Limits, name: str, api_key: str | None
    ):
        import uvicorn

        self._socket, self.name = listener, name
        host, port = listener.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        app: Any = make_app(vlm, limits, name, api_key)
        config = uvicorn.Config(
            app, lifespan="on", log_config=None, server_header=False, timeout_keep_alive=30
        )
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM; what runs is finished first, unless a second comes."""
        before = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again
        try:
            self._server.run(sockets=[self._socket])
        except KeyboardInterrupt:
            pass  # so it does with this one, once it has ended
        finally:
            signal.signal(signal.SIGTERM, before)

    def start(self) -> Server:
        """Serve in a thread; returns once it answers."""
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()
        until = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                raise VlkitError(f"the server at {self.url} did not start; its log says why")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """Finish what runs, then end."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Server({self.name!r} at {self.url})"


def open_socket(host: str, port: int, api_key: str | None) -> socket.socket:
    """A listening socket; an address that others can reach needs a key.

    Raises:
        VlkitError: there is none to be had.
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
    """Raises VlkitError for a key that is none, or an address that needs one."""
    if api_key is not None and (len(api_key) < 8 or not api_key.isascii() or " " in api_key):
        raise VlkitError("the API key has at least 8 ASCII characters without spaces")
    if api_key is None and not is_loopback(host):
        raise VlkitError(
            f"host {host} can be reached by others: set VLKIT_API_KEY (or --api-key), or keep to "
            "127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name may mean anything
        return False


def model_name(name: str) -> str:
    """What clients call a model: a hub id or ``tiny`` as it is, of a folder only its own name."""
    return Path(name).resolve().name if Path(name).exists() else name


def log_requests() -> None:
    """A line for each request on stderr: who, what and its status; nothing of its content."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name, level in (("uvicorn.access", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)


class Gone(Exception):
    """The client has closed its connection."""


def make_app(vlm: VLM, limits: Limits, name: str, api_key: str | None = None) -> Door:
    """The ASGI application.

    Args:
        vlm: from :func:`vlkit.load`; nobody else uses it meanwhile.
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

    app = FastAPI(title="vlkit serve", lifespan=lifespan, docs_url=None, redoc_url=None)
    _explain_errors(app)

    @app.get("/health")
    async def health() -> dict:
        return services[0].describe_state()

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [services[0].describe_model()]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict:
        if model != name:
            raise RequestError(f"model {model!r:.80} is not served here", status=404)
        return services[0].describe_model()

    @app.post("/v1/chat/completions")
    async def chat_completions(chat: ChatRequest, request: Request) -> Response:
        gone = asyncio.ensure_future(_wait_until_gone(request))
        answer: ServedAnswer | None = None
        try:
            answer = await _unless(gone, services[0].ask(chat))
            if chat.stream:
                first = await _unless(gone, answer.next())
                return Chunks(answer, first, chat)
            return JSONResponse(_completion(chat, await _unless(gone, answer.next())))
        except Gone:
            if answer is not None:
                answer.cancel()
            return Response(status_code=499)  # nobody reads it
        finally:
            gone.cancel()

    return Door(app, limits, api_key, lambda: services[0].most_requests)


# --- errors --------------------------------------------------------------------------------------


def _explain_errors(app: FastAPI) -> None:
    """Every refusal in OpenAI's words."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return refuse(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        text, where = describe_errors(error.errors())
        return refuse(RequestError(text, param=where or None))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = f"{request.method} {request.url.path[:80]}: {error.detail}"
        if error.status_code in (404, 405):
            text += "; here are POST /v1/chat/completions, GET /v1/models and GET /health"
        return refuse(RequestError(text, status=error.status_code))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        text = f"the server failed: {type(error).__name__}; its log says more"
        return refuse(RequestError(text, status=500))


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless(gone: asyncio.Future, work: Awaitable) -> Any:
    """The result of some work; it is given up when the client has gone."""
    task = asyncio.ensure_future(work)
    await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return task.result()
    task.cancel()
    raise Gone


# --- answers -------------------------------------------------------------------------------------


def _head(chat: ChatRequest, kind: str) -> dict[str, Any]:
    name = f"chatcmpl-{uuid.uuid4().hex}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": chat.model}


def _completion(chat: ChatRequest, ended: Ended) -> dict[str, Any]:
    message = {"role": "assistant", "content": ended.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": ended.reason}
    head = _head(chat, "chat.completion")
    return {**head, "choices": [choice], "usage": _usage(ended.usage)}


def _usage(usage: Usage) -> dict[str, Any]:
    details = {"image_tokens": usage.image_tokens, "video_tokens": usage.video_tokens}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.new_tokens,
        "total_tokens": usage.prompt_tokens + usage.new_tokens,
        "prompt_tokens_details": details,
    }


class Chunks(StreamingResponse):
    """An answer as server-sent events; a client that goes away frees its slot."""

    def __init__(self, answer: ServedAnswer, first: str | Ended, chat: ChatRequest):
        self._answer = answer
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(
            _write_events(answer, first, chat), media_type="text/event-stream", headers=headers
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


async def _write_events(answer: ServedAnswer, event: str | Ended, chat: ChatRequest):
    head = _head(chat, "chat.completion.chunk")
    with_usage = chat.stream_options is not None and chat.stream_options.include_usage

    def chunk(delta: dict, reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event({**head, "choices": [choice]} | ({"usage": None} if with_usage else {}))

    yield chunk({"role": "assistant", "content": ""})
    try:
        while isinstance(event, str):
            yield chunk({"content": event})
            event = await answer.next()
    except RequestError as error:  # too late for a status
        yield _event(error.body)
        return
    if event.text:
        yield chunk({"content": event.text})
    yield chunk({}, event.reason)
    if with_usage:
        yield _event({**head, "choices": [], "usage": _usage(event.usage)})
    yield "data: [DONE]\n\n"


def _event(content: dict) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
