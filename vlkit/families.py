"""The family table: which architectures belong to which generation."""

from __future__ import annotations

from dataclasses import dataclass

from vlkit.errors import ModelError


@dataclass(frozen=True)
class Family:
    """One generation: its architectures and the side of its patches in pixels.

    The resized sides of a picture are multiples of ``2 * patch_size``; one image token covers
    that square. The way it writes boxes stands in ``vlkit.grounding.FORMATS`` under the same name.
    """

    model_types: tuple[str, ...]
    patch_size: int


FAMILIES = {
    "qwen2_vl": Family(("qwen2_vl",), 14),
    "qwen2_5_vl": Family(("qwen2_5_vl",), 14),
    "qwen3_vl": Family(("qwen3_vl", "qwen3_vl_moe"), 16),
    "qwen3_5": Family(("qwen3_5", "qwen3_5_moe"), 16),
}


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
