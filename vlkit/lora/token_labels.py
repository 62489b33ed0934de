"""An example as tokens with training labels; lengths of rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from vlkit.analysis.preflight import ClipView, Target, View, find_target, view_media
from vlkit.engine.vision import Medium
from vlkit.errors import VlkitError
from vlkit.inputs import LoadedMessages, make_inputs, render_prompt, tokenizing
from vlkit.lora.checking import Problem, list_problems
from vlkit.lora.example import Example, naming_row
from vlkit.media.video import load_clip
from vlkit.messages import as_messages, media_of, read_media_item
from vlkit.models.load import VLM, base_model

IGNORED = -100  # the label that transformers' losses leave out
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")
PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
MEASURED = 2000  # rows whose lengths are measured where none has to be cut
_CHARACTERS = 3  # of a token, about
_ASSISTANT = "<|im_start|>assistant\n"
_ANSWER = re.compile(re.escape(_ASSISTANT) + r".*?<\|im_end\|>", re.DOTALL)
_generation_prompts: dict[str, str] = {}  # by chat template


class Piece(NamedTuple):
    """A part of the rendered text, and whether the model learns to write it."""

    text: str
    trained: bool


def cut_turns(processor: Any, messages: list[dict]) -> list[Piece]:
    """The rendered conversation in pieces: prompts, and answers with their end token.

    What the template writes to ask for an answer (``<think>`` in some generations) belongs to the
    prompt. Texts cannot spell ``<|im_start|>``: :func:`vlkit.inputs.render_prompt` escapes it.

    Args:
        processor: whose chat template it is.
        messages: checked; the last one is an answer. One with ``"loss": False`` is not learnt.

    Raises:
        VlkitError: the template does not write every answer as this family does.
    """
    if messages[-1]["role"] != "assistant":
        raise VlkitError("the last message must be the assistant's: an answer to learn")
    text = render_prompt(processor, messages, finished=True)
    asking = _generation_prompt(processor)
    answers = list(_ANSWER.finditer(text))
    trained = [m.get("loss", True) for m in messages if m["role"] == "assistant"]
    if len(answers) != len(trained):
        raise VlkitError(
            f"the chat template shows {len(answers)} of {len(trained)} answers between "
            f"{_ASSISTANT!r} and <|im_end|>, so what to learn is unknown; use the template of the "
            "original model"
        )
    pieces, end = [], 0
    for match, learnt in zip(answers, trained, strict=True):
        head = asking if text.startswith(asking, match.start()) else _ASSISTANT
        start = match.start() + len(head)
        pieces += [Piece(text[end:start], False), Piece(text[start : match.end()], learnt)]
        end = match.end()
    return [piece for piece in (*pieces, Piece(text[end:], False)) if piece.text]


def _generation_prompt(processor: Any) -> str:
    """What the template adds to a question to ask for its answer."""
    template = str(processor.chat_template)
    if template not in _generation_prompts:
        question = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        prompt = render_prompt(processor, question)
        finished = render_prompt(processor, question, finished=True)
        _generation_prompts[template] = prompt.removeprefix(finished)
    return _generation_prompts[template]


@dataclass(frozen=True, eq=False)
class Labelled:
    """An example ready to be trained on.

    Attributes:
        tensors: the processor's output for one row, on the CPU; ``input_ids`` (1, length).
        labels: (1, length); the token itself where the model learns it, else -100.
        lost: tokens of answers that ``max_length`` cut.
        media: pictures, then clips, where they are not in ``tensors``; without pixels where
            their features are known.
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

    A prompt is tokenized apart from its answer, so that in training the model reads exactly the
    tokens with which it will be asked.

    Args:
        vlm: from :func:`vlkit.load`.
        example: of :class:`vlkit.lora.TrainingData`, or messages that end in an answer.
        max_length: the most tokens; what is longer is cut at its end.

    Raises:
        MediaError: a picture or clip that cannot be read.
        VlkitError: the cut would go through a picture or leave no answer.
    """
    with naming_row(example):
        pieces, media = read_example(vlm, example)
        return truncate(vlm, tokenize_pieces(vlm, pieces, media), max_length)


def read_example(vlm: VLM, example: Example | list[dict]) -> tuple[list[Piece], LoadedMessages]:
    """An example's rendered pieces, and its media (with an empty prompt).

    Raises:
        MediaError: a picture or clip that cannot be read.
        VlkitError: messages that cannot be used.
    """
    messages = example.messages_for(vlm) if isinstance(example, Example) else as_messages(example)
    pieces = cut_turns(vlm.processor, messages)
    pictures, videos = media_of(messages)
    images = [picture.load() for picture in pictures]
    clips = [load_clip(video, partial(vlm.rules.frame_size, video=video)) for video in videos]
    return pieces, LoadedMessages(pictures, images, clips, "", videos)


def tokenize_pieces(vlm: VLM, pieces: Sequence[Piece], media: LoadedMessages) -> Labelled:
    """The tokens of pieces and their media, one row, with labels where the model learns."""
    tensors = dict(make_inputs(vlm, list(_rows_of_pieces(pieces, media))).tensors)
    mask = tensors["attention_mask"].bool()  # without the padding between the pieces
    trained = mask.new_tensor([piece.trained for piece in pieces])[:, None].expand_as(mask)[mask]
    for name in PER_TOKEN:
        if name in tensors:
            tensors[name] = tensors[name][mask][None]
    labels = tensors["input_ids"].masked_fill(~trained[None], IGNORED)
    return Labelled(tensors, labels)


def _rows_of_pieces(pieces: Sequence[Piece], media: LoadedMessages) -> Iterator[LoadedMessages]:
    """Each piece as a row, with the media whose placeholders it has."""
    image = video = 0
    for piece in pieces:
        images, videos = (piece.text.count(pad) for pad in PADS.values())
        yield LoadedMessages(
            media.pictures[image : image + images],
            media.images[image : image + images],
            media.clips[video : video + videos],
            piece.text,
            media.videos[video : video + videos],
        )
        image, video = image + images, video + videos


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
    """Why a row cannot be cut to ``max_length``; ``needed``: where its last picture ends, or 0."""
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
    """The placeholder tokens of media, and the tokens around them, each with its kind."""
    config = base_model(vlm).config
    names = ("image", "video", "vision_start", "vision_end")
    return {getattr(config, f"{name}_token_id"): name.partition("_")[0] for name in names}


@dataclass(frozen=True)
class Length:
    """Tokens of one example.

    Attributes:
        row: of the source.
        total: all tokens, media included.
        media: those of pictures and clips.
        media_end: tokens up to the end of the last picture or clip.
        answers: of each answer with its end token, where it begins and ends.
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
        """Tokens of answers that a cut removes.

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
        views = _views(target, example)
    images = iter([view for view in views if not isinstance(view, ClipView)])
    clips = iter([view for view in views if isinstance(view, ClipView)])
    place = media_end = 0
    answers = []
    for piece in cut_turns(vlm.processor, example.messages_for(vlm)):
        count, end = _count(target, piece.text, images, clips)
        media_end = place + end if end else media_end
        if piece.trained:
            answers.append((place, place + count))
        place += count
    return Length(example.row, place, sum(view.tokens for view in views), media_end, tuple(answers))


def guess_length(vlm: VLM, example: Example) -> float:
    """About how long an example is, to put rows of similar lengths together.

    Tokens of media are counted, those of texts guessed from their characters.

    Raises:
        MediaError: a picture or clip that cannot be read.
    """
    with naming_row(example):
        media = sum(view.tokens for view in _views(find_target(vlm), example))
    return media + sum(len(text.raw) for text in example.texts) / _CHARACTERS


def _views(target: Target, example: Example) -> list[View]:
    return [view_media(target, read_media_item(item)) for item in example.media]


def _count(target: Target, text: str, images: Any, clips: Any) -> tuple[int, int]:
    """Tokens of a piece, and those up to the end of its last picture or clip."""
    written, inside = "", 0  # inside: tokens of media besides their placeholders in ``written``
    while (kind := _next_pad(text)) is not None:
        before, text = text.split(PADS[kind], 1)
        if kind == "image":
            written += before + PADS[kind]
            inside += next(images).tokens - 1
        else:
            clip = next(clips)
            shown = target.clip_text(clip.step_times)
            written += before + shown
            inside += clip.tokens - shown.count(PADS[kind])
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


def measure_lengths(vlm: VLM, data: Sequence, max_length: int | None) -> list[Length]:
    """The lengths of all rows, or, without ``max_length``, of at most 2,000 spread evenly.

    Raises:
        VlkitError: naming every row that cannot be cut to ``max_length``.
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
