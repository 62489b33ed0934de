"""Talking in turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlkit import recording
from vlkit.generation import generate, stream
from vlkit.media import load_image
from vlkit.messages import as_messages, assistant, iterate_media, user
from vlkit.messages import system as _system
from vlkit.models import VLM
from vlkit.remote.models import RemoteVLM
from vlkit.replies import Reply
from vlkit.video import ClipStore


class Chat:
    """A conversation that remembers; pictures and clips of earlier turns stay in view.

    They are read once, and seen as they were then even where the file has changed. Of clips up to
    half a gigabyte of frames is kept as long as the Chat; beyond that they are sampled anew.

    Args:
        vlm: from :func:`vlkit.load`.
        system: a system message's text, or None for the model's own.
        **options: defaults for every turn, as for :func:`generate`.
    """

    def __init__(self, vlm: VLM | RemoteVLM, system: str | None = None, **options: Any):
        self.vlm, self.options = vlm, options
        self.messages = [_system(system)] if system is not None else []
        self._clips = ClipStore()

    def ask(self, text: str, *media: Any, **options: Any) -> Reply:
        """Ask the next question; on an error the conversation stays as it was."""
        turn = self._turn(text, media)
        with recording.as_kind("chat"), self._clips.in_use():
            reply = generate(self.vlm, [*self.messages, turn], **{**self.options, **options})
        self._remember(turn, reply)
        return reply

    def stream(self, text: str, *media: Any, **options: Any) -> Iterator[str]:
        """Like :meth:`ask`, piece by piece; a stopped answer is remembered as far as it went."""
        turn = self._turn(text, media)
        with recording.as_kind("chat"), self._clips.in_use():
            pieces = stream(self.vlm, [*self.messages, turn], **{**self.options, **options})
        try:
            yield from pieces
        finally:
            pieces.stop()
            if pieces._reply is not None:
                self._remember(turn, pieces.reply)

    def _turn(self, text: str, media: tuple) -> dict:
        """The user's message with its pictures read now: a later turn sees what this one saw."""
        turn = as_messages(user(text, *media))[0]
        for item in iterate_media([turn]):
            if item["type"] == "video":
                continue  # its frames are kept beside the conversation, which names the file
            item["image"] = load_image(item["image"], strict=item.pop("strict", True))
        return turn

    def _remember(self, turn: dict, reply: Reply) -> None:
        if isinstance(self.vlm, RemoteVLM):
            said = reply.raw.rpartition("</think>")[2].lstrip("\n")
        else:
            said = reply.raw.removesuffix(self.vlm.processor.tokenizer.eos_token or "")
        self.messages += [turn, assistant(said)]
