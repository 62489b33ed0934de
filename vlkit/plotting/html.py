"""HTML of notebooks and reports: pictures, tables, sizes and times."""

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import PIL.Image

if TYPE_CHECKING:
    import pandas


def data_url(picture: PIL.Image.Image) -> str:
    """The picture itself as an address: PNG where it is small, else JPEG."""
    kind = "PNG" if picture.width * picture.height < 300_000 else "JPEG"
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def png_url(content: bytes) -> str:
    """A PNG file's bytes as an address."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def image_html(picture: PIL.Image.Image, *, width: int = 640, alt: str = "") -> str:
    """An ``<img>`` that holds the picture itself, at most ``width`` pixels wide."""
    picture = picture.convert("RGB")
    picture.thumbnail((width, 2 * width))
    alt = html.escape(alt[:200], quote=True)
    look = "max-width:100%;height:auto;outline:1px solid #8886"  # white ones have an edge, too
    return f'<img src="{data_url(picture)}" alt="{alt}" style="{look}">'


FAINT = "opacity:.65;font-size:.85em"  # side notes
_CELL = "padding:2px 14px 2px 0;text-align:left;vertical-align:top;border:none"


def table_html(heads: Sequence[str], rows: Iterable[Sequence[str]], *, cell: str = "") -> str:
    """A table that takes its colours from the page; empty where there is no row.

    Args:
        heads: the columns' names, escaped here.
        rows: cells that are HTML already; escape what a user or a model wrote.
        cell: more style for every cell, as ``"max-width:320px"``.
    """
    style = f"{_CELL};{cell}" if cell else _CELL
    head = "".join(f'<th style="{style}">{html.escape(name)}</th>' for name in heads)
    body = "".join(
        "<tr>" + "".join(f'<td style="{style}">{text}</td>' for text in row) + "</tr>"
        for row in rows
    )
    head = f"<tr>{head}</tr>" if heads else ""
    return f'<table style="border-collapse:collapse">{head}{body}</table>' if body else ""


def frame_html(frame: "pandas.DataFrame", title: str = "", *, index: bool = True) -> str:
    """A pandas table, below a title; empty where it has no row. Texts are escaped.

    Args:
        frame: the table.
        title: above it.
        index: with the names of the rows.
    """
    head = f"<h4>{html.escape(title)}</h4>" if title else ""
    look = {"escape": True, "na_rep": "–", "border": 0, "float_format": "{:.3f}".format}
    return head + frame.to_html(index=index, **look) if len(frame) else ""


def byte_text(count: float) -> str:
    """``"1.5 GB"`` or ``"28 MB"`` (10⁹ and 10⁶ bytes)."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def duration_text(seconds: float) -> str:
    """``"4.2 s"``, ``"58 s"``, ``"12 min"`` or ``"2.5 h"``."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def fill_template(
    package: str,
    name: str,
    /,
    *,
    autoescape: bool = True,
    filters: Mapping[str, Callable] | None = None,
    **facts: Any,
) -> str:
    """A Jinja template filled with facts.

    Args:
        package: in which the template's file is.
        name: of the file.
        autoescape: write texts so that nothing in them is markup of HTML.
        filters: for the template.
        **facts: its variables.
    """
    template = _compile_template(package, name, autoescape, tuple((filters or {}).items()))
    return template.render(**facts)


@cache
def _compile_template(package: str, name: str, autoescape: bool, filters: tuple) -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=autoescape, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= dict(filters)
    return environment.from_string(files(package).joinpath(name).read_text(encoding="utf-8"))
