"""What a request for a chat completion may hold, in OpenAI's words and those of vLLM's clients."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_IGNORED = {  # say who asks, not what
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "parallel_tool_calls",
}  # fmt: skip
_NEUTRAL: dict[str, tuple] = {  # what is not done here, and what is the same as not asking for it
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
    """Nothing is guessed; a null is as good as nothing, an unknown field is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def leave_out_what_says_nothing(cls, data: Any) -> Any:
        """Fields that are null, that say who asks, or that ask for what happens anyway."""
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
                    raise ValueError(f"{name}={value!r:.60} is not done here, only {only}")
                continue
            kept[name] = value
        return kept


def _is_one_of(value: Any, those: tuple) -> bool:
    flag = isinstance(value, bool)  # True == 1, but it is not meant so
    return any(value == each and flag == isinstance(each, bool) for each in those)


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
    """A picture, with the limits that Qwen's clients write beside it."""

    type: Literal["image_url"]
    image_url: Url | str
    min_pixels: int | None = Field(None, ge=1, le=2**31)
    max_pixels: int | None = Field(None, ge=1, le=2**31)


class ClipPart(Strict):
    """A clip in one URL: a file, or as vLLM has it JPEGs behind ``data:video/jpeg;base64,``."""

    type: Literal["video_url"]
    video_url: Url | str
    fps: float | None = Field(None, gt=0, le=1000)
    max_frames: int | None = Field(None, ge=2, le=10_000)


class FramesPart(Strict):
    """A clip's frames, taken ``fps`` a second, as Model Studio has it; or one URL."""

    type: Literal["video"]
    video: list[str] | str
    fps: float | None = Field(None, gt=0, le=1000)
    max_frames: int | None = Field(None, ge=2, le=10_000)


Part = Annotated[TextPart | ImagePart | ClipPart | FramesPart, Field(discriminator="type")]


class Message(Strict):
    """One turn; ``name`` is taken and has no place in the family's templates."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(Strict):
    """OpenAI's."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ClipTimes(Strict):
    """Which frames of a clip the frames sent are, counted at its own rate."""

    fps: float = Field(gt=0, le=1e6)
    frames_indices: list[Annotated[int, Field(ge=0, le=10**9)]] = Field(min_length=1)
    total_num_frames: int | None = Field(None, ge=1, le=10**9)
    duration: float | None = None


class MediaOptions(Strict):
    """vLLM's."""

    video: ClipTimes | None = None


class ChatRequest(Strict):
    """A request; what it leaves out is greedy and as long as the server allows."""

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
        """What is only wrong beside something else."""
        if self.stream_options and not self.stream:
            raise ValueError("stream_options goes with stream=true")
        if any(not 0 < len(text) <= 256 for text in self.stops):
            raise ValueError("a text in stop has 1 to 256 characters")
        prefilled = self.messages[-1].role == "assistant"
        if (self.continue_final_message, self.add_generation_prompt) == (True, True):
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        if self.continue_final_message and not prefilled:
            raise ValueError("continue_final_message needs a last message of the assistant's")
        if prefilled and (self.add_generation_prompt or self.continue_final_message is False):
            raise ValueError("a last message of the assistant's is gone on with here")
        if self.add_generation_prompt is False and not prefilled:
            raise ValueError("add_generation_prompt=false needs a last message of the assistant's")
        return self

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def clip_times(self) -> ClipTimes | None:
        """When the frames of the one clip were."""
        return self.media_io_kwargs.video if self.media_io_kwargs else None

    @property
    def new_tokens(self) -> int | None:
        """The longest answer asked for."""
        return self.max_completion_tokens or self.max_tokens


_TAGS = ("text", "image_url", "video_url", "video")
_WORDS = {
    "extra_forbidden": "this field is unknown here; leave it out",
    "missing": "this field is missing",
    "model_type": "expected a JSON object",
    "model_attributes_type": "expected a JSON object, sent as application/json",
    "dict_type": "expected a JSON object",
}


def describe_errors(errors: Sequence[Any]) -> tuple[str, str]:
    """Of pydantic's errors the one that knows most: a line and the field's path."""
    worst = max(errors, key=lambda error: (len(error["loc"]), error["type"] == "value_error"))
    where = ".".join(_path(worst["loc"]))
    text = _WORDS.get(worst["type"], worst["msg"].removeprefix("Value error, "))
    text = text[:1].lower() + text[1:]
    return (f"{where}: {text}" if where else text), where


def _path(place: Sequence[Any]) -> list[str]:
    """Field names and numbers, without the names that pydantic gives to a union's branches."""
    path: list[str] = []
    for before, each in itertools.pairwise(["body", *place]):
        branch = isinstance(before, int) and each in _TAGS
        if not branch and each not in ("body", "str", "Url") and "[" not in str(each):
            path.append(str(each))
    return path
