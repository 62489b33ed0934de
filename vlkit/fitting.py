"""Messages made to fit a budget of tokens or memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from vlkit.errors import VlkitError
from vlkit.flight import ClipView, Preflight, View, measure, view_clip
from vlkit.media import Image
from vlkit.video import Video

GOOD_FRAME = 32  # tokens; a clip gives up frames before its frames get smaller


@dataclass(frozen=True, eq=False)
class Fitted:
    """Messages that keep within a budget.

    Attributes:
        messages: ready to be asked.
        media: their pictures and clips, with the limits that keep them within the budget.
        preflight: what they cost.
    """

    messages: list[dict] = field(repr=False)
    media: tuple[Image | Video, ...] = field(repr=False)
    preflight: Preflight

    def _repr_html_(self) -> str:
        return self.preflight._repr_html_()


def fit(plan: Preflight, *, tokens: int | None = None, memory: float | None = None) -> Fitted:
    """The largest pixel budget that all pictures and frames can have within the limits.

    Every picture and frame gets the same limit; those that are smaller stay as they are, and a
    picture's own ``min_tokens`` counts. Clips are sampled at half, a quarter … of their frames
    where these would come below 32 tokens.

    Raises:
        VlkitError: the limits are malformed, or too small at any size.
    """
    most = plan.context_length if tokens is None else tokens
    if not isinstance(most, int) or most < 1:
        raise VlkitError(f"tokens={tokens!r} must be a whole number, 1 or more")
    if memory is not None and (not isinstance(memory, int | float) or not memory > 0):
        raise VlkitError(f"memory={memory!r} must be a number of bytes above 0")
    if memory is not None and plan.memory is None:
        raise VlkitError(f"the shape of {plan.model} is not known; pass tokens= instead of memory=")

    def keeps(candidate: Preflight) -> bool:
        needed = candidate.memory.total if memory and candidate.memory else 0
        return candidate.total_tokens <= most and needed <= (memory or 0)

    found = plan if keeps(plan) else _search(plan, keeps)
    return _finish(found)


def _search(plan: Preflight, keeps: Callable[[Preflight], bool]) -> Preflight:
    share = 1
    while True:
        fewer = [_fewer_frames(plan, view, share) for view in plan.views]
        base = measure(plan.target, plan.messages, fewer, plan.usage.new_tokens)
        last = all(len(v.indices) <= 2 * share for v in plan.clips)
        cap = _largest_cap(base, keeps)
        if cap >= (1 if last else GOOD_FRAME):
            return _capped(base, cap)
        if last:
            raise VlkitError(_too_small(base))
        share *= 2


def _largest_cap(base: Preflight, keeps: Callable[[Preflight], bool]) -> int:
    """The largest limit on tokens a picture or frame that keeps within the budget, or 0."""
    low, high = 0, max((_frame_tokens(view) for view in base.views), default=0)
    if keeps(base):
        return max(high, GOOD_FRAME)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(_capped(base, middle)) else (low, middle)
    return low


def _capped(base: Preflight, cap: int) -> Preflight:
    views = [_cap_view(base, view, cap) for view in base.views]
    usage = base.usage
    text = usage.prompt_tokens - usage.image_tokens - usage.video_tokens
    return measure(base.target, base.messages, views, usage.new_tokens, text)


def _cap_view(base: Preflight, view: View, cap: int) -> View:
    if _frame_tokens(view) <= cap:
        return view
    if isinstance(view, ClipView):
        video = replace(view.video, max_frame_tokens=cap)
        return view_clip(base.target, video, view.info)
    image = replace(view.image, max_tokens=max(cap, view.image.min_tokens or 1))
    return replace(view, image=image, input_size=base.target.rules.image_size(view.size, image))


def _fewer_frames(plan: Preflight, view: View, share: int) -> View:
    if share == 1 or not isinstance(view, ClipView) or len(view.indices) <= 2:
        return view
    count = max(2, len(view.indices) // share // 2 * 2)
    return view_clip(plan.target, replace(view.video, frames=count), view.info)


def _frame_tokens(view: View) -> int:
    return view.frame_tokens if isinstance(view, ClipView) else view.tokens


def _too_small(base: Preflight) -> str:
    least = _capped(base, 1)
    usage = least.usage
    media = usage.image_tokens + usage.video_tokens
    text = usage.prompt_tokens - media
    needed = f"{text:,} tokens of text, {usage.new_tokens:,} new ones and at least {media:,} for "
    needed += f"{len(base.views)} pictures and clips"
    if least.memory is not None:
        needed += f" ({least.memory.total / 1e9:.2f} GB in all)"
    return f"the budget is too small: {needed}; raise it, or ask about fewer pictures"


def _finish(found: Preflight) -> Fitted:
    media = tuple(_media(view) for view in found.views)
    limits = map(_item_limits, media)
    messages: list[dict[str, Any]] = []
    for message in found.messages:
        content = [i if i["type"] == "text" else i | next(limits) for i in message["content"]]
        messages.append({**message, "content": content})
    return Fitted(messages, media, replace(found, messages=messages))


def _media(view: View) -> Image | Video:
    return view.video if isinstance(view, ClipView) else view.image


def _item_limits(media: Image | Video) -> dict:
    if isinstance(media, Image):
        return {"max_tokens": media.max_tokens} if media.max_tokens else {}
    limits = {"nframes": media.frames, "max_frame_tokens": media.max_frame_tokens}
    return {key: value for key, value in limits.items() if value is not None}
