"""From messages to tensors: media read, limits kept, chat template rendered, tokens made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image

from vlkit.families import FAMILIES
from vlkit.grounding import Size
from vlkit.media import Image
from vlkit.messages import as_messages, escape_control_tokens, iterate_media, read_media_item
from vlkit.models import VLM


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """What the model is given for one or several conversations.

    Attributes:
        tensors: the processor's output (``input_ids`` of shape (rows, length), ``pixel_values``,
            ``image_grid_thw`` …), on the CPU.
        images: per conversation, its upright originals.
        input_sizes: per conversation, the (width, height) of each picture as the model sees it.
        prompts: the rendered chat templates, media placeholders not yet expanded.
    """

    tensors: Any
    images: list[list[PIL.Image.Image]]
    input_sizes: list[list[Size]]
    prompts: list[str]


def prepare_inputs(vlm: VLM, conversations: Sequence[Any]) -> ModelInputs:
    """Render, load, resize and tokenize conversations; rows are padded on the left.

    A conversation whose last message is the assistant's is gone on with, not answered anew.

    Raises:
        MediaError, VlkitError: for media or messages that cannot be used.
    """
    conversations = [as_messages(conversation) for conversation in conversations]
    media = [[read_media_item(i) for i in iterate_media(c)] for c in conversations]
    images = [[each.load() for each in row] for row in media]
    prompts = [_render(vlm.processor, conversation) for conversation in conversations]
    resized, size = _fit_limits(vlm, media, images)
    options = {"images_kwargs": {"size": size}} if size else {}
    tensors = vlm.processor(
        text=prompts, images=resized or None, padding=True, return_tensors="pt", **options
    )
    sizes = iter(_input_sizes(vlm, tensors))
    return ModelInputs(tensors, images, [[next(sizes) for _ in row] for row in images], prompts)


def _render(processor, messages: list[dict]) -> str:
    plain = [
        {"role": m["role"], "content": [_without_media(item) for item in m["content"]]}
        for m in messages
    ]
    prefill = messages[-1]["role"] == "assistant"
    return processor.apply_chat_template(
        plain, tokenize=False, add_generation_prompt=not prefill, continue_final_message=prefill
    )


def _without_media(item: dict) -> dict:
    if item["type"] == "image":
        return {"type": "image"}
    return {"type": "text", "text": escape_control_tokens(item["text"])}


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
    return low, max(low, high)


def _fit_limits(vlm: VLM, media, images) -> tuple[list, dict | None]:
    """The pictures of all rows, and the `size` under which the processor keeps each one's limits.

    The processor knows one pair of limits a call. Where pictures differ in theirs, they are
    resized here, to sizes that the wider common limits then leave alone.
    """
    from qwen_vl_utils.vision_process import smart_resize

    flat = [image for row in images for image in row]
    limits = [image_limits(vlm, each) for row in media for each in row]
    if not flat or set(limits) == {image_limits_of_processor(vlm)}:
        return flat, None
    common = {
        "shortest_edge": min(low for low, _ in limits),
        "longest_edge": max(high for _, high in limits),
    }
    if len(set(limits)) == 1:
        return flat, common
    factor = 2 * FAMILIES[vlm.family].patch_size
    resized = []
    for image, (low, high) in zip(flat, limits, strict=True):
        height, width = smart_resize(
            image.height, image.width, factor=factor, min_pixels=low, max_pixels=high
        )
        resized.append(image.resize((width, height), PIL.Image.Resampling.BICUBIC))
    return resized, common


def image_limits_of_processor(vlm: VLM) -> tuple[int, int]:
    size = vlm.processor.image_processor.size
    return size["shortest_edge"], size["longest_edge"]


def _input_sizes(vlm: VLM, tensors) -> list[Size]:
    patch = vlm.processor.image_processor.patch_size
    grid = tensors.get("image_grid_thw")
    return [] if grid is None else [(w * patch, h * patch) for _, h, w in grid.tolist()]
