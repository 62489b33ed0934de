"""Conversations about pictures with coordinates in their text, in any family's convention.

ms-swift's is one more; see :mod:`vlkit.datasets.swift`.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

from vlkit.datasets.formats.swift import Segment, SwiftObjects
from vlkit.datasets.pictures import find_picture, upright_size
from vlkit.datasets.scene import Scene
from vlkit.errors import VlkitError
from vlkit.files import read_rows, relative, write_rows
from vlkit.grounding.boxes import Item, Quad, Size
from vlkit.grounding.formats import FORMATS
from vlkit.grounding.parse import format_grounding, locate_grounding

SWIFT = "ms-swift"


_BETWEEN = re.compile(r"[\s,]*")


_BEFORE = re.compile(r"(?:```(?:json|xml)?\s*)?\[?\s*\Z")


_AFTER = re.compile(r"(?:[^<>]{0,200}</points?>)?(?:\s*\])?(?:\s*```)?")


def read_chats(
    path: Path, name: str, images: Path | None, max_image_tokens: int | None = None
) -> list[Scene]:
    """A scene for each row: the first question, and the boxes of all answers."""
    scenes, asked = [], 0
    for number, row in enumerate(read_rows(path), start=1):
        where = f"{path}, row {number}"
        try:
            pictures, size = pictures_of(row, images or path.parent)
            parts = list(
                row_segments(row, name, size, input_size_for(name, size, max_image_tokens))
            )
        except VlkitError as error:
            raise VlkitError(f"{where}: {error}") from None
        if not pictures:
            raise VlkitError(f'{where}: it names no picture under "images" or "image"')
        if any(role == "user" and not all(isinstance(s, str) for s in p) for role, p in parts):
            asked += 1  # a box is part of the question
            continue
        items = [i for role, p in parts if role == "assistant" for s in p for i in _items_in(s)]
        prompts = ["".join(map(str, p)) for role, p in parts if role == "user"]
        prompt = strip_labels(prompts[0] if prompts else "", name).replace("<image>", "").strip()
        scenes.append(Scene(pictures[0], size, tuple(items), prompt))
    if asked:
        warnings.warn(f"{path}: {asked} rows that ask with a box left out", stacklevel=4)
    return scenes


def write_chats(
    scenes: list[Scene], path: Path, name: str, max_image_tokens: int | None = None
) -> None:
    """A row for each scene: its prompt, or one that names its labels, and the boxes."""
    rows = []
    for scene in scenes:
        labels = ", ".join(dict.fromkeys(i.label for i in scene.items if i.label)) or "everything"
        question = scene.prompt or f"Locate every instance of: {labels}."
        row = {
            "messages": [
                {"role": "user", "content": f"<image>{question}"},
                {"role": "assistant", "content": ""},
            ],
            "images": [relative(scene.image, path)],
        }
        writer = Writer(name, scene.size, input_size_for(name, scene.size, max_image_tokens))
        row["messages"][1]["content"] = writer.text([list(scene.items)])  # type: ignore[index]
        rows.append(row | writer.objects())
    write_rows(path, rows)


def rewrite_row(
    row: dict, source: str, target: str, size: Size, max_image_tokens: int | None = None
) -> tuple[dict, int]:
    """The row with its coordinates in another convention, all else as it was; how many items."""
    reading = input_size_for(source, size, max_image_tokens)
    parts = [p for _, p in row_segments(row, source, size, reading)]
    writer = Writer(target, size, input_size_for(target, size, max_image_tokens))
    new = {key: value for key, value in copy.deepcopy(row).items() if key != "objects"}
    for _, holder, key in _texts(new):
        segments = parts.pop(0)
        if source != target:
            holder[key] = writer.text([rename_segment(s, source, target) for s in segments])
    return (new | writer.objects(), writer.count) if source != target else (row, 0)


def pictures_of(row: dict, folder: Path) -> tuple[list[Path], Size]:
    """A row's pictures and their upright size.

    Raises:
        VlkitError: a picture that is missing, or several of different sizes.
    """
    given = row.get("images") or row.get("image") or []
    names = [_name_of(each) for each in (given if isinstance(given, list) else [given])]
    paths = [find_picture(name.removeprefix("file://"), [folder]) for name in names]
    sizes = {upright_size(path, (row.get("width"), row.get("height"))) for path in paths}
    if len(sizes) > 1:
        raise VlkitError("it has pictures of several sizes, so its boxes cannot be placed")
    return paths, (sizes.pop() if sizes else (1000, 1000))


def _name_of(picture: Any) -> str:
    if isinstance(picture, dict):
        picture = picture.get("path") or picture.get("url")
    if not isinstance(picture, str) or not picture:
        raise VlkitError(f"its picture is {picture!r:.60}; expected a path")
    return picture


def input_size_for(name: str, size: Size, max_image_tokens: int | None) -> Size | None:
    """The size at which a family's processor, with its published limits, shows such a picture."""
    if name == SWIFT or FORMATS[name].space != "resized":
        return None
    from dataclasses import replace

    from vlkit.models.families import published_rules

    return replace(published_rules(name), max_image_tokens=max_image_tokens).image_size(size)


def row_segments(
    row: dict, name: str, size: Size, input_size: Size | None
) -> Iterator[tuple[str, list[Segment]]]:
    """For each text of a row, in order: who speaks, and the text with its items told apart."""
    objects = SwiftObjects(row, size) if name == SWIFT else None
    for role, holder, key in _texts(row):
        if objects:
            text = objects.as_json(holder[key])
            if text is None:
                yield role, list(objects.segments(holder[key]))
            else:
                pixels = {"family": "qwen3_vl", "image_size": size, "space": "original"}
                yield role, list(_family_segments(text, pixels))
        else:
            sizes: dict[str, Any] = {"family": name, "image_size": size, "input_size": input_size}
            yield role, list(_family_segments(holder[key], sizes))
    if objects:
        objects.check_used_up()


def strip_labels(text: str, name: str) -> str:
    """A text without the tags around labels that no box follows."""
    tags = ("<ref-object>",) if name == SWIFT else FORMATS[name].label_tags
    for tag in filter(None, tags):
        text = text.replace(tag, "")
    return text


def rename_segment(segment: Segment, source: str, target: str) -> Segment:
    """A text with the tags around its labels as another convention writes them; boxes stay."""
    if not isinstance(segment, str) or source == SWIFT or not FORMATS[source].label_tags[0]:
        return segment
    tags = ("", "") if target == SWIFT else FORMATS[target].label_tags
    for old, new in zip(FORMATS[source].label_tags, tags, strict=True):
        segment = segment.replace(old, new)
    return segment


def _texts(row: dict) -> Iterator[tuple[str, dict, str]]:
    """A row's texts: who speaks, the dict that holds it, and its key there."""
    messages = row.get("messages", row.get("conversations"))
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise VlkitError('it has no list of messages under "messages" or "conversations"')
    for message in messages:
        said_by = message.get("role") or message.get("from") or ""
        role = {"human": "user", "gpt": "assistant"}.get(str(said_by), str(said_by))
        key = "content" if "content" in message else "value"
        content = message.get(key)
        if isinstance(content, str):
            yield role, message, key
        elif isinstance(content, list):
            items = [i for i in content if isinstance(i, dict) and isinstance(i.get("text"), str)]
            yield from ((role, item, "text") for item in items)
        elif content is not None:
            raise VlkitError(f"a message holds {content!r:.40}; expected text")


# --- text and items told apart --------------------------------------------------------------------


def _family_segments(text: str, sizes: dict[str, Any]) -> Iterator[Segment]:
    placed, left_out = locate_grounding(text, **sizes)
    if left_out:
        raise VlkitError(left_out)
    group: list[Item] = []
    done = begin = end = 0
    for item, start, stop in placed:
        if group and start >= end and not _BETWEEN.fullmatch(text, end, start):
            yield from (text[done : _begin(text, done, begin)], group)
            done, group = _finish(text, end), []
        begin = begin if group else start
        group, end = [*group, item], stop
    if group:
        yield from (text[done : _begin(text, done, begin)], group)
        done = _finish(text, end)
    yield text[done:]


def _begin(text: str, low: int, start: int) -> int:
    """Where the list and the fence around items begin."""
    low = max(low, start - 40)
    match = _BEFORE.search(text[low:start])
    return low + match.start() if match and match[0].strip() else start


def _finish(text: str, end: int) -> int:
    match = _AFTER.match(text, end)
    return match.end() if match and match[0].strip() else end


def _items_in(segment: Segment) -> list[Item]:
    return [] if isinstance(segment, str) else segment


class Writer:
    """Segments as one convention's text; for ms-swift it gathers the objects."""

    def __init__(self, name: str, size: Size, input_size: Size | None):
        self.name, self.sizes = name, {"image_size": size, "input_size": input_size}
        self.refs: list[str] = []
        self.boxes: list[list[float]] = []
        self.count = 0

    def text(self, segments: Iterable[Segment]) -> str:
        """The text of segments."""
        return "".join(s if isinstance(s, str) else self._write(s) for s in segments)

    def objects(self) -> dict:
        """What belongs beside the text."""
        if self.name != SWIFT or not self.boxes:
            return {}
        return {"objects": {"ref": self.refs, "bbox": self.boxes}}

    def _write(self, items: list[Item]) -> str:
        self.count += len(items)
        if self.name != SWIFT:
            return format_grounding(items, family=self.name, **self.sizes)  # type: ignore[arg-type]
        text, before = "", ""
        for item in items:
            if isinstance(item, Quad):
                raise VlkitError("ms-swift has boxes and points, no quads")
            if item.label != before:
                text += ", <ref-object>" if text else "<ref-object>"  # as Qwen2-VL's own
                before = item.label
                self.refs.append(item.label)
            self.boxes.append([round(value, 3) for value in astuple(item)[1:]])
            text += "<bbox>"
        return text
