"""An OpenAI-compatible endpoint over a model: ``vlkit serve`` in a shell, ``start`` in Python."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from vlkit.errors import VlkitError
from vlkit.inputs import check_loaded
from vlkit.models.load import VLM

if TYPE_CHECKING:
    from vlkit.serving.app import Server


def start(
    vlm: VLM,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: str | None = None,
    name: str | None = None,
    **limits: Any,
) -> Server:
    """Serve a model in a thread, until ``stop()`` or the end of a ``with`` block.

    Args:
        vlm: from :func:`vlkit.load`; the server has it to itself while a request is under way.
        host: the address to listen on; any but this machine's own needs a key.
        port: 0 takes a free one; ``server.url`` tells which.
        api_key: what clients must send.
        name: what clients call the model; by default the name it was loaded by.
        **limits: fields of :class:`vlkit.serving.request.Limits`.

    Raises:
        VlkitError: the address cannot be had, or FastAPI and uvicorn are not installed.
    """
    check_installed()
    check_loaded(vlm)
    from vlkit.serving.app import Server, model_name, open_socket
    from vlkit.serving.request import Limits

    listener = open_socket(host, port, api_key)
    name = name or model_name(vlm.name)
    return Server(vlm, listener, limits=Limits(**limits), name=name, api_key=api_key).start()


def check_installed() -> None:
    """Raises VlkitError where the extra is missing."""
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise VlkitError(f'serving needs {package}: pip install "vlkit[serve]"')
