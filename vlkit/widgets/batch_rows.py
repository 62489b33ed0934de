"""A row of a batch as HTML: its picture with the boxes, what was asked, what was answered."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import PIL.Image

from vlkit.errors import GroundingParseError, VlkitError
from vlkit.grounding import scale_item
from vlkit.media import Image, describe_source
from vlkit.messages import as_messages, iterate_media, read_media_item
from vlkit.plotting import draw_boxes
from vlkit.replies import Failure, Reply, image_html
from vlkit.sources import is_url

THUMBNAIL = 264  # pixels, twice of what is shown
MOST_TEXT = 2000  # characters of an answer
ROW_CSS = """
.vlkit-row .widget-html-content { line-height: 1.4; width: 100%; }
.vlkit-row-grid { display: grid; grid-template-columns: 30px 132px 1fr; gap: 10px; padding: 6px 0;
  border-top: 1px solid var(--jp-border-color2, #ddd); align-items: start; }
.vlkit-row-grid > * { min-width: 0; overflow-wrap: anywhere; }
.vlkit-row-grid img { width: 132px; max-height: 110px !important; object-fit: contain; }
.vlkit-row-number, .vlkit-row-asked, .vlkit-row-waiting { opacity: .65; font-size: .9em; }
.vlkit-row-number { text-align: right; }
.vlkit-row-answer { white-space: pre-wrap; max-height: 7em; overflow-y: auto; }
.vlkit-batch .widget-label { max-width: none; }
.vlkit-panel .vlkit-columns-line { margin-left: 114px; width: auto; font-size: .9em; opacity: .8; }
"""


def row_html(index: int, messages: Any, result: Reply | Failure | None) -> str:
    """A row; what it holds is data, so escaped. A picture that cannot be read is left out."""
    media, asked = _read(messages)
    names = ", ".join(PurePath(describe_source(each.source)).name for each in media)
    asked = " · ".join(part for part in (names, asked) if part)
    return (
        f'<div class="vlkit-row-grid"><div class="vlkit-row-number">{index}</div>'
        f"<div>{_thumbnail(media, result)}</div>"
        f'<div><div class="vlkit-row-asked">{html.escape(asked[:300])}</div>{_answer(result)}</div>'
        "</div>"
    )


def _answer(result: Reply | Failure | None) -> str:
    if result is None:
        return '<div class="vlkit-row-waiting">…</div>'
    text = html.escape(str(result)[:MOST_TEXT])
    if isinstance(result, Failure):
        return f'<div class="vlkit-error">{text}</div>'
    return f'<div class="vlkit-row-answer">{text}</div>'


def _read(messages: Any) -> tuple[list, str]:
    """A row's media, and the last text in it."""
    try:
        checked = as_messages(messages)
        media = [read_media_item(item) for item in iterate_media(checked)]
    except VlkitError:
        return [], ""
    texts = [item["text"] for item in checked[-1]["content"] if item["type"] == "text"]
    return media, texts[-1] if texts else ""


def _thumbnail(media: list, result: Reply | Failure | None) -> str:
    images = [each for each in media if isinstance(each, Image)]
    if not media or (result is None and is_url(media[-1].source)):  # not fetched twice
        return ""
    try:
        picture = images[-1].load() if images else _first_frame(media[-1])
    except VlkitError:
        return ""  # the failure tells why
    scale = min(1.0, THUMBNAIL / max(picture.size))
    small = picture.resize([max(1, round(side * scale)) for side in picture.size])
    boxes = _boxes(result) if images and isinstance(result, Reply) else []
    drawn = draw_boxes(
        small, [scale_item(item, scale) for item in boxes], labels=False, line_width=3
    )
    return image_html(drawn, width=THUMBNAIL, alt=describe_source(media[-1].source))


def _first_frame(video: Any) -> PIL.Image.Image:
    return replace(video, frames=None, max_frames=2).load().pictures[0]


def _boxes(reply: Reply) -> list:
    try:
        return reply.read_grounding()[0]
    except GroundingParseError:
        return []
