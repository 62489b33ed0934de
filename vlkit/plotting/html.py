from __future__ import annotations

import base64
import html
import io

import PIL.Image


def data_url(picture: PIL.Image.Image) -> str:
    """The picture itself as an address: PNG where it is small, else JPEG."""
    kind = "PNG" if picture.width * picture.height < 300_000 else "JPEG"
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_html(picture: PIL.Image.Image, *, width: int = 640, alt: str = "") -> str:
    """An ``<img>`` that holds the picture itself, at most ``width`` pixels wide."""
    picture = picture.convert("RGB")
    picture.thumbnail((width, 2 * width))
    alt = html.escape(alt[:200], quote=True)
    return f'<img src="{data_url(picture)}" alt="{alt}" style="max-width:100%;height:auto">'
