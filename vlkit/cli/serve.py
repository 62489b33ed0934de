"""``vlkit serve``: an OpenAI-compatible server for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vlkit.cli.options import print_plain, with_load_options
from vlkit.errors import VlkitError
from vlkit.serving.limits import Limits

_LOAD_OPTIONS = "adapter hub revision dtype device quantize max_image_tokens".split()
_MEBIBYTE, _MEGAPIXEL = 2**20, 1_000_000


@with_load_options(_LOAD_OPTIONS)
def serve(
    *,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help='"tiny" (bundled), a folder or a hub id. By default what VLKIT_MODEL or the '
            'settings file names, else "tiny".',
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address; one that others can reach needs a key.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="VLKIT_API_KEY", help="What clients must send.", show_default=False),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model.")] = None,
    load_options: dict[str, Any],
    allow_local: Annotated[
        Path | None, typer.Option(help="A folder whose files requests may name.")
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Requests may name http(s) URLs; public ones.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A host of an internal network, for such URLs.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A web page that may call the server (CORS).")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = (
        Limits.new_tokens
    ),
    max_context: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of prompt and answer together.")
    ] = None,
    max_pictures: Annotated[int, typer.Option(min=1, help="Of one request.")] = Limits.pictures,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Of one request's pictures.")] = (
        Limits.pixels // _MEGAPIXEL
    ),
    max_body: Annotated[int, typer.Option(min=1, help="Mebibytes of one request.")] = (
        Limits.body_bytes // _MEBIBYTE
    ),
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Requests in the queue; more get status 429.")
    ] = Limits.waiting,
) -> None:
    """Serve a model to OpenAI's and compatible clients. Ctrl-C finishes running requests first.

    Requests that run at the same time are answered as one batch. They contain pictures as data
    URLs; files and http(s) URLs only if you allow them.
    """
    from vlkit.remote.services import is_remote_name
    from vlkit.serving import check_installed
    from vlkit.settings import chosen_model

    check_installed()
    model = model or getattr(chosen_model(), "model", None)
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
