"""`vlkit convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(help="A file or folder with boxes.")],
    target: Annotated[Path, typer.Argument(help="The file or new folder to write.")],
    to: Annotated[
        str,
        typer.Option(
            help="coco, yolo, voc, refcoco, label-studio, ms-swift, or a family: qwen_vl, "
            "qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5."
        ),
    ],
    source_format: Annotated[
        str, typer.Option("--from", help="The source's format, if its content does not show it.")
    ] = "auto",
    images: Annotated[Path | None, typer.Option(help="The folder with the pictures.")] = None,
    max_image_tokens: Annotated[
        int | None, typer.Option(help="The max_image_tokens with which qwen2_5_vl is used.")
    ] = None,
) -> None:
    """Convert a data set's boxes to another format or another generation's convention."""
    from vlkit.datasets.conversion import convert as convert_boxes

    report = convert_boxes(
        source, target, to=to, source_format=source_format, images=images,
        max_image_tokens=max_image_tokens,
    )  # fmt: skip
    typer.echo(f"{report}, written to {target}")
