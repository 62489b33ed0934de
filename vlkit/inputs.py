"""Messages to tensors: media read, template rendered, tokenized."""

import copy
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock, RLock
from typing import Any

import PIL.Image

from vlkit.errors import ModelError, VlkitError, one_line
from vlkit.grounding.boxes import Size
from vlkit.media.image import DeferredImages, Image
from vlkit.media.video import Clip, ClipStore, DeferredClips, Video, load_clip
from vlkit.messages import as_messages, escape_control_tokens, media_of
from vlkit.models.families import FAMILIES, fit_size
from vlkit.models.load import VLM, limit_template


class TensorCache:
    """Tensors that were used recently, up to a number of bytes; for several threads at once.

    Args:
        most_bytes: of all tensors; those used longest ago are dropped first.
    """

    def __init__(self, most_bytes: int = 2**28):
        self.most_bytes = most_bytes
        self._entries: OrderedDict[Hashable, tuple] = OrderedDict()
        self._lock = RLock()  # drop() may be called anywhere, by the garbage collector

    def find(self, keys: Iterable[Hashable]) -> dict[Hashable, tuple]:
        """The tensors of those keys that are in the cache."""
        with self._lock:
            found = {key: self._entries[key] for key in keys if key in self._entries}
            for key in found:
                self._entries.move_to_end(key)
            return found

    def keep(self, entries: Mapping[Hashable, tuple]) -> None:
        """Add entries, and drop the ones used longest ago over the limit."""
        with self._lock:
            for key, tensors in entries.items():
                self._entries.pop(key, None)
                if _count_bytes(tensors) <= self.most_bytes:  # or else it would drop all others
                    self._entries[key] = tensors
            total = self.bytes
            while total > self.most_bytes:
                total -= _count_bytes(self._entries.popitem(last=False)[1])

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        with self._lock:
            return sum(map(_count_bytes, self._entries.values()))

    def drop(self, key: Hashable) -> None:
        """Drop an entry, if it is there."""
        with self._lock:
            self._entries.pop(key, None)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()

    def __repr__(self) -> str:
        held, most = self.bytes / 1e6, self.most_bytes / 1e6
        return f"TensorCache({len(self._entries)} entries, {held:,.1f} of at most {most:,.0f} MB)"


def _count_bytes(tensors: tuple) -> int:
    return sum(tensor.nbytes for tensor in tensors)


class _EachOnce:
    """An image processor that computes pictures with the same key once.

    Args:
        image_processor: of transformers.
        keys: of the next call's pictures, in order; equal only where the results are equal.
        cache: patches (patches, values) and grid (3,) of pictures in earlier calls, by key.
        prepare: the pictures at some places as the image processor takes them.
    """

    def __init__(
        self, image_processor: Any, keys: Sequence[Hashable], cache: TensorCache, prepare: Callable
    ):
        self._image_processor, self._keys = image_processor, keys
        self._cache, self._prepare = cache, prepare

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image_processor, name)

    def __call__(self, images: Sequence[Any], **options: Any) -> Any:
        import torch
        from transformers import BatchFeature

        parts = self._cache.find(self._keys)
        places = {key: place for place, key in enumerate(self._keys) if key not in parts}
        output = BatchFeature()
        if places:
            output = self._image_processor(self._prepare(places.values()), **options)
            grid = torch.as_tensor(output["image_grid_thw"])
            pixels = torch.as_tensor(output["pixel_values"]).split(grid.prod(-1).tolist())
            computed = dict(zip(places, zip(pixels, grid, strict=True), strict=True))
            parts |= computed
            self._cache.keep(computed)
        output["image_grid_thw"] = torch.stack([parts[key][1] for key in self._keys])
        pixels = [parts[key][0] for key in self._keys]
        output["pixel_values"] = pixels[0] if len(pixels) == 1 else torch.cat(pixels)
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
    images = [picture.load() for picture in pictures]
    clips = [_sample(vlm, video, messages.clips) for video in videos]
    prompt = render_prompt(vlm.processor, messages, thinking=vlm.thinking)
    return LoadedMessages(pictures, images, clips, prompt, videos)


def defer_media(loaded: Any) -> tuple[DeferredImages, DeferredClips]:
    """Images and clips that are read again when they are used.

    Args:
        loaded: with ``pictures``, ``images``, ``videos`` and ``clips``, as in LoadedMessages.
    """
    images = DeferredImages(loaded.pictures, [image.size for image in loaded.images])
    sizes = [(clip.info.size, clip.frame_size) for clip in loaded.clips]
    return images, DeferredClips(loaded.videos, sizes)


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
    cache: TensorCache | None = None,
) -> ModelInputs:
    """Resize and tokenize loaded conversations; rows are padded on the left.

    Args:
        vlm: its processor and limits are used.
        loaded: from :func:`load_messages`.
        device: where pictures are resized and cut into patches, by default the CPU.
        digests: per row, hashes of its pictures' contents (more may follow); with them the
            processor computes each picture once, however many rows ask about it.
        cache: results of the processor for pictures in earlier calls.
    """
    images = [row.images for row in loaded]
    prompts = [row.prompt for row in loaded]
    pictures = [image for row in images for image in row]
    wanted, size = _fit_limits(vlm, [p for row in loaded for p in row.pictures], pictures)
    options: dict[str, Any] = {"images_kwargs": {"size": size}} if size else {}

    def prepare(places: Iterable[int]) -> list:
        return _resize_and_move([(pictures[place], wanted[place]) for place in places], device)

    keys = _picture_keys(vlm, loaded, digests or ()) or range(len(pictures))
    processor = copy.copy(vlm.processor)
    processor.image_processor = _EachOnce(
        processor.image_processor, keys, TensorCache(0) if cache is None else cache, prepare
    )
    flat = [clip for row in loaded for clip in row.clips]
    if flat:  # sampled and resized already; the metadata say how
        metadata = [clip.metadata for clip in flat]
        options |= {"videos": [clip.frames for clip in flat]}
        options["videos_kwargs"] = {"video_metadata": metadata, **KEEP_FRAMES}
    with tokenizing:
        tensors = processor(
            text=prompts, images=pictures or None, padding=True, return_tensors="pt",
            verbose=False, **options,  # vlkit itself checks the length
        )  # fmt: skip
    patch, grid = vlm.processor.image_processor.patch_size, tensors.get("image_grid_thw")
    sizes = iter([] if grid is None else [(w * patch, h * patch) for _, h, w in grid.tolist()])
    input_sizes = [[next(sizes) for _ in row] for row in images]
    return ModelInputs(tensors, images, input_sizes, [row.clips for row in loaded], prompts)


def make_pixels(vlm: VLM, loaded: LoadedMessages, device: Any = None) -> dict[str, Any]:
    """The picture tensors of :func:`make_inputs` for one conversation, without its tokens.

    Args:
        vlm: its image processor and limits are used.
        loaded: a conversation with pictures.
        device: where pictures are resized and cut into patches, by default the CPU.
    """
    wanted, size = _fit_limits(vlm, loaded.pictures, loaded.images)
    pictures = _resize_and_move([*zip(loaded.images, wanted, strict=True)], device)
    options = {"size": size} if size else {}
    return dict(vlm.processor.image_processor(pictures, return_tensors="pt", **options))


def _picture_keys(vlm: VLM, loaded: Sequence[LoadedMessages], digests) -> list[Hashable]:
    """Keys of all pictures; equal where the processor's results are equal."""
    rules = vlm.rules
    return [
        (digest, image.size, rules.image_limits(picture))
        for row, row_digests in zip(loaded, digests, strict=bool(digests))
        for digest, image, picture in zip(row_digests, row.images, row.pictures, strict=False)
    ]


KEEP_FRAMES = {"do_sample_frames": False, "do_resize": False}


def _sample(vlm: VLM, video: Video, cache: ClipStore | None) -> Clip:
    return load_clip(
        video, lambda size, count: vlm.rules.frame_size(size, count, video), cache=cache
    )


def render_prompt(
    processor: Any, messages: list[dict], *, finished: bool = False, thinking: bool | None = None
) -> str:
    """The chat template of checked messages, a placeholder for each picture and clip.

    Args:
        processor: whose template it is.
        messages: checked; the prompt ends where the model's answer begins or is continued.
        finished: nothing follows: an answer at the end is complete, with its end token.
        thinking: the template's ``enable_thinking``, or None for its default.
    """
    plain = [{"role": m["role"], "content": plain_content(m["content"])} for m in messages]
    prefill = messages[-1]["role"] == "assistant" and not finished
    asks = not prefill and not finished
    switch = {} if thinking is None else {"enable_thinking": thinking}
    try:
        with limit_template():
            prompt = processor.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=asks, continue_final_message=prefill,
                **switch,
            )  # fmt: skip
    except ModelError:
        raise
    except Exception as error:  # templates raise any exception
        raise VlkitError(
            f"the model's chat template refuses these messages ({one_line(error)}); check their "
            "roles and their order, and that the template is the original model's"
        ) from error
    kinds = [item["type"] for message in plain for item in message["content"]]
    pads = {"image": processor.image_token, "video": processor.video_token}
    lost = any(prompt.count(pad) != kinds.count(kind) for kind, pad in pads.items())
    if lost or f"{plain[-1]['content']}" in prompt:  # or the list itself, written out
        raise VlkitError(
            "the model's chat template cannot write lists of texts and pictures, as that of a text "
            "model; copy chat_template.jinja of the original model into the model's folder"
        )
    if hasattr(processor, "vision_start_token"):
        # from Qwen3-VL on the processor puts these tokens around each step of a clip; in training
        # there was no other pair around the whole clip
        prompt = prompt.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
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


def _fit_limits(vlm: VLM, pictures, images) -> tuple[list, dict | None]:
    """The sizes of pictures to resize here, and the processor's `size` for the limits of all.

    The processor takes one pair of limits per call. A picture for which that pair would give
    another size than its own limits is resized here in the same way, and then not by the processor.
    """
    rules = vlm.rules
    limits = [rules.image_limits(picture) for picture in pictures]
    if set(limits) <= {rules.image_pixels}:
        return [None] * len(images), None
    sizes = [
        rules.image_size(image.size, picture)
        for image, picture in zip(images, pictures, strict=True)
    ]
    areas = [width * height for width, height in sizes]
    low = min(*areas, *(low for low, _ in limits))
    high = max(*areas, *(high for _, high in limits))
    wanted = [
        None if fit_size(image.size, rules.side, (low, high)) == size else size
        for image, size in zip(images, sizes, strict=True)
    ]
    return wanted, {"shortest_edge": low, "longest_edge": high}


def _resize_and_move(pictures: list, device: Any) -> list:
    """Pictures with the size of each (or None), ready for the processor.

    A resized one, or each one where there is a device on which the processor then works, is a uint8
    tensor (3, height, width).
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import pil_to_tensor, resize

    def ready(image, size):
        if size is None and device is None:
            return image
        tensor = pil_to_tensor(image)
        if size is not None:
            tensor = resize(tensor, size[::-1], InterpolationMode.BICUBIC, antialias=True)
        return tensor.to(device)

    if device is None or len(pictures) == 1:
        return [ready(*picture) for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ready, *zip(*pictures, strict=True)))


_EAST_ASIAN = re.compile(r"[぀-ヿ㐀-鿿가-힯＀-￯]")


def estimate_text(messages: list[dict], family: str, clip_times: Sequence[Sequence[float]]) -> int:
    """Estimate the tokens of a prompt's text: one for 4 letters, or for 1.5 East Asian characters.

    A turn adds 5, a picture or clip 2, the default system message of the first two generations
    11, and a time in a clip of the later ones 9.
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
