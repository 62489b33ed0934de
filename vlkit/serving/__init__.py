"""An OpenAI-compatible server: ``vlkit serve``, ``serving.start``."""

import importlib.util
from typing import TYPE_CHECKING, Any

from vlkit.errors import VlkitError

if TYPE_CHECKING:
    from vlkit.models.load import VLM
    from vlkit.serving.app import Server


def start(
    vlm: "VLM",
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: str | None = None,
    name: str | None = None,
    **limits: Any,
) -> "Server":
    """Serve a model in a thread, until ``stop()`` or the end of a ``with`` block.

    Args:
        vlm: from :func:`vlkit.load`; do not use it elsewhere while the server answers.
        host: the address to listen on; one that other machines can reach needs a key.
        port: 0 takes a free one; ``server.url`` contains it.
        api_key: what clients must send.
        name: what clients call the model; by default the name it was loaded by.
        **limits: fields of :class:`vlkit.serving.limits.Limits`.

    Raises:
        VlkitError: the address is in use or not available, or FastAPI and uvicorn are not
            installed.
    """
    check_installed()
    from vlkit.inputs import check_loaded
    from vlkit.serving.app import Server, open_socket
    from vlkit.serving.limits import Limits

    check_loaded(vlm)
    listener = open_socket(host, port, api_key)
    return Server(vlm, listener, limits=Limits(**limits), name=name, api_key=api_key).start()


def check_installed() -> None:
    """Raises VlkitError if the extra ``vlkit[serve]`` is not installed."""
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise VlkitError(f'serving needs {package}: pip install "vlkit[serve]"')
