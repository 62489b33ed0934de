"""Rows and the slots that decode them together; how tokens are chosen."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vlkit.engine.decoder import SPAN, Decoder
from vlkit.engine.vision import Encoder, Medium
from vlkit.errors import ModelError
from vlkit.inputs import LoadedMessages, ModelInputs, PixelCache, make_inputs
from vlkit.media.image import DeferredImages
from vlkit.media.video import DeferredClips
from vlkit.models.load import VLM


@dataclass(eq=False)
class Row:
    """One conversation on its way.

    Attributes:
        tensors: the processor's output for it alone, ``input_ids`` of shape (1, length); no pixels.
        media: its pictures, then its clips.
        limit: the most new tokens.
        seed: of its sampling.
        sampling: temperature and top_p of its own, or None for the engine's.
        tokens: the new tokens so far.
        payload: whatever the caller wants back with it.
        started: when its prompt was read, by ``time.perf_counter``.
        generator: where its random numbers come from.
        error: what ended it alone.
    """

    tensors: dict[str, Any]
    media: list[Medium]
    limit: int
    seed: int | None = None
    sampling: tuple[float, float] | None = None
    tokens: list[int] = field(default_factory=list)
    payload: Any = None
    started: float = 0.0
    generator: Any = None
    error: Exception | None = None
    _state: Any = None

    def restart(self) -> None:
        """As before its first token."""
        self.tokens.clear()
        self.generator = self.error = self._state = None

    def append(self, token: int) -> None:
        """One token more; :meth:`recall` goes back to here."""
        self.tokens.append(token)
        if self.generator is not None and self.seed is not None:
            self._state = self.generator.get_state()

    def recall(self) -> None:
        """Forget the random numbers that were drawn behind the last token."""
        if self._state is not None:
            self.generator.set_state(self._state)

    @property
    def bytes(self) -> int:
        """Of pixels that wait for the model."""
        return sum(medium.pixels.nbytes for medium in self.media if medium.pixels is not None)

    @property
    def contents(self) -> tuple:
        """The same for rows about the same pictures and clips."""
        return tuple(medium.key for medium in self.media)

    @property
    def length(self) -> int:
        """Prompt tokens."""
        return self.tensors["input_ids"].shape[1]

    @cached_property
    def shared(self) -> int:
        """Prompt tokens up to the last picture's or clip's end."""
        seen = self.tensors["mm_token_type_ids"][0].nonzero()
        return int(seen[-1]) + 1 if len(seen) else 0

    @cached_property
    def beginning(self) -> tuple:
        """The same for rows that begin with the same text and the same pictures."""
        ids = self.tensors["input_ids"][0, : self.shared]
        return tuple(ids.tolist()), *(medium.key for medium in self.media)


def share_beginnings(rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """The rows whose beginning is new, then the others; of these, who leads them."""
    first: dict[tuple, int] = {}
    leading: list[Row] = []
    others: list[tuple[Row, int]] = []
    for row in rows:
        if row.shared and row.beginning in first:
            others.append((row, first[row.beginning]))
        else:
            first[row.beginning] = len(leading)
            leading.append(row)
    return [*leading, *(row for row, _ in others)], [leader for _, leader in others]


def collate(rows: Sequence[Row], config: Any) -> dict[str, Any]:
    """The tensors of several rows as one, padded on the right."""
    import torch

    padding = getattr(config.get_text_config(), "pad_token_id", None) or 0
    longest = max(row.length for row in rows)
    batch: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row.tensors):
        parts = [row.tensors[name] for row in rows if name in row.tensors]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            value = padding if name == "input_ids" else 0
            parts = [_pad(part, longest, value) for part in parts]
        batch[name] = torch.cat([torch.as_tensor(part) for part in parts])
    return batch


def _pad(tensor, length: int, value: int):
    import torch

    return torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=value)


def rope_index(model: Any, inputs: dict):
    """The library's rotary positions (3, rows, length), and deltas (rows,), on the CPU."""
    import torch

    kinds, mask = inputs["mm_token_type_ids"], inputs["attention_mask"]
    if kinds.any():
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        extra = {name: inputs[name] for name in names if name in inputs}
        positions, deltas = model.get_rope_index(
            inputs["input_ids"], mm_token_type_ids=kinds, attention_mask=mask, **extra
        )
        return positions, deltas.flatten()
    positions = torch.arange(mask.shape[1]).expand(3, len(mask), -1)
    return positions, torch.zeros(len(mask), dtype=torch.long)


def make_row(
    vlm: VLM,
    loaded: LoadedMessages,
    limit: int,
    *,
    seed: int | None = None,
    sampling: tuple[float, float] | None = None,
    cache: PixelCache | None = None,
) -> tuple[Row, ModelInputs]:
    """A conversation as a row for the engine, and what its Reply needs to know of it.

    Args:
        vlm: whose processor and limits count.
        loaded: from :func:`vlkit.inputs.load_messages`.
        limit: the most new tokens.
        seed: of its sampling.
        sampling: its own temperature and top_p.
        cache: of pictures that other rows ask about as well.
    """
    # as in all other paths, so that answers are the same
    half = vlm.model.dtype.itemsize == 2 and vlm.model.device.type == "cuda"
    contents: list[Any] = [image.tobytes() for image in loaded.images]
    contents += [clip.frames for clip in loaded.clips]
    digests = [hashlib.sha256(content).digest() for content in contents]
    device = vlm.model.device if half else None
    inputs = make_inputs(vlm, [loaded], device=device, digests=[digests], cache=cache)
    row = Row(_text_tensors(inputs.tensors), _media(inputs.tensors, digests), limit, seed, sampling)
    return row, _without_pixels(loaded, row, inputs)


def _text_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but pixels, grids on the CPU."""
    named = ("input_ids", "attention_mask", "mm_token_type_ids", "second_per_grid_ts")
    kept = {name: tensors[name] for name in named if name in tensors}
    grids = ("image_grid_thw", "video_grid_thw")
    return kept | {name: tensors[name].cpu() for name in grids if name in tensors}


def _media(tensors: Mapping[str, Any], digests: Sequence[Hashable]) -> list[Medium]:
    """The row's pictures, then its clips."""
    media: list[Medium] = []
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if (grid := tensors.get(f"{kind}_grid_thw")) is None:
            continue
        grid = grid.cpu()
        for pixels, size in zip(
            tensors[name].split(grid.prod(-1).tolist()), grid.split(1), strict=True
        ):
            key = kind, digests[len(media)], tuple(size[0].tolist())
            media.append(Medium(kind, key, pixels, size))
    return media


def _without_pixels(loaded: LoadedMessages, row: Row, inputs: ModelInputs) -> ModelInputs:
    """What a Reply needs to know; its media are read again when they are looked at."""
    images = DeferredImages(loaded.pictures, [image.size for image in loaded.images])
    clip_sizes = [(clip.info.size, clip.frame_size) for clip in loaded.clips]
    clips = DeferredClips(loaded.videos, clip_sizes)
    ids = {"input_ids": row.tensors["input_ids"]}
    return ModelInputs(ids, [images], inputs.input_sizes, [clips], inputs.prompts)


def pad_left(rows: Sequence[Row], padding: int) -> Any:
    """The tensors of several rows as transformers' generate takes them, padded on the left.

    Args:
        rows: with the pixels of their media.
        padding: the tokenizer's token for it.
    """
    import torch
    from transformers import BatchFeature

    longest = max(row.length for row in rows)
    batch: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row.tensors):
        parts = [torch.as_tensor(row.tensors[name]) for row in rows if name in row.tensors]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            value = padding if name == "input_ids" else 0
            fill = torch.nn.functional.pad
            parts = [fill(part, (longest - part.shape[1], 0), value=value) for part in parts]
        batch[name] = torch.cat(parts)
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        pixels = [each.pixels for row in rows for each in row.media if each.kind == kind]
        batch |= {name: torch.cat(pixels)} if pixels else {}
    return BatchFeature(batch)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits.

    Attributes:
        endings: tokens that end an answer.
        temperature: 0 for the likeliest token.
        top_p: share of probability to sample from.
        repetition_penalty: of what the prompt or the answer holds already; 1 for none.
    """

    endings: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


def choose_tokens(choice: Sampling, logits: Any, rows: Sequence[Row], seen: Any = None) -> Any:
    """The next tokens, shape (rows,). A row for which none can be drawn gets an ``error``.

    Args:
        choice: how.
        logits: (rows, vocabulary).
        rows: whose they are.
        seen: (rows, vocabulary), what each row holds already; the chosen tokens are added.
    """
    logits = logits.float()
    if seen is not None:
        penalty = choice.repetition_penalty
        scaled = logits.where(logits < 0, logits / penalty).where(logits > 0, logits * penalty)
        logits = scaled.where(seen, logits)
    tokens = _sample(choice, logits, rows) if samples(choice, rows) else logits.argmax(-1)
    if seen is not None:
        seen.scatter_(1, tokens[:, None], True)
    return tokens


def samples(choice: Sampling, rows: Sequence[Row]) -> bool:
    """Whether any row's tokens are drawn at random."""
    return any(_sampling(choice, row)[0] > 0 for row in rows)


def _sampling(choice: Sampling, row: Row) -> tuple[float, float]:
    """Temperature and top_p of a row."""
    return row.sampling or (choice.temperature, choice.top_p)


def _sample(choice: Sampling, logits: Any, rows: Sequence[Row]) -> Any:
    """As transformers samples, each row from a random sequence of its own."""

    tokens = logits.argmax(-1)
    kinds = [_sampling(choice, row) for row in rows]
    for kind in set(kinds):
        if kind[0] > 0:
            those = [place for place, each in enumerate(kinds) if each == kind]
            shares = _share(*kind, logits[those])
            spoilt = shares.isnan().any(-1).tolist()  # drawing from NaN would end a GPU's process
            for place, share, is_nan in zip(those, shares, spoilt, strict=True):
                if is_nan:
                    rows[place].error = not_a_number()
                else:
                    tokens[place] = _draw(share, rows[place], tokens[place])
    return tokens


def _share(temperature: float, top_p: float, logits: Any) -> Any:
    """Probabilities, (rows, vocabulary)."""
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    logits = TemperatureLogitsWarper(temperature)(None, logits)
    if top_p < 1:
        logits = TopPLogitsWarper(top_p)(None, logits)
    return logits.softmax(-1)


def _draw(share: Any, row: Row, otherwise: Any) -> Any:
    """A token of one row; whatever is raised is the row's own error."""
    import torch

    try:
        return torch.multinomial(share, 1, generator=_generator(row, share.device))[0]
    except Exception as error:
        row.error = error
        return otherwise


def not_a_number() -> ModelError:
    """What ends a row whose logits are NaN."""
    return ModelError(
        "the model's logits are NaN for this row; load it in another dtype (float16 overflows), or "
        "check its weights"
    )


def _generator(row: Row, device):
    import torch

    if row.generator is None:
        row.generator = torch.Generator(device)
        row.generator.seed() if row.seed is None else row.generator.manual_seed(row.seed)
    return row.generator


STEPS = 8  # decoding steps on a GPU between two looks at what came out


ROOM = 256  # the cache's length grows in steps of this many tokens


class Engine:
    """Slots in which rows are decoded together.

    Args:
        model: the transformers model, without an adapter's wrapper.
        choice: how tokens are chosen.
        slots: the most rows at a time.
        length: the most tokens of a row, prompt and answer; it grows when a longer one comes.
        most: the length up to which it grows while answers are written; None makes room for whole
            answers when their rows come in.
    """

    def __init__(
        self, model: Any, choice: Sampling, slots: int, length: int, *, most: int | None = None
    ):
        import torch

        self.most = most
        self.model, self.choice, self.slots = model, choice, slots
        self.encoder = Encoder(model)
        self.decoder = Decoder(model, slots, _round_up(length, ROOM))
        self.device = self.decoder.device
        self.rows: list[Row] = []
        whole = {"dtype": torch.long, "device": self.device}
        self.tokens = torch.zeros(slots, **whole)  # the last token of each slot
        self.lengths = torch.zeros(slots, **whole)  # what its cache holds
        self.deltas = torch.zeros(slots, **whole)
        self.history = torch.zeros(STEPS, slots, **whole)  # what the last steps gave
        self.penalized = None
        if choice.repetition_penalty != 1:
            vocabulary = self.decoder.lm_head.weight.shape[0]
            self.penalized = torch.zeros(slots, vocabulary, dtype=torch.bool, device=self.device)
        self.graphs: dict[tuple[int, int], Any] | None = {}  # None: every step is launched
        self.computed: list[list[int]] = []  # lengths of the prompts read together

    def fits(self, choice: Sampling) -> bool:
        """Whether another batch can go on with it; its weights are then brought up to date."""
        return choice == self.choice and self.decoder.refresh()

    def is_cheap(self) -> bool:
        """On a GPU, idle, and under a thirtieth of its memory."""
        import torch

        if self.device.type != "cuda" or self.rows:
            return False
        held = sum(layer.nbytes for layer in self.decoder.cache)
        return held < torch.cuda.get_device_properties(self.device).total_memory / 30

    @property
    def free(self) -> int:
        """How many rows could come in."""
        return self.slots - len(self.rows)

    def admit(self, rows: Sequence[Row]) -> list[Row]:
        """Prefill rows and give each its first token; those that this finishes are returned.

        Where it raises, none of them has come in, and those under way are as they were.
        """
        first = len(self.rows)
        try:
            self._admit(rows, first)
        except BaseException:
            del self.rows[first:]
            for row in rows:
                row.restart()
            raise
        return self.leave()

    def _admit(self, rows: Sequence[Row], first: int) -> None:
        import torch

        if self.most is None:
            need = max(row.length + row.limit for row in rows)
        else:
            need = max(row.length for row in rows) + STEPS
        self._make_room(need)
        rows, leaders = share_beginnings(rows)
        logits, deltas = self._prefill(rows, leaders, first)
        span = slice(first, first + len(rows))
        self.rows += rows
        self.lengths[span] = torch.tensor([row.length for row in rows], device=self.device)
        self.deltas[span] = deltas
        for place, row in enumerate(rows, first):
            self._penalize(place, row)
        chosen = self._choose(logits, rows, span)
        self.tokens[span] = chosen
        spoilt = logits[:, 0].isnan()  # NaN before the last layer is NaN in every logit
        for row, token, is_nan in zip(rows, chosen.tolist(), spoilt.tolist(), strict=True):
            row.error = row.error or (not_a_number() if is_nan else None)
            row.append(token)

    def _penalize(self, slot: int, row: Row) -> None:
        """What the row holds already."""
        if self.penalized is not None:
            self.penalized[slot] = False
            self.penalized[slot, row.tensors["input_ids"][0].to(self.device)] = True
            self.penalized[slot, row.tokens] = True

    def _make_room(self, length: int) -> None:
        """Room for rows of so many tokens; captured graphs read the old place."""
        if length <= self.decoder.length:
            return
        if self.graphs:
            self.graphs.clear()
        if self.most is not None:  # in long steps, since each copies the cache
            length = min(self.most, max(length, self.decoder.length * 3 // 2))
        self.decoder.grow(_round_up(length, ROOM))

    def advance(self) -> list[Row]:
        """Decode a token of every row (a few on a GPU); those that are done leave.

        After an error :func:`advance_each` goes on.
        """
        if self.most is not None:
            self._make_room(max(row.length + len(row.tokens) for row in self.rows) + STEPS)
        steps = self._count_steps()
        for index in range(steps):
            self._step(index, steps)
        for tokens in self.history[:steps, : len(self.rows)].tolist():
            for row, token in zip(self.rows, tokens, strict=True):
                if not self._is_done(row):  # else the answer ended some steps ago
                    row.append(token)
        return self.leave()

    def recover(self) -> None:
        """After a step that raised: as before it. What it put into the cache comes again."""
        for slot, row in enumerate(self.rows):
            self.tokens[slot] = row.tokens[-1]
            self.lengths[slot] = row.length + len(row.tokens) - 1
            self._penalize(slot, row)
            row.recall()

    def alone(self, slot: int) -> Engine:
        """An engine with one of the rows, over the same memory."""
        one, place = copy.copy(self), slice(slot, slot + 1)
        one.rows, one.slots, one.graphs = [self.rows[slot]], 1, None
        one.decoder, one.history = self.decoder.narrow(slot), self.history[:, place]
        one.tokens, one.lengths = self.tokens[place], self.lengths[place]
        one.deltas = self.deltas[place]
        one.penalized = None if self.penalized is None else self.penalized[place]
        return one

    def _count_steps(self) -> int:
        if self.device.type != "cuda" or samples(self.choice, self.rows):
            return 1
        return min(STEPS, max(row.limit - len(row.tokens) for row in self.rows))

    # --- prefill ---------------------------------------------------------------------------------

    def _prefill(self, rows: Sequence[Row], leaders: Sequence[int], first: int):
        """Logits of each row's last prompt token, and rotary deltas.

        Args:
            rows: those that lead come first.
            leaders: of each other row, the row that begins as it does.
            first: the slot of the first.
        """
        import torch

        inputs = collate(rows, self.model.config)
        positions, deltas = rope_index(self.model.model, inputs)
        count = len(rows) - len(leaders)
        logits = self._read(rows[:count], inputs["input_ids"], positions, first)
        self.computed.append([row.length for row in rows[:count]])
        if leaders:
            for slot, (row, leader) in enumerate(zip(rows[count:], leaders, strict=True), count):
                self.decoder.move(first + leader, first + slot, row.shared)
            rest = self._read_rest(rows[count:], positions[:, count:], first + count)
            self.computed.append([row.length - row.shared for row in rows[count:]])
            logits = torch.cat([logits, rest])
        return logits, deltas.to(self.device)

    def _read(self, rows: Sequence[Row], ids, positions, first: int):
        import torch

        longest = max(row.length for row in rows)
        hidden, deep = self._embed(rows, ids[: len(rows), :longest].to(self.device))
        positions = positions[:, : len(rows), :longest].to(self.device)
        angles = self.decoder.rotary(hidden, positions)
        last = torch.tensor([row.length - 1 for row in rows], device=self.device)
        return self.decoder.prefill(hidden, angles, first, last, deep)

    def _read_rest(self, rows: Sequence[Row], positions, first: int):
        """The text behind the pictures of rows whose beginning was copied."""
        import torch

        rests = [row.length - row.shared for row in rows]
        ids = torch.zeros(len(rows), max(rests), dtype=torch.long)
        places = torch.zeros(3, *ids.shape, dtype=torch.long)
        for index, (row, rest) in enumerate(zip(rows, rests, strict=True)):
            ids[index, :rest] = row.tensors["input_ids"][0, row.shared :]
            places[:, index, :rest] = positions[:, index, row.shared : row.length]
        hidden = self.decoder.embed(ids.to(self.device))
        angles = self.decoder.rotary(hidden, places.to(self.device))
        starts = torch.tensor([row.shared for row in rows], device=self.device)
        last = torch.tensor(rests, device=self.device) - 1
        span = min(_round_up(max(row.length for row in rows), SPAN), self.decoder.length)
        return self.decoder.extend(hidden, angles, first, starts, last, span)

    def _embed(self, rows: Sequence[Row], ids):
        """(rows, length, width), features in their places; and what Qwen3-VL adds in its layers."""
        import torch

        hidden = self.decoder.embed(ids)
        media = [medium for row in rows for medium in row.media]
        if not media:
            return hidden, {}
        features = self.encoder.encode(media)
        config = self.model.config
        places = {kind: ids == getattr(config, f"{kind}_token_id") for kind in ("image", "video")}
        layers = []
        for layer in range(len(features[0])):
            values = torch.zeros_like(hidden)
            for kind, place in places.items():
                parts = [f[layer] for m, f in zip(media, features, strict=True) if m.kind == kind]
                if parts:
                    values[place] = torch.cat(parts).to(hidden.dtype)
            layers.append(values)
        seen = (places["image"] | places["video"])[..., None]
        return torch.where(seen, layers[0], hidden), dict(enumerate(layers[1:]))

    # --- decoding --------------------------------------------------------------------------------

    def _step(self, index: int, steps: int) -> None:
        rows = self._graph_rows() if self._captures else len(self.rows)
        longest = max(row.length + len(row.tokens) for row in self.rows) + steps
        span = min(_round_up(longest, SPAN), self.decoder.length)
        if self._captures and not samples(self.choice, self.rows):
            self._replay(rows, _span_of_graph(span, self.decoder.length))
        else:
            self._run(rows, span)
        self.history[index] = self.tokens

    @property
    def _captures(self) -> bool:
        return self.device.type == "cuda" and self.graphs is not None

    def _graph_rows(self) -> int:
        """The slots of a captured graph: a power of two that holds all rows."""
        return min(self.slots, 1 << (len(self.rows) - 1).bit_length())

    def _run(self, rows: int, span: int) -> None:
        """One step of the first slots, in place."""
        active = slice(0, rows)
        lengths = self.lengths[active]
        logits = self.decoder.step(self.tokens[active], lengths, self.deltas[active], span)
        self.tokens[active] = self._choose(logits, self.rows, active)
        lengths.add_(1).clamp_(max=span - 1)

    def _replay(self, rows: int, span: int) -> None:
        assert self.graphs is not None
        key = rows, span
        if key not in self.graphs:
            self.graphs[key] = self._capture(rows, span)
        self.graphs[key].replay()

    def _capture(self, rows: int, span: int):
        """A CUDA graph of one step; the slots are left as they were (capturing runs nothing)."""
        import torch

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._rehearse(rows, span)  # libraries set themselves up outside of the capture
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # a server's other threads may put pictures on the GPU meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._run(rows, span)
        return graph

    def _rehearse(self, rows: int, span: int) -> None:
        """One step that leaves the slots as they were; what it puts into the cache comes again."""
        states = [s for s in (self.tokens, self.lengths, self.penalized) if s is not None]
        before = [state.clone() for state in states]
        self._run(rows, span)
        for state, kept in zip(states, before, strict=True):
            state.copy_(kept)

    # --- choosing and leaving --------------------------------------------------------------------

    def _choose(self, logits, rows: Sequence[Row], place: slice):
        """The next token of each row, shape (rows,)."""
        seen = None if self.penalized is None else self.penalized[place]
        return choose_tokens(self.choice, logits, rows, seen)

    def _is_done(self, row: Row) -> bool:
        ended = len(row.tokens) >= row.limit or row.tokens[-1] in self.choice.endings
        return ended or row.error is not None

    def leave(self) -> list[Row]:
        """Take out the rows that are done; the last ones move into their slots."""
        done = [row for row in self.rows if self._is_done(row)]
        for slot in reversed(range(len(self.rows))):
            if self._is_done(self.rows[slot]):
                self._fill(slot, len(self.rows) - 1)
        return done

    def _fill(self, slot: int, last: int) -> None:
        self.decoder.clean(slot, self._written(self.rows[slot]))
        row = self.rows.pop()
        if slot == last:
            return
        self.rows[slot] = row
        self.decoder.move(last, slot, row.length + len(row.tokens))
        self.decoder.clean(last, self._written(row))
        for state in (self.tokens, self.lengths, self.deltas, self.penalized):
            if state is not None:
                state[slot] = state[last]

    def _written(self, row: Row) -> int:
        """How much of its cache a row may have used; on a GPU steps go on behind its end."""
        return min(row.length + len(row.tokens) + STEPS, self.decoder.length)


def advance_each(engine: Any, error: Exception) -> list[Row]:
    """After a step of all rows that raised: a step of each alone, so that only the guilty fail.

    Args:
        engine: an :class:`Engine`, or what has ``rows`` and its methods ``recover``, ``alone``,
            ``advance`` and ``leave``.
        error: what was raised.

    Returns:
        The rows that are done; those that failed have an ``error``.
    """
    rows = list(engine.rows)
    if len(rows) == 1:
        rows[0].error = error
        return engine.leave()
    engine.recover()
    for slot, row in enumerate(rows):
        try:
            engine.alone(slot).advance()
        except Exception as own:
            row.error = own
    return engine.leave()


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _span_of_graph(span: int, length: int) -> int:
    """Few spans, so that few graphs are captured: ROOM, then its doubles."""
    size = ROOM
    while size < span:
        size *= 2
    return min(size, length)
