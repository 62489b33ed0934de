"""A server on a socket: in the foreground for a shell, in a thread for a notebook."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

from vlkit.errors import VlkitError
from vlkit.models import VLM
from vlkit.serving.limits import Limits

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

        from vlkit.serving.app import make_app

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
