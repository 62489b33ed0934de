"""From messages to tensors: media read, limits kept, chat template rendered, tokens made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import PIL.Image

from vlkit.errors import VlkitError
from vlkit.families import FAMILIES
from vlkit.grounding import Size
from vlkit.hubs import first_line
from vlkit.media import Image
from vlkit.messages import as_messages, escape_control_tokens, iterate_media, read_media_item
from vlkit.models import VLM
from vlkit.video import Clip, Video, load_clip


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
    images: list[list[PIL.Image.Image]]
    input_sizes: list[list[Size]]
    clips: list[list[Clip]]
    prompts: list[str]


def prepare_inputs(vlm: VLM, conversations: Sequence[Any]) -> ModelInputs:
    """Render, load, resize and tokenize conversations; rows are padded on the left.

    A conversation whose last message is the assistant's is gone on with, not answered anew.

    Raises:
        MediaError, VlkitError: for media or messages that cannot be used.
    """
    conversations = [as_messages(conversation) for conversation in conversations]
    media = [[read_media_item(i) for i in iterate_media(c)] for c in conversations]
    pictures = [[each for each in row if isinstance(each, Image)] for row in media]
    images = [[each.load() for each in row] for row in pictures]
    clips = [[_sample(vlm, each) for each in row if isinstance(each, Video)] for row in media]
    prompts = [_render(vlm.processor, conversation) for conversation in conversations]
    resized, size = _fit_limits(vlm, pictures, images)
    options: dict[str, Any] = {"images_kwargs": {"size": size}} if size else {}
    flat = [clip for row in clips for clip in row]
    if flat:  # sampled and resized already; the metadata tell the processor when and how
        metadata = [clip.metadata for clip in flat]
        options |= {"videos": [clip.frames for clip in flat]}
        options["videos_kwargs"] = {"video_metadata": metadata, **_AS_IT_IS}
    tensors = vlm.processor(
        text=prompts, images=resized or None, padding=True, return_tensors="pt", **options
    )
    sizes = iter(_input_sizes(vlm, tensors))
    input_sizes = [[next(sizes) for _ in row] for row in images]
    return ModelInputs(tensors, images, input_sizes, clips, prompts)


_AS_IT_IS = {"do_sample_frames": False, "do_resize": False}


def _sample(vlm: VLM, video: Video) -> Clip:
    return load_clip(video, lambda size, count: frame_size(vlm, size, count, video))


def frame_size(vlm: VLM, size: Size, count: int, video: Video | None = None) -> Size:
    """The (width, height) to which a clip's frames are resized, as qwen-vl-utils does it.

    A frame has 128 to 768 tokens, fewer where the model's own processor says so, and an even
    share of 115,200 tokens for the clip; ``max_frame_tokens`` and the model's
    ``max_image_tokens`` lower the limit.

    Args:
        size: (width, height) of the upright original.
        count: frames sampled.
    """
    side = 2 * FAMILIES[vlm.family].patch_size
    low, high = 128 * side**2, 768 * side**2  # VIDEO_MIN_TOKEN_NUM, VIDEO_MAX_TOKEN_NUM
    own = vlm.processor.video_processor.size
    if side == 28:  # here its limits are per frame, from Qwen3-VL on per clip
        low, high = min(low, own["shortest_edge"]), min(high, own["longest_edge"])
    share = int(0.9 * 128_000 * side**2 / count * 2)
    high = max(min(high, share), int(low * 1.05))
    most = (video and video.max_frame_tokens) or vlm.max_image_tokens
    if most:
        low, high = min(low, most * side**2), min(high, most * side**2)
    return _fit(size, side, low, high, strictly=bool(most))


def _render(processor, messages: list[dict]) -> str:
    plain = [{"role": m["role"], "content": _without_media(m["content"])} for m in messages]
    prefill = messages[-1]["role"] == "assistant"
    ending = {"add_generation_prompt": not prefill, "continue_final_message": prefill}
    try:
        return processor.apply_chat_template(plain, tokenize=False, **ending)
    except Exception as error:  # templates raise what they like
        raise VlkitError(
            f"the model's chat template refuses these messages ({first_line(error)}); check their "
            "roles and their order"
        ) from error


def _without_media(content: list[dict]) -> list[dict]:
    """Placeholders for media; neighbouring texts as one, or they could spell a token together."""
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


def image_limits(vlm: VLM, image: Image | None = None) -> tuple[int, int]:
    """The fewest and most pixels that a picture has after resizing.

    A picture's own limits count before the model's (``max_image_tokens``), and these before the
    processor's; one token covers ``(2 * patch_size) ** 2`` pixels.
    """
    size = vlm.processor.image_processor.size
    token = (2 * FAMILIES[vlm.family].patch_size) ** 2
    low, high = size["shortest_edge"], size["longest_edge"]
    most = (image and image.max_tokens) or vlm.max_image_tokens
    if most:
        low, high = min(low, most * token), most * token
    if image and image.min_tokens:
        low = image.min_tokens * token
        high = high if image.max_tokens else max(high, 2 * low)  # room for rounding up
    return low, high


def _fit_limits(vlm: VLM, media, images) -> tuple[list, dict | None]:
    """The pictures of all rows, and the `size` under which the processor keeps each one's limits.

    The processor knows one pair of limits a call. A picture for which that pair would give another
    size than its own limits is resized here, as the processor would, and then left alone by it.
    """
    flat = [image for row in images for image in row]
    limits = [image_limits(vlm, each) for row in media for each in row]
    own = image_limits(vlm=replace(vlm, max_image_tokens=None))
    if set(limits) <= {own}:
        return flat, None
    side = 2 * FAMILIES[vlm.family].patch_size
    sizes = [_fit(i.size, side, *pair, pair != own) for i, pair in zip(flat, limits, strict=True)]
    areas = [width * height for width, height in sizes]
    low = min(*areas, *(low for low, _ in limits))
    high = max(*areas, *(high for _, high in limits))
    resized = [
        image if _fit(image.size, side, low, high) == size else _resize(image, size)
        for image, size in zip(flat, sizes, strict=True)
    ]
    return resized, {"shortest_edge": low, "longest_edge": high}


def _fit(size: Size, side: int, low: int, high: int, strictly: bool = False) -> Size:
    """The (width, height) to which the processor resizes, in multiples of `side`.

    A narrow or tiny picture may come out above `high`; `strictly` shrinks it further, its shape
    given up where it must.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    width, height = size
    height, width = smart_resize(height, width, factor=side, min_pixels=low, max_pixels=high)
    most = high // side**2
    if not strictly or width * height <= high:
        return width, height
    columns, rows = width // side, height // side
    scale = math.sqrt(most / (columns * rows))
    columns, rows = max(1, int(columns * scale)), max(1, int(rows * scale))
    return min(columns, most) * side, min(rows, most) * side


def _resize(image: PIL.Image.Image, size: Size):
    """The picture as a uint8 tensor (3, height, width), resized as the processors do it."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import pil_to_tensor, resize

    width, height = size
    return resize(pil_to_tensor(image), [height, width], InterpolationMode.BICUBIC, antialias=True)


def _input_sizes(vlm: VLM, tensors) -> list[Size]:
    patch = vlm.processor.image_processor.patch_size
    grid = tensors.get("image_grid_thw")
    return [] if grid is None else [(w * patch, h * patch) for _, h, w in grid.tolist()]
