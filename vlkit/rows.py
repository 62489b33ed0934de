"""Rows of a batch as plain records, for a file or a table, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vlkit.deferred import DeferredClips, DeferredImages
from vlkit.errors import GroundingParseError
from vlkit.grounding import Box, Point
from vlkit.media import Image
from vlkit.messages import as_messages, iterate_media, read_media_item
from vlkit.replies import Failure, Reply, Usage
from vlkit.video import Video


def record_of(result: Reply | Failure, index: int, key: str) -> dict[str, Any]:
    """What the file holds of a row; boxes and points in pixels of the upright original."""
    record: dict[str, Any] = {"key": key, "index": index}
    if isinstance(result, Failure):
        return record | {"error": result.error, "kind": result.kind}
    return record | {
        "text": result.text,
        "raw": result.raw,
        **_grounding(result),
        "finish_reason": result.finish_reason,
        "usage": asdict(result.usage),
        "seconds": round(result.seconds, 4),
        **({} if result.cost is None else {"cost": result.cost}),
        "family": result.family,
        "image_sizes": result.image_sizes,
        "input_sizes": result.input_sizes,
        "clip_sizes": result.clip_sizes,
    }


def _grounding(reply: Reply) -> dict[str, Any]:
    try:
        items, note = reply.read_grounding()
    except GroundingParseError as error:
        items, note = [], str(error)
    boxes = [asdict(item) for item in items if isinstance(item, Box)]
    points = [asdict(item) for item in items if isinstance(item, Point)]
    found = {"boxes": boxes, "points": points}
    return found | ({"grounding_note": note} if note else {})


def result_of(record: dict[str, Any], messages: Any) -> Reply | Failure:
    """The row of a record; pictures and clips are read from the messages when they are looked at.

    Args:
        record: from ``Journal.finished`` or a line of the file.
        messages: the row's conversation.
    """
    if "error" in record:
        return Failure(record["error"], record["kind"])
    media = [read_media_item(item) for item in iterate_media(as_messages(messages))]
    images = [each for each in media if isinstance(each, Image)]
    videos = [each for each in media if isinstance(each, Video)]
    return Reply(
        text=record["text"],
        raw=record["raw"],
        usage=Usage(**record["usage"]),
        seconds=record["seconds"],
        family=record["family"],
        images=DeferredImages(images, record["image_sizes"]),
        input_sizes=tuple((w, h) for w, h in record["input_sizes"]),
        clips=DeferredClips(videos, record["clip_sizes"]),
        finish_reason=record["finish_reason"],
        cost=record.get("cost"),
    )
