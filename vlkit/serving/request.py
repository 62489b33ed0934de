"""The fields of a request and the media in it, checked and decoded."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import PIL.Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vlkit.errors import MediaError, VlkitError
from vlkit.media.image import describe_source
from vlkit.media.sources import local_path, read_bytes
from vlkit.media.video import Video, probe_clip
from vlkit.serving.limits import Limits


class RequestError(VlkitError):
    """A refused request; the client gets it as OpenAI's error object.

    Attributes:
        status: the HTTP status.
        param: the field that is wrong, as ``messages.0.content``, or None.
        code: OpenAI's short code, or None.
        headers: of the response.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    @classmethod
    def of(cls, error: Exception) -> RequestError:
        """What the client learns when the model fails."""
        import torch

        if isinstance(error, torch.cuda.OutOfMemoryError):
            torch.cuda.empty_cache()
            text = "out of GPU memory; send smaller pictures or ask for fewer tokens"
            return cls(text, status=503, headers={"Retry-After": "5"})
        return cls(f"the model failed: {type(error).__name__}: {error!s:.200}", status=500)

    @property
    def body(self) -> dict:
        """The JSON that OpenAI's clients read."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kinds.get(self.status, kind)}
        return {"error": error | {"param": self.param, "code": self.code}}


_IGNORED = {  # say who asks, which does not change the answer
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "parallel_tool_calls",
}  # fmt: skip


_NEUTRAL: dict[str, tuple] = {  # unsupported fields, and the values that ask for nothing
    "n": (1,), "best_of": (1,), "logprobs": (False,), "top_logprobs": (0,), "echo": (False,),
    "frequency_penalty": (0,), "presence_penalty": (0,), "repetition_penalty": (1,),
    "logit_bias": ({},), "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "top_k": (-1, 0),
    "min_p": (0,), "min_tokens": (0,), "ignore_eos": (False,), "use_beam_search": (False,),
    "length_penalty": (1,), "mm_processor_kwargs": ({}, {"do_sample_frames": False}),
    "chat_template_kwargs": ({},),
    "spaces_between_special_tokens": (True,), "include_stop_str_in_output": (False,),
    "tool_calls": ([],), "annotations": ([],),
}  # fmt: skip


class Strict(BaseModel):
    """Converts no types, refuses unknown fields, and drops nulls."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def drop_neutral_fields(cls, data: Any) -> Any:
        """Drop fields that are null, or that do not change the answer."""
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            known = name in cls.model_fields
            if value is None or (not known and name in _IGNORED):
                continue
            if not known and name in _NEUTRAL:
                if not _is_one_of(value, _NEUTRAL[name]):
                    only = " or ".join(map(repr, _NEUTRAL[name]))
                    raise ValueError(f"{name}={value!r:.60} is not supported (only {only})")
                continue
            kept[name] = value
        return kept


def _is_one_of(value: Any, neutral: tuple) -> bool:
    is_bool = isinstance(value, bool)  # True == 1, but n=True is not n=1
    return any(value == other and is_bool == isinstance(other, bool) for other in neutral)


class Url(Strict):
    """A picture's or clip's address; ``detail`` is OpenAI's hint, ``format`` LiteLLM's."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None
    format: str | None = None


class TextPart(Strict):
    """Text."""

    type: Literal["text"]
    text: str


class ImagePart(Strict):
    """A picture, with the size limits that Qwen's clients send."""

    type: Literal["image_url"]
    image_url: Url | str
    min_pixels: int | None = Field(None, ge=1, le=2**31)
    max_pixels: int | None = Field(None, ge=1, le=2**31)


class Sampled(Strict):
    """How the frames of a clip are sampled."""

    fps: float | None = Field(None, gt=0, le=1000)
    max_frames: int | None = Field(None, ge=2, le=10_000)


class ClipPart(Sampled):
    """A clip in one URL: a file, or vLLM's form, JPEGs after ``data:video/jpeg;base64,``."""

    type: Literal["video_url"]
    video_url: Url | str


class FramesPart(Sampled):
    """Model Studio's form of a clip: its frames, ``fps`` a second; or one URL."""

    type: Literal["video"]
    video: list[str] | str


Part = Annotated[TextPart | ImagePart | ClipPart | FramesPart, Field(discriminator="type")]


class Message(Strict):
    """One turn; ``name`` is accepted and ignored, as the families' templates do not have it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(Strict):
    """OpenAI's options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ClipTimes(Strict):
    """Which frames of the whole clip were sent, counted at the clip's own frame rate."""

    fps: float = Field(gt=0, le=1e6)
    frames_indices: list[Annotated[int, Field(ge=0, le=10**9)]] = Field(min_length=1)
    total_num_frames: int | None = Field(None, ge=1, le=10**9)
    duration: float | None = None


class MediaOptions(Strict):
    """vLLM's ``media_io_kwargs``."""

    video: ClipTimes | None = None


class ChatRequest(Strict):
    """A request; by default greedy, and as long as the server allows."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    skip_special_tokens: bool = True
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    media_io_kwargs: MediaOptions | None = None

    @model_validator(mode="after")
    def check_together(self) -> ChatRequest:
        """Raises ValueError for fields that contradict each other."""
        if self.stream_options and not self.stream:
            raise ValueError("stream_options needs stream=true")
        if any(not 0 < len(text) <= 256 for text in self.stops):
            raise ValueError("each text in stop must have 1 to 256 characters")
        prefilled = self.messages[-1].role == "assistant"
        if (self.continue_final_message, self.add_generation_prompt) == (True, True):
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        if self.continue_final_message and not prefilled:
            raise ValueError("continue_final_message needs a last message of the assistant")
        if prefilled and (self.add_generation_prompt or self.continue_final_message is False):
            raise ValueError("this server always continues a last message of the assistant")
        if self.add_generation_prompt is False and not prefilled:
            raise ValueError("add_generation_prompt=false needs a last message of the assistant")
        return self

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def clip_times(self) -> ClipTimes | None:
        """The times of the frames of the request's one clip."""
        return self.media_io_kwargs.video if self.media_io_kwargs else None

    @property
    def new_tokens(self) -> int | None:
        """The longest answer that the client wants."""
        return self.max_completion_tokens or self.max_tokens


_TAGS = ("text", "image_url", "video_url", "video")
_WORDS = {
    "extra_forbidden": "this field is unknown; leave it out",
    "missing": "this field is missing",
    "model_type": "expected a JSON object",
    "model_attributes_type": "expected a JSON object, sent as application/json",
    "dict_type": "expected a JSON object",
}


def describe_errors(errors: Sequence[Any]) -> tuple[str, str]:
    """The most specific of pydantic's errors: a line, and the field's path."""
    worst = max(errors, key=lambda error: (len(error["loc"]), error["type"] == "value_error"))
    where = ".".join(_path(worst["loc"]))
    text = _WORDS.get(worst["type"], worst["msg"].removeprefix("Value error, "))
    text = text[:1].lower() + text[1:]
    return (f"{where}: {text}" if where else text), where


def _path(place: Sequence[Any]) -> list[str]:
    """Field names and numbers, without pydantic's names for the branches of a union."""
    path: list[str] = []
    for before, step in itertools.pairwise(["body", *place]):
        branch = isinstance(before, int) and step in _TAGS
        if not branch and step not in ("body", "str", "Url") and "[" not in str(step):
            path.append(str(step))
    return path


# Pillow's names and the usual ones; strangers reach only these decoders. Pillow raises KeyError for
# a name that has no opener, such as "MPO": "JPEG" opens the stereo JPEGs of phones.
FORMATS = {
    "PNG": "PNG", "JPEG": "JPEG", "WEBP": "WebP", "GIF": "GIF", "BMP": "BMP", "TIFF": "TIFF",
}  # fmt: skip
_ANY_FORMAT = " or ".join(", ".join(FORMATS.values()).rsplit(", ", 1))
_FRAMES = "data:video/jpeg;base64,"  # vLLM's form of frames: JPEGs, separated by commas
_CLIP_SECONDS = 600.0


class Budget:
    """Counts the media of one request, and raises RequestError beyond the limits."""

    def __init__(self, limits: Limits):
        self.limits, self._pictures, self.pixels = limits, 0, 0

    def count_medium(self) -> None:
        """Count one more picture or clip."""
        self._pictures += 1
        if self._pictures > self.limits.pictures:
            raise RequestError(f"a request may have {self.limits.pictures} pictures and clips")

    def count_pixels(self, width: int, height: int) -> None:
        """Count one more picture or frame."""
        self.pixels += width * height
        if self.pixels > self.limits.pixels:
            limit = f"{self.limits.pixels:,} pixels together"
            raise RequestError(f"the pictures have more than {limit}; send smaller ones")


def read_messages(messages: list[Message], limits: Limits) -> tuple[list[dict], int]:
    """Messages with their media as bytes, and the number of pixels.

    Raises:
        RequestError: a medium cannot be read or exceeds a limit; names the field.
    """
    budget = Budget(limits)
    return [_read(i, message, budget) for i, message in enumerate(messages)], budget.pixels


def _read(i: int, message: Message, budget: Budget) -> dict:
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return {"role": role, "content": [{"type": "text", "text": message.content}]}
    content = []
    for place, part in enumerate(message.content):
        where = f"messages.{i}.content.{place}"
        if role != "user" and not isinstance(part, TextPart):
            raise RequestError(f"{where}: media belong to the user, not to the {role}", param=where)
        try:
            content.append(_read_part(part, budget))
        except VlkitError as error:
            raise RequestError(f"{where}: {error}", param=where) from error
    return {"role": role, "content": content}


def _read_part(part: Any, budget: Budget) -> dict:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    budget.count_medium()
    if isinstance(part, ImagePart):
        limits = part.model_dump(include={"min_pixels", "max_pixels"}, exclude_none=True)
        return {"type": "image", "image": _read_picture(_url(part.image_url), budget), **limits}
    source = _url(part.video_url) if isinstance(part, ClipPart) else part.video
    return {"type": "video", "video": _read_clip(source, part, budget)}


def _url(field: Url | str) -> str:
    return field if isinstance(field, str) else field.url


def _read_picture(url: str, budget: Budget) -> bytes:
    data = _fetch(url, budget.limits)
    name = describe_source(data)
    try:
        with PIL.Image.open(io.BytesIO(data), formats=list(FORMATS)) as picture:
            size = picture.size
    except PIL.Image.DecompressionBombError as error:
        raise MediaError(f"{name} has too many pixels; send a smaller one") from error
    except Exception as error:  # a decoder may raise anything on hostile bytes
        raise MediaError(
            f"{name}, which begins with {data[:12]!r}, is not a whole {_ANY_FORMAT} file"
        ) from error
    budget.count_pixels(*size)
    return data


def _read_clip(source: list[str] | str, part: ClipPart | FramesPart, budget: Budget) -> Video:
    """A clip; of one that comes as frames, the model sees all frames, at the rate ``fps``."""
    most = min(part.max_frames or budget.limits.frames, budget.limits.frames)
    if isinstance(source, str) and source[: len(_FRAMES)].lower() == _FRAMES:
        frames = source[len(_FRAMES) :].split(",")
        source = [f"data:image/jpeg;base64,{frame}" for frame in frames]
    rate = part.fps or 2.0
    if isinstance(source, str):
        video = Video(_fetch(source, budget.limits), fps=rate, max_frames=most)
        info = probe_clip(video)
        if info.duration > _CLIP_SECONDS:
            text = f"the clip is {info.duration:,.0f} s long; the limit is {_CLIP_SECONDS:,.0f} s"
            raise MediaError(text)
        Budget(budget.limits).count_pixels(*info.size)
        return video
    if not 1 <= len(source) <= budget.limits.frames:
        raise MediaError(f"{len(source)} frames; send 1 to {budget.limits.frames}")
    pictures = [_read_picture(frame, budget) for frame in source]
    return Video(pictures, fps=rate, source_fps=rate, max_frames=most)


def _fetch(url: str, limits: Limits) -> bytes:
    """The bytes of a data URL; of a file or http(s) URL only if the server allows it."""
    scheme = url[:8].lower()
    if scheme.startswith("data:"):
        return read_bytes(url, "the data URL")
    if scheme.startswith(("http://", "https://")):
        if not limits.urls:
            raise MediaError("this server does not fetch URLs (see --allow-urls); send a data URL")
        return read_bytes(url, describe_source(url))
    if limits.local is None:
        raise MediaError("this server does not read files (see --allow-local); send a data URL")
    return _read_file(url, limits.local, limits.body_bytes)


def _read_file(url: str, folder: Path, most: int) -> bytes:
    """A file in the folder; the error for others does not tell whether they exist."""
    name = describe_source(url)
    refused = MediaError(f"{name} is not a file in the folder that requests may read")
    try:
        path = os.path.realpath(os.path.join(folder, local_path(url)))
        inside = Path(path).is_relative_to(folder.resolve()) and os.path.isfile(path)
    except (OSError, ValueError) as error:  # a null character, a name too long
        raise refused from error
    if not inside:
        raise refused
    if os.path.getsize(path) > most:
        raise MediaError(f"{name} has more than {most:,} bytes; send a smaller file")
    return read_bytes(path, name)
