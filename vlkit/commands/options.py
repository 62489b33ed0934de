"""Options that several commands have, and where they print."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from vlkit.hubs import Hub

console = Console()
errors = Console(stderr=True)

ModelOption = Annotated[
    str, typer.Option(help='"tiny" (bundled), a folder, a hub id, "openai:…" or "dashscope:…".')
]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(help="Endpoint of an openai: model; the key is in OPENAI_API_KEY."),
]
RegionOption = Annotated[
    str | None,
    typer.Option(help="Of a dashscope: model, beijing, singapore …; key in DASHSCOPE_API_KEY."),
]
HubOption = Annotated[Hub, typer.Option(help="Where to look for it.")]
RevisionOption = Annotated[str | None, typer.Option(help="Commit, branch or tag on the hub.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda:0 or mps.")]
ImageTokensOption = Annotated[int | None, typer.Option(help="Shrink pictures to this many tokens.")]
QuantizeOption = Annotated[str | None, typer.Option(help="4bit or 8bit (vlkit[quant]).")]
AdapterOption = Annotated[str | None, typer.Option(help="Folder or hub id of an adapter.")]
TokensOption = Annotated[int, typer.Option(help="The longest answer, in tokens.")]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy, so repeatable.")]
SeedOption = Annotated[int | None, typer.Option(help="Makes sampled answers repeatable.")]


def hosted(base_url: str | None, region: str | None) -> dict[str, str]:
    """Those of the two that were given, as `vlkit.load` takes them."""
    options = {"base_url": base_url, "region": region}
    return {name: value for name, value in options.items() if value is not None}
