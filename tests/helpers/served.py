"""Talking to a server in tests, with no client in between."""

from __future__ import annotations

import base64
import http.client
import json
import random
import socket
import time
from contextlib import suppress
from urllib.parse import urlsplit


def data_url(path):
    """A sample's file as a data URL."""
    kinds = {".png": "image/png", ".jpg": "image/jpeg", ".gif": "image/gif", ".mp4": "video/mp4"}
    return f"data:{kinds[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def user(text, *paths):
    """A user's message with pictures and clips before the text."""
    parts = []
    for path in paths:
        kind = "video_url" if path.suffix in (".mp4", ".gif") else "image_url"
        parts.append({"type": kind, kind: {"url": data_url(path)}})
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def connect(server, timeout=120):
    """A connection of its own."""
    return http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=timeout)


def send(server, body, *, path="/v1/chat/completions", headers=None, method="POST"):
    """(status, headers, parsed JSON) of a request; ``body`` is JSON or bytes as they are."""
    connection = connect(server)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), json.loads(content)


def ask(server, messages, **options):
    """A completion, which must be one."""
    messages = [messages] if isinstance(messages, dict) else messages
    status, _, answer = send(server, {"model": server.name, "messages": messages, **options})
    assert status == 200, answer
    return answer


def text_of(answer):
    """All that the model wrote, what it thought too."""
    message = answer["choices"][0]["message"]
    return message.get("reasoning_content", "") + message["content"]


def health(server):
    """What the server says of itself."""
    return send(server, None, path="/health", method="GET")[2]


def free_port():
    """A port for a server that cannot choose one, beyond those that systems give to others."""
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_until(condition, seconds=30):
    """Whether it came true in time."""
    until = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < until:
        time.sleep(0.02)
    return true
