"""Messages to a request: pictures as data URLs, sized for the model."""

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import PIL.Image

from vlkit.errors import RemoteError
from vlkit.grounding.boxes import Size
from vlkit.inputs import plain_content
from vlkit.media.image import Image
from vlkit.media.video import Clip, ClipStore, Video, load_clip
from vlkit.messages import as_messages, media_of, prefill_of
from vlkit.models.families import fit_size, smart_resize
from vlkit.remote.services import Endpoint, picture_bounds

MOST_BYTES = 7_000_000  # of a file: DashScope takes data URLs of under 10 MB
MOST_PNG_PIXELS = 700_000  # larger pictures are sent as JPEG: PNG is slow, and large
_JPEGS: tuple[dict, ...] = (
    {"quality": 95, "subsampling": 0}, {"quality": 85}, {"quality": 60}, {"quality": 30},
)  # fmt: skip
_FRAME_RATES = (0.1, 10.0)  # frames per second that DashScope accepts
_LEAST_FRAMES = 4  # of a clip on DashScope
_CLIP_PIXELS = 65_536  # tokens of all frames of a clip on DashScope


def picture_url(picture: PIL.Image.Image, size: Size) -> str:
    """A data URL of an upright RGB picture resized to ``size``; PNG where it is small, else JPEG.

    Raises:
        RemoteError: it has too many bytes for any service.
    """
    if picture.size != size:
        picture = picture.resize(size, PIL.Image.Resampling.BICUBIC)
    kind, data = next(_encodings(picture), ("", b""))
    if not kind:
        raise RemoteError(
            f"a picture of {size[0]}×{size[1]} has over {MOST_BYTES:,} bytes even as JPEG; lower "
            "max_image_tokens"
        )
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encodings(picture: PIL.Image.Image) -> Iterator[tuple[str, bytes]]:
    """Ways to write it that are small enough, the best one first."""
    if picture.width * picture.height <= MOST_PNG_PIXELS:
        yield "png", _encode(picture, "png", compress_level=3)
    for options in _JPEGS:
        data = _encode(picture, "jpeg", **options)
        if len(data) <= MOST_BYTES:
            yield "jpeg", data


def _encode(picture: PIL.Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@dataclass(frozen=True, eq=False)
class Request:
    """One conversation, ready to be sent.

    Attributes:
        body: arguments of ``chat.completions.create``, options in ``extra_body``; a field that is
            None is not sent.
        messages: checked.
        pictures: how each picture was to be read.
        images: the upright originals.
        input_sizes: (width, height) of each picture as the model will see it.
        videos: how each clip was to be sampled.
        clips: the sampled clips, their frames of the size that the model will see.
        prefill: the answer's beginning, where the last message is the assistant's.
    """

    body: dict[str, Any]
    messages: list[dict]
    pictures: Sequence[Image]
    images: Sequence[PIL.Image.Image]
    input_sizes: tuple[Size, ...]
    videos: Sequence[Video]
    clips: Sequence[Clip]
    prefill: str = ""


def make_request(remote: Endpoint, conversation: Any, options: dict, seed: int | None) -> Request:
    """Read, resize and encode the media, and translate the options.

    Args:
        remote: the model.
        conversation: text, a message or a list of messages.
        options: from :func:`vlkit.generation.generate.generation_options`.
        seed: for sampling.

    Raises:
        MediaError, VlkitError: for media or messages that cannot be used.
        RemoteError: something that this service does not accept.
    """
    messages = as_messages(conversation)
    pictures, videos = media_of(messages)
    images = [picture.load() for picture in pictures]
    pairs = zip(images, pictures, strict=True)
    sizes = tuple(seen_size(remote, image.size, picture) for image, picture in pairs)
    clips = [_sample(remote, video, messages.clips) for video in videos]
    parts = {
        "image": map(partial(_picture_part, remote), images, pictures, sizes),
        "video": map(partial(_clip_part, remote), clips),
    }
    body: dict[str, Any] = {
        "model": remote.model,
        "messages": [_write_message(message, parts) for message in messages],
        "extra_body": _fields(remote, messages, options, seed, clips) | dict(remote.extra_body),
    }
    prefill = prefill_of(messages)
    if prefill and remote.service.name == "dashscope":
        body["messages"][-1]["partial"] = True
    return Request(body, messages, pictures, images, sizes, videos, clips, prefill)


# --- media ---------------------------------------------------------------------------------------


def _picture_part(remote: Endpoint, image: PIL.Image.Image, picture: Image, size: Size) -> dict:
    rules, bounds = remote.rules, dict[str, int]()
    same_limits = remote.has_server_rules and rules.image_limits(picture) == rules.image_pixels
    if same_limits and image.width * image.height <= 2 * size[0] * size[1]:
        size = image.size  # the server's processor resizes it in exactly the same way
    elif remote.has_server_rules:  # `vlkit serve` then keeps a limit below its maximum
        bounds = dict.fromkeys(("min_pixels", "max_pixels"), size[0] * size[1])
    elif remote.service.name == "dashscope":
        bounds = picture_bounds(rules)
    return {"type": "image_url", "image_url": {"url": picture_url(image, size)}, **bounds}


def seen_size(remote: Endpoint, size: Size, picture: Image) -> Size:
    """The size at which the service sees a picture: never below its minimum of pixels."""
    rules = remote.rules
    size = rules.image_size(size, picture)
    if remote.has_server_rules:
        return size
    return smart_resize(size, rules.side, rules.image_pixels[0], math.inf)


def _sample(remote: Endpoint, video: Video, cache: ClipStore | None) -> Clip:
    if not remote.service.clips:
        raise RemoteError(
            f"{remote.base_url} does not accept clips; pass frames as pictures: "
            "vlkit.user(text, *vlkit.Video(…).load().pictures)"
        )

    def resize(size: Size, count: int) -> Size:
        rules = remote.rules
        size = rules.frame_size(size, count, video)
        if remote.service.name == "dashscope":
            share = _CLIP_PIXELS * rules.side**2 / count
            return fit_size(size, rules.side, (0, share), strictly=True)
        return size

    return load_clip(video, resize, cache=cache)


def _clip_part(remote: Endpoint, clip: Clip) -> dict:
    jpegs = [_encode(picture, "jpeg", **_JPEGS[0]) for picture in clip.pictures]
    frames = [base64.b64encode(jpeg).decode() for jpeg in jpegs]
    if remote.service.name != "dashscope":  # as vLLM takes frames that are sampled already
        return {
            "type": "video_url",
            "video_url": {"url": f"data:video/jpeg;base64,{','.join(frames)}"},
        }
    token = remote.rules.side**2
    return {
        "type": "video", "video": [f"data:image/jpeg;base64,{frame}" for frame in frames],
        "fps": _frame_rate(clip), "min_pixels": 4 * token, "max_pixels": 768 * token,
        "total_pixels": _CLIP_PIXELS * token,
    }  # fmt: skip


def _frame_rate(clip: Clip) -> float:
    """Sampled frames per second. Raises RemoteError for a rate that DashScope refuses."""
    count, times = len(clip.indices), clip.timestamps
    if count < _LEAST_FRAMES:
        raise RemoteError(f"{clip.name}: {count} frames, but DashScope needs 4 or more")
    rate = (count - 1) / (times[-1] - times[0])
    low, high = _FRAME_RATES
    if not low <= rate <= high:
        raise RemoteError(
            f"{clip.name}: {rate:.3g} frames per second, but DashScope accepts {low:g} to "
            f"{high:g}; choose another fps=, max_frames= or end="
        )
    return round(rate, 3)


def _clip_fields(remote: Endpoint, clips: list[Clip]) -> dict[str, Any]:
    """The frames' times in vLLM's fields, which exist for a single clip."""
    if len(clips) != 1 or not remote.service.vllm_fields:
        return {}
    names = ("fps", "frames_indices", "total_num_frames", "duration")
    times = {name: clips[0].metadata[name] for name in names}
    return {"media_io_kwargs": {"video": times}, "mm_processor_kwargs": {"do_sample_frames": False}}


# --- messages and options ------------------------------------------------------------------------


def _write_message(message: dict, parts: Mapping[str, Iterator[dict]]) -> dict:
    """A message of the protocol; control tokens in its text are escaped."""
    items = plain_content(message["content"])
    content: Any = [item if item["type"] == "text" else next(parts[item["type"]]) for item in items]
    if all(item["type"] == "text" for item in items):
        content = "".join(item["text"] for item in items)
    return {"role": message["role"], "content": content}


def _fields(
    remote: Endpoint, messages: list[dict], options: dict, seed: int | None, clips: list[Clip]
) -> dict[str, Any]:
    """Options as fields of the protocol, and fields of the service."""
    service = remote.service
    fields = {service.token_field(remote.family): options["max_new_tokens"], "temperature": 0.0}
    fields |= _clip_fields(remote, clips)
    if options["do_sample"]:
        fields |= _sampling(remote, options, seed)
    if service.vllm_fields and remote.family in ("qwen_vl", "qwen2_vl"):
        fields["skip_special_tokens"] = False  # <|box_start|> and the like are special there
    if "schema" in options:
        form = {"name": "answer", "schema": json.loads(options["schema"])}
        fields["response_format"] = {"type": "json_schema", "json_schema": form}
    if messages[-1]["role"] == "assistant":
        fields |= _prefill_fields(remote)
    return fields


def _sampling(remote: Endpoint, options: dict, seed: int | None) -> dict[str, Any]:
    service = remote.service
    fields = {"temperature": options["temperature"], "top_p": options["top_p"], "seed": seed}
    for name, most in (("temperature", service.most_temperature), ("seed", service.most_seed)):
        if (value := fields[name] or 0) > most:
            raise RemoteError(f"{name}={value} is more than {most}, the most at {remote.base_url}")
    return {**fields, "top_k": service.any_token}


def _prefill_fields(remote: Endpoint) -> dict[str, Any]:
    """The fields that let the model continue the assistant's message."""
    if remote.service.name in ("openai", "ollama"):  # they would answer again from the beginning
        raise RemoteError(
            f"{remote.base_url} cannot continue an assistant's message; end with a user's message"
        )
    if not remote.service.vllm_fields:
        return {}
    return {"continue_final_message": True, "add_generation_prompt": False}
