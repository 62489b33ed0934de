"""Options that several commands have, and where they print."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from vlkit.models.hub import Hub

console = Console()


errors = Console(stderr=True)


ModelOption = Annotated[
    str | None,
    typer.Option(
        help='"tiny" (bundled), a folder, a hub id, "openai:…" or "dashscope:…". By default what '
        'VLKIT_MODEL or the settings file names, else "tiny".'
    ),
]


BaseUrlOption = Annotated[
    str | None,
    typer.Option(help="Endpoint of an openai: model; the key is in OPENAI_API_KEY."),
]


RegionOption = Annotated[
    str | None,
    typer.Option(help="Of a dashscope: model, beijing, singapore …; key in DASHSCOPE_API_KEY."),
]


FamilyOption = Annotated[
    str | None,
    typer.Option(help="Of a hosted model whose name does not tell it: qwen2-vl, qwen2.5-vl …"),
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


_LOAD = (
    "model", "hub", "revision", "device", "dtype", "quantize", "adapter", "max_image_tokens",
    "base_url", "region", "family",
)  # fmt: skip


def load_options(context: typer.Context) -> dict[str, Any]:
    """What was written of `vlkit.load`'s arguments; it knows the rest, from the settings too."""
    given = {name: value for name, value in context.params.items() if name in _LOAD}
    for name in list(given):
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            del given[name]
    if "family" in given:  # qwen2.5-vl, as models are called
        given["family"] = given["family"].lower().translate(str.maketrans("-.", "__"))
    return given
