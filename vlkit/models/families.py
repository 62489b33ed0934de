"""The families (generations), and how large each sees a picture."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from vlkit.errors import ModelError, warn_user
from vlkit.grounding.boxes import Size
from vlkit.media.image import Image
from vlkit.media.video import Video


@dataclass(frozen=True)
class Family:
    """One generation: its architectures, and the sizes that its repositories publish.

    The resized sides of a picture are multiples of ``2 * patch_size``; one image token covers
    that square. The way it writes boxes is in ``vlkit.grounding.FORMATS`` under the same name.

    Attributes:
        model_types: of ``config.json``.
        patch_size: side of a patch in pixels.
        image_pixels: fewest and most of a picture, from ``preprocessor_config.json``; always 256
            tokens in Qwen-VL, 4 to 16,384 in Qwen2-VL and 2.5, 64 to 16,384 later. (The class in
            transformers has a lower maximum, 1,280 tokens, which none of the repositories keeps.)
        video_pixels: of a clip, from ``video_preprocessor_config.json``, which the first three
            generations lack: theirs are the picture's.
        context_length: ``max_position_embeddings`` in ``config.json``.
        spelling: how names on the hubs spell it.
        square: pixels of each side to which every picture is resized; 0 where sizes differ.
    """

    model_types: tuple[str, ...]
    patch_size: int
    image_pixels: tuple[int, int]
    video_pixels: tuple[int, int]
    context_length: int
    spelling: str
    square: int = 0


_PATCH_14 = ((4 * 28**2, 16_384 * 28**2),) * 2
_PATCH_16 = ((64 * 32**2, 16_384 * 32**2), (4 * 32**2, 24_576 * 32**2))

# names on the hubs; of models made from these, what their config.json has as its model_type
_QWEN2 = r"qwen2[_-]?vl|qvq-72b|ui-tars-\d+b|os-atlas-\w+-7b|olmocr-7b-0225"
_QWEN2_5 = r"qwen2[._]5[_-]?vl|ui-tars-1\.5|olmocr-(2-)?7b-(0[78]|1\d)25|cosmos-reason1"
_QWEN2_5 += "|rolmocr|nanonets-ocr-s"
_QWEN3 = r"qwen3[_-]?vl|cosmos-reason2"
FAMILIES = {
    "qwen_vl": Family(
        ("qwen",), 14, *((448**2, 448**2),) * 2, 8_192, r"qwen[_-]?vl(?!-(max|plus|ocr))", 448
    ),
    "qwen2_vl": Family(("qwen2_vl",), 14, *_PATCH_14, 32_768, _QWEN2),
    "qwen2_5_vl": Family(("qwen2_5_vl",), 14, *_PATCH_14, 128_000, _QWEN2_5),
    "qwen3_vl": Family(("qwen3_vl", "qwen3_vl_moe"), 16, *_PATCH_16, 262_144, _QWEN3),
    # and later: Qwen3.6 and 3.8 have its model types, and all of them its processor
    "qwen3_5": Family(
        ("qwen3_5", "qwen3_5_moe", "qwen4_exp"), 16, *_PATCH_16, 262_144,
        r"qwen3[._][5-9](?!b)|qwen4[_-]?exp",
    ),
}  # fmt: skip
_FIRST_VISION = {"visual", "vision_config"}  # without them, "qwen" is a text model


def family_named(name: str) -> str | None:
    """The family in a hub id such as Qwen/Qwen2.5-VL-7B or a class such as Qwen2_5_VLModel."""
    return next((k for k, f in FAMILIES.items() if re.search(f.spelling, name.lower())), None)


def family_of_name(name: str) -> str:
    """The family that a model's id names, such as ``Qwen/Qwen2.5-VL-7B-Instruct``.

    Raises:
        ModelError: the name does not show it.
    """
    if family := family_named(name):
        return family
    raise ModelError(
        f"{name!r} is not a folder, and its name does not show the model family; pass a folder or "
        'an id like "Qwen/Qwen2.5-VL-7B-Instruct"'
    )


def family_of(config: dict, name: str) -> str:
    """The family of a ``config.json``; ``name`` is for the error.

    Raises:
        ModelError: an architecture outside the family.
    """
    kind = config.get("model_type")
    for key, family in FAMILIES.items():
        if kind in family.model_types and (kind != "qwen" or config.keys() & _FIRST_VISION):
            return key
    if _is_newer(kind):
        newest = list(FAMILIES)[-1]
        warn_user(
            f"{name} has model_type={kind!r}, which vlkit does not know; pictures and boxes are "
            f"read by the rules of {newest}. Update vlkit, or check the first answers' boxes"
        )
        return newest
    known = [t for family in FAMILIES.values() for t in family.model_types]
    raise ModelError(
        f"{name} has model_type={kind!r}, which is not a vision model of this family; "
        f"known types = {known}"
    )


def _is_newer(kind: Any) -> bool:
    """Whether transformers knows this type as a generation of Qwen that reads pictures."""
    if not re.match(r"qwen\d", str(kind)):
        return False
    from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


Limits = tuple[float, float]  # fewest and most pixels
# qwen_vl_utils.vision_process: VIDEO_MIN_TOKEN_NUM, VIDEO_MAX_TOKEN_NUM, and 90 % of MODEL_SEQ_LEN
FRAME_TOKENS = (128, 768)
CLIP_TOKENS = 128_000 * 0.9


@dataclass(frozen=True)
class SizeRules:
    """How large a model sees pictures and clips.

    Attributes:
        patch_size: side of a patch in pixels; one token covers ``side`` = two patches squared.
        image_pixels: fewest and most pixels of a resized picture.
        video_pixels: the same for its video processor (per frame for patches of 14 pixels).
        max_image_tokens: limit for every picture or frame without its own limit, or None.
        square: pixels of each side to which every picture is resized; 0 where sizes differ.
    """

    patch_size: int
    image_pixels: tuple[int, int]
    video_pixels: tuple[int, int]
    max_image_tokens: int | None = None
    square: int = 0

    @property
    def side(self) -> int:
        """Pixels; resized sides are multiples of it."""
        return 2 * self.patch_size

    def image_limits(self, image: Image | None = None) -> Limits:
        """The fewest and most pixels that a picture has after resizing.

        A picture's limits take precedence over the model's (``max_image_tokens``), and these over
        the processor's.

        Raises:
            ModelError: a limit that a family of one size cannot keep.
        """
        token = self.side**2
        low, high = self.image_pixels
        image = image or Image(None)
        most = _pixels_of(image.max_tokens, token, image.max_pixels)
        most = most or (self.max_image_tokens or 0) * token
        least = _pixels_of(image.min_tokens, token, image.min_pixels)
        if self.square and (least > low or 0 < most < high):
            raise ModelError(
                f"Qwen-VL sees every picture at {self.square} × {self.square} pixels, "
                f"{low // token} tokens, and cannot keep another limit; leave it out"
            )
        if most:
            low, high = min(low, most), most
        if least:
            has_most = image.max_tokens or image.max_pixels
            low, high = least, high if has_most else max(high, 2 * least)  # room for rounding up
        return low, max(high, low)

    def image_size(self, size: Size, image: Image | None = None) -> Size:
        """The (width, height) at which the model sees an upright picture of this size."""
        limits = self.image_limits(image)
        if self.square:
            return self.square, self.square
        return fit_size(size, self.side, limits, strictly=limits != self.image_pixels)

    def frame_size(self, size: Size, count: int, video: Video | None = None) -> Size:
        """The (width, height) to which a clip's frames are resized, as qwen-vl-utils does it.

        A frame has 128 to 768 tokens, fewer where the model's processor says so, and at most its
        share of 115,200 tokens for the clip; ``max_frame_tokens`` and ``max_image_tokens`` lower
        the limit.

        Args:
            size: (width, height) of the upright original.
            count: frames sampled.
            video: with its limit.

        Raises:
            ModelError: the first generation reads no clips.
        """
        if self.square:
            raise ModelError(
                "Qwen-VL, the first generation, reads pictures, but no clips; ask about single "
                "frames, or load Qwen2-VL or later"
            )
        token = self.side**2
        low, high = FRAME_TOKENS[0] * token, FRAME_TOKENS[1] * token
        least, most_of_processor = self.video_pixels
        # from Qwen3-VL on the processor's limits are for a whole clip; and limits above 768 tokens,
        # as in Qwen2-VL's and 2.5's repositories, are those of pictures
        if self.patch_size == 14 and most_of_processor <= high:
            low, high = min(low, least), most_of_processor
        share = CLIP_TOKENS * token / count * 2
        most_pixels: float = max(min(high, share), int(low * 1.05))
        most = (video and video.max_frame_tokens) or self.max_image_tokens
        if most:
            low, most_pixels = min(low, most * token), min(most_pixels, most * token)
        return fit_size(size, self.side, (low, most_pixels), strictly=bool(most))


def _pixels_of(tokens: int | None, token: int, pixels: int | None) -> int:
    """One limit in pixels, given as tokens or as pixels, at least one token; 0 for none."""
    return (tokens or 0) * token or (max(pixels, token) if pixels else 0)


def rules_of_processor(processor: Any, family: str, max_image_tokens: int | None) -> SizeRules:
    """The rules of a loaded processor."""
    sizes = processor.image_processor.size, processor.video_processor.size
    picture, video = ((size["shortest_edge"], size["longest_edge"]) for size in sizes)
    known = FAMILIES[family]
    return SizeRules(known.patch_size, picture, video, max_image_tokens, known.square)


def published_rules(family: str, config: dict | None = None) -> SizeRules:
    """The rules of a family as its repositories have them.

    Args:
        family: a key of ``FAMILIES``.
        config: a ``preprocessor_config.json`` that takes precedence.
    """
    known = FAMILIES[family]
    rules = SizeRules(known.patch_size, known.image_pixels, known.video_pixels, square=known.square)
    config = config or {}
    size = config.get("size") or {}
    low = config.get("min_pixels") or size.get("shortest_edge")
    high = config.get("max_pixels") or size.get("longest_edge")
    if not low or not high:
        return rules
    return replace(rules, image_pixels=(low, high), video_pixels=(low, high))


def fit_size(size: Size, side: int, limits: Limits, *, strictly: bool = False) -> Size:
    """The (width, height) to which the processor resizes, in multiples of ``side``.

    The result for a narrow or tiny picture may exceed the limit; ``strictly`` shrinks it further
    and changes its shape where necessary.
    """
    low, high = limits
    width, height = smart_resize(size, side, low, high)
    most = int(high // side**2)
    if not strictly or width * height <= high:
        return width, height
    columns, rows = width // side, height // side
    scale = math.sqrt(most / (columns * rows))
    columns, rows = max(1, int(columns * scale)), max(1, int(rows * scale))
    return min(columns, most) * side, min(rows, most) * side


def smart_resize(size: Size, side: int, low: float, high: float) -> Size:
    """``smart_resize`` of transformers and qwen-vl-utils, for (width, height).

    Both sides to the nearest multiple of ``side``; above ``high`` pixels shrunk by √(area/high)
    and rounded down, below ``low`` enlarged by √(low/area) and rounded up.
    """
    width, height = size
    new = [round(length / side) * side for length in size]
    if new[0] * new[1] > high:
        beta = math.sqrt(height * width / high)
        new = [max(side, math.floor(length / beta / side) * side) for length in size]
    elif new[0] * new[1] < low:
        beta = math.sqrt(low / (height * width))
        new = [math.ceil(length * beta / side) * side for length in size]
    return new[0], new[1]
