"""From a request to a row for the engine: media decoded, prompt rendered, limits kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from vlkit.batching.feeding import Waiting
from vlkit.batching.group import Row
from vlkit.batching.row_tensors import describe_row, split_media, split_rows
from vlkit.decoding import ClipInfo
from vlkit.errors import VlkitError
from vlkit.generation import count_usage
from vlkit.inputs import LoadedMessages, load_messages, make_inputs
from vlkit.models import VLM
from vlkit.replies import Usage
from vlkit.serving.limits import Limits, RequestError
from vlkit.serving.schema import ChatRequest, ClipTimes
from vlkit.video import Clip

_TOKEN_LETTERS = 16  # a text of more letters a token is not even looked at


@dataclass(frozen=True, eq=False)
class Prepared:
    """A request, ready for the engine.

    Attributes:
        waiting: its media and how many tokens it has.
        row: for the engine.
        usage: of its prompt.
    """

    waiting: Waiting
    row: Row
    usage: Usage


def check_texts(messages: list[dict], context: int) -> None:
    """Refuse texts that cannot fit, before they are tokenized."""
    items = [item for message in messages for item in message["content"]]
    letters = sum(len(item["text"]) for item in items if item["type"] == "text")
    if letters > _TOKEN_LETTERS * context:
        raise _too_long(f"{letters:,} letters", context)


def prepare(
    vlm: VLM, chat: ChatRequest, messages: list[dict], limits: Limits, context: int, fast: bool
) -> Prepared:
    """Decode media, render the prompt and make its tensors.

    Args:
        vlm: whose processor it is.
        chat: the request.
        messages: its messages, from :func:`vlkit.serving.content.read_messages`.
        limits: of the server.
        context: the most tokens of prompt and answer.
        fast: for the batch engine.

    Raises:
        VlkitError: for what is wrong with it.
    """
    loaded = _with_times(load_messages(vlm, messages), chat.clip_times)
    inputs = make_inputs(vlm, [loaded], device=_device(vlm) if fast else None)
    (tensors,), (sizes,) = split_rows(inputs), inputs.input_sizes
    digests = tuple(hashlib.sha256(each).digest() for each in _contents(loaded))
    (media,) = split_media(inputs, [digests]) if fast else ([],)
    length = tensors["input_ids"].shape[1]
    limit = _answer_limit(chat, limits, context, length)
    sampling = (chat.temperature, chat.top_p)
    row = Row(0, tensors, media, limit, chat.seed, sampling=sampling)
    usage = count_usage(vlm, describe_row(loaded, tensors, sizes), 0)
    return Prepared(Waiting(0, None, None if fast else inputs, length, digests), row, usage)


def _contents(loaded: LoadedMessages) -> list[Any]:
    return [*(image.tobytes() for image in loaded.images), *(clip.frames for clip in loaded.clips)]


def _device(vlm: VLM) -> Any:
    """Where pictures are cut into patches; as in a batch, so that answers are the same."""
    half = vlm.model.dtype.itemsize == 2 and vlm.model.device.type == "cuda"
    return vlm.model.device if half else None


def _answer_limit(chat: ChatRequest, limits: Limits, context: int, length: int) -> int:
    asked, room = chat.new_tokens, context - length
    if asked is not None and asked > limits.new_tokens:
        text = f"max_tokens={asked:,}: this server writes at most {limits.new_tokens:,}"
        raise RequestError(text, param="max_tokens")
    if room < (asked or 1):
        raise _too_long(f"{length:,} prompt tokens and {asked or 1:,} of the answer", context)
    return asked or min(limits.new_tokens, room)


def _too_long(what: str, context: int) -> RequestError:
    text = f"{what} exceed the context of {context:,} tokens; send less, or smaller pictures"
    return RequestError(text, param="messages", code="context_length_exceeded")


def _with_times(loaded: LoadedMessages, times: ClipTimes | None) -> LoadedMessages:
    """The times that a client says of its frames, as vLLM's clients do of a request's one clip."""
    if times is None:
        return loaded
    if len(loaded.clips) != 1 or len(loaded.clips[0].indices) != len(times.frames_indices):
        counts = [len(clip.indices) for clip in loaded.clips]
        raise VlkitError(
            f"media_io_kwargs.video: {len(times.frames_indices)} frames_indices for clips of "
            f"{counts} frames; they are told of one clip with an even number of frames"
        )
    clip = _retimed(loaded.clips[0], times)
    return replace(loaded, clips=[clip])


def _retimed(clip: Clip, times: ClipTimes) -> Clip:
    total = times.total_num_frames or max(times.frames_indices) + 1
    info = ClipInfo(clip.info.size, times.fps, total)
    return replace(clip, indices=tuple(times.frames_indices), range_frames=total, info=info)
