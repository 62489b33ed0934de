"""One question to a hosted model; the response as a ``Reply``."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from threading import Event
from typing import Any

from vlkit.generation.reply import Reply, Usage
from vlkit.inputs import estimate_text
from vlkit.media.image import DeferredImages
from vlkit.media.video import DeferredClips
from vlkit.remote.client import TRIES_AGAIN, RawAnswer, ask, run
from vlkit.remote.request import Request, make_request
from vlkit.remote.services import Endpoint

_SPECIAL = re.compile(r"<\|\w+\|>")


_SPECIAL_BEGUN = re.compile(r"<(\|\w*\|?)?$")


_REASONS = {"stop": "stop", "length": "length", "cancelled": "cancelled"}


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
        remote: whom.
        messages: checked.
        options: from :func:`vlkit.generation.generate.generation_options`.
        seed: for sampling.
        put: is given each piece of text as it comes.
        stopped: set it to close the connection; the Reply holds what has come.

    Raises:
        RemoteError: what the service refuses, in one line.
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
    """Hands on text without its special tokens, also where one is cut between two pieces."""

    def __init__(self, put: Callable[[str], None]):
        self._put, self._held = put, ""

    def __call__(self, piece: str) -> None:
        text = _SPECIAL.sub("", self._held + piece)
        begun = _SPECIAL_BEGUN.search(text)
        cut = begun.start() if begun else len(text)
        self._held = text[cut:]
        self._hand_on(text[:cut])

    def end(self) -> None:
        """Hand on what was held back."""
        self._hand_on(self._held)
        self._held = ""

    def _hand_on(self, text: str) -> None:
        if text:
            self._put(text)


def make_reply(
    remote: Endpoint, request: Request, answer: RawAnswer, start: float, *, keep: bool = True
) -> Reply:
    """The Reply of an answer.

    Args:
        remote: who answered.
        request: what was asked.
        answer: what came.
        start: of ``time.perf_counter``, when it was asked.
        keep: whether the Reply holds its pictures, or reads them again when they are looked at.
    """
    content, reasoning = "".join(answer.content), "".join(answer.reasoning)
    raw = f"<think>\n{reasoning}\n</think>\n\n{content}" if reasoning else content
    usage = _usage(remote, request, answer)
    images: Any = tuple(request.images)
    clips: Any = tuple(request.clips)
    if not keep:
        images = DeferredImages(request.pictures, [image.size for image in request.images])
        sizes = [(clip.info.size, clip.frame_size) for clip in request.clips]
        clips = DeferredClips(request.videos, sizes)
    return Reply(
        text=_SPECIAL.sub("", request.begun + content),
        raw=request.begun + raw,
        usage=usage,
        seconds=time.perf_counter() - start,
        family=remote.family,
        images=images,
        input_sizes=request.input_sizes,
        clips=clips,
        finish_reason=_REASONS.get(answer.finish_reason, "stop"),
        cost=remote.cost(usage.prompt_tokens, usage.new_tokens),
    )


def _usage(remote: Endpoint, request: Request, answer: RawAnswer) -> Usage:
    """The service's own counts; where it gave none, as of a stopped answer, estimates."""
    image = sum(w * h // remote.rules.side**2 for w, h in request.input_sizes)
    frames = [(clip.frame_size, (len(clip.indices) + 1) // 2) for clip in request.clips]
    video = sum(w * h // remote.rules.side**2 * steps for (w, h), steps in frames)
    told = answer.usage
    counts: list[Any] = [
        getattr(told, name, None) for name in ("prompt_tokens", "completion_tokens")
    ]
    if not all(isinstance(count, int) for count in counts):  # a service may send anything
        text = estimate_text(request.messages, remote.family, [()] * len(request.clips))
        new = max(answer.pieces, sum(map(len, answer.content)) // 4)
        return Usage(image, video, text + image + video, new)
    details = getattr(told, "prompt_tokens_details", None)
    media = (getattr(details, name, None) for name in ("image_tokens", "video_tokens"))
    counted, moving = (count if isinstance(count, int) else None for count in media)
    _compare(remote, counted, image, len(request.images))
    return Usage(counted or image, moving or video, *counts)


def _compare(remote: Endpoint, counted: int | None, sent: int, pictures: int) -> None:
    """Say so where the service saw pictures of another size: boxes in pixels would be off."""
    if counted and pictures and abs(counted - sent) > max(2 * pictures, 0.02 * sent):
        warnings.warn(
            f"{remote.name} counts {counted:,} image tokens, vlkit sent {sent:,}: it resizes "
            "pictures by other rules, so boxes in pixels may be off; give family=",
            stacklevel=2,
        )
