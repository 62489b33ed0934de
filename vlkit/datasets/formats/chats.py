"""Conversations with boxes: each family's form, and ms-swift's."""

import copy
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import astuple, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from vlkit.datasets.conversations import SWIFT, locate_prompt, picture_names, texts_of
from vlkit.datasets.pictures import Scene, find_picture, finite_numbers, questions_of, upright_size
from vlkit.errors import VlkitError, counted, warn_user
from vlkit.files import read_rows, relative, write_rows
from vlkit.grounding.boxes import Box, Item, Point, Quad, Size, is_share
from vlkit.grounding.formats import FORMATS
from vlkit.grounding.parse import Segment, format_grounding, group_items, locate_grounding

_TAG = re.compile("(<ref-object>|<bbox>)")
_JSON = re.compile(r"""(?:bbox|point)_2d["']\s*:\s*<bbox>""")


class _Ref(NamedTuple):
    label: str


class SwiftObjects:
    """The labels and boxes of a row, used one by one as its text refers to them."""

    def __init__(self, row: dict, size: Size):
        objects, self.size, self.label = row.get("objects") or {}, size, ""
        if not isinstance(objects, dict):
            raise VlkitError(f"its objects are {objects!r:.40}; expected a dict of ref and bbox")
        numbers = objects.get("image_id") or []
        if not isinstance(numbers, list) or any(numbers):
            raise VlkitError("some of its boxes are on another picture than its first (image_id)")
        for key in ("ref", "bbox"):
            if not isinstance(objects.get(key) or [], list):
                raise VlkitError(f"its objects have {key}={objects[key]!r:.40}; expected a list")
        self.refs = [str(ref) for ref in objects.get("ref") or []]
        kind = objects.get("bbox_type") or "real"
        if kind not in ("real", "norm1"):
            raise VlkitError(f"its objects have bbox_type={kind!r:.40}; expected 'real' or 'norm1'")
        scale = size if kind == "norm1" else (1, 1)
        self.boxes = [_numbers(box, scale) for box in objects.get("bbox") or []]
        if kind == "real" and any(map(is_share, self.boxes)):
            raise VlkitError('its boxes are fractions; add "bbox_type": "norm1" to its objects')

    def segments(self, text: str) -> Iterator[Segment]:
        """A text split at its tags, with boxes and points in place of them."""
        marks = [self._resolve(piece) for piece in _TAG.split(text)]
        group: list[Item] = []
        after = ""  # the text behind the group
        for i, mark in enumerate(marks):
            if isinstance(mark, Item):
                if after.strip(" ,\n") or not group:
                    yield from _nonempty(group, after)
                    group = []
                group, after = [*group, mark], ""
            elif isinstance(mark, str):
                after += mark
            elif not isinstance(_next_mark(marks[i + 1 :]), Item):
                after += mark.label  # of a label without a box
        yield from _nonempty(group, after)

    def as_json(self, text: str) -> str | None:
        """A text with JSON around its tags, the numbers filled in; None for any other text."""
        return _TAG.sub(lambda tag: self._as_json(tag[0]), text) if _JSON.search(text) else None

    def check_used_up(self) -> None:
        """Raises VlkitError where boxes are left that no tag refers to."""
        if self.boxes:
            raise VlkitError(f"it has {len(self.boxes)} more boxes than <bbox> in its text")

    def _resolve(self, piece: str) -> str | _Ref | Item:
        if piece == "<ref-object>":
            self.label = _take(self.refs, piece)
            return _Ref(self.label)
        if piece == "<bbox>":
            numbers = _take(self.boxes, piece)
            return (Point if len(numbers) == 2 else Box)(self.label, *numbers)
        return piece

    def _as_json(self, tag: str) -> str:
        if tag == "<bbox>":
            return json.dumps(_take(self.boxes, tag))
        return json.dumps(_take(self.refs, tag), ensure_ascii=False)[1:-1]


def _nonempty(group: list[Item], after: str) -> list[Segment]:
    return [group, after] if group else [after]


def _take(values: list, tag: str) -> Any:
    if not values:
        raise VlkitError(f"its text has more {tag} than its objects have")
    return values.pop(0)


def _next_mark(marks: list) -> Any:
    return next((m for m in marks if not isinstance(m, str) or m.strip(" ,\n")), None)


def _numbers(box: Any, scale: Size) -> list[float]:
    numbers = finite_numbers(box)
    if len(numbers) not in (2, 4):
        raise VlkitError(f"{box!r:.60} is neither a box [x1, y1, x2, y2] nor a point [x, y]")
    return [number * scale[i % 2] for i, number in enumerate(numbers)]


def read_chats(
    path: Path, name: str, images: Path | None, max_image_tokens: int | None = None
) -> list[Scene]:
    """A scene for each row: the first question, and the boxes of all answers.

    Args:
        path: a .json or .jsonl.
        name: a family, or ``SWIFT``.
        images: the folder with the pictures, where it is not the file's.
        max_image_tokens: to which a family that writes pixels of the resized picture was limited.
    """
    scenes, skipped = [], 0
    for number, row in enumerate(read_rows(path), start=1):
        where = f"{path}, row {number}"
        try:
            pictures, size = pictures_of(row, images or path.parent)
            input_size = input_size_for(name, size, max_image_tokens)
            texts = list(row_segments(row, name, size, input_size))
        except VlkitError as error:
            raise VlkitError(f"{where}: {error}") from None
        if not pictures:
            raise VlkitError(f'{where}: it names no picture under "images" or "image"')
        questions = [segments for role, segments in texts if role == "user"]
        if any(isinstance(segment, list) for segments in questions for segment in segments):
            skipped += 1
            continue
        answers = [segments for role, segments in texts if role == "assistant"]
        groups = [s for segments in answers for s in segments if isinstance(s, list)]
        prompt = "".join(map(str, questions[0])) if questions else ""
        prompt = strip_labels(prompt, name).replace("<image>", "").strip()
        scenes.append(Scene(pictures[0], size, tuple(chain(*groups)), prompt))
    if skipped:
        warnings.warn(f"{path}: left out {skipped} rows with a box in the question", stacklevel=4)
    return scenes


def write_chats(
    scenes: list[Scene],
    path: Path,
    name: str,
    max_image_tokens: int | None = None,
    prompt: str | None = None,
) -> None:
    """A row for each question of each scene, as :func:`vlkit.datasets.pictures.questions_of`."""
    rows, prompt = [], prompt or locate_prompt("{label}", family=name)
    pairs = [(scene, *pair) for scene in scenes for pair in questions_of(scene, prompt)]
    for scene, question, items in pairs:
        writer = Writer(name, scene.size, input_size_for(name, scene.size, max_image_tokens))
        messages = [
            {"role": "user", "content": f"<image>{question}"},
            {"role": "assistant", "content": writer.text([items])},
        ]
        images = [relative(scene.image, path)]
        rows.append({"messages": messages, "images": images} | writer.objects())
    if left_out := len(scenes) - len({id(scene) for scene, *_ in pairs}):
        warn_user(
            f"{path}: left out {counted(left_out, 'picture')} without boxes, as there is nothing "
            'to ask for; a prompt without "{label}" keeps them'
        )
    write_rows(path, rows)


def rewrite_row(
    row: dict, source: str, target: str, size: Size, max_image_tokens: int | None = None
) -> tuple[dict, int]:
    """A copy of a row of conversations with its coordinates in another convention.

    Args:
        row: with ``messages`` or ``conversations``, and the ``objects`` of ms-swift.
        source, target: its convention and the new one: a family, or ``SWIFT``.
        size: of its upright pictures, (width, height) in pixels.
        max_image_tokens: to which a family that writes pixels of the resized picture is limited.

    Returns:
        The new row, and the number of boxes, points and quads in it. Where source and target are
        the same: the row itself, once its coordinates were checked, and 0.

    Raises:
        VlkitError: coordinates that cannot be read.
    """
    input_size = input_size_for(source, size, max_image_tokens)
    texts = [segments for _, segments in row_segments(row, source, size, input_size)]
    if source == target:
        return row, 0
    writer = Writer(target, size, input_size_for(target, size, max_image_tokens))
    new_row = copy.deepcopy(row)
    new_row.pop("objects", None)  # its boxes are in the segments now
    for (_, message, key), segments in zip(texts_of(new_row), texts, strict=True):
        renamed = [rename_segment(segment, source, target) for segment in segments]
        message[key] = writer.text(renamed)
    return new_row | writer.objects(), writer.count


def pictures_of(row: dict, folder: Path) -> tuple[list[Path], Size]:
    """A row's pictures and their upright size.

    Raises:
        VlkitError: a picture that is missing, or several of different sizes.
    """
    names = picture_names(row)
    paths = [find_picture(name.removeprefix("file://"), [folder]) for name in names]
    sizes = {upright_size(path, (row.get("width"), row.get("height"))) for path in paths}
    if len(sizes) > 1:
        raise VlkitError("it has pictures of several sizes, so its boxes cannot be placed")
    return paths, (sizes.pop() if sizes else (1000, 1000))


def input_size_for(name: str, size: Size, max_image_tokens: int | None) -> Size | None:
    """The size to which a family's processor, with its published limits, resizes a picture."""
    if name == SWIFT or FORMATS[name].space != "resized":
        return None
    from vlkit.models.families import published_rules

    return replace(published_rules(name), max_image_tokens=max_image_tokens).image_size(size)


# --- reading: a text as segments -----------------------------------------------------------------


def row_segments(
    row: dict, name: str, size: Size, input_size: Size | None
) -> Iterator[tuple[str, list[Segment]]]:
    """Each text of a row, in order: who speaks, and the text split at its boxes."""
    objects = SwiftObjects(row, size) if name == SWIFT else None
    for role, holder, key in texts_of(row):
        if objects:
            yield role, swift_segments(holder[key], objects)
        else:
            sizes: dict[str, Any] = {"family": name, "image_size": size, "input_size": input_size}
            yield role, _family_segments(holder[key], sizes)
    if objects:
        objects.check_used_up()


def swift_segments(text: str, objects: SwiftObjects) -> list[Segment]:
    """A text of ms-swift with its items in place of their tags."""
    with_numbers = objects.as_json(text)
    if with_numbers is None:
        return list(objects.segments(text))
    pixels = {"family": "qwen3_vl", "image_size": objects.size, "space": "original"}
    return _family_segments(with_numbers, pixels)


def _family_segments(text: str, sizes: dict[str, Any]) -> list[Segment]:
    placed, left_out = locate_grounding(text, **sizes, rewritable=True)
    if left_out:
        raise VlkitError(left_out)
    return list(group_items(text, placed))


# --- writing: segments as a text -----------------------------------------------------------------


def strip_labels(text: str, name: str) -> str:
    """A text without the tags around labels that no box follows."""
    tags = ("<ref-object>",) if name == SWIFT else FORMATS[name].label_tags
    for tag in filter(None, tags):
        text = text.replace(tag, "")
    return text


def rename_segment(segment: Segment, source: str, target: str) -> Segment:
    """A segment for :class:`Writer`: label tags in a text change, a list of items stays."""
    if not isinstance(segment, str) or source == SWIFT or not FORMATS[source].label_tags[0]:
        return segment
    tags = ("", "") if target == SWIFT else FORMATS[target].label_tags
    for old, new in zip(FORMATS[source].label_tags, tags, strict=True):
        segment = segment.replace(old, new)
    return segment


class Writer:
    """Writes the segments of one row's texts in one convention.

    Args:
        name: a family, or ``SWIFT``, whose boxes are collected in :meth:`objects`.
        size: of the upright picture.
        input_size: of the picture as the processor resizes it, where the family needs it.

    Attributes:
        count: how many boxes, points and quads were written.
    """

    def __init__(self, name: str, size: Size, input_size: Size | None):
        self.name, self.sizes = name, {"image_size": size, "input_size": input_size}
        self.refs: list[str] = []
        self.boxes: list[list[float]] = []
        self.count = 0

    def text(self, segments: Iterable[Segment]) -> str:
        """The segments as one text: strings as they are, items as coordinates or tags."""
        return "".join(s if isinstance(s, str) else self._write(s) for s in segments)

    def objects(self) -> dict:
        """The row's ``objects``, for ms-swift; empty for a family."""
        return {"objects": {"ref": self.refs, "bbox": self.boxes}} if self.boxes else {}

    def _write(self, items: list[Item]) -> str:
        self.count += len(items)
        if self.name == SWIFT:
            return self._write_tags(items)
        return format_grounding(items, family=self.name, **self.sizes)  # type: ignore[arg-type]

    def _write_tags(self, items: list[Item]) -> str:
        text, label = "", ""
        for item in items:
            if isinstance(item, Quad):
                raise VlkitError("ms-swift has boxes and points, but no quads")
            if item.label != label:
                text += ", <ref-object>" if text else "<ref-object>"  # as Qwen2-VL writes them
                label = item.label
                self.refs.append(label)
            self.boxes.append([round(value, 3) for value in astuple(item)[1:]])
            text += "<bbox>"
        return text
