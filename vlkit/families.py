"""The family table: which architectures belong to which generation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vlkit.errors import ModelError


@dataclass(frozen=True)
class Family:
    """One generation: its architectures, and the sizes that its repositories publish.

    The resized sides of a picture are multiples of ``2 * patch_size``; one image token covers
    that square. The way it writes boxes stands in ``vlkit.grounding.FORMATS`` under the same name.

    Attributes:
        model_types: of ``config.json``.
        patch_size: side of a patch in pixels.
        image_pixels: fewest and most of a picture, from ``preprocessor_config.json``; 4 and
            16,384 tokens in Qwen2-VL and 2.5, 64 and 16,384 later. (The class in transformers has
            a lower maximum, 1,280 tokens, which none of the repositories keeps.)
        video_pixels: of a clip, from ``video_preprocessor_config.json``, which the first two
            generations lack: theirs are the picture's.
        context_length: ``max_position_embeddings`` in ``config.json``.
        spelling: how names on the hubs spell it.
    """

    model_types: tuple[str, ...]
    patch_size: int
    image_pixels: tuple[int, int]
    video_pixels: tuple[int, int]
    context_length: int
    spelling: str


_PATCH_14 = ((4 * 28**2, 16_384 * 28**2),) * 2
_PATCH_16 = ((64 * 32**2, 16_384 * 32**2), (4 * 32**2, 24_576 * 32**2))
FAMILIES = {
    "qwen2_vl": Family(("qwen2_vl",), 14, *_PATCH_14, 32_768, r"qwen2-vl|qvq-72b"),
    "qwen2_5_vl": Family(("qwen2_5_vl",), 14, *_PATCH_14, 128_000, r"qwen2[._]5-vl"),
    "qwen3_vl": Family(("qwen3_vl", "qwen3_vl_moe"), 16, *_PATCH_16, 262_144, r"qwen3-vl"),
    "qwen3_5": Family(("qwen3_5", "qwen3_5_moe"), 16, *_PATCH_16, 262_144, r"qwen3[._]5"),
}


def family_of_name(name: str) -> str:
    """The family that a model's id names, such as ``Qwen/Qwen2.5-VL-7B-Instruct``.

    Raises:
        ModelError: none can be told from it.
    """
    for key, family in FAMILIES.items():
        if re.search(family.spelling, name.lower()):
            return key
    raise ModelError(
        f"{name!r} is no folder, and no family can be told from its name; pass a folder or an id "
        'like "Qwen/Qwen2.5-VL-7B-Instruct"'
    )


def family_of(config: dict, name: str) -> str:
    """The family of a ``config.json``; ``name`` is for the error.

    Raises:
        ModelError: an architecture outside the family.
    """
    kind = config.get("model_type")
    for key, family in FAMILIES.items():
        if kind in family.model_types:
            return key
    if kind == "qwen" and "visual" in config:
        raise ModelError(
            f"{name} is a first-generation Qwen-VL, whose code lives outside transformers; "
            "load Qwen/Qwen2-VL-2B-Instruct or newer (vlkit.parse_grounding reads its answers with "
            'family="qwen_vl")'
        )
    known = [t for family in FAMILIES.values() for t in family.model_types]
    raise ModelError(
        f"{name} has model_type={kind!r}, which is no vision model of this family; "
        f"known types = {known}"
    )
