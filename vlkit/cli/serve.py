"""``vlkit serve``: an OpenAI-compatible server for a model."""

from pathlib import Path
from typing import Any

from typer import Argument, Option

import vlkit
from vlkit.cli.options import print_plain, with_load_options
from vlkit.errors import VlkitError
from vlkit.serving.limits import Limits

_LOAD_OPTIONS = "adapter hub revision dtype device quantize max_image_tokens".split()
_MEBIBYTE, _MEGAPIXEL = 2**20, 1_000_000


@with_load_options(_LOAD_OPTIONS)
def serve(
    *,
    model: str | None = Argument(
        None,
        metavar="MODEL",
        help='"tiny" (bundled), a folder or a hub id. By default what VLKIT_MODEL or the '
        'settings file names, else "tiny".',
    ),
    host: str = Option("127.0.0.1", help="The address; one that others can reach needs a key."),
    port: int = Option(8000, min=0, max=65535, help="0 takes a free port."),
    api_key: str | None = Option(
        None, envvar="VLKIT_API_KEY", help="What clients must send.", show_default=False
    ),
    name: str | None = Option(None, help="What clients call the model."),
    load_options: dict[str, Any],
    allow_local: Path | None = Option(None, help="A folder whose files requests may name."),
    allow_urls: bool = Option(
        False, "--allow-urls", help="Requests may name http(s) URLs; public ones."
    ),
    allow_host: list[str] | None = Option(
        None, help="A host of an internal network, for such URLs."
    ),
    allow_origin: list[str] | None = Option(
        None, help="A web page that may call the server (CORS)."
    ),
    max_new_tokens: int = Option(Limits.new_tokens, min=1, help="The longest answer, in tokens."),
    max_context: int | None = Option(
        None, min=2, help="Most tokens of prompt and answer together."
    ),
    max_pictures: int = Option(Limits.pictures, min=1, help="Of one request."),
    max_megapixels: int = Option(
        Limits.pixels // _MEGAPIXEL, min=1, help="Of one request's pictures."
    ),
    max_body: int = Option(Limits.body_bytes // _MEBIBYTE, min=1, help="Mebibytes of one request."),
    max_waiting: int = Option(
        Limits.waiting, min=1, help="Requests in the queue; more get status 429."
    ),
) -> None:
    """Serve a model to OpenAI's and compatible clients. Ctrl-C finishes running requests first.

    Requests that run at the same time are answered as one batch. They contain pictures as data
    URLs; files and http(s) URLs only if you allow them.
    """
    from vlkit.remote.services import is_remote_name
    from vlkit.serving import check_installed

    check_installed()
    model = model or getattr(vlkit.settings.chosen_model(), "model", None)
    if is_remote_name(model):
        raise VlkitError(f"{model} is a hosted model; vlkit serve is for models on this machine")
    from vlkit.inputs import check_loaded
    from vlkit.models.load import load
    from vlkit.serving.app import Server, log_requests, open_socket

    limits = Limits(
        body_bytes=max_body * _MEBIBYTE, pictures=max_pictures, pixels=max_megapixels * _MEGAPIXEL,
        new_tokens=max_new_tokens, context=max_context, waiting=max_waiting,
        local=allow_local, urls=allow_urls, hosts=tuple(allow_host or ()),
        origins=tuple(allow_origin or ()),
    )  # fmt: skip
    listener = open_socket(host, port, api_key)  # before a large model is loaded
    vlm: Any = load(**load_options)
    check_loaded(vlm)
    server = Server(vlm, listener, limits=limits, name=name, api_key=api_key)
    log_requests()
    print_plain(repr(vlm))
    print_plain(
        f"Serving {server.name} at {server.url}; Ctrl-C finishes running requests and stops."
    )
    server.run()
    print_plain("Server stopped.")
