"""How long examples are, counted from their texts and the headers of their media."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlkit.errors import VlkitError
from vlkit.flight import ClipView, View, view_media
from vlkit.inputs import tokenizing
from vlkit.lora.coordinates import Text
from vlkit.lora.examples import Example, naming_row
from vlkit.lora.labels import PADS, cut_problem
from vlkit.lora.turns import cut_turns
from vlkit.messages import iterate_media, read_media_item
from vlkit.models import VLM
from vlkit.targets import Target, find_target

CHARACTERS = 3  # of a token, about


@dataclass(frozen=True)
class Length:
    """Tokens of one example.

    Attributes:
        row: of the source.
        total: all tokens, media included.
        media: those of pictures and clips.
        media_end: tokens up to the end of the last picture or clip.
        answers: from, up to, of each answer with its end token.
    """

    row: int
    total: int
    media: int
    media_end: int
    answers: tuple[tuple[int, int], ...]

    @property
    def trained(self) -> int:
        """Tokens that the model learns."""
        return sum(end - start for start, end in self.answers)

    def lost(self, max_length: int | None) -> int:
        """Tokens of answers that a cut takes away.

        Raises:
            VlkitError: the cut would go through a picture or leave no answer.
        """
        if max_length is None or self.total <= max_length:
            return 0
        needed = self.media_end if self.media_end > max_length else 0
        if needed or self.answers[0][0] >= max_length:
            raise VlkitError(f"row {self.row}: {cut_problem(self.total, max_length, needed)}")
        return sum(max(0, end - max(start, max_length)) for start, end in self.answers)


def measure_length(vlm: VLM, example: Example) -> Length:
    """The length that :func:`vlkit.lora.label_example` will give. Of media only headers are read.

    Raises:
        MediaError: a picture or clip that cannot be read.
    """
    target = find_target(vlm)
    with naming_row(example):
        messages = example.messages_for(vlm)
        views: list[View] = [
            view_media(target, read_media_item(item)) for item in iterate_media(messages)
        ]
    images = iter([view for view in views if not isinstance(view, ClipView)])
    clips = iter([view for view in views if isinstance(view, ClipView)])
    place = media_end = 0
    answers = []
    for piece in cut_turns(vlm.processor, messages):
        count, end = _count(target, piece.text, images, clips)
        media_end = place + end if end else media_end
        if piece.trained:
            answers.append((place, place + count))
        place += count
    return Length(example.row, place, sum(view.tokens for view in views), media_end, tuple(answers))


def guess_length(vlm: VLM, example: Example) -> float:
    """About how long an example is, to put rows of like lengths together: media are counted, its
    texts' tokens guessed from their characters.

    Raises:
        MediaError: a picture or clip that cannot be read.
    """
    target = find_target(vlm)
    with naming_row(example):
        media = sum(view_media(target, read_media_item(item)).tokens for item in example.media)
    texts = [part for _, parts in example.turns for part in parts if isinstance(part, Text)]
    return media + sum(len(text.raw) for text in texts) / CHARACTERS


def _count(target: Target, text: str, images: Any, clips: Any) -> tuple[int, int]:
    """Tokens of a piece, and how many there are up to the end of its last picture or clip."""
    written, inside = "", 0  # inside: tokens of media beyond their placeholders in ``written``
    while (kind := _next_pad(text)) is not None:
        before, text = text.split(PADS[kind], 1)
        if kind == "image":
            written, inside = written + before + PADS[kind], inside + next(images).tokens - 1
        else:
            clip = next(clips)
            shown = target.clip_text(clip.step_times)
            written, inside = (
                written + before + shown,
                inside + clip.tokens - shown.count(PADS[kind]),
            )
    tokenizer = target.processor.tokenizer
    tail = "<|vision_end|>" if text.startswith("<|vision_end|>") else ""
    end = _tokens(tokenizer, written + tail) + inside if written else 0
    return _tokens(tokenizer, written + text) + inside, end


def _next_pad(text: str) -> str | None:
    places = {kind: text.find(pad) for kind, pad in PADS.items() if pad in text}
    return min(places, key=places.__getitem__, default=None)


def _tokens(tokenizer: Any, text: str) -> int:
    with tokenizing:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])
