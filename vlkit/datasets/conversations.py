"""What readers of rows share: empty cells, roles, texts, media, conventions."""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import PIL.Image

from vlkit.errors import VlkitError, check_choice
from vlkit.grounding.formats import FORMATS
from vlkit.media.image import PICTURE_SUFFIXES
from vlkit.media.video import Video
from vlkit.messages import looks_like_clip

SWIFT = "ms-swift"  # its coordinates are in a row's "objects", see vlkit.datasets.formats.swift
SWIFT_TAGS = ("<bbox>", "<ref-object>")
AMBIGUOUS = "json"  # several families write the same JSON
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}
_JSON_BOX = re.compile(r"""["'](?:bbox|point)_2d\\?["']\s*:""")  # the backslash: in a file of JSON


def is_missing(cell: Any) -> bool:
    """Whether a cell is empty, None, NaN or another of pandas' missing values."""
    if isinstance(cell, float):
        return math.isnan(cell)
    kind = type(cell).__name__
    return cell is None or kind in ("NAType", "NaTType") or (kind == "str" and not cell)


def role_of(message: Mapping) -> str:
    """Who speaks: ``user``, ``assistant`` or ``system``; "" where a message does not say."""
    role = str(message.get("role") or message.get("from") or "")
    return _ROLES.get(role, role)


def texts_of(row: dict) -> Iterator[tuple[str, dict, str]]:
    """A row's texts in order: who speaks, the dict that contains the text, and its key there.

    Raises:
        VlkitError: the row has no list of messages, or a message without text.
    """
    messages = row.get("messages", row.get("conversations"))
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise VlkitError('it has no list of messages under "messages" or "conversations"')
    for message in messages:
        role, key = role_of(message), "content" if "content" in message else "value"
        content = message.get(key)
        if isinstance(content, str):
            yield role, message, key
        elif isinstance(content, list):
            items = [i for i in content if isinstance(i, dict) and isinstance(i.get("text"), str)]
            yield from ((role, item, "text") for item in items)
        elif content is not None:
            raise VlkitError(f"the content of a message is {content!r:.40}; expected text")


def media_source(medium: Any) -> Any:
    """The path, URL or bytes in the dicts of Hugging Face ``datasets`` and of OpenAI's format."""
    if not isinstance(medium, Mapping):
        return medium
    return next((medium[k] for k in ("bytes", "path", "url", "image") if medium.get(k)), None)


def is_list(value: Any) -> bool:
    """Whether a cell is a list; Parquet has arrays of objects, pictures are arrays of numbers."""
    if isinstance(value, np.ndarray):
        return value.dtype == object
    return isinstance(value, list | tuple)


def media_items(cell: Any, kind: str, resolve: Callable[[str], str] = str) -> list[dict]:
    """The media of a table's cell, one or a list of them; several frames are one clip."""
    if is_missing(cell):
        return []
    if not is_list(cell) or (kind == "video" and len(cell) > 1 and all(map(_is_frame, cell))):
        return [media_item(cell, kind, resolve)]
    return [item for element in cell for item in media_items(element, kind, resolve)]


def media_item(source: Any, kind: str, resolve: Callable[[str], str] = str) -> dict:
    """A picture or clip as a content item.

    Args:
        source: the medium, also as the dict of another library; a list is a clip's frames.
        kind: ``image`` or ``video``, where the medium does not show it.
        resolve: gives the path to use for one that is named.

    Raises:
        VlkitError: there is no file.
    """
    if is_list(source):
        return {"type": "video", "video": [resolve(f) if isinstance(f, str) else f for f in source]}
    source = media_source(source)
    if source is None or (isinstance(source, str) and not source):
        raise VlkitError(f"{'an image' if kind == 'image' else 'a video'} without a file")
    if isinstance(source, str | os.PathLike):
        source = resolve(os.fspath(source))
        kind = "video" if looks_like_clip(source) else kind
    kind = "video" if isinstance(source, Video) else kind
    return {"type": kind, kind: source}


def _is_frame(source: Any) -> bool:
    if isinstance(source, str):
        return source.lower().endswith(PICTURE_SUFFIXES)
    return isinstance(source, PIL.Image.Image | np.ndarray)


def picture_names(row: Mapping) -> list[str]:
    """The pictures that a row names under ``images`` or ``image``. Raises VlkitError."""
    pictures = row.get("images") or row.get("image") or []
    names = [media_source(p) for p in (pictures if isinstance(pictures, list) else [pictures])]
    for name in names:
        if not isinstance(name, str) or not name:
            raise VlkitError(f"its picture is {name!r:.60}; expected a path")
    return names


def detect_convention(row: Mapping, texts: Iterable[str]) -> str:
    """In which convention a row's coordinates are written.

    Args:
        row: with its ``objects``, where it has any.
        texts: of its messages, or of a whole file of rows.

    Returns:
        A family, ``SWIFT``, ``AMBIGUOUS``, or "" where there are no coordinates.
    """
    objects, texts = row.get("objects"), list(texts)
    boxes = objects.get("bbox") if isinstance(objects, Mapping) else objects
    if boxes or any(tag in text for text in texts for tag in SWIFT_TAGS):
        return SWIFT
    for name, form in FORMATS.items():
        if form.style == "tags" and any(form.box_tags[0] in text for text in texts):
            return name
    return AMBIGUOUS if any(_JSON_BOX.search(text) for text in texts) else ""


# by language: for one object, for all objects of these names, for all objects
# Chinese: README.md of QwenLM/Qwen-VL; English: the bundled model's, as none is published
_TAGS = {
    "en": ("Locate the {label}.", "Locate every {label} in the picture.", "Detect all objects."),
    "zh": ("框出图中{label}的位置", "框出所有的{label}", "框出图中所有物体的位置"),
}
_JSON = {  # cookbooks/spatial_understanding.ipynb of QwenLM/Qwen2.5-VL; Chinese names: Model Studio
    "en": (
        "Locate the {label}, output its bbox coordinates using JSON format.",
        "Outline the position of each {label} and output all the coordinates in JSON format.",
        "Please first output bbox coordinates and names of every item in this image in JSON "
        "format.",
    ),
    "zh": (
        "定位{label}，以JSON格式输出其bbox坐标",
        "检测图中所有{label}并以JSON格式输出其bbox的坐标",
        "请以JSON格式输出图中所有物体bbox的坐标以及它们的名字",
    ),
}
_CATEGORIES = (  # cookbooks/2d_grounding.ipynb of QwenLM/Qwen3-VL
    'Locate every instance that belongs to the following categories: "{label}". '
    "Report bbox coordinates in JSON format."
)
_LATER = _JSON | {"en": (_JSON["en"][0], _CATEGORIES, _JSON["en"][2])}
_PROMPTS = {"qwen_vl": _TAGS, "qwen2_vl": _TAGS, SWIFT: _TAGS, "qwen2_5_vl": _JSON}


def locate_prompt(label: str, *, family: str, language: Literal["en", "zh"] = "en") -> str:
    """How a generation is asked for the box of an object, in its own published words.

    Args:
        label: the object, such as ``"red circle"``; ``"{label}"`` gives the template.
        family: the model's, ``vlm.family``.
        language: ``"en"`` or ``"zh"``; labels are not translated.

    Raises:
        VlkitError: an empty label, or an unknown family or language.
    """
    return _fill(0, [label], family, language)


def detect_prompt(
    labels: Sequence[str] | None = None, *, family: str, language: Literal["en", "zh"] = "en"
) -> str:
    """How a generation is asked for the boxes of all objects; see :func:`locate_prompt`.

    Args:
        labels: only objects with these names, by default all objects.
        family: the model's, ``vlm.family``.
        language: ``"en"`` or ``"zh"``.
    """
    if labels is None:
        return _fill(2, ["objects"], family, language)
    return _fill(1, [labels] if isinstance(labels, str) else labels, family, language)


def _fill(kind: int, labels: Sequence[str], family: str, language: str) -> str:
    if not labels or not all(isinstance(label, str) and label.strip() for label in labels):
        raise VlkitError(f"labels={labels!r:.60} must be names of objects, such as 'red circle'")
    check_choice("language", language, tuple(_TAGS))
    check_choice("family", family, (*FORMATS, SWIFT))
    between = "、" if language == "zh" else ", "
    template = _PROMPTS.get(family, _LATER)[language][kind]
    return template.format(label=between.join(labels))


def json_families() -> list[str]:
    """The families that write their coordinates as JSON."""
    return [name for name, form in FORMATS.items() if form.style == "json"]
