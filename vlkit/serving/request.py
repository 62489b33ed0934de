"""The fields of a request and the media in it, checked and decoded."""

import http.client
import io
import ipaddress
import itertools
import os
import socket
import urllib.request
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import PIL.Image
import pydantic
from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from vlkit.errors import MediaError, ModelError, VlkitError
from vlkit.grounding.boxes import Size
from vlkit.media.image import Image, describe_source
from vlkit.media.sources import is_remote, local_path, read_bytes
from vlkit.media.video import Video, probe_clip, sample_indices
from vlkit.models.families import SizeRules
from vlkit.serving.limits import Limits


@dataclass(eq=False)
class RequestError(VlkitError):
    """A refused request; the client gets it as OpenAI's error object.

    Attributes:
        message: what was wrong and what to do.
        status: the HTTP status.
        param: the field that is wrong, as ``messages.0.content``, or None.
        code: OpenAI's short code, or None.
        headers: of the response.
    """

    message: str
    _: KW_ONLY
    status: int = 400
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    @classmethod
    def of(cls, error: Exception) -> Self:
        """What the client learns when the model fails."""
        import torch

        if isinstance(error, torch.cuda.OutOfMemoryError):
            torch.cuda.empty_cache()
            text = "out of GPU memory; send smaller pictures or ask for fewer tokens"
            return cls(text, status=503, headers={"Retry-After": "5"})
        if isinstance(error, VlkitError) and not isinstance(error, ModelError):
            return cls(str(error))
        return cls(f"the model failed: {type(error).__name__}: {error!s:.200}", status=500)

    @property
    def body(self) -> dict:
        """The JSON that OpenAI's clients read."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kinds.get(self.status, kind)}
        return {"error": error | {"param": self.param, "code": self.code}}


class ErrorObject(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(BaseModel):
    """The body of every response but 200; for the OpenAPI document."""

    error: ErrorObject


_IGNORED = {  # say who asks, which does not change the answer
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "parallel_tool_calls", "uuid",
}  # fmt: skip
_NOTED = {  # hints of other services; the response says that they had no effect
    "reasoning_effort", "cache_control", "reasoning_content", "reasoning", "verbosity",
    "prompt_cache_retention", "total_pixels",
}  # fmt: skip


_NEUTRAL: dict[str, Any] = {  # unsupported fields, and the value that asks for nothing
    "best_of": 1, "echo": False, "logit_bias": {}, "functions": [], "modalities": ["text"],
    "min_tokens": 0, "ignore_eos": False, "use_beam_search": False, "length_penalty": 1,
    "spaces_between_special_tokens": True, "include_stop_str_in_output": False, "tool_calls": [],
    "annotations": [],
}  # fmt: skip


class Strict(BaseModel, strict=True, extra="forbid", allow_inf_nan=False):
    """Converts no types, refuses unknown fields, and drops nulls."""

    _noted: set[str] = pydantic.PrivateAttr(default_factory=set)

    @model_validator(mode="wrap")
    @classmethod
    def drop_neutral_fields(cls, data: Any, handler: Any) -> Any:
        """Drop fields that are null, or that do not change the answer."""
        if not isinstance(data, dict):
            return handler(data)
        kept, noted = {}, set()
        for name, value in data.items():
            known = name in cls.model_fields
            if value is None or (not known and name in _IGNORED):
                continue
            if known or name not in (*_NOTED, *_NEUTRAL):
                kept[name] = value
            elif name in _NOTED:
                noted.add(name)
            else:
                only = _NEUTRAL[name]  # True == 1, but min_tokens=False is not min_tokens=0
                if value != only or isinstance(value, bool) != isinstance(only, bool):
                    raise _refused(name, f"{name}={value!r:.60} is not supported (only {only!r})")
        checked = handler(kept)
        checked._noted = noted
        return checked


def _refused(name: str, text: str) -> pydantic.ValidationError:
    """An error with a field's name, which a ValueError of a whole object does not have."""
    error = PydanticCustomError("refused", "{text}", {"text": text})
    place: Any = {"type": error, "loc": (name,)}
    return pydantic.ValidationError.from_exception_data("request", [place])


class PixelLimits(Strict):
    """The size limits of a picture that Qwen's clients send."""

    min_pixels: int | None = Field(None, ge=1, le=2**31)
    max_pixels: int | None = Field(None, ge=1, le=2**31)


class Url(PixelLimits):
    """A picture's or clip's address; ``detail`` is OpenAI's hint, ``format`` LiteLLM's."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None
    format: str | None = None


class TextPart(Strict):
    """Text."""

    type: Literal["text"]
    text: str


class ImagePart(PixelLimits):
    """A picture."""

    type: Literal["image_url"]
    image_url: Url | str


class Sampled(PixelLimits):
    """How the frames of a clip are sampled, and their size."""

    fps: float | None = Field(None, gt=0, le=1000)
    nframes: int | None = Field(None, ge=1)
    max_frames: int | None = Field(None, ge=2, le=10_000)


class ClipUrl(Url, Sampled):
    """A clip's address; LMDeploy's clients write its options here."""


class ClipPart(Sampled):
    """A clip in one URL: a file, or vLLM's form, JPEGs after ``data:video/jpeg;base64,``."""

    type: Literal["video_url"]
    video_url: ClipUrl | str


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

    @field_validator("role", mode="before")
    @classmethod
    def check_role(cls, role: Any) -> Any:
        """Raises ValueError for the result of a function, which the prompt cannot contain."""
        if role in ("tool", "function"):
            raise ValueError(
                "this server does not accept results of functions; send the result as text in a "
                "user's message, and leave out the assistant's tool_calls"
            )
        return role


class StreamOptions(Strict):
    """OpenAI's options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ClipOptions(Strict):
    """How a clip is sampled; or, with ``frames_indices``, which frames of it were sent.

    These are counted at the clip's own frame rate, ``fps``.
    """

    fps: float | None = Field(None, gt=0, le=1e6)
    num_frames: int | None = Field(None, ge=-1)
    frames_indices: list[Annotated[int, Field(ge=0, le=10**9)]] | None = Field(None, min_length=1)
    total_num_frames: int | None = Field(None, ge=1, le=10**9)
    duration: float | None = None


class MediaOptions(Strict):
    """vLLM's ``media_io_kwargs``."""

    video: ClipOptions = ClipOptions.model_validate({})


class ProcessorOptions(PixelLimits):
    """vLLM's ``mm_processor_kwargs``; clips are sampled in any case, frames never."""

    fps: float | None = Field(None, gt=0, le=1000)
    do_sample_frames: bool | None = None


class ResponseFormat(Strict):
    """OpenAI's ``response_format``; a schema is always followed strictly."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] = {}

    @model_validator(mode="after")
    def check_schema(self) -> Self:
        """Raises ValueError for a schema that is missing."""
        if self.type == "json_schema" and self.json_schema.get("schema") is None:
            raise ValueError("type json_schema needs json_schema.schema")
        return self


class TemplateOptions(Strict):
    """vLLM's ``chat_template_kwargs``: the switch for thinking."""

    enable_thinking: bool | None = None


class Function(BaseModel):
    """A function that the answer can call; its parameters are a JSON schema."""

    name: str
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """OpenAI's form of a function in ``tools``; in ``tool_choice`` it has only a name."""

    function: Function


class ChatRequest(Strict):
    """A request; by default greedy, and as long as the server allows."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    n: int = Field(1, ge=1, le=8)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] = []
    tool_choice: Literal["none", "auto", "required"] | Tool = "auto"
    chat_template_kwargs: TemplateOptions = TemplateOptions.model_validate({})
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    skip_special_tokens: bool = True
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    media_io_kwargs: MediaOptions = MediaOptions.model_validate({})
    mm_processor_kwargs: ProcessorOptions = ProcessorOptions.model_validate({})

    @model_validator(mode="after")
    def check_together(self) -> Self:
        """Raises ValueError for fields that contradict each other."""
        prefilled = self.messages[-1].role == "assistant"
        continues, asks = self.continue_final_message, self.add_generation_prompt
        flag = "continue_final_message" if continues is not None else "add_generation_prompt"
        for wrong, name, text in (
            (self.stream_options and not self.stream, "stream_options", "needs stream=true"),
            (self.tools and self.tool_choice == "auto", "tools",
             "is refused: this server does not let the model choose; name the function in "
             'tool_choice, or send tool_choice="none" or response_format'),
            (self.tool_choice not in ("auto", "none") and not self.function, "tool_choice",
             "must name one function of tools"),
            (self.top_logprobs and not self.logprobs, "top_logprobs", "needs logprobs=true"),
            (any(not 0 < len(stop) <= 256 for stop in self.stops), "stop",
             "must have 1 to 256 characters in each text"),
            (prefilled and (asks or continues is False), flag,
             "is refused: this server always continues a last message of the assistant"),
            (not prefilled and (continues or asks is False), flag,
             "needs a last message of the assistant"),
        ):  # fmt: skip
            if wrong:
                raise _refused(name, f"{name} {text}")
        return self

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def parts(self) -> list[Any]:
        """The texts, pictures and clips of all messages."""
        lists = [m.content for m in self.messages if not isinstance(m.content, str)]
        return [part for parts in lists for part in parts]

    @property
    def noted(self) -> list[str]:
        """Fields that had no effect, and that the client should hear of."""
        return sorted(set().union(*(m._noted for m in (self, *self.messages, *self.parts))))

    @property
    def urls(self) -> list[str]:
        """The addresses of all media."""
        return [url for part in self.parts for url in _urls(part)]

    @property
    def answer_schema(self) -> Any:
        """The JSON schema of the answer."""
        if self.function:
            return self.function.parameters or {"type": "object"}
        if self.response_format is None or self.response_format.type == "text":
            return None
        return self.response_format.json_schema.get("schema", {"type": "object"})

    @property
    def function(self) -> Function | None:
        """The function that ``tool_choice`` wants to be called."""
        functions = {tool.function.name: tool.function for tool in self.tools}
        if isinstance(self.tool_choice, Tool):
            return functions.get(self.tool_choice.function.name)
        is_clear = self.tool_choice == "required" and len(functions) == 1
        return functions.popitem()[1] if is_clear else None

    @property
    def new_tokens(self) -> int | None:
        """The longest answer that the client wants."""
        return self.max_completion_tokens or self.max_tokens


def _urls(part: Any) -> list[str]:
    """The addresses of a part: none for a text, several for a clip that comes as frames."""
    if isinstance(part, TextPart):
        return []
    source = getattr(part, part.type)
    urls = source if isinstance(source, list) else [source]
    return [url if isinstance(url, str) else url.url for url in urls]


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
    if worst["type"] == "json_invalid":
        place, reason = worst["loc"][-1], worst.get("ctx", {}).get("error", "syntax error")
        return f"the body is not valid JSON: {reason} at character {place}", ""
    where = ".".join(_path(worst["loc"]))
    text = _WORDS.get(worst["type"], worst["msg"].removeprefix("Value error, "))
    text = text[:1].lower() + text[1:]
    named = where and not text.startswith(where.rpartition(".")[2])
    return (f"{where}: {text}" if named else text), where


def _path(place: Sequence[Any]) -> list[str]:
    """Field names and numbers, without pydantic's names for the branches of a union."""
    path: list[str] = []
    for before, step in itertools.pairwise(["body", *place]):
        branch = isinstance(before, int) and step in _TAGS
        if not branch and step not in ("body", "str", "Url") and "[" not in str(step):
            path.append(str(step))
    return path


# Pillow's names; strangers reach only these decoders. Pillow raises KeyError for
# a name that has no opener, such as "MPO": "JPEG" opens the stereo JPEGs of phones.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_ANY_FORMAT = "PNG, JPEG, WebP, GIF, BMP or TIFF"
_FRAMES = "data:video/jpeg;base64,"  # vLLM's form of frames: JPEGs, separated by commas
_CLIP_SECONDS = 600.0
_TOKEN_CHARACTERS = 16  # a text with more characters per token of context is not tokenized


class MediaReader:
    """Reads the media of one request, and refuses what exceeds the limits before it is decoded.

    Args:
        chat: the request.
        limits: of the server.
        rules: how large the model sees pictures and clips.
        context: the most tokens that they may have.

    Attributes:
        pixels: that will be held in memory for the model.
        notes: what the client should know of.
    """

    def __init__(self, chat: ChatRequest, limits: Limits, rules: SizeRules, context: int):
        self._chat, self._limits, self._rules, self._context = chat, limits, rules, context
        self._media = self._picture_pixels = self._characters = self._tokens = self.pixels = 0
        self.notes: list[str] = []

    def read(self) -> list[dict]:
        """The messages, with their media as bytes.

        Raises:
            RequestError: a medium cannot be read or exceeds a limit; names the field.
        """
        return [self._read_message(i, message) for i, message in enumerate(self._chat.messages)]

    def _read_message(self, i: int, message: Message) -> dict:
        role = "system" if message.role == "developer" else message.role
        if isinstance(message.content, str):
            return {"role": role, "content": [self._read_text(message.content)]}
        content = []
        for place, part in enumerate(message.content):
            where = f"messages.{i}.content.{place}"
            if role != "user" and not isinstance(part, TextPart):
                text = f"{where}: media belong to the user, not to the {role}"
                raise RequestError(text, param=where)
            try:
                content.append(self._read_part(part))
            except RequestError:
                raise
            except VlkitError as error:
                raise RequestError(f"{where}: {error}", param=where) from error
        return {"role": role, "content": content}

    def _read_text(self, text: str) -> dict:
        self._characters += len(text)
        if self._characters > _TOKEN_CHARACTERS * self._context:
            raise too_long(f"{self._characters:,} characters", self._context)
        return {"type": "text", "text": text}

    def _read_part(self, part: Any) -> dict:
        if isinstance(part, TextPart):
            return self._read_text(part.text)
        self._media += 1
        if self._media > self._limits.pictures:
            raise MediaError(f"a request may have {self._limits.pictures} pictures and clips")
        urls = _urls(part)
        if not isinstance(part, ImagePart):
            return {"type": "video", "video": self._read_clip(urls, part)}
        limits = self._options(part, "min_pixels", "max_pixels")
        data, size = self._read_picture(urls[0])
        self._count(self._rules.image_size(size, Image(None, **limits)), 1)
        return {"type": "image", "image": data, **limits}

    def _options(self, part: Any, *names: str) -> dict[str, Any]:
        """The request's options of a medium, its address's and its own; the last one counts."""
        given = [self._chat.mm_processor_kwargs, getattr(part, part.type), part]
        options: dict[str, Any] = {}
        for level in (level for level in given if isinstance(level, PixelLimits)):
            options |= level.model_dump(include=set(names), exclude_none=True)
        return options

    def _read_picture(self, url: str) -> tuple[bytes, Size]:
        data = self._fetch(url)
        name = describe_source(data)
        try:
            with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                size = picture.size
        except PIL.Image.DecompressionBombError as error:
            raise MediaError(f"{name} has too many pixels; send a smaller one") from error
        except Exception as error:  # a decoder may raise anything on hostile bytes
            raise MediaError(f"{name} is not a whole {_ANY_FORMAT} file") from error
        self._picture_pixels += size[0] * size[1]
        self._check_pixels(self._picture_pixels)
        self.pixels += size[0] * size[1]
        return data, size

    def _check_pixels(self, pixels: int) -> None:
        if pixels > self._limits.pixels:
            limit = f"{self._limits.pixels:,} pixels together"
            raise MediaError(f"the pictures have more than {limit}; send smaller ones")

    def _read_clip(self, urls: list[str], part: ClipPart | FramesPart) -> Video:
        """A clip; of one that comes as frames, the model sees all frames, at the rate ``fps``."""
        options = self._options(part, "fps", "nframes", "max_frames", "min_pixels", "max_pixels")
        sampling = self._chat.media_io_kwargs.video
        most = min(options.get("max_frames", self._limits.frames), self._limits.frames)
        rate = options.get("fps") or (None if sampling.frames_indices else sampling.fps)
        count = options.get("nframes") or sampling.num_frames or 0
        if count > 0:  # that many of the whole clip, unless fps gives fewer
            most, rate = min(most, max(2, count)), rate or 1000.0
        if "min_pixels" in options:
            self.notes.append("min_pixels has no effect on a clip")
        tokens = "max_pixels" in options and max(1, options["max_pixels"] // self._rules.side**2)
        given: dict[str, Any] = {"max_frames": most, "max_frame_tokens": tokens or None}
        whole = not isinstance(getattr(part, part.type), list)
        if whole and urls[0][: len(_FRAMES)].lower() == _FRAMES:
            urls = [f"data:image/jpeg;base64,{data}" for data in urls[0][len(_FRAMES) :].split(",")]
        elif whole:
            video = Video(self._fetch(urls[0]), fps=min(rate or 2.0, 1000.0), **given)
            info = probe_clip(video)
            if info.duration > _CLIP_SECONDS:
                text = f"{info.duration:,.0f} s long; the limit is {_CLIP_SECONDS:,.0f} s"
                raise MediaError(f"the clip is {text}")
            self._check_pixels(info.size[0] * info.size[1])
            self._count_clip(video, info)
            return video
        if not 1 <= len(urls) <= self._limits.frames:
            raise MediaError(f"{len(urls)} frames; send 1 to {self._limits.frames}")
        rate = options.get("fps", 2.0)
        pictures = [self._read_picture(frame)[0] for frame in urls]
        video = Video(pictures, fps=rate, source_fps=rate, **given)
        self._count_clip(video, probe_clip(video))
        return video

    def _count_clip(self, video: Video, info: Any) -> None:
        count = len(sample_indices(video, info)[0])
        size = self._rules.frame_size(info.size, count, video)
        self.pixels += size[0] * size[1] * count
        self._count(size, -(-count // 2))

    def _count(self, size: Size, steps: int) -> None:
        """Count the tokens of one more medium of this size, of so many pictures."""
        self._tokens += steps * size[0] * size[1] // self._rules.side**2
        if self._tokens > self._context:
            raise too_long(f"{self._tokens:,} tokens of pictures and clips", self._context)

    def _fetch(self, url: str) -> bytes:
        """The bytes of a data URL; of a file or http(s) URL only if the server allows it."""
        limits = self._limits
        if url[:5].lower() == "data:":
            return read_bytes(url, "the data URL")
        if is_remote(url):
            if not limits.urls:
                raise MediaError(
                    "this server does not fetch URLs (see --allow-urls); send a data URL"
                )
            return read_bytes(url, describe_source(url), urlopen=public_opener(limits.hosts).open)
        if limits.local is None:
            raise MediaError("this server does not read files (see --allow-local); send a data URL")
        return _read_file(url, limits.local, limits.body_bytes)


def too_long(what: str, context: int) -> RequestError:
    """The refusal of a request that exceeds the context."""
    text = f"{what} exceed the context of {context:,} tokens; send less, or smaller pictures"
    return RequestError(text, param="messages", code="context_length_exceeded")


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


_GLOBAL_V6 = ipaddress.ip_network("2000::/3")  # all other addresses of IPv6 have special uses


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet.

    The forms of IPv6 that lead on to any address of IPv4 (mapped, NAT64, 6to4, Teredo) are not.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        return address in _GLOBAL_V6 and address.is_global and address.sixtofour is None
    return address.is_global and not address.is_multicast


def public_opener(hosts: Sequence[str]) -> urllib.request.OpenerDirector:
    """Opens http(s) URLs; connects, also after a redirect, only to public addresses.

    The address that was checked is the one that is used: a name is looked up once. The
    environment's proxy is not used.

    Args:
        hosts: names or addresses in internal networks that are allowed as well.
    """

    def connect(address: tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
        host, port = address
        found = [str(place[0]) for *_, place in socket.getaddrinfo(host, port, type=1)]
        if not all(map(is_public, found)) and host not in hosts:
            raise MediaError(f"{host:.80} is in an internal network; send a data URL")
        return socket.create_connection((found[-1], port), timeout, source)

    def guard(kind: Any, *arguments: Any, **options: Any) -> Any:
        connection = kind(*arguments, **options)
        connection._create_connection = connect
        return connection

    class Guarded(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        def http_open(self, request: Any) -> Any:
            return self.do_open(partial(guard, http.client.HTTPConnection), request)

        def https_open(self, request: Any) -> Any:
            return self.do_open(partial(guard, http.client.HTTPSConnection), request)

    opener = urllib.request.OpenerDirector()  # without files, FTP and proxies
    for name in ("HTTPRedirectHandler", "HTTPErrorProcessor", "HTTPDefaultErrorHandler"):
        opener.add_handler(getattr(urllib.request, name)())
    opener.add_handler(Guarded())
    return opener
