"""Messages to tensors: media read, template rendered, tokenized."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import PIL.Image

from vlkit.errors import ModelError, VlkitError, one_line
from vlkit.grounding.boxes import Size
from vlkit.media.image import Image
from vlkit.media.video import Clip, ClipStore, Video, load_clip
from vlkit.messages import (
    as_messages,
    escape_control_tokens,
    media_of,
)
from vlkit.models.families import (
    FAMILIES,
    fit_size,
)
from vlkit.models.load import VLM


class PixelCache:
    """What the processor made of pictures lately, for rows that ask about the same one.

    Used by one thread at a time, under ``tokenizing``.
    """

    def __init__(self, most_bytes: int = 2**28):
        self._parts: OrderedDict[Hashable, tuple[Any, Any]] = OrderedDict()
        self._most = most_bytes

    def find(self, key: Hashable) -> tuple[Any, Any] | None:
        """Patches (patches, values) and grid (3,) of a picture, or None."""
        if key in self._parts:
            self._parts.move_to_end(key)
        return self._parts.get(key)

    def keep(self, parts: Mapping[Hashable, tuple[Any, Any]]) -> None:
        """Keep these, and drop what was used longest ago over the limit."""
        self._parts |= parts
        total = sum(pixels.nbytes for pixels, _ in self._parts.values())
        while total > self._most:
            _, (pixels, _) = self._parts.popitem(last=False)
            total -= pixels.nbytes


@contextmanager
def each_once(
    processor: Any, keys: Sequence[Hashable], cache: PixelCache | None = None
) -> Iterator[None]:
    """A processor that works on pictures of one key once; restored on exit.

    Args:
        processor: a Qwen-VL processor, used by one thread at a time.
        keys: of the pictures of the next call, in order; equal only where the result will be.
        cache: of earlier calls.
    """
    image_processor = processor.image_processor
    if keys and (cache is not None or len(set(keys)) < len(keys)):
        processor.image_processor = _EachOnce(image_processor, keys, cache or PixelCache(0))
    try:
        yield
    finally:
        processor.image_processor = image_processor


class _EachOnce:
    """An image processor that repeats what it made of a picture that comes again."""

    def __init__(self, image_processor: Any, keys: Sequence[Hashable], cache: PixelCache):
        self._image_processor, self._keys, self._cache = image_processor, keys, cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image_processor, name)

    def __call__(self, images: Sequence[Any], **options: Any) -> Any:
        import torch
        from transformers import BatchFeature

        parts = {key: part for key in self._keys if (part := self._cache.find(key))}
        new = {key: image for key, image in zip(self._keys, images, strict=True)}
        new = {key: image for key, image in new.items() if key not in parts}
        output = BatchFeature()
        if new:
            output = self._image_processor(list(new.values()), **options)
            grid = torch.as_tensor(output["image_grid_thw"])
            pixels = torch.as_tensor(output["pixel_values"]).split(grid.prod(-1).tolist())
            made = dict(zip(new, zip(pixels, grid, strict=True), strict=True))
            parts |= made
            self._cache.keep(made)
        output["image_grid_thw"] = torch.stack([parts[key][1] for key in self._keys])
        output["pixel_values"] = torch.cat([parts[key][0] for key in self._keys])
        return output


tokenizing = Lock()  # a fast tokenizer changes its padding in place: one thread at a time


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """What the model is given for one or several conversations.

    Attributes:
        tensors: the processor's output (``input_ids`` of shape (rows, length), ``pixel_values``,
            ``image_grid_thw`` …), on the CPU.
        images: per conversation, its upright originals.
        input_sizes: per conversation, the (width, height) of each picture as the model sees it.
        clips: per conversation, its sampled clips, their frames of the size that the model sees.
        prompts: the rendered chat templates, media placeholders not yet expanded.
    """

    tensors: Any
    images: Sequence[Sequence[PIL.Image.Image]]
    input_sizes: list[list[Size]]
    clips: Sequence[Sequence[Clip]]
    prompts: list[str]


@dataclass(frozen=True, eq=False)
class LoadedMessages:
    """One conversation, its media read and its chat template rendered.

    Attributes:
        pictures: how each picture was to be read.
        images: the upright originals.
        clips: the sampled clips, their frames of the size that the model sees.
        prompt: the rendered chat template, media placeholders not yet expanded.
        videos: how each clip was to be sampled.
    """

    pictures: list[Image]
    images: list[PIL.Image.Image]
    clips: list[Clip]
    prompt: str
    videos: list[Video]


def check_model(vlm: Any) -> None:
    """Raises VlkitError for what is not a model, neither on this machine nor elsewhere."""
    if not hasattr(vlm, "answer_rows"):
        raise VlkitError(f"vlm={vlm!r:.60} is not a loaded model; pass what vlkit.load(…) returns")


def check_loaded(vlm: Any) -> None:
    """Raises VlkitError for what is not a model, or one that does not run on this machine."""
    check_model(vlm)
    vlm.require_weights()


def load_messages(vlm: VLM, conversation: Any) -> LoadedMessages:
    """Check one conversation, read its media and render its prompt.

    Raises:
        MediaError, VlkitError: for media or messages that cannot be used.
    """
    check_loaded(vlm)
    messages = as_messages(conversation)
    pictures, videos = media_of(messages)
    images = [each.load() for each in pictures]
    clips = [_sample(vlm, video, messages.clips) for video in videos]
    return LoadedMessages(pictures, images, clips, render_prompt(vlm.processor, messages), videos)


def prepare_inputs(vlm: VLM, conversations: Sequence[Any]) -> ModelInputs:
    """Render, load, resize and tokenize conversations; rows are padded on the left.

    If the last message is the assistant's, it is continued (prefill).

    Raises:
        MediaError, VlkitError: for media or messages that cannot be used.
    """
    return make_inputs(vlm, [load_messages(vlm, conversation) for conversation in conversations])


def make_inputs(
    vlm: VLM,
    loaded: Sequence[LoadedMessages],
    *,
    device: Any = None,
    digests: Sequence[Sequence[Hashable]] | None = None,
    cache: PixelCache | None = None,
) -> ModelInputs:
    """Resize and tokenize loaded conversations; rows are padded on the left.

    Args:
        vlm: whose processor and limits count.
        loaded: from :func:`load_messages`.
        device: where pictures are resized and cut into patches, by default the CPU.
        digests: per row, of the content of its pictures (and more behind them); with them the
            processor works on each picture once, however many rows ask about it.
        cache: of what the processor made of pictures in earlier calls.
    """
    images = [row.images for row in loaded]
    prompts = [row.prompt for row in loaded]
    resized, size = _fit_limits(vlm, [row.pictures for row in loaded], images)
    options: dict[str, Any] = {"images_kwargs": {"size": size}} if size else {}
    if device is not None:
        resized = _move_pictures(resized, device)
    flat = [clip for row in loaded for clip in row.clips]
    if flat:  # sampled and resized already; the metadata tell the processor when and how
        metadata = [clip.metadata for clip in flat]
        options |= {"videos": [clip.frames for clip in flat]}
        options["videos_kwargs"] = {"video_metadata": metadata, **KEEP_FRAMES}
    with tokenizing, each_once(vlm.processor, _picture_keys(vlm, loaded, digests or ()), cache):
        tensors = vlm.processor(
            text=prompts, images=resized or None, padding=True, return_tensors="pt",
            verbose=False, **options,  # what is too long is an error of ours
        )  # fmt: skip
    sizes = iter(_input_sizes(vlm, tensors))
    input_sizes = [[next(sizes) for _ in row] for row in images]
    return ModelInputs(tensors, images, input_sizes, [row.clips for row in loaded], prompts)


def _picture_keys(vlm: VLM, loaded: Sequence[LoadedMessages], digests) -> list[Hashable]:
    """Of all pictures; equal where the processor gives the same."""
    rules = vlm.rules
    return [
        (digest, image.size, rules.image_limits(picture))
        for row, its in zip(loaded, digests, strict=bool(digests))
        for digest, image, picture in zip(its, row.images, row.pictures, strict=False)
    ]


KEEP_FRAMES = {"do_sample_frames": False, "do_resize": False}


def _sample(vlm: VLM, video: Video, cache: ClipStore | None) -> Clip:
    return load_clip(
        video, lambda size, count: vlm.rules.frame_size(size, count, video), cache=cache
    )


def render_prompt(processor: Any, messages: list[dict], *, finished: bool = False) -> str:
    """The chat template of checked messages, a placeholder for each picture and clip.

    Args:
        processor: whose template it is.
        messages: checked; the next answer is asked for, or the last one gone on with.
        finished: nothing is to follow: an answer at the end is whole, its end token written.
    """
    plain = [{"role": m["role"], "content": plain_content(m["content"])} for m in messages]
    prefill = messages[-1]["role"] == "assistant" and not finished
    asked = not prefill and not finished
    ending = {"add_generation_prompt": asked, "continue_final_message": prefill}
    try:
        prompt = processor.apply_chat_template(plain, tokenize=False, **ending)
    except Exception as error:  # templates raise what they like
        raise VlkitError(
            f"the model's chat template refuses these messages ({one_line(error)}); check their "
            "roles and their order"
        ) from error
    if hasattr(processor, "vision_start_token"):  # from Qwen3-VL on every step of a clip has its
        clip = "<|vision_start|><|video_pad|><|vision_end|>"  # own pair of these, and no other
        prompt = prompt.replace(clip, "<|video_pad|>")  # goes around, as the model was trained
    return prompt


def plain_content(content: list[dict]) -> list[dict]:
    """Items of text without control tokens, and placeholders ``{"type": "image"}`` for media.

    Neighbouring texts become one, or they could spell a token together.
    """
    items: list[dict] = []
    for item in content:
        if item["type"] != "text":
            items.append({"type": item["type"]})
        elif items and items[-1]["type"] == "text":
            items[-1]["text"] += item["text"]
        else:
            items.append({"type": "text", "text": item["text"]})
    for item in items:
        if item["type"] == "text":
            item["text"] = escape_control_tokens(item["text"])
    return items


def _fit_limits(vlm: VLM, media, images) -> tuple[list, dict | None]:
    """The pictures of all rows, and the `size` under which the processor keeps each one's limits.

    The processor knows one pair of limits a call. A picture for which that pair would give another
    size than its own limits is resized here, as the processor would, and then left alone by it.
    """
    rules, pictures = vlm.rules, [each for row in media for each in row]
    flat = [image for row in images for image in row]
    limits = [rules.image_limits(each) for each in pictures]
    if set(limits) <= {rules.image_pixels}:
        return flat, None
    sizes = [rules.image_size(i.size, each) for i, each in zip(flat, pictures, strict=True)]
    areas = [width * height for width, height in sizes]
    low = min(*areas, *(low for low, _ in limits))
    high = max(*areas, *(high for _, high in limits))
    resized = [
        image if fit_size(image.size, rules.side, (low, high)) == size else _resize(image, size)
        for image, size in zip(flat, sizes, strict=True)
    ]
    return resized, {"shortest_edge": low, "longest_edge": high}


def _resize(image: PIL.Image.Image, size: Size):
    """The picture as a uint8 tensor (3, height, width), resized as the processors do it."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import pil_to_tensor, resize

    width, height = size
    return resize(pil_to_tensor(image), [height, width], InterpolationMode.BICUBIC, antialias=True)


def _move_pictures(pictures: list, device: Any) -> list:
    """Pictures as uint8 tensors (3, height, width) on a device, where the processor then works."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    def move(picture):
        tensor = pil_to_tensor(picture) if isinstance(picture, PIL.Image.Image) else picture
        return tensor.to(device)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(move, pictures))


def _input_sizes(vlm: VLM, tensors) -> list[Size]:
    patch = vlm.processor.image_processor.patch_size
    grid = tensors.get("image_grid_thw")
    return [] if grid is None else [(w * patch, h * patch) for _, h, w in grid.tolist()]


_EAST_ASIAN = re.compile(r"[぀-ヿ㐀-鿿가-힯＀-￯]")


def estimate_text(messages: list[dict], family: str, clip_times: Sequence[Sequence[float]]) -> int:
    """About how many tokens a prompt's text has: 4 letters each, 1.5 of East Asian scripts.

    A turn costs 5 beside its text, a picture or clip 2, the default system message of the first
    two generations 11, a time of the later ones 9.
    """
    text = "".join(item.get("text", "") for m in messages for item in m["content"])
    wide = len(_EAST_ASIAN.findall(text))
    tokens = math.ceil((len(text) - wide) / 4 + wide / 1.5) + 5 * len(messages)
    tokens += 2 * sum(item["type"] != "text" for m in messages for item in m["content"])
    if messages[-1]["role"] != "assistant":
        tokens += 3
    if family in FAMILIES and FAMILIES[family].patch_size == 16:
        return tokens + 9 * sum(map(len, clip_times))
    return tokens + (0 if messages[0]["role"] == "system" else 11)


def check_context(vlm: VLM, prompt_tokens: int, max_new_tokens: int) -> None:
    """Raises ModelError where prompt and answer do not fit the context."""
    if prompt_tokens + max_new_tokens > vlm.context_length:
        raise ModelError(
            f"{prompt_tokens:,} prompt tokens and max_new_tokens={max_new_tokens:,} exceed "
            f"{vlm.name}'s context of {vlm.context_length:,}; use fewer or smaller pictures "
            "(vlkit.Image(…, max_tokens=…)), less text or a smaller max_new_tokens"
        )


def ending_tokens(vlm: VLM) -> set[int]:
    """The ids that end an answer."""
    ending = vlm.model.generation_config.eos_token_id
    return {ending} if isinstance(ending, int) else set(ending or ())
