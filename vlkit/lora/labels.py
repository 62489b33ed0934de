"""One example as the model is trained on it: its tensors, and a label where it learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from vlkit.batching.encoding import Medium
from vlkit.batching.settings import base_model
from vlkit.errors import VlkitError
from vlkit.inputs import LoadedMessages, load_messages, make_inputs
from vlkit.lora.examples import Example, naming_row
from vlkit.lora.turns import Piece, cut_turns
from vlkit.messages import as_messages
from vlkit.models import VLM

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
