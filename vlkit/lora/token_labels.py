"""Where the answers stand in a rendered conversation, whatever its template marks or does not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vlkit.analysis.preflight import ClipView, View, view_media
from vlkit.analysis.target import Target, find_target
from vlkit.engine.vision import Medium
from vlkit.errors import VlkitError
from vlkit.inputs import LoadedMessages, load_messages, make_inputs, render_prompt, tokenizing
from vlkit.lora.checking import Problem, list_problems
from vlkit.lora.example import Example, Text, naming_row
from vlkit.messages import as_messages, iterate_media, read_media_item
from vlkit.models.load import VLM, base_model

_HEAD = "<|im_start|>assistant\n"


_ANSWER = re.compile(re.escape(_HEAD) + r".*?<\|im_end\|>", re.DOTALL)


class Piece(NamedTuple):
    """A part of the rendered text, and whether the model learns to write it."""

    text: str
    trained: bool


def cut_turns(processor: Any, messages: list[dict]) -> list[Piece]:
    """The rendered conversation in pieces: prompts, and answers with their end token.

    What the template writes when it asks for an answer (``<think>`` in some generations) is of the
    prompt. Texts cannot spell ``<|im_start|>``: :func:`vlkit.inputs.render_prompt` escapes it.

    Args:
        processor: whose chat template it is.
        messages: checked; the last one is an answer.

    Raises:
        VlkitError: the template does not write every answer as this family does.
    """
    if messages[-1]["role"] != "assistant":
        raise VlkitError("the last message must be the assistant's: an answer to learn")
    text = render_prompt(processor, messages, finished=True)
    asking = _generation_prompt(processor, messages[:-1])
    found = list(_ANSWER.finditer(text))
    answers = sum(message["role"] == "assistant" for message in messages)
    if len(found) != answers:
        raise VlkitError(
            f"the chat template shows {len(found)} of {answers} answers between {_HEAD!r} and "
            "<|im_end|>, so what to learn cannot be told; use the template of the original model"
        )
    pieces, end = [], 0
    for match in found:
        head = asking if text.startswith(asking, match.start()) else _HEAD
        start = match.start() + len(head)
        pieces += [Piece(text[end:start], False), Piece(text[start : match.end()], True)]
        end = match.end()
    return [piece for piece in (*pieces, Piece(text[end:], False)) if piece.text]


def _generation_prompt(processor: Any, question: list[dict]) -> str:
    """What the template adds to a question to ask for its answer."""
    asked = render_prompt(processor, question)
    return asked.removeprefix(render_prompt(processor, question, finished=True))


IGNORED = -100  # the label that transformers' losses leave out


PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")


PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}


@dataclass(frozen=True, eq=False)
class Labelled:
    """An example ready to be trained on.

    Attributes:
        tensors: the processor's output for one row, on the CPU; ``input_ids`` (1, length).
        labels: (1, length); the token itself where the model learns it, else -100.
        lost: tokens of answers that ``max_length`` cut.
        media: pictures, then clips, where they are kept apart from the tensors; without pixels
            where their features are known.
    """

    tensors: dict[str, Any]
    labels: Any
    lost: int = 0
    media: tuple[Medium, ...] = ()

    @property
    def length(self) -> int:
        """Tokens, media included."""
        return self.labels.shape[1]

    @property
    def trained(self) -> int:
        """Tokens that the model learns."""
        return int((self.labels != IGNORED).sum())


def label_example(
    vlm: VLM, example: Example | list[dict], *, max_length: int | None = None
) -> Labelled:
    """Tokenize one conversation and label its answers, each with its end token.

    A prompt is made into tokens apart from its answer, so that in training the model reads exactly
    what it will be asked with.

    Args:
        vlm: from :func:`vlkit.load`.
        example: of :class:`vlkit.lora.TrainingData`, or messages that end in an answer.
        max_length: the most tokens; what is longer is cut at its end.

    Raises:
        MediaError: a picture or clip that cannot be read.
        VlkitError: the cut would go through a picture or leave no answer.
    """
    with naming_row(example):
        return truncate(vlm, _label(vlm, example), max_length)


def _label(vlm: VLM, example: Example | list[dict]) -> Labelled:
    messages = example.messages_for(vlm) if isinstance(example, Example) else as_messages(example)
    pieces = cut_turns(vlm.processor, messages)
    loaded = load_messages(vlm, messages[:-1])
    tensors = dict(make_inputs(vlm, list(_load_pieces(loaded, pieces))).tensors)
    mask = tensors["attention_mask"].bool()  # what is left out was padding of the pieces
    trained = mask.new_tensor([piece.trained for piece in pieces])[:, None].expand_as(mask)[mask]
    for name in PER_TOKEN:
        if name in tensors:
            tensors[name] = tensors[name][mask][None]
    labels = tensors["input_ids"].masked_fill(~trained[None], IGNORED)
    return Labelled(tensors, labels)


def truncate(vlm: VLM, labelled: Labelled, max_length: int | None) -> Labelled:
    """The first ``max_length`` tokens. Raises VlkitError where they would not make an example."""
    if max_length is None or labelled.length <= max_length:
        return labelled
    labels = labelled.labels[:, :max_length]
    needed = media_end(vlm, labelled.tensors["input_ids"][0].tolist())
    if needed > max_length:
        raise VlkitError(cut_problem(labelled.length, max_length, needed))
    kept = {n: t[:, :max_length] if n in PER_TOKEN else t for n, t in labelled.tensors.items()}
    cut = Labelled(kept, labels, media=labelled.media)
    if not cut.trained:
        raise VlkitError(cut_problem(labelled.length, max_length, 0))
    return replace(cut, lost=labelled.trained - cut.trained)


def cut_problem(length: int, max_length: int, needed: int) -> str:
    """Why ``max_length`` cannot be kept; ``needed``, unless 0: where the last picture ends."""
    why = f"would cut into a picture or clip, which ends at {needed:,}" if needed else ""
    why = why or "would leave nothing of any answer"
    return (
        f"max_length={max_length:,} {why} of {length:,} tokens; raise it, or shrink pictures with "
        "load(…, max_image_tokens=…)"
    )


def media_end(vlm: VLM, ids: list[int]) -> int:
    """How many tokens there are up to the end of the last picture or clip."""
    known = media_ids(vlm)
    return max((i + 1 for i, token in enumerate(ids) if token in known), default=0)


def media_ids(vlm: VLM) -> dict[int, str]:
    """The tokens that stand for media, and those around them."""
    config = base_model(vlm).config
    names = ("image", "video", "vision_start", "vision_end")
    return {getattr(config, f"{name}_token_id"): name.partition("_")[0] for name in names}


def _load_pieces(loaded: LoadedMessages, pieces: list[Piece]) -> Iterator[LoadedMessages]:
    """Each piece as a row of its own, with the media whose placeholders it holds."""
    image = video = 0
    for piece in pieces:
        images, videos = (piece.text.count(pad) for pad in PADS.values())
        yield LoadedMessages(
            loaded.pictures[image : image + images],
            loaded.images[image : image + images],
            loaded.clips[video : video + videos],
            piece.text,
            loaded.videos[video : video + videos],
        )
        image, video = image + images, video + videos


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


MEASURED = 2000  # rows whose lengths are measured where none has to be cut


def measure_lengths(vlm: VLM, data: Sequence, max_length: int | None) -> list[Length]:
    """The lengths of rows: of all where some may have to be cut.

    Raises:
        VlkitError: every row that cannot be cut so.
    """
    step = 1 if max_length is not None else math.ceil(len(data) / MEASURED)
    lengths = [measure_length(vlm, data[i]) for i in range(0, len(data), step)]
    problems = []
    for length in lengths:
        try:
            length.lost(max_length)
        except VlkitError as error:
            problems.append(Problem(length.row, str(error).partition(": ")[2]))
    if problems:
        raise VlkitError(list_problems(getattr(data, "name", "data"), problems))
    return lengths
