"""A loopback server that answers as an OpenAI-compatible service does, as its script has it."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import PIL.Image
from hub_server import running

KEY = "sk-loopback-5eCr3t-0123456789"


@dataclass(frozen=True)
class Said:
    """One answer of the script.

    Attributes:
        text: what is answered.
        status: another than 200 is an error; ``message`` and ``code`` say which.
        wait: seconds before anything is sent.
        headers: more of them.
        usage: token counts; None leaves them out.
        finish: ``finish_reason``.
        pause: seconds between the pieces of a stream.
        cut: pieces after which a stream breaks off.
        body: sent as it is, instead of all that; ``content_type`` says what it is.
        extra: more fields of the message.
    """

    text: str = "a red circle"
    status: int = 200
    message: str = "no"
    code: str | None = None
    wait: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    usage: dict | None = field(default_factory=lambda: dict(USAGE))
    finish: str = "stop"
    pause: float = 0.0
    cut: int | None = None
    body: bytes | None = None
    content_type: str = "application/json"
    extra: dict[str, Any] = field(default_factory=dict)


USAGE = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
Script = Callable[[dict], Said]


class OpenAIServer(ThreadingHTTPServer):
    """Answers ``/v1/chat/completions`` and ``/v1/models``.

    Attributes:
        script: from a request's body to what is said; a list is said one by one, its last again.
        models: the entries of ``/v1/models``; None where that is not found.
        key: what must be in the header, or None.
        requests: the bodies of all chat requests.
        running, most_running: how many are being answered, and the most so far.
        gone: how many clients closed the connection before the end.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: Script | list[Said] = [Said()]
        self.models: list[dict] | None = [{"id": "Qwen/Qwen2-VL-2B-Instruct", "object": "model"}]
        self.key: str | None = None
        self.requests: list[dict] = []
        self.running = self.most_running = self.gone = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def say(self, body: dict) -> Said:
        with self.lock:
            self.requests.append(body)
            if callable(self.script):
                return self.script(body)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def handle_error(self, request, client_address):
        self.gone += 1


class _Handler(BaseHTTPRequestHandler):
    server: OpenAIServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._allowed():
            return
        if self.server.models is None or not self.path.endswith("/models"):
            self._refuse(Said(status=404, message="Not Found"))
        else:
            self._send(json.dumps({"object": "list", "data": self.server.models}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        said = self.server.say(body)
        with self.server.lock:
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
        try:
            self._answer(said, body)
        except OSError:
            self.server.gone += 1
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.running -= 1

    def _answer(self, said: Said, body: dict) -> None:
        if said.wait:
            self._wait(said.wait)
        if said.body is not None:
            self._send(said.body, {"Content-Type": said.content_type}, said.status)
        elif said.status != 200:
            self._refuse(said)
        elif body.get("stream"):
            self._stream(said)
        else:
            message = {"role": "assistant", "content": said.text, **said.extra}
            choice = {"index": 0, "message": message, "finish_reason": said.finish}
            self._send(json.dumps(_completion([choice], said.usage)).encode(), said.headers)

    def _wait(self, seconds: float) -> None:
        """Notice a client that goes away meanwhile."""
        self.connection.settimeout(0.02)
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                try:
                    if not self.connection.recv(1):
                        raise ConnectionResetError
                except TimeoutError:
                    continue
        finally:
            self.connection.settimeout(None)

    def _stream(self, said: Said) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for number, piece in enumerate(_pieces(said.text)):
            if said.cut == number:
                return
            delta = {"content": piece, **said.extra}
            self._event(_completion([{"index": 0, "delta": delta, "finish_reason": None}], None))
            if said.pause:
                self._wait(said.pause)
        self._event(_completion([{"index": 0, "delta": {}, "finish_reason": said.finish}], None))
        if said.usage:
            self._event(_completion([], said.usage))
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, content: dict) -> None:
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
        self.wfile.flush()

    def _allowed(self) -> bool:
        if self.server.key in (None, self.headers.get("Authorization", "").removeprefix("Bearer ")):
            return True
        given = self.headers.get("Authorization", "")
        self._refuse(
            Said(status=401, message=f"Incorrect API key: {given}", code="invalid_api_key")
        )
        return False

    def _refuse(self, said: Said) -> None:
        error = {"message": said.message, "type": "error", "param": None, "code": said.code}
        self._send(json.dumps({"error": error}).encode(), said.headers, said.status)

    def _send(self, data: bytes, headers: dict | None = None, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args) -> None:
        pass


def whole(message: dict, *, finish: str | None = "stop", choice: dict | None = None, **fields):
    """A response whose message is as given; ``fields`` replace others of the response."""
    choices = [{"index": 0, "message": message, "finish_reason": finish, **(choice or {})}]
    return Said(body=json.dumps({**_completion(choices, dict(USAGE)), **fields}).encode())


def streamed(*chunks: dict) -> Said:
    """A stream of these chunks: a dict with ``choices`` as it is, another is a delta."""
    events = [
        chunk if "choices" in chunk else _completion([{"index": 0, "delta": chunk}], None)
        for chunk in chunks
    ]
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return Said(body=f"{lines}data: [DONE]\n\n".encode(), content_type="text/event-stream")


def end(reason: str = "stop", **fields: Any) -> dict:
    """The chunk that ends a stream's answer."""
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], **fields}


def _completion(choices: list, usage: dict | None) -> dict:
    kind = "chat.completion"
    return {"id": "x", "object": kind, "created": 0, "model": "m", "choices": choices,
            "usage": usage}  # fmt: skip


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), 5):
        yield text[start : start + 5]


def serve() -> AbstractContextManager[OpenAIServer]:
    return running(OpenAIServer())


def pictures_of(body: dict) -> list[PIL.Image.Image]:
    """The pictures in a request, as a service decodes them."""
    parts = [p for m in body["messages"] if isinstance(m["content"], list) for p in m["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [decode(url) for url in urls]


def decode(url: str) -> PIL.Image.Image:
    """The picture of a data URL."""
    return PIL.Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
