"""Rows read ahead: media are decoded by worker threads while the model is busy."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import PIL.Image

from vlkit.errors import VlkitError
from vlkit.inputs import count_tokens, load_messages
from vlkit.models import VLM
from vlkit.replies import Failure

HELD_BYTES = 10**9  # of decoded media that wait for the model


@dataclass(eq=False)
class Waiting:
    """A row whose media are read.

    Attributes:
        index: its place in the batch.
        messages: its conversation.
        loaded: LoadedMessages, or a Failure that says why there is none.
        tokens: how long the prompt will be, media included.
        digests: of the content of its pictures, then of its clips.
    """

    index: int
    messages: Any
    loaded: Any
    tokens: int = 0
    digests: tuple[bytes, ...] = ()

    @property
    def bytes(self) -> int:
        """Of decoded media."""
        if isinstance(self.loaded, Failure):
            return 0
        frames = sum(clip.frames.nbytes for clip in self.loaded.clips)
        return frames + sum(3 * image.width * image.height for image in self.loaded.images)


class Feed:
    """Rows as they become ready, in no order, so many read ahead as memory and need allow."""

    def __init__(self, load: Callable[[int], Waiting], indices: Sequence[int], ahead: int):
        self._load, self._left, self._ahead = load, deque(indices), ahead
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "vlkit-media")
        self._futures: set[Future[Waiting]] = set()

    @property
    def exhausted(self) -> bool:
        """No row will come any more."""
        return not self._left and not self._futures

    def start(self, held: Sequence[Waiting] = ()) -> None:
        """Begin to read rows, as many as there is room for beside those ``held``."""
        room = sum(row.bytes for row in held) < HELD_BYTES or not held
        while self._left and room and len(self._futures) + len(held) < self._ahead:
            self._futures.add(self._pool.submit(self._load, self._left.popleft()))

    def take(self, held: Sequence[Waiting], *, block: bool) -> list[Waiting]:
        """The rows that are ready by now.

        Args:
            held: rows taken before that still wait for the model.
            block: wait until there is one.
        """
        self.start(held)
        timeout = None if block else 0
        done, self._futures = wait(self._futures, timeout, FIRST_COMPLETED)
        return [future.result() for future in done]

    def close(self) -> None:
        """Begin nothing new; what is being read is left to end by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def feeding(
    vlm: VLM, conversations: Sequence[Any], indices: Sequence[int], ahead: int
) -> Iterator[Feed]:
    """A feed of some of the conversations; its threads end with the block."""
    feed = Feed(lambda index: _load(vlm, index, conversations[index]), indices, ahead)
    try:
        yield feed
    finally:
        feed.close()


def _load(vlm: VLM, index: int, messages: Any) -> Waiting:
    try:
        loaded = load_messages(vlm, messages)
        contents: list[Any] = [
            *map(PIL.Image.Image.tobytes, loaded.images),
            *(c.frames for c in loaded.clips),
        ]
        digests = tuple(hashlib.sha256(content).digest() for content in contents)
        return Waiting(index, messages, loaded, count_tokens(vlm, loaded), digests)
    except VlkitError as error:
        return Waiting(index, messages, failure_of(error))
    except Exception as error:  # one row must never end the batch
        return Waiting(index, messages, failure_of(error))


def failure_of(error: Exception) -> Failure:
    """The failure that an error means for its row."""
    text = str(error) or repr(error)
    return Failure(text.splitlines()[0], type(error).__name__)


def choose_group(waiting: list[Waiting], most_rows: int, most_tokens: int) -> list[Waiting]:
    """Take the longest rows out of ``waiting`` that go together with under 10 % padding.

    Rows about the same pictures come along: they share the work on them.
    """
    waiting.sort(key=lambda row: row.tokens)
    group: list[Waiting] = []
    longest, total, leaders = waiting[-1].tokens, 0, 0
    while waiting and len(group) < most_rows:
        row = waiting[-1]
        area = longest * (leaders + 1)
        if group and (area > most_tokens or total + row.tokens < 0.9 * area):
            break
        group.append(waiting.pop())
        total, leaders = total + row.tokens, leaders + 1
        siblings = [each for each in waiting if row.digests and each.digests == row.digests]
        for sibling in siblings[: most_rows - len(group)]:
            waiting.remove(sibling)
            group.append(sibling)
    return group
