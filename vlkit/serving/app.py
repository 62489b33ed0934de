"""The endpoints: OpenAI's chat completions and models, and a health check."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from vlkit.models import VLM
from vlkit.replies import Usage
from vlkit.serving.door import Door, refuse
from vlkit.serving.jobs import Ended
from vlkit.serving.limits import Limits, RequestError
from vlkit.serving.schema import ChatRequest, describe_errors
from vlkit.serving.service import Answer, Service


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
    services: list[Service] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services.append(Service(vlm, limits, name))
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
        answer: Answer | None = None
        try:
            answer = await _unless(gone, services[0].ask(chat))
            if chat.stream:
                first = await _unless(gone, answer.next())
                return Pieces(answer, first, chat)
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


class Pieces(StreamingResponse):
    """An answer as server-sent events; a client that goes away frees its slot."""

    def __init__(self, answer: Answer, first: str | Ended, chat: ChatRequest):
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


async def _write_events(answer: Answer, event: str | Ended, chat: ChatRequest):
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
