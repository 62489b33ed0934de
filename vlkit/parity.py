"""The two usual ways from messages to tensors, beside vlkit's: where do they differ?"""

from __future__ import annotations

import contextlib
import copy
import html
import io
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlkit.families import FAMILIES
from vlkit.hubs import ModelFolder, first_line
from vlkit.inputs import check_loaded, prepare_inputs
from vlkit.models import VLM
from vlkit.parity_table import PATHS, Seen, make_table
from vlkit.remote.models import RemoteVLM

if TYPE_CHECKING:
    import pandas

_LIMITS = {"max_tokens": "max_pixels", "min_tokens": "min_pixels", "max_frame_tokens": "max_pixels"}


@dataclass(frozen=True, eq=False)
class PathComparison:
    """What three paths make of the same messages. Made by :func:`vlkit.compare_paths`.

    Attributes:
        table: a row for each thing compared, a column for each path, ``differs`` (whether a path
            departs from vlkit) and ``note``, which says what that means.
        errors: the paths that failed, each with its error in one line.
        tensors: the processor's output of each path that did not.
    """

    table: pandas.DataFrame
    errors: dict[str, str]
    tensors: dict[str, Any] = field(repr=False)

    @property
    def differences(self) -> pandas.DataFrame:
        """The rows that differ."""
        return self.table[self.table["differs"]]

    def _repr_html_(self) -> str:
        cell = "padding:3px 12px 3px 0;text-align:left;vertical-align:top;border:none"
        heads = "".join(f'<th style="{cell}">{name}</th>' for name in ("", *PATHS, "what it means"))
        rows = ""
        for name, row in self.table.iterrows():
            values = [name, *(row[path] for path in PATHS), row["note"]]
            faint = "" if row["differs"] else "opacity:.65"
            cells = "".join(f'<td style="{cell}">{html.escape(str(v))}</td>' for v in values)
            rows += f'<tr style="{faint}">{cells}</tr>'
        return f'<table style="border-collapse:collapse"><tr>{heads}</tr>{rows}</table>'


def compare_paths(model: Any, messages: str | Mapping | list) -> PathComparison:
    """Run the two usual input paths beside vlkit's and say where they differ.

    The paths are ``processor.apply_chat_template(tokenize=True)``, and
    ``qwen_vl_utils.process_vision_info`` with the processor as the model cards write it. Items may
    hold limits in either spelling (``max_pixels`` or ``max_tokens``); each path gets its own.

    Args:
        model: a transformers processor of the family, or a VLM.
        messages: text, one message or a list of messages; each path gets them as they are.
    """
    if isinstance(model, RemoteVLM):
        check_loaded(model)
    vlm = model if isinstance(model, VLM) else _wrap(model)
    if isinstance(messages, str):
        messages = [{"role": "user", "content": [{"type": "text", "text": messages}]}]
    given = [messages] if isinstance(messages, Mapping) else list(messages)
    runs: dict[str, Callable] = dict(zip(PATHS, (_template, _utilities, _own), strict=True))
    seen = {name: _attempt(run, vlm, given) for name, run in runs.items()}
    return PathComparison(
        make_table(vlm, seen),
        {name: each.error for name, each in seen.items() if each.error},
        {name: each.tensors for name, each in seen.items() if not each.error},
    )


def _wrap(processor: Any) -> VLM:
    """A VLM without a model: what makes inputs needs its processor alone."""
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
        except Exception as error:  # whatever a path does wrong is what we want to know
            seen.error = f"{type(error).__name__}: {first_line(error)}"
    return seen


# --- the paths -----------------------------------------------------------------------------------


def _template(vlm: VLM, messages: list, seen: Seen) -> None:
    seen.tensors = vlm.processor.apply_chat_template(
        _spell(vlm, messages, theirs=True),
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )


def _utilities(vlm: VLM, messages: list, seen: Seen) -> None:
    """As on the cards of Qwen2-VL and 2.5; and on that of Qwen3-VL, with metadata."""
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


def _own(vlm: VLM, messages: list, seen: Seen) -> None:
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
    item = copy.copy(dict(item))
    for ours, pixels in _LIMITS.items():
        if theirs and ours in item:
            item[pixels] = item.pop(ours) * token
        elif not theirs and pixels in item and ("video" in item) == (ours == "max_frame_tokens"):
            item[ours] = max(1, item.pop(pixels) // token)
    if not theirs and "video" in item:
        item.pop("min_pixels", None)  # a frame has no fewest tokens of its own here
    return item
