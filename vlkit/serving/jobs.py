"""A request under way: its row for the engine, its text as the tokens come, its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlkit.batching.feeding import Waiting
from vlkit.batching.group import Row
from vlkit.replies import Usage
from vlkit.serving.limits import RequestError


@dataclass(frozen=True)
class Ended:
    """The last word on a request.

    Attributes:
        text: what was not given out as a piece.
        reason: ``"stop"``, or ``"length"`` where the answer was cut off.
        usage: token counts.
    """

    text: str
    reason: str
    usage: Usage


Event = str | Ended | RequestError  # a piece of text, or the last word


class Text:
    """An answer's text as its tokens come; what may yet become a stop text is held back.

    Args:
        tokenizer: of the ``tokenizers`` library.
        endings: tokens that end an answer and are never text.
        stops: texts that end it; they are not part of it.
        skip_special: leave out special tokens.
    """

    def __init__(
        self, tokenizer: Any, endings: frozenset[int], stops: Sequence[str], skip_special: bool
    ):
        self._tokenizer, self._endings, self._stops = tokenizer, endings, stops
        self._skip = skip_special
        self._tail: list[int] = []  # tokens whose bytes are no whole character yet
        self._text, self._given = "", 0
        self._longest = max(map(len, stops), default=1)
        self.stopped = self.ended = False

    @property
    def watches(self) -> bool:
        """Whether a stop text may end it."""
        return bool(self._stops)

    def push(self, tokens: Sequence[int]) -> str:
        """The text that is certain now and was not given before."""
        for token in tokens:
            self.ended = self.ended or token in self._endings
            if self.ended:
                break
            self._tail.append(token)
            piece = self._decode_tail()
            if not piece.endswith("\ufffd"):
                self._add(piece)
        return self._give(len(self._text) if self.stopped else len(self._text) - self._held())

    def finish(self) -> str:
        """The rest: what was held back, and bytes that are no whole character."""
        if not self.stopped:
            self._add(self._decode_tail())
        return self._give(len(self._text))

    def _decode_tail(self) -> str:
        return self._tokenizer.decode(self._tail, skip_special_tokens=self._skip)

    def _add(self, piece: str) -> None:
        self._tail.clear()
        start = max(0, len(self._text) - self._longest + 1)
        self._text += piece
        places = [(self._text.find(stop, start), len(stop)) for stop in self._stops]
        whole = [(place + length, place) for place, length in places if place >= 0]
        if whole:  # the one that is complete first counts, however the tokens cut it
            self._text, self.stopped, self.ended = self._text[: min(whole)[1]], True, True

    def _held(self) -> int:
        """Length of the longest end that a stop text begins with."""
        sizes = range(min(self._longest - 1, len(self._text) - self._given), 0, -1)
        tails = (self._text[-size:] for size in sizes)
        return next((len(t) for t in tails if any(s.startswith(t) for s in self._stops)), 0)

    def _give(self, end: int) -> str:
        piece, self._given = self._text[self._given : end], max(self._given, end)
        return piece


class Job:
    """One request on its way through the model; belongs to the worker once it is handed over.

    Args:
        waiting: for choosing whom to read together.
        row: for the engine; its payload is the job.
        usage: counts the prompt.
        text: gathers the answer.
        streams: pieces are wanted as they come.
        send: takes events, from any thread.
        let_go: called when the media are not needed any more, maybe more than once.
    """

    def __init__(
        self,
        waiting: Waiting,
        row: Row,
        usage: Usage,
        text: Text,
        *,
        streams: bool,
        send: Callable[[Event], None],
        let_go: Callable[[], None],
    ):
        self.waiting, self.row, self._usage, self._text = waiting, row, usage, text
        self._send, self._let_go, self._streams = send, let_go, streams
        self.live = streams or text.watches  # has to be looked at while it is written
        self.since = time.monotonic()
        self.cancelled = self._ended = False
        self._read, self._kept = 0, ""
        row.payload = self

    @property
    def over(self) -> bool:
        """Whether its row need not go on."""
        return self.cancelled or self._ended

    def cancel(self) -> None:
        """Nobody waits for it any more; its slot is free within a step. From any thread."""
        self.cancelled = True
        self._let_go()

    def let_media_go(self) -> None:
        """The model has read them."""
        self.waiting.loaded = None
        self.row.media = []
        self._let_go()

    def follow(self) -> None:
        """Give out what the engine has written since."""
        self._push()
        if self._text.stopped:
            self.end()
        elif self._kept and self._streams:
            self._send(self._kept)
            self._kept = ""

    def end(self) -> None:
        """The last event."""
        if self._ended:
            return
        self._ended = True
        self._push()
        rest = self._kept + self._text.finish()
        reason = "stop" if self._text.ended else "length"
        self._send(Ended(rest, reason, replace(self._usage, new_tokens=self._read)))

    def fail(self, error: RequestError) -> None:
        """The last event of a request that has no answer."""
        if not self._ended:
            self._ended = True
            self._let_go()
            self._send(error)

    def _push(self) -> None:
        tokens, self._read = self.row.tokens[self._read :], len(self.row.tokens)
        self._kept += self._text.push(tokens)
