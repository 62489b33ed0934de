"""One question to a hosted model; the response as a ``Reply``."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from threading import Event
from typing import Any

from vlkit.generation.reply import Reply, Usage
from vlkit.inputs import defer_media, estimate_text
from vlkit.remote.client import TRIES_AGAIN, RawAnswer, ask, run
from vlkit.remote.request import Request, make_request
from vlkit.remote.services import Endpoint

_SPECIAL = re.compile(r"<\|\w+\|>")
_SPECIAL_START = re.compile(r"<(\|\w*\|?)?$")  # at the end of a piece


def answer_remotely(
    remote: Endpoint,
    messages: list[dict],
    options: dict,
    seed: int | None,
    put: Callable[[str], None] | None = None,
    stopped: Event | None = None,
) -> Reply:
    """Ask a remote model.

    Args:
        remote: the model.
        messages: checked.
        options: from :func:`vlkit.generation.generate.generation_options`.
        seed: for sampling.
        put: called with each piece of text as it comes.
        stopped: set it to close the connection; the Reply has the text up to there.

    Raises:
        RemoteError: the service refuses, or cannot be reached.
        MediaError, VlkitError: as with a model on this machine.
    """
    start, answer = time.perf_counter(), RawAnswer()
    request = make_request(remote, messages, options, seed)
    pieces = TextPieces(put) if put else None
    retries = min(remote.retries, TRIES_AGAIN)
    run(ask(remote, request.body, answer, pieces, retries=retries), stopped)
    if pieces:
        pieces.end()
    return make_reply(remote, request, answer, start)


class TextPieces:
    """Passes text on without special tokens, also where one is split between two pieces."""

    def __init__(self, put: Callable[[str], None]):
        self._put, self._held = put, ""

    def __call__(self, piece: str) -> None:
        text = _SPECIAL.sub("", self._held + piece)
        token_start = _SPECIAL_START.search(text)
        end = token_start.start() if token_start else len(text)
        self._held = text[end:]
        if end:
            self._put(text[:end])

    def end(self) -> None:
        """Pass on what was held back."""
        if self._held:
            self._put(self._held)
        self._held = ""


def make_reply(
    remote: Endpoint, request: Request, answer: RawAnswer, start: float, *, keep: bool = True
) -> Reply:
    """The Reply of an answer.

    Args:
        remote: the model.
        request: the question.
        answer: the service's response.
        start: the time of the question, by ``time.perf_counter``.
        keep: whether the Reply keeps its pictures, or reads them again when they are used.
    """
    content, reasoning = "".join(answer.content), "".join(answer.reasoning)
    raw = f"<think>\n{reasoning}\n</think>\n\n{content}" if reasoning else content
    usage, reason = _usage(remote, request, answer), answer.finish_reason
    media: tuple[Any, Any] = tuple(request.images), tuple(request.clips)
    if not keep:
        media = defer_media(request)
    return Reply(
        text=_SPECIAL.sub("", request.prefill + content),
        raw=request.prefill + raw,
        usage=usage,
        seconds=time.perf_counter() - start,
        family=remote.family,
        images=media[0],
        input_sizes=request.input_sizes,
        clips=media[1],
        finish_reason=reason if reason in ("length", "cancelled") else "stop",
        cost=remote.cost(usage.prompt_tokens, usage.new_tokens),
    )


def _usage(remote: Endpoint, request: Request, answer: RawAnswer) -> Usage:
    """The service's counts; estimates where it gives none, as for a stopped answer."""
    image = sum(w * h // remote.rules.side**2 for w, h in request.input_sizes)
    frames = [(clip.frame_size, (len(clip.indices) + 1) // 2) for clip in request.clips]
    video = sum(w * h // remote.rules.side**2 * steps for (w, h), steps in frames)
    names = ("prompt_tokens", "completion_tokens")
    counts: list[Any] = [getattr(answer.usage, name, None) for name in names]
    if not all(isinstance(count, int) for count in counts):  # a service may send anything
        text = estimate_text(request.messages, remote.family, [()] * len(request.clips))
        new = max(answer.pieces, sum(map(len, answer.content)) // 4)
        return Usage(image, video, text + image + video, new)
    details = getattr(answer.usage, "prompt_tokens_details", None)
    media = (getattr(details, name, None) for name in ("image_tokens", "video_tokens"))
    image_count, video_count = (count if isinstance(count, int) else None for count in media)
    _compare(remote, image_count, image, len(request.images))
    return Usage(image_count or image, video_count or video, *counts)


def _compare(remote: Endpoint, counted: int | None, sent: int, pictures: int) -> None:
    """Warn where the service saw pictures of another size: boxes in pixels would be off."""
    if counted and pictures and abs(counted - sent) > max(2 * pictures, 0.02 * sent):
        warnings.warn(
            f"{remote.name} counts {counted:,} image tokens, vlkit sent {sent:,}: it resizes "
            "pictures by other rules, so boxes in pixels may be off; give family=",
            stacklevel=2,
        )
