"""Pictures of recorded answers, from the original where it is found, else from the thumbnail."""

from __future__ import annotations

from collections.abc import Sequence

import PIL.Image

from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Item, list_items, scale_item
from vlkit.media.image import load_image
from vlkit.plotting.comparing import ANSWER, TRUTH
from vlkit.plotting.draw import add_legend, draw_boxes, draw_strokes
from vlkit.records.media import MediaStore
from vlkit.records.record import Record

WIDTH = 840  # of a picture on a page


def draw_answer(
    record: Record, answer: dict, items: Sequence[Item], truth: Sequence[Item] = ()
) -> PIL.Image.Image | None:
    """The last picture of a conversation with the answer's boxes; None where there is none."""
    if truth:
        return draw_answers(record, answer, [("truth", truth), ("answer", items)])
    found = _picture(record, answer)
    if found is None:
        return None
    picture, scale = found
    return draw_boxes(picture, [scale_item(item, scale) for item in items])


def draw_answers(
    record: Record, answer: dict, sets: Sequence[tuple[str, Sequence[Item]]]
) -> PIL.Image.Image | None:
    """The last picture with two sets of boxes, the first dashed, and a legend."""
    found = _picture(record, answer)
    if found is None:
        return None
    picture, scale = found
    styles = [(TRUTH, True), (ANSWER, False)]
    strokes = [
        (scale_item(item, scale), color, dashed)
        for (_, items), (color, dashed) in zip(sets, styles, strict=True)
        for item in list_items(items)
    ]
    draw_strokes(picture, strokes, labels=True)
    rows = [(color, name, d) for (name, _), (color, d) in zip(sets, styles, strict=True)]
    return add_legend(picture, rows)


def _picture(record: Record, answer: dict) -> tuple[PIL.Image.Image, float] | None:
    """The picture, and the scale by which boxes of the original fit it."""
    if not answer["media"]:
        return None
    images = [each for each in answer["media"] if each["kind"] == "image"]
    facts = (images or answer["media"])[-1]
    if images:
        source, _ = MediaStore(record.path, keep=False).find(facts)
        try:
            if source is not None:
                return load_image(source), 1.0
        except VlkitError:  # another picture lies there now
            pass
    if not facts.get("thumbnail"):
        return None
    try:
        picture = load_image(record.path / facts["thumbnail"])
    except VlkitError:  # lost
        return None
    sizes = answer.get("image_sizes")
    return picture, picture.width / sizes[-1][0] if images and sizes else 0.0
