"""What the model will see and what it will cost, before a weight is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import PIL.Image

from vlkit.errors import VlkitError
from vlkit.grounding import Size
from vlkit.headers import picture_size
from vlkit.media import Image, describe_source
from vlkit.memory import Memory, estimate_memory
from vlkit.messages import as_messages, iterate_media, read_media_item
from vlkit.models import VLM
from vlkit.remote.models import RemoteVLM
from vlkit.replies import Usage
from vlkit.targets import Target, find_target
from vlkit.video import ClipInfo, Video, clip_name, load_clip, probe_clip, sample_indices


@dataclass(frozen=True)
class PictureView:
    """How the model will see a picture.

    Attributes:
        image: the picture with its own limits.
        size: (width, height) of the upright original.
        input_size: (width, height) at which the model sees it.
        patch_size: side of a patch in pixels; a token covers two by two.
    """

    image: Image = field(repr=False)
    size: Size
    input_size: Size
    patch_size: int

    @property
    def name(self) -> str:
        """For reports."""
        return describe_source(self.image.source)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Steps in time, patches down, patches across, as in ``image_grid_thw``."""
        width, height = self.input_size
        return 1, height // self.patch_size, width // self.patch_size

    @property
    def tokens(self) -> int:
        """Image tokens."""
        return self.grid[1] * self.grid[2] // 4

    def draw(self) -> PIL.Image.Image:
        """The picture as the model sees it, its tokens and patches drawn. Decodes it."""
        from vlkit.plotting import draw_patch_grid

        return draw_patch_grid(self.image.load().resize(self.input_size), self.patch_size)


@dataclass(frozen=True)
class ClipView:
    """How the model will see a clip.

    Attributes:
        video: the clip with its own options.
        info: the whole clip's size, rate and length.
        indices: the frames that will be sampled.
        input_size: (width, height) at which the model sees each.
        patch_size: side of a patch in pixels.
    """

    video: Video = field(repr=False)
    info: ClipInfo
    indices: tuple[int, ...]
    input_size: Size
    patch_size: int

    @property
    def name(self) -> str:
        """For reports."""
        return clip_name(self.video.source)

    @property
    def size(self) -> Size:
        """(width, height) of the upright original."""
        return self.info.size

    @property
    def timestamps(self) -> tuple[float, ...]:
        """Seconds from the beginning of the clip at which each frame is on screen."""
        return tuple(index / self.info.fps for index in self.indices)

    @property
    def step_times(self) -> tuple[float, ...]:
        """Seconds of each step: two frames make one, an odd last one is shown twice."""
        times = self.timestamps + self.timestamps[-1:] * (len(self.indices) % 2)
        return tuple((a + b) / 2 for a, b in zip(times[::2], times[1::2], strict=True))

    @property
    def grid(self) -> tuple[int, int, int]:
        """Steps in time, patches down, patches across, as in ``video_grid_thw``."""
        width, height = self.input_size
        return len(self.step_times), height // self.patch_size, width // self.patch_size

    @property
    def frame_tokens(self) -> int:
        """Tokens of one step."""
        return self.grid[1] * self.grid[2] // 4

    @property
    def tokens(self) -> int:
        """Video tokens."""
        return self.grid[0] * self.frame_tokens

    def draw(self) -> PIL.Image.Image:
        """The first sampled frame as the model sees it, its patches drawn. Decodes two frames."""
        from vlkit.plotting import draw_patch_grid

        start = replace(self.video, frames=None, max_frames=2)
        clip = load_clip(start, lambda size, count: self.input_size)
        return draw_patch_grid(clip.pictures[0], self.patch_size)


View = PictureView | ClipView


@dataclass(frozen=True, eq=False)
class Preflight:
    """What a model will see of messages, and what that costs. Made by :func:`vlkit.preflight`.

    Attributes:
        target: what is known of the model.
        messages: checked.
        views: pictures and clips in the order in which the model meets them.
        usage: tokens, as ``reply.usage`` will have them; ``new_tokens`` is ``max_new_tokens``.
        prompt_tokens_exact: False where the text's share is estimated, for want of a tokenizer;
            those of pictures and clips are exact always.
    """

    target: Target = field(repr=False)
    messages: list[dict] = field(repr=False)
    views: tuple[View, ...]
    usage: Usage
    prompt_tokens_exact: bool

    @property
    def model(self) -> str:
        """What the model was called."""
        return self.target.name

    @property
    def family(self) -> str:
        """A key of ``FAMILIES``."""
        return self.target.family

    @property
    def pictures(self) -> tuple[PictureView, ...]:
        """The pictures alone."""
        return tuple(view for view in self.views if isinstance(view, PictureView))

    @property
    def clips(self) -> tuple[ClipView, ...]:
        """The clips alone."""
        return tuple(view for view in self.views if isinstance(view, ClipView))

    @property
    def context_length(self) -> int:
        """The most tokens that prompt and answer may have together."""
        return self.target.context_length

    @property
    def total_tokens(self) -> int:
        """Of prompt and answer."""
        return self.usage.prompt_tokens + self.usage.new_tokens

    @property
    def fits_context(self) -> bool:
        """Whether prompt and answer fit the context."""
        return self.total_tokens <= self.context_length

    @cached_property
    def memory(self) -> Memory | None:
        """The estimated memory in bytes (see :mod:`vlkit.memory`); None for an unknown shape."""
        if self.target.cost is None:
            return None
        t_h_w = [view.grid for view in self.views]
        return estimate_memory(
            self.target.cost,
            patches=sum(t * h * w for t, h, w in t_h_w),
            prompt_tokens=self.usage.prompt_tokens,
            new_tokens=self.usage.new_tokens,
        )

    @property
    def cost(self) -> float | None:
        """By a hosted model's ``prices``; None without."""
        if not isinstance(self.target.source, RemoteVLM):
            return None
        return self.target.source.cost(self.usage.prompt_tokens, self.usage.new_tokens)

    @property
    def fits(self) -> bool | None:
        """Whether it fits this machine's free memory; None for a model of unknown shape."""
        return None if self.memory is None else self.memory.fits

    def fit(self, tokens: int | None = None, *, memory: float | None = None):
        """Messages whose pictures and clips keep within a budget; see :func:`vlkit.fitting.fit`.

        Args:
            tokens: the most that prompt and answer may have; the model's context by default.
            memory: the most bytes for weights, cache and activations.

        Returns:
            A :class:`vlkit.fitting.Fitted`: ``.messages`` are ready to be asked, ``.media`` holds
            their pictures and clips, ``.preflight`` what they cost.

        Raises:
            VlkitError: it cannot be done.
        """
        from vlkit.fitting import fit

        return fit(self, tokens=tokens, memory=memory)

    def _repr_html_(self) -> str:
        from vlkit.cards import preflight_card

        return preflight_card(self)


def preflight(
    model: VLM | RemoteVLM | str | os.PathLike,
    messages: str | Mapping | list,
    *,
    max_new_tokens: int = 0,
) -> Preflight:
    """What a model will see of messages and what it will cost, from size rules alone.

    Args:
        model: a loaded model, ``"tiny"``, a folder (only its JSON files are read), or an id such as
            ``Qwen/Qwen2.5-VL-7B-Instruct``, whether it is on this machine or not.
        messages: text, one message or a list of messages. Of picture files only the headers are
            read.
        max_new_tokens: the longest answer, counted with the context and the memory.

    Raises:
        MediaError: a picture or clip that cannot be read.
        ModelError: no model of this family.
    """
    if not isinstance(max_new_tokens, int) or max_new_tokens < 0:
        raise VlkitError(f"max_new_tokens={max_new_tokens!r} must be a whole number, 0 or more")
    target, messages = find_target(model), as_messages(messages)
    views = [view_media(target, read_media_item(item)) for item in iterate_media(messages)]
    return measure(target, messages, views, max_new_tokens)


def measure(
    target: Target, messages: list[dict], views: list[View], new_tokens: int, text: Any = None
) -> Preflight:
    """Count; ``text`` is the tokens of the text where they are known already."""
    clips = [view for view in views if isinstance(view, ClipView)]
    video = sum(view.tokens for view in clips)
    image = sum(view.tokens for view in views) - video
    if text is None:
        text = target.count_text(messages, [clip.step_times for clip in clips])
    usage = Usage(image, video, text + image + video, new_tokens)
    return Preflight(target, messages, tuple(views), usage, target.processor is not None)


def view_media(target: Target, media: Image | Video) -> View:
    """How a model will see a picture or clip, from its header alone. Raises MediaError."""
    rules = target.rules
    if isinstance(media, Image):
        size = picture_size(media)
        return PictureView(media, size, rules.image_size(size, media), rules.patch_size)
    return view_clip(target, media, probe_clip(media))


def view_clip(target: Target, video: Video, info: ClipInfo) -> ClipView:
    """How the model sees a clip whose header was read."""
    indices, _ = sample_indices(video, info, clip_name(video.source))
    size = target.rules.frame_size(info.size, len(indices), video)
    return ClipView(video, info, tuple(indices), size, target.rules.patch_size)
