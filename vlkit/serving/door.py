"""Who may come in: the key, the host's name, the length of a body, the number of requests."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from vlkit.serving.limits import Limits, RequestError

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
