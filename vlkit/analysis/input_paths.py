"""``compare_paths``: three ways to prepare the same messages."""

import contextlib
import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from vlkit.errors import one_line
from vlkit.grounding.boxes import Size
from vlkit.inputs import prepare_inputs
from vlkit.models.families import FAMILIES
from vlkit.models.hub import ModelFolder
from vlkit.models.load import VLM
from vlkit.plotting.html import FAINT, table_html

if TYPE_CHECKING:
    import pandas


PATHS = ("apply_chat_template", "qwen_vl_utils", "vlkit")
RESAMPLING = 16  # of 255 levels; two libraries' bicubic resizing differs by less
_LIMITS = {"max_tokens": "max_pixels", "min_tokens": "min_pixels", "max_frame_tokens": "max_pixels"}
_NOTES = {
    "error": "this path fails; vlkit reads every source that vlkit.Image lists",
    "orientation": "the camera's EXIF rotation is ignored: the model sees the picture lying down, "
    "and its boxes are for that",
    "size": "not the requested size: a rotation or limits in the item are ignored, or the size "
    "rules differ (process_vision_info rounds a list of frames with the wrong factor, so distorts)",
    "resizes": "resized twice, so blurred, and distorted where the two shapes differ",
    "tokens": "another cost for the same picture or clip",
    "frames": "another number of frames sampled: the item's fps, nframes or range is ignored",
    "times": "the prompt contains other times than those of the frames, so the model answers with "
    "wrong seconds",
    "ids": "the prompts differ, in words or in the number of placeholders",
    "pixels": "the same size, but other pixels: transparency or 16 bits lost, or a double resize",
    "padding": "right padding breaks every shorter row of a batch; load with padding_side='left'",
    "patch": "process_vision_info assumes patches of 14 pixels by default; the model's have 16",
}


@dataclass
class Seen:
    """The result of one path."""

    tensors: Any = None
    error: str = ""
    fetched: dict[str, list[Size]] = field(default_factory=dict)  # sizes before the processor
    times: list[str] = field(default_factory=list)  # of all clips' steps, as written in the prompt
    padding: str = ""


Row = tuple[str, str, list]  # what is compared, the key of its note, each path's value
_DIFFERS: dict[str, Callable[[Any], bool]] = {  # by note: which values mean a difference
    "error": bool,
    "pixels": lambda difference: difference > RESAMPLING,
    "resizes": lambda chain: "→" in chain,
    "orientation": lambda value: value == "lying",
}


def _differs(note: str, values: list) -> bool:
    differs = _DIFFERS.get(note, lambda value: value != values[2])
    return any(value is not None and differs(value) for value in values)


def _rows(vlm: VLM, seen: list[Seen]) -> Iterator[Row]:
    ids = [None if path.error else path.tensors["input_ids"].tolist() for path in seen]
    yield "error", "error", [path.error for path in seen]
    yield "padding side", "padding", [path.padding for path in seen]
    if FAMILIES[vlm.family].patch_size == 16:
        yield "patch size by default", "patch", [16, 14, 16]
    yield "prompt tokens", "ids", [row and len(row[0]) for row in ids]
    yield "token ids as vlkit's", "ids", [row == ids[2] if row and ids[2] else None for row in ids]
    for kind, name in (("picture", "image_grid_thw"), ("clip", "video_grid_thw")):
        grids = zip_longest(*(_grids(path, name) for path in seen))  # None where a path lacks one
        for i, grid_of_each in enumerate(grids):
            yield from _media_rows(vlm, seen, kind, i, list(grid_of_each))


def _media_rows(vlm: VLM, seen: list[Seen], kind: str, i: int, grids: list) -> Iterator[Row]:
    patch, name = FAMILIES[vlm.family].patch_size, f"{kind} {i + 1}"
    sizes = [g and f"{g[2] * patch}×{g[1] * patch}" for g in grids]
    if kind == "picture":
        tall = grids[2][1] - grids[2][2] if grids[2] else 0  # wider there than tall: it lies
        lies = [g and ("lying" if tall * (g[1] - g[2]) < 0 else "upright") for g in grids]
        yield f"{name}: orientation", "orientation", lies
    yield f"{name}: size", "size", sizes
    yield f"{name}: tokens", "tokens", [g and g[0] * g[1] * g[2] // 4 for g in grids]
    chains = [_chain(path, kind, i, size) for path, size in zip(seen, sizes, strict=True)]
    yield f"{name}: sizes on the way", "resizes", chains
    if kind == "clip":
        yield f"{name}: frames, by two", "frames", [g and g[0] for g in grids]
        times = [_times(path, g, i) for path, g in zip(seen, grids, strict=True)]
        yield f"{name}: times", "times", times
    yield f"{name}: largest pixel difference of 255", "pixels", _pixels(vlm, seen, kind, i, grids)


def _grids(seen: Seen, name: str) -> list[tuple[int, int, int]]:
    grid = None if seen.error else seen.tensors.get(name)
    return [] if grid is None else [tuple(row) for row in grid.tolist()]


def _chain(seen: Seen, kind: str, i: int, size: str | None) -> str | None:
    """The sizes to which a path resizes, one after the other."""
    before = seen.fetched.get(kind, [])
    first = "{}×{}".format(*before[i]) if i < len(before) else size
    return size if size is None or first == size else f"{first} → {size}"


def _times(seen: Seen, grid: tuple | None, i: int) -> str | None:
    """A clip's times as the model gets them: seconds per step (Qwen2.5), or all (from Qwen3)."""
    if grid is None:
        return None
    steps = seen.tensors.get("second_per_grid_ts")
    if steps is not None:
        return f"{float(steps[i]):.2f} s a step"
    before = sum(t for t, _, _ in _grids(seen, "video_grid_thw")[:i])
    return " ".join(seen.times[before : before + grid[0]]) or None


def _pixels(vlm: VLM, seen: list[Seen], kind: str, i: int, grids: list) -> list[float | None]:
    """The largest difference from vlkit's patches, where these are of the same grid."""
    clip = kind == "clip"
    processor = vlm.processor.video_processor if clip else vlm.processor.image_processor
    name, grid_name = "pixel_values" + "_videos" * clip, f"{'video' if clip else 'image'}_grid_thw"
    std = np.array(processor.image_std)  # a patch is one row, color after color
    parts = []
    for path, grid in zip(seen, grids, strict=True):
        counts = [t * h * w for t, h, w in _grids(path, grid_name)]
        is_same = grid is not None and grid == grids[2]
        parts.append(path.tensors[name].float().split(counts)[i].numpy() if is_same else None)
    return [
        None
        if part is None
        else round(255 * float((abs(part - parts[2]) * std.repeat(part.shape[1] // 3)).max()), 1)
        for part in parts
    ]


@dataclass(frozen=True, eq=False)
class PathComparison:
    """The results of three paths for the same messages. Made by :func:`vlkit.compare_paths`.

    Attributes:
        table: a row for each property, a column for each path, ``differs`` (whether a path
            differs from vlkit) and ``note``, which says what that means.
        errors: of the paths that failed, in one line each.
        tensors: the processor's output of the other paths.
    """

    table: "pandas.DataFrame"
    errors: dict[str, str]
    tensors: dict[str, Any] = field(repr=False)

    @property
    def differences(self) -> "pandas.DataFrame":
        """The rows that differ."""
        return self.table[self.table["differs"]]

    def _repr_html_(self) -> str:
        rows = []
        for name, row in self.table.iterrows():
            values = [html.escape(str(v)) for v in (name, *(row[p] for p in PATHS), row["note"])]
            if not row["differs"]:
                values = [f'<span style="{FAINT}">{value}</span>' for value in values]
            rows.append(values)
        return table_html(("", *PATHS, "what it means"), rows)


def compare_paths(model: Any, messages: str | Mapping | list) -> PathComparison:
    """Run the two usual input paths and vlkit's, and say where they differ.

    The paths are ``processor.apply_chat_template(tokenize=True)``, and
    ``qwen_vl_utils.process_vision_info`` with the processor as the model cards write it. Items may
    have limits in either spelling (``max_pixels`` or ``max_tokens``); each path gets the one that
    it reads.

    Args:
        model: a transformers processor of the family, or a VLM.
        messages: text, one message or a list of messages; each path gets them as they are.
    """
    import pandas

    vlm = model if hasattr(model, "require_weights") else _wrap(model)
    if vlm is model:
        vlm.require_weights()
    if isinstance(messages, str):
        messages = [{"role": "user", "content": [{"type": "text", "text": messages}]}]
    as_list = [messages] if isinstance(messages, Mapping) else list(messages)
    seen = [_attempt(run, vlm, as_list) for run in (_template, _utilities, _vlkit)]
    rows = {}
    for name, note, values in _rows(vlm, seen):
        differs = _differs(note, values)
        shown = dict(zip(PATHS, ("–" if v is None else v for v in values), strict=True))
        rows[name] = {**shown, "differs": differs, "note": _NOTES[note] if differs else ""}
    return PathComparison(
        pandas.DataFrame.from_dict(rows, orient="index", columns=[*PATHS, "differs", "note"]),
        {name: path.error for name, path in zip(PATHS, seen, strict=True) if path.error},
        {name: path.tensors for name, path in zip(PATHS, seen, strict=True) if not path.error},
    )


def _wrap(processor: Any) -> VLM:
    """A VLM without a model: making inputs needs only the processor."""
    older = "qwen2_5_vl" if "2_5" in type(processor).__name__ else "qwen2_vl"
    family = older if processor.image_processor.patch_size == 14 else "qwen3_vl"
    folder: Any = ModelFolder
    return VLM(None, processor, family, folder)


def _attempt(run: Callable, vlm: VLM, messages: list) -> Seen:
    seen = Seen(padding=vlm.processor.tokenizer.padding_side)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            run(vlm, messages, seen)
            text = vlm.processor.tokenizer.decode(seen.tensors["input_ids"][0])
            seen.times = re.findall(r"<([\d.]+) seconds>", text)
        except Exception as error:  # any failure of a path is a result
            seen.error = f"{type(error).__name__}: {one_line(error)}"
    return seen


# --- the paths -----------------------------------------------------------------------------------


def _template(vlm: VLM, messages: list, seen: Seen) -> None:
    seen.tensors = vlm.processor.apply_chat_template(
        _spell(vlm, messages, theirs=True), tokenize=True, add_generation_prompt=True,
        return_dict=True, return_tensors="pt",
    )  # fmt: skip


def _utilities(vlm: VLM, messages: list, seen: Seen) -> None:
    """As on the model cards of Qwen2-VL and 2.5; and of Qwen3-VL, with metadata."""
    from qwen_vl_utils import process_vision_info

    messages = _spell(vlm, messages, theirs=True)
    text = vlm.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    options: dict[str, Any] = {"return_video_kwargs": True}
    later = FAMILIES[vlm.family].patch_size == 16
    if later:
        options |= {"image_patch_size": 16, "return_video_metadata": True}
    images, videos, arguments = process_vision_info(messages, **options)
    if later:
        arguments["do_resize"] = False
        if videos:
            videos, arguments["video_metadata"] = map(list, zip(*videos, strict=True))
    elif not videos:
        arguments = {}
    seen.fetched = {
        "picture": [image.size for image in images or []],
        "clip": [tuple(video.shape[:-3:-1]) for video in videos or []],
    }
    seen.tensors = vlm.processor(
        text=[text], images=images, videos=videos, padding=True, return_tensors="pt", **arguments
    )


def _vlkit(vlm: VLM, messages: list, seen: Seen) -> None:
    seen.padding = "left"
    seen.tensors = prepare_inputs(vlm, [_spell(vlm, messages, theirs=False)]).tensors


def _spell(vlm: VLM, messages: list, *, theirs: bool) -> list:
    """A copy of the messages with limits as pixels (theirs) or as tokens (ours)."""
    token = (2 * FAMILIES[vlm.family].patch_size) ** 2
    plain = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [_spell_item(item, token, theirs) for item in content]
        elif theirs:  # the templates take both, process_vision_info only a list
            content = [{"type": "text", "text": content}]
        plain.append({**message, "content": content})
    return plain


def _spell_item(item: Any, token: int, theirs: bool) -> Any:
    if not isinstance(item, Mapping):
        return item
    item, is_clip = dict(item), "video" in item
    for ours, pixels in _LIMITS.items():
        if theirs and ours in item:
            item[pixels] = item.pop(ours) * token
        elif not theirs and pixels in item and is_clip == (ours == "max_frame_tokens"):
            item[ours] = max(1, item.pop(pixels) // token)
    if not theirs and is_clip:
        item.pop("min_pixels", None)  # vlkit has no minimum for a frame
    return item
