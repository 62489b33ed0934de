"""Examples to batches: tokens, which of them are learnt, lengths, order; frozen encoder's cache."""

import math
import os
import re
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from itertools import groupby
from typing import Any, NamedTuple

import torch

from vlkit.analysis.preflight import ClipView, clip_text, view_clip
from vlkit.engine.vision import PIXELS, Encoder, Medium, replaced_forwards, split_media
from vlkit.errors import VlkitError
from vlkit.inputs import LoadedMessages, make_inputs, make_pixels, render_prompt, tokenizing
from vlkit.lora.data import Example, Problem, list_problems, naming_row
from vlkit.media.image import Image, picture_size, pixel_hash
from vlkit.media.sources import file_hash, is_url
from vlkit.media.video import load_clip, probe_clip
from vlkit.messages import as_messages, media_of, read_media_item
from vlkit.models.load import VLM

IGNORED = -100  # the label that transformers' losses leave out
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")
PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
MEASURED = 2000  # rows whose lengths are measured where none has to be cut
SHARE = 0.25  # of the free main memory that features may take
AHEAD = 32  # rows that are read while the model is busy
SORTED = 32  # batches whose rows are sorted by length together
_CHARACTERS = 3  # of a token, about
_ASSISTANT = "<|im_start|>assistant\n"
_ANSWER = re.compile(re.escape(_ASSISTANT) + r".*?<\|im_end\|>", re.DOTALL)
_PAD = re.compile("|".join(map(re.escape, PADS.values())))
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
        shown = f"{len(answers)} of {len(trained)} answers between {_ASSISTANT!r} and <|im_end|>"
        raise VlkitError(f"the chat template shows {shown}; use that of the original model")
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
    return read_example(vlm, example, max_length)[0]


def read_example(
    vlm: VLM, example: Example | list[dict], max_length: int | None, device: Any = None
) -> tuple[Labelled, LoadedMessages]:
    """An example labelled as by :func:`label_example`, and its messages with the media read.

    Args:
        vlm, example, max_length: as for :func:`label_example`.
        device: where pictures are resized, by default the CPU.
    """
    with naming_row(example):
        if isinstance(example, Example):
            messages = example.messages_for(vlm)
        else:
            messages = as_messages(example)
        pieces, rules = cut_turns(vlm.processor, messages), vlm.rules
        pictures, videos = media_of(messages)
        images = [picture.load() for picture in pictures]
        clips = [load_clip(video, partial(rules.frame_size, video=video)) for video in videos]
        prompt = "".join(piece.text for piece in pieces)
        loaded = LoadedMessages(pictures, images, clips, prompt, videos)
        made = {}
        if clips:
            made = make_inputs(vlm, [loaded], device=device).tensors
        elif images:
            made = make_pixels(vlm, loaded, device)
        tensors = {name: tensor for name, tensor in made.items() if name not in PER_TOKEN}
        views = [
            view_clip(rules, *pair)
            for pair in zip(videos, [clip.info for clip in clips], strict=True)
        ]
        return truncate(vlm, label_pieces(vlm, pieces, tensors, views), max_length), loaded


def label_pieces(
    vlm: VLM, pieces: Sequence[Piece], tensors: dict[str, Any], clips: Iterable[ClipView]
) -> Labelled:
    """The tokens of pieces as one row, with labels where the model learns.

    Args:
        vlm: for its tokenizer.
        pieces: from :func:`cut_turns`.
        tensors: the processor's output for the media, with their grids.
        clips: how the model sees the clips.
    """
    config, merged = vlm.model.config, vlm.processor.image_processor.merge_size**2
    grids = tensors.get("image_grid_thw", torch.empty(0, 3))
    counts = (grids.prod(-1) // merged).int().tolist()
    tokens, trained = encode_pieces(vlm, pieces, counts, clips)
    ids = torch.tensor([tokens])
    kinds = (ids == config.image_token_id).long() + 2 * (ids == config.video_token_id).long()
    per_token = dict(zip(PER_TOKEN, (ids, torch.ones_like(ids), kinds), strict=True))
    labels = ids.masked_fill(~torch.tensor([trained]), IGNORED)
    return Labelled(per_token | tensors, labels)


def encode_pieces(
    vlm: VLM, pieces: Sequence[Piece], image_tokens: Iterable[int], clips: Iterable[ClipView]
) -> tuple[list[int], list[bool]]:
    """The tokens of pieces, from their text and the sizes of their media alone.

    Args:
        vlm: for its tokenizer.
        pieces: from :func:`cut_turns`.
        image_tokens: of each picture.
        clips: as the model will see them.

    Returns:
        All tokens, and of each whether the model learns it.
    """
    counts, clips = iter(image_tokens), iter(clips)

    def expand(pad: re.Match) -> str:
        if pad[0] == PADS["image"]:
            return pad[0] * next(counts)
        clip = next(clips)
        shown = clip_text(vlm.rules, clip.step_times)
        return shown.replace(pad[0], pad[0] * (clip.tokens // shown.count(pad[0])))

    texts = [_PAD.sub(expand, piece.text) for piece in pieces]
    encode = vlm.processor.tokenizer.backend_tokenizer.encode
    ids: list[int] = []
    trained: list[bool] = []
    with tokenizing:  # one by one: a few short texts are not worth threads
        for piece, text in zip(pieces, texts, strict=True):
            ids += encode(text, add_special_tokens=False).ids
            trained += [piece.trained] * (len(ids) - len(trained))
    return ids, trained


def truncate(vlm: VLM, labelled: Labelled, max_length: int | None) -> Labelled:
    """The first ``max_length`` tokens. Raises VlkitError where they would not make an example."""
    if max_length is None or labelled.length <= max_length:
        return labelled
    trained = (labelled.labels[0] != IGNORED).tolist()
    length = length_of(vlm, 0, labelled.tensors["input_ids"][0].tolist(), trained)
    kept = {n: t[:, :max_length] if n in PER_TOKEN else t for n, t in labelled.tensors.items()}
    labels, lost = labelled.labels[:, :max_length], length.lost(max_length)
    return replace(labelled, tensors=kept, labels=labels, lost=lost)


def media_ids(vlm: VLM) -> dict[int, str]:
    """The placeholder tokens of media, and the tokens around them, each with its kind."""
    config = vlm.model.config
    names = ("image", "video", "vision_start", "vision_end")
    return {getattr(config, f"{name}_token_id"): name.partition("_")[0] for name in names}


@dataclass(frozen=True)
class Length:
    """Tokens of one example.

    Attributes:
        row: of the source, or 0.
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
        if self.media_end > max_length or self.answers[0][0] >= max_length:
            why = "would leave nothing of any answer"
            if self.media_end > max_length:
                why = f"would cut into a picture or clip, which ends at {self.media_end:,}"
            remedy = "raise it, or shrink pictures with load(…, max_image_tokens=…)"
            text = f"max_length={max_length:,} {why} of {self.total:,} tokens; {remedy}"
            raise VlkitError(f"row {self.row}: {text}" if self.row else text)
        return sum(max(0, end - max(start, max_length)) for start, end in self.answers)


def length_of(vlm: VLM, row: int, ids: list[int], trained: Iterable[bool]) -> Length:
    """The length of a tokenized row.

    Args:
        vlm: whose tokens they are.
        row: its number, or 0.
        ids: its tokens.
        trained: of each token, whether the model learns it.
    """
    known, config = media_ids(vlm), vlm.model.config
    ends = [place + 1 for place, token in enumerate(ids) if token in known]
    media = ids.count(config.image_token_id) + ids.count(config.video_token_id)
    answers, end = [], 0
    for is_trained, run in groupby(trained):
        start, end = end, end + len(list(run))
        answers += [(start, end)] * is_trained
    return Length(row, len(ids), media, max(ends, default=0), tuple(answers))


def measure_length(vlm: VLM, example: Example) -> Length:
    """The length that :func:`label_example` will give. Of media only headers are read.

    Raises:
        MediaError: a picture or clip that cannot be read.
    """
    counts, clips = _count_media(vlm, example)
    pieces = cut_turns(vlm.processor, example.messages_for(vlm))
    return length_of(vlm, example.row, *encode_pieces(vlm, pieces, counts, clips))


def _count_media(vlm: VLM, example: Example) -> tuple[list[int], list[ClipView]]:
    """The tokens of each picture, and how the model sees each clip, from their headers."""
    rules = vlm.rules
    with naming_row(example):
        pictures, videos = media_of(example.messages)
        sizes = [rules.image_size(picture_size(picture), picture) for picture in pictures]
        clips = [view_clip(rules, video, probe_clip(video)) for video in videos]
    return [math.prod(size) // rules.side**2 for size in sizes], clips


def guess_lengths(vlm: VLM, data: Iterable[Example]) -> list[float]:
    """About how long rows are, to put those of similar lengths together.

    Tokens of media are counted, those of texts guessed from their characters.

    Raises:
        MediaError: a picture or clip that cannot be read.
    """
    lengths = []
    for example in data:
        counts, clips = _count_media(vlm, example)
        media = sum(counts) + sum(clip.tokens for clip in clips)
        lengths.append(media + sum(map(len, example.texts)) / _CHARACTERS)
    return lengths


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


class FrozenTower:
    """Features of pictures and clips from a vision encoder that is not trained, each computed once.

    They are kept in main memory; beyond the budget they are computed again each time.

    Args:
        model: the transformers model, without an adapter's wrapper.
        budget: bytes that features may take; by default a quarter of the free main memory.
    """

    def __init__(self, model: Any, budget: int | None = None):
        import psutil

        self.visual = model.model.visual
        self.width = model.config.get_text_config().hidden_size
        self.encoder = Encoder(model)
        self.left = int(SHARE * psutil.virtual_memory().available) if budget is None else budget
        self._kept: dict[Hashable, Any] = {}

    def holds(self, key: Hashable) -> bool:
        """Whether the features of this content are kept, so that its pixels are not needed."""
        return key in self._kept

    def encode(self, media: Sequence[Medium]) -> list[Any]:
        """For each medium (tokens, width × (1 + deeper layers)) on the tower's device.

        Args:
            media: with pixels where no features are kept.
        """
        new = {medium.key: medium for medium in media if medium.key not in self._kept}
        with torch.no_grad():
            layers = self.encoder.encode(list(new.values()))
        self.encoder.cache.clear()
        features = {key: torch.cat(parts, -1) for key, parts in zip(new, layers, strict=True)}
        for key in {medium.key for medium in media} - features.keys():
            features[key] = self._kept[key].to(self.visual.device, non_blocking=True)
        for key in new:
            self._keep(key, features[key])
        return [features[medium.key] for medium in media]

    def _keep(self, key: Hashable, features: Any) -> None:
        if features.nbytes > self.left:
            return
        self.left -= features.nbytes
        on_gpu = features.is_cuda  # then copies in both directions need not wait for the GPU
        copy = torch.empty(features.shape, dtype=features.dtype, pin_memory=on_gpu)
        self._kept[key] = copy.copy_(features, non_blocking=on_gpu)

    def replaced(self) -> AbstractContextManager[None]:
        """The model takes features in place of ``pixel_values``; restored on exit."""
        return replaced_forwards({self.visual: partial(_split_layers, self.width)})


def _split_layers(width: int, features: Any, grid_thw: Any, **_) -> Any:
    """The encoder's output, from its features followed by those of deeper layers."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    first, *deeper = features.split(width, -1)
    return BaseModelOutputWithDeepstackFeatures(pooler_output=first, deepstack_features=deeper)


class Examples(Sequence[Labelled]):
    """The rows of a data set, each prepared when it is needed or shortly before.

    Args:
        vlm: the model that is trained.
        data: the rows.
        max_length: the most tokens of a row; a longer one is cut at its end.
        tower: whose features replace pixels, or None where the vision encoder is trained.
        workers: threads that read rows ahead; 0 for none.
    """

    def __init__(
        self, vlm: VLM, data: Sequence[Example], max_length: int | None = None,
        tower: FrozenTower | None = None, workers: int = 0,
    ):  # fmt: skip
        self.vlm, self.data, self.max_length, self.tower = vlm, data, max_length, tower
        self._rows: dict[int, Labelled] = {}
        self._known: dict[Hashable, Medium] = {}  # pictures by their source
        self._pool = ThreadPoolExecutor(workers, "vlkit-rows") if workers else None
        self._coming: OrderedDict[int, Future[Labelled]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index):
        if index >= len(self):  # a row of padding, without labels
            row = self[index % len(self)]
            return replace(row, labels=row.labels.clone().fill_(IGNORED))
        coming = self._coming.pop(index, None)
        if coming is None or coming.cancelled():
            return self.prepare(index)
        row = coming.result()
        return row if self.is_ready(row) else self.prepare(index)

    def expect(self, index: int) -> None:
        """Start to prepare a row that will be needed soon."""
        if self._pool is None or index in self._coming or index >= len(self):
            return
        while len(self._coming) >= 2 * AHEAD:  # of batches that a resumed run skips
            self._coming.popitem(last=False)[1].cancel()
        self._coming[index] = self._pool.submit(self.prepare, index)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def prepare(self, index: int) -> Labelled:
        """A row, with the pixels that are needed. Raises as :func:`label_example`."""
        example = self.data[index]
        if self.tower is None:
            return label_example(self.vlm, example, max_length=self.max_length)
        row = self._rows.get(index)
        if row is None or not self.is_ready(row):
            sources = map(read_media_item, example.media)
            keys = [_identify(each) if isinstance(each, Image) else None for each in sources]
            row = self._from_known(example, keys) or self._read(example, keys)
            self._rows[index] = replace(row, media=tuple(map(_without_pixels, row.media)))
        return row

    def is_ready(self, row: Labelled) -> bool:
        """Whether each of its media has pixels, or features that are kept."""
        return all(medium.pixels is not None or self._holds(medium) for medium in row.media)

    def _holds(self, medium: Medium) -> bool:
        return self.tower is not None and self.tower.holds(medium.key)

    def _read(self, example: Example, keys: Sequence[Hashable | None]) -> Labelled:
        model = self.vlm.model
        on_gpu = model.device.type == "cuda"
        device = model.device if on_gpu else None
        row, loaded = read_example(self.vlm, example, self.max_length, device)
        contents = [pixel_hash(image) for image in loaded.images]
        contents += [file_hash(clip.frames.tobytes()) for clip in loaded.clips]
        media = tuple(split_media(row.tensors, contents))
        if on_gpu:  # they wait in main memory
            media = tuple(replace(m, pixels=_pinned(m.pixels.to(model.dtype))) for m in media)
        pictures = [key for key in keys if key is not None]
        for key, medium in zip(pictures, media, strict=False):  # pictures come first
            self._known[key] = _without_pixels(medium)
        tensors = {n: t for n, t in row.tensors.items() if n not in PIXELS.values()}
        tensors = {n: t.cpu() if hasattr(t, "cpu") else t for n, t in tensors.items()}
        return replace(row, tensors=tensors, media=media)

    def _from_known(self, example: Example, keys: Sequence[Hashable | None]) -> Labelled | None:
        """A row without reading its pictures, where the features of all of them are kept."""
        media = [self._known[key] for key in keys if key in self._known]
        if len(media) < len(keys) or not all(map(self._holds, media)):
            return None
        pieces = cut_turns(self.vlm.processor, example.messages_for(self.vlm))
        grids = {"image_grid_thw": torch.cat([medium.grid for medium in media])} if media else {}
        row = truncate(self.vlm, label_pieces(self.vlm, pieces, grids, ()), self.max_length)
        return replace(row, media=tuple(media))


def _pinned(tensor: Any) -> Any:
    """A copy in page-locked memory; the GPU's copies from there wait for nothing."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


def _without_pixels(medium: Medium) -> Medium:
    return replace(medium, pixels=None)


def _identify(image: Image) -> Hashable:
    """Equal for pictures that the model sees alike; a file that has not changed is not decoded."""
    source, *limits = vars(image).values()
    if not isinstance(source, str | os.PathLike):
        return pixel_hash(image.load()), *limits
    try:
        return source if is_url(source) else file_hash(source), *limits
    except (OSError, ValueError):  # reading it will say why
        return os.fspath(source), *limits


class LengthSampler:
    """All rows in random order; those of one update of the weights have similar lengths.

    The order depends on seed and epoch alone, so that a resumed run, or one that takes an update's
    rows in smaller batches or on several processes, trains on the same rows.

    Args:
        examples: the rows.
        lengths: of the rows.
        rows: of one update, on all processes together.
        seed: of the order.
        share: rows that all processes take at once; an epoch is padded to a multiple of it with
            rows without labels, where accelerate would repeat some.
    """

    def __init__(
        self, examples: Examples, lengths: Sequence[float], rows: int, seed: int, *, share: int = 1
    ):
        self.examples, self.lengths, self.rows, self.seed = examples, lengths, rows, seed
        self.share, self.epoch = share, 0

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.share) * self.share

    def set_epoch(self, epoch: int) -> None:
        """Which pass over the data comes next."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """The rows' indices in this epoch; an update that is not full comes last."""
        import numpy as np

        random = np.random.default_rng((self.seed, self.epoch))
        shuffled = random.permutation(len(self.lengths))
        span = self.rows * SORTED
        groups: list[Any] = []
        for start in range(0, len(shuffled), span):
            some = shuffled[start : start + span]
            some = some[np.argsort([self.lengths[i] for i in some], kind="stable")]
            full = len(some) - len(some) % self.rows
            rest = random.permutation(len(some))[full:]  # at random: not always the longest
            groups += [*np.delete(some, rest).reshape(-1, self.rows)]
            last = some[rest]
        ordered = [groups[i] for i in random.permutation(len(groups))]
        return [int(i) for group in [*ordered, last] for i in group]

    def __iter__(self) -> Iterator[int]:
        order = [*self.order(), *range(len(self.lengths), len(self))]
        for index in order[:AHEAD]:
            self.examples.expect(index)
        for place, index in enumerate(order):
            if place + AHEAD < len(order):
                self.examples.expect(order[place + AHEAD])
            yield index


class Collator:
    """Collates labelled rows to one batch.

    Besides the processor's tensors it has ``labels`` (rows, length), and, so that logits are
    computed only where there are labels, ``logits_to_keep`` (positions) and ``shift_labels``
    (rows, positions), as transformers' models take them. Rows are padded on the left, so that
    their answers are mostly at the same positions.

    Args:
        pad_token_id: of the padding.
        tower: with it, ``pixel_values`` are its features of the rows' ``media``.
        rope: the model's ``get_rope_index``; with it, positions are computed here, and the GPU
            does not wait for them.
    """

    def __init__(self, pad_token_id: int, tower: FrozenTower | None = None, rope: Any = None):
        self.pad_token_id, self.tower, self.rope = pad_token_id, tower, rope

    def __call__(self, rows: Sequence[Labelled]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for name in PER_TOKEN:
            filler = self.pad_token_id if name == "input_ids" else 0
            batch[name] = _pad([row.tensors[name][0] for row in rows], filler)
        for name in sorted({name for row in rows for name in row.tensors} - {*PER_TOKEN}):
            parts = [row.tensors[name] for row in rows if name in row.tensors]
            batch[name] = torch.cat([torch.as_tensor(part) for part in parts])
        batch |= self._positions(batch)
        batch |= self._features([medium for row in rows for medium in row.media])
        batch["labels"] = _pad([row.labels[0] for row in rows], IGNORED)
        following = batch["labels"][:, 1:]
        kept = (following != IGNORED).any(0).nonzero()[:, 0]
        return batch | {"logits_to_keep": kept, "shift_labels": following[:, kept].contiguous()}

    def _positions(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.rope is None or not any(name.endswith("_grid_thw") for name in batch):
            return {}
        known = signature(self.rope).parameters
        return {"position_ids": self.rope(**{n: v for n, v in batch.items() if n in known})[0]}

    def _features(self, media: Sequence[Medium]) -> dict[str, Any]:
        parts: dict[str, list] = {}
        features = self.tower.encode(media) if self.tower else ()
        for medium, values in zip(media, features, strict=True):
            parts.setdefault(PIXELS[medium.kind], []).append(values)
        return {name: torch.cat(values) for name, values in parts.items()}


def _pad(rows: list, value: int):
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")
