"""``preflight``: image tokens, memory and fit, without weights."""

from __future__ import annotations

import html
import math
import os
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL.Image

from vlkit.bundled import bundled_path
from vlkit.errors import ModelError, VlkitError, check_whole
from vlkit.generation.reply import Failure, Usage, attempt
from vlkit.grounding.boxes import Size
from vlkit.inputs import estimate_text, render_prompt
from vlkit.media.image import Image, describe_source, picture_size
from vlkit.media.video import ClipInfo, Video, clip_name, load_clip, probe_clip, sample_indices
from vlkit.messages import as_messages, iterate_media, read_media_item
from vlkit.models import families, hub, memory
from vlkit.models.families import FAMILIES, SizeRules, published_rules
from vlkit.models.load import Model, first_generation, load_processor
from vlkit.models.memory import Cost, Memory, count_cost, estimate_memory
from vlkit.plotting.draw import draw_patch_grid
from vlkit.plotting.html import FAINT, byte_text, fill_template, image_html, table_html

_PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}


@dataclass(frozen=True, eq=False)
class Target:
    """The facts of a model that a preflight needs.

    Attributes:
        name: what the user called it.
        family: a key of ``FAMILIES``.
        rules: its size rules.
        context_length: the most tokens of prompt and answer together.
        processor: its transformers processor, or None where its tokenizer is not on this machine.
        model: the loaded model, or None.
        folder: of a model that is not loaded, or None where only the name is known.
    """

    name: str
    family: str
    rules: SizeRules
    context_length: int
    processor: Any = None
    model: Model | None = None
    folder: Path | None = None

    @cached_property
    def cost(self) -> Cost | None:
        """The memory that it needs, or None where its shape is not known."""
        if self.model is not None:
            return self.model.memory_cost()
        if self.folder is not None and (weights := _weight_bytes(self.folder)):
            from transformers import AutoConfig

            first_generation(hub.read_config(self.folder))
            return count_cost(AutoConfig.from_pretrained(self.folder), weights)
        if self.name in memory.SHAPES:
            weights = memory.count_memory(self.name).bfloat16
            return count_cost(memory.build_config(self.name), weights)
        return None

    def count_text(self, messages: list[dict], clip_times: Sequence[Sequence[float]]) -> int:
        """Tokens of a prompt without those of its pictures and clips.

        Args:
            messages: checked.
            clip_times: of each clip, the seconds that are written before each of its steps.
        """
        if self.processor is None:
            return estimate_text(messages, self.family, clip_times)
        prompt = render_prompt(self.processor, messages)
        pads = prompt.count(_PADS["image"])
        pieces = prompt.split(_PADS["video"])
        text = pieces[0]
        for times, piece in zip(clip_times, pieces[1:], strict=True):
            text += clip_text(self.rules, times) + piece
            pads += len(times) if self.rules.patch_size == 16 else 1
        return len(self.processor.tokenizer(text)["input_ids"]) - pads


def clip_text(rules: SizeRules, times: Sequence[float]) -> str:
    """The text that a processor writes for a clip; one placeholder per step from Qwen3-VL on."""
    if rules.patch_size != 16:
        return _PADS["video"]
    step = f"<|vision_start|>{_PADS['video']}<|vision_end|>"
    return "".join(f"<{time:.1f} seconds>{step}" for time in times)


def find_target(model: Model | str | os.PathLike) -> Target:
    """The facts of a loaded model, ``"tiny"``, a folder, or an id; no weight is read.

    Raises:
        ModelError: it is unknown.
    """
    if not isinstance(model, str | os.PathLike):
        if not hasattr(model, "answer_rows"):
            raise ModelError(f"expected a VLM, a folder or an id, not {type(model).__name__}")
        facts = model.name, model.family, model.rules, model.context_length
        return Target(*facts, model.processor, model)
    name = os.fspath(model)
    folder = Path(name).expanduser()
    for place in _folders(name):
        if (place / "config.json").is_file():
            return _folder_target(name, place)
    if folder.is_dir():
        hub.read_config(folder)  # raises: it names what is missing
    family = families.family_of_name(name)
    return Target(name, family, published_rules(family), FAMILIES[family].context_length)


def _folders(name: str) -> list[Path]:
    if name == "tiny":
        return [bundled_path("tiny-qwen2-vl")]
    is_id = hub.HUB_ID.fullmatch(name)
    cached = [hub.cached_folder(name, place) for place in hub.HUBS] if is_id else []
    return [Path(name).expanduser(), *(folder for folder in cached if folder)]


def _folder_target(name: str, folder: Path) -> Target:
    config = hub.read_config(folder)
    family = families.family_of(config, name)
    text = config.get("text_config") or config
    context = text.get("max_position_embeddings") or FAMILIES[family].context_length
    processor = _processor_in(name, folder, config)
    file = folder / "preprocessor_config.json"
    if processor is not None:
        rules = families.rules_of_processor(processor, family, None)
    else:
        rules = published_rules(family, hub.read_model_file(file) if file.is_file() else None)
    return Target(name, family, rules, context, processor, folder=folder)


def _weight_bytes(folder: Path) -> int:
    for index in folder.glob("*model.*.index.json"):  # counts shards that are still missing
        if total := hub.read_model_file(index).get("metadata", {}).get("total_size"):
            return total
    return sum(file.stat().st_size for file in hub.weight_files(folder) if file.is_file())


def _processor_in(name: str, folder: Path, config: dict) -> Any:
    """None without a tokenizer, as in a folder of a few JSON files."""
    files = ("tokenizer.json", "vocab.json", "qwen.tiktoken")
    if any((folder / file).is_file() for file in files):  # or transformers makes an empty one
        with suppress(ModelError):
            return load_processor(hub.ModelFolder(folder, name, "local", None, config))
    return None


class _PatchGrid:
    """The patches of a picture, or of a clip in several steps."""

    input_size: Size
    patch_size: int

    @property
    def step_times(self) -> tuple[float, ...]:
        """Seconds of each step in time; a picture has one."""
        return (0.0,)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Steps in time, patches down, patches across, as in ``image_grid_thw``."""
        width, height = self.input_size
        return len(self.step_times), height // self.patch_size, width // self.patch_size

    @property
    def frame_tokens(self) -> int:
        """Tokens of one step."""
        return self.grid[1] * self.grid[2] // 4

    @property
    def tokens(self) -> int:
        """Image or video tokens."""
        return self.grid[0] * self.frame_tokens


@dataclass(frozen=True)
class PictureView(_PatchGrid):
    """How the model will see a picture.

    Attributes:
        image: the picture with its limits.
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

    def draw(self) -> PIL.Image.Image:
        """The picture as the model sees it, its tokens and patches drawn. Decodes it."""
        return draw_patch_grid(self.image.load().resize(self.input_size), self.patch_size)


@dataclass(frozen=True)
class ClipView(_PatchGrid):
    """How the model will see a clip.

    Attributes:
        video: the clip with its options.
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

    def draw(self) -> PIL.Image.Image:
        """The first sampled frame as the model sees it, its patches drawn. Decodes two frames."""
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
        prompt_tokens_exact: False where the text's tokens are estimated, as no tokenizer is on
            this machine; those of pictures and clips are always exact.
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
        """Only the pictures."""
        return tuple(view for view in self.views if isinstance(view, PictureView))

    @property
    def clips(self) -> tuple[ClipView, ...]:
        """Only the clips."""
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
        """The estimated memory in bytes (``vlkit.models.memory``); None for an unknown shape."""
        if self.target.cost is None:
            return None
        return estimate_memory(
            self.target.cost, patches=sum(math.prod(view.grid) for view in self.views),
            prompt_tokens=self.usage.prompt_tokens, new_tokens=self.usage.new_tokens,
        )  # fmt: skip

    @property
    def cost(self) -> float | None:
        """By a hosted model's ``prices``; None without prices."""
        if self.target.model is None:
            return None
        return self.target.model.cost(self.usage.prompt_tokens, self.usage.new_tokens)

    @property
    def fits(self) -> bool | None:
        """Whether it fits this machine's free memory; None for a model of unknown shape."""
        return None if self.memory is None else self.memory.fits

    def fit(self, tokens: int | None = None, *, memory: float | None = None):
        """Messages whose pictures and clips keep within a budget.

        All pictures and frames get the same limit, the largest that is possible; smaller ones stay
        as they are, and a picture's ``min_tokens`` counts. Clips are sampled at half, a quarter …
        of their frames where a frame would have fewer than 32 tokens.

        Args:
            tokens: the most that prompt and answer may have; the model's context by default.
            memory: the most bytes for weights, cache and activations.

        Returns:
            A ``Fitted``: ``.messages`` are ready to be asked, ``.media`` are
            their pictures and clips, ``.preflight`` says what they cost.

        Raises:
            VlkitError: the limits are malformed, or too small for any size.
        """
        most = self.context_length if tokens is None else tokens
        check_whole("tokens", most, 1)
        if memory is not None and (not isinstance(memory, int | float) or not memory > 0):
            raise VlkitError(f"memory={memory!r} must be a number of bytes above 0")
        if memory is not None and self.memory is None:
            remedy = "pass tokens= instead of memory="
            raise VlkitError(f"the shape of {self.model} is unknown; {remedy}")

        def keeps(plan: Preflight) -> bool:
            needed = plan.memory.total if memory and plan.memory else 0
            return plan.total_tokens <= most and needed <= (memory or 0)

        return _finish(self if keeps(self) else _search(self, keeps))

    def _repr_html_(self) -> str:
        heads = ("picture or clip", "upright", "as seen", "patch grid", "tokens")
        return fill_template(
            "vlkit.analysis", "preflight.html.jinja", filters={"bytes": byte_text}, plan=self,
            table=table_html(heads, map(_cells, self.views[:ROWS])), rows=ROWS, shown=SHOWN,
            draw=_draw, name=_short_name, faint=FAINT,
        )  # fmt: skip


def preflight(
    model: Model | str | os.PathLike,
    messages: str | Mapping | list,
    *,
    max_new_tokens: int = 0,
) -> Preflight:
    """What a model will see of messages and what that will cost, from size rules only.

    Args:
        model: a loaded model, ``"tiny"``, a folder (only its JSON files are read), or an id such as
            ``Qwen/Qwen2.5-VL-7B-Instruct``, whether it is on this machine or not.
        messages: text, one message or a list of messages. Of picture files only the headers are
            read.
        max_new_tokens: the longest answer, counted with the context and the memory.

    Raises:
        MediaError: a picture or clip that cannot be read.
        ModelError: not a model of this family.
    """
    check_whole("max_new_tokens", max_new_tokens)
    target, messages = find_target(model), as_messages(messages)
    views = [view_media(target.rules, read_media_item(item)) for item in iterate_media(messages)]
    return measure(target, messages, views, max_new_tokens)


def measure(
    target: Target, messages: list[dict], views: list[View], new_tokens: int, text: Any = None
) -> Preflight:
    """Count all tokens; ``text``: those of the text, where they were counted before."""
    clips = [view for view in views if isinstance(view, ClipView)]
    video = sum(view.tokens for view in clips)
    image = sum(view.tokens for view in views) - video
    if text is None:
        text = target.count_text(messages, [clip.step_times for clip in clips])
    usage = Usage(image, video, text + image + video, new_tokens)
    return Preflight(target, messages, tuple(views), usage, target.processor is not None)


def view_media(rules: SizeRules, media: Image | Video) -> View:
    """How a model will see a picture or clip, from its header only. Raises MediaError."""
    if isinstance(media, Video):
        return view_clip(rules, media, probe_clip(media))
    size = picture_size(media)
    return PictureView(media, size, rules.image_size(size, media), rules.patch_size)


def view_clip(rules: SizeRules, video: Video, info: ClipInfo) -> ClipView:
    """How the model sees a clip whose header was read."""
    indices, _ = sample_indices(video, info, clip_name(video.source))
    size = rules.frame_size(info.size, len(indices), video)
    return ClipView(video, info, tuple(indices), size, rules.patch_size)


SHOWN = 6  # pictures and clips that are drawn
ROWS = 24  # of the table


def _cells(view: View) -> tuple[str, ...]:
    grid = view.grid if isinstance(view, ClipView) else view.grid[1:]
    name = html.escape(_short_name(view))
    if isinstance(view, ClipView):
        times = view.timestamps
        name += f", {len(times)} frames at {times[0]:.2f}–{times[-1]:.2f} s"
    sizes = ("{}×{}".format(*size) for size in (view.size, view.input_size))
    return name, *sizes, " × ".join(map(str, grid)), f"{view.tokens:,}"


def _draw(view: View) -> str:
    drawn = attempt(view.draw)  # only its header was read before
    if isinstance(drawn, Failure):
        return drawn._repr_html_()
    return image_html(drawn, width=420, alt=_short_name(view))


def _short_name(view: View) -> str:
    """The file's name without its folder: a notebook that is passed on should not show folders."""
    return view.name.rstrip("/").rpartition("/")[2]


GOOD_FRAME = 32  # tokens; a clip gives up frames before its frames get smaller


@dataclass(frozen=True, eq=False)
class Fitted:
    """Messages that keep within a budget.

    Attributes:
        messages: ready to be asked.
        media: their pictures and clips, with the limits that keep them within the budget.
        preflight: of these messages.
    """

    messages: list[dict] = field(repr=False)
    media: tuple[Image | Video, ...] = field(repr=False)
    preflight: Preflight

    def _repr_html_(self) -> str:
        return self.preflight._repr_html_()


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
    """The largest limit on tokens per picture or frame that keeps within the budget, or 0."""
    high = max((view.frame_tokens for view in base.views), default=0)
    if keeps(base):
        return max(high, GOOD_FRAME)
    return bisect_left(range(1, high), True, key=lambda cap: not keeps(_capped(base, cap)))


def _capped(base: Preflight, cap: int) -> Preflight:
    views = [_cap_view(base, view, cap) for view in base.views]
    usage = base.usage
    text = usage.prompt_tokens - usage.image_tokens - usage.video_tokens
    return measure(base.target, base.messages, views, usage.new_tokens, text)


def _cap_view(base: Preflight, view: View, cap: int) -> View:
    if view.frame_tokens <= cap:
        return view
    if isinstance(view, ClipView):
        return view_clip(base.target.rules, replace(view.video, max_frame_tokens=cap), view.info)
    image = replace(view.image, max_tokens=max(cap, view.image.min_tokens or 1))
    return replace(view, image=image, input_size=base.target.rules.image_size(view.size, image))


def _fewer_frames(plan: Preflight, view: View, share: int) -> View:
    if share == 1 or not isinstance(view, ClipView) or len(view.indices) <= 2:
        return view
    count = max(2, len(view.indices) // share // 2 * 2)
    return view_clip(plan.target.rules, replace(view.video, frames=count), view.info)


def _too_small(base: Preflight) -> str:
    least = _capped(base, 1)
    usage = least.usage
    media = usage.image_tokens + usage.video_tokens
    total = f" ({least.memory.total / 1e9:.2f} GB in all)" if least.memory else ""
    return (
        f"the budget is too small: {usage.prompt_tokens - media:,} tokens of text, "
        f"{usage.new_tokens:,} new ones and at least {media:,} for {len(base.views)} pictures and "
        f"clips{total}; raise it, or ask about fewer pictures"
    )


def _finish(plan: Preflight) -> Fitted:
    media = tuple(view.video if isinstance(view, ClipView) else view.image for view in plan.views)
    limits = map(_item_limits, media)

    def limited(item: dict) -> dict:
        return item if item["type"] == "text" else item | next(limits)

    messages = [m | {"content": list(map(limited, m["content"]))} for m in plan.messages]
    return Fitted(messages, media, replace(plan, messages=messages))


def _item_limits(media: Image | Video) -> dict:
    if isinstance(media, Image):
        return {"max_tokens": media.max_tokens} if media.max_tokens else {}
    limits = {"nframes": media.frames, "max_frame_tokens": media.max_frame_tokens}
    return {key: value for key, value in limits.items() if value is not None}
