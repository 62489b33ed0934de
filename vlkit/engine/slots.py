"""Rows and the slots that decode them together; how tokens are chosen."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vlkit.engine.decoder import SPAN, Decoder
from vlkit.engine.vision import Encoder, Medium
from vlkit.errors import ModelError


@dataclass(eq=False)
class Row:
    """One conversation that the engine answers.

    Attributes:
        tensors: the processor's output for this row, ``input_ids`` of shape (1, length); no pixels.
        media: its pictures, then its clips.
        limit: the most new tokens.
        seed: of its sampling.
        sampling: this row's temperature and top_p, or None for the engine's.
        tokens: the new tokens so far.
        payload: whatever the caller wants to find in the row at the end.
        started: when its prefill began, by ``time.perf_counter``.
        generator: of its random numbers.
        error: what ended this row, and no other.
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
        """Go back to before the first token."""
        self.tokens.clear()
        self.generator = self.error = self._state = None

    def append(self, token: int) -> None:
        """Add a token; :meth:`rewind` goes back to here."""
        self.tokens.append(token)
        if self.generator is not None and self.seed is not None:
            self._state = self.generator.get_state()

    def rewind(self) -> None:
        """Undo the random numbers that were drawn after the last token."""
        if self._state is not None:
            self.generator.set_state(self._state)

    @property
    def bytes(self) -> int:
        """Bytes of the pixels that wait for the model."""
        return sum(medium.pixels.nbytes for medium in self.media if medium.pixels is not None)

    @property
    def contents(self) -> tuple:
        """A key of the pictures and clips: equal for rows about the same ones."""
        return tuple(medium.key for medium in self.media)

    @property
    def length(self) -> int:
        """Prompt tokens."""
        return self.tensors["input_ids"].shape[1]

    @cached_property
    def shared(self) -> int:
        """Prompt tokens up to the last picture's or clip's end."""
        media_places = self.tensors["mm_token_type_ids"][0].nonzero()
        return int(media_places[-1]) + 1 if len(media_places) else 0

    @cached_property
    def beginning(self) -> tuple:
        """A key of the first ``shared`` tokens and their media: equal where they are the same."""
        ids = self.tensors["input_ids"][0, : self.shared]
        return tuple(ids.tolist()), *self.contents


def share_beginnings(rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """Order rows so that each beginning is computed once.

    Returns:
        The leading rows, whose beginnings all differ, then the following ones; and for each
        following row the index of the leading row that begins as it does.
    """
    leaders: dict[tuple, int] = {}
    leading: list[Row] = []
    following: list[Row] = []
    for row in rows:
        if row.shared and row.beginning in leaders:
            following.append(row)
        else:
            leaders[row.beginning] = len(leading)
            leading.append(row)
    return leading + following, [leaders[row.beginning] for row in following]


def collate(rows: Sequence[Row], padding: int, *, left: bool = False) -> dict[str, Any]:
    """The tensors of several rows as one, padded on the right, or on the left.

    Args:
        rows: one or more.
        padding: the token that fills ``input_ids``.
        left: pad on the left.
    """
    import torch

    longest = max(row.length for row in rows)
    batch: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row.tensors):
        parts = [torch.as_tensor(row.tensors[name]) for row in rows if name in row.tensors]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            value = padding if name == "input_ids" else 0
            for i, part in enumerate(parts):
                missing = longest - part.shape[1]
                widths = (missing, 0) if left else (0, missing)
                parts[i] = torch.nn.functional.pad(part, widths, value=value)
        batch[name] = torch.cat(parts)
    return batch


def rope_index(model: Any, inputs: dict):
    """transformers' rotary positions (3, rows, length), and deltas (rows,), on the CPU."""
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


def pad_left(rows: Sequence[Row], padding: int) -> Any:
    """The tensors of several rows as transformers' generate takes them, padded on the left.

    Args:
        rows: with the pixels of their media.
        padding: the tokenizer's padding token.
    """
    import torch
    from transformers import BatchFeature

    batch = collate(rows, padding, left=True)
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        pixels = [medium.pixels for row in rows for medium in row.media if medium.kind == kind]
        batch |= {name: torch.cat(pixels)} if pixels else {}
    return BatchFeature(batch)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits.

    Attributes:
        endings: tokens that end an answer.
        temperature: 0 for the likeliest token.
        top_p: share of probability to sample from.
        repetition_penalty: for tokens that the prompt or the answer contains; 1 for none.
    """

    endings: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def of(self, row: Row) -> tuple[float, float]:
        """Temperature and top_p of a row."""
        return row.sampling or (self.temperature, self.top_p)

    def is_random(self, rows: Sequence[Row]) -> bool:
        """Whether any row's tokens are drawn at random."""
        return any(self.of(row)[0] > 0 for row in rows)


def _draw_tokens(sampling: Sampling, logits: Any, rows: Sequence[Row]) -> Any:
    """Sample as transformers does, each row with its own random numbers; shape (rows,)."""
    tokens = logits.argmax(-1)
    settings = [sampling.of(row) for row in rows]
    for temperature, top_p in set(settings):
        if temperature > 0:
            places = [i for i, setting in enumerate(settings) if setting == (temperature, top_p)]
            shares = _share(temperature, top_p, logits[places])
            spoilt = shares.isnan().any(-1).tolist()  # drawing from NaN would end a GPU's process
            for place, share, is_nan in zip(places, shares, spoilt, strict=True):
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
    """A token of one row; whatever is raised becomes this row's error."""
    import torch

    try:
        if row.generator is None:
            row.generator = torch.Generator(share.device)
            row.generator.seed() if row.seed is None else row.generator.manual_seed(row.seed)
        return torch.multinomial(share, 1, generator=row.generator)[0]
    except Exception as error:
        row.error = error
        return otherwise


def not_a_number() -> ModelError:
    """What ends a row whose logits are NaN."""
    return ModelError(
        "the model's logits are NaN for this row; load it in another dtype (float16 overflows), or "
        "check its weights"
    )


STEPS = 8  # decoding steps on a GPU between two looks at the tokens
ROOM = 256  # the cache's length grows in steps of this many tokens


class Engine:
    """Slots in which rows are decoded together.

    Args:
        model: the transformers model, without an adapter's wrapper.
        sampling: how tokens are chosen.
        slots: the most rows at a time.
        length: the most tokens of a row, prompt and answer; it grows when a longer one comes.
        most: the length up to which it grows while answers are written; None makes room for whole
            answers when their rows are admitted.
    """

    def __init__(
        self, model: Any, sampling: Sampling, slots: int, length: int, *, most: int | None = None
    ):
        import torch

        self.most = most
        self.model, self.sampling, self.slots = model, sampling, slots
        self.encoder = Encoder(model)
        self.decoder = Decoder(model, slots, _round_up(length, ROOM))
        self.device = self.decoder.device
        self.rows: list[Row] = []
        whole = {"dtype": torch.long, "device": self.device}
        self.tokens = torch.zeros(slots, **whole)  # the last token of each slot
        self.lengths = torch.zeros(slots, **whole)  # tokens in its cache
        self.deltas = torch.zeros(slots, **whole)
        self.history = torch.zeros(STEPS, slots, **whole)  # tokens of the last steps
        self.penalized = None
        if sampling.repetition_penalty != 1:
            vocabulary = self.decoder.lm_head.weight.shape[0]
            self.penalized = torch.zeros(slots, vocabulary, dtype=torch.bool, device=self.device)
        self.graphs: dict[tuple[int, int], Any] | None = {}  # None: every step is launched
        self.computed: list[list[int]] = []  # lengths of the prompts computed together

    def fits(self, sampling: Sampling) -> bool:
        """Whether another batch can use it; its weights are then brought up to date."""
        return sampling == self.sampling and self.decoder.refresh()

    def is_cheap(self) -> bool:
        """Whether it is on a GPU, idle, and takes under a thirtieth of its memory."""
        import torch

        if self.device.type != "cuda" or self.rows:
            return False
        held = sum(layer.nbytes for layer in self.decoder.cache)
        return held < torch.cuda.get_device_properties(self.device).total_memory / 30

    def admit(self, rows: Sequence[Row]) -> list[Row]:
        """Prefill rows and choose the first token of each; returns those that are done.

        Where it raises, none of them was admitted, and the running rows are unchanged.
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
        """Mark the tokens of prompt and answer for the repetition penalty."""
        if self.penalized is not None:
            self.penalized[slot] = False
            self.penalized[slot, row.tensors["input_ids"][0].to(self.device)] = True
            self.penalized[slot, row.tokens] = True

    def _make_room(self, length: int) -> None:
        """Make room for rows of this many tokens; captured graphs read the old cache."""
        if length <= self.decoder.length:
            return
        if self.graphs:
            self.graphs.clear()
        if self.most is not None:  # in long steps, since each copies the cache
            length = min(self.most, max(length, self.decoder.length * 3 // 2))
        self.decoder.grow(_round_up(length, ROOM))

    def advance(self) -> list[Row]:
        """Decode a token of every row (a few on a GPU); returns the rows that are done.

        After an error, call :meth:`advance_each`.
        """
        if self.most is not None:
            self._make_room(max(row.length + len(row.tokens) for row in self.rows) + STEPS)
        steps = self._count_steps()
        for index in range(steps):
            self._step(index, steps)
        for tokens in self.history[:steps, : len(self.rows)].tolist():
            for row, token in zip(self.rows, tokens, strict=True):
                if not self._is_done(row):  # otherwise its answer ended some steps ago
                    row.append(token)
        return self.leave()

    def advance_each(self, error: Exception) -> list[Row]:
        """After a step that raised: a step of each row alone, so that only the cause fails.

        Args:
            error: what was raised.

        Returns:
            The rows that are done; those that failed have an ``error``.
        """
        if len(self.rows) == 1:
            self.rows[0].error = error
            return self.leave()
        self._undo_step()
        for slot, row in enumerate(list(self.rows)):
            try:
                self._alone(slot).advance()
            except Exception as row_error:
                row.error = row_error
        return self.leave()

    def _undo_step(self) -> None:
        """Go back to before a step that raised; its values in the cache will be overwritten."""
        for slot, row in enumerate(self.rows):
            self.tokens[slot] = row.tokens[-1]
            self.lengths[slot] = row.length + len(row.tokens) - 1
            self._penalize(slot, row)
            row.rewind()

    def _alone(self, slot: int) -> Engine:
        """An engine with one of the rows, over the same memory."""
        one, place = copy.copy(self), slice(slot, slot + 1)
        one.rows, one.slots, one.graphs = [self.rows[slot]], 1, None
        one.decoder, one.history = self.decoder.narrow(slot), self.history[:, place]
        one.tokens, one.lengths = self.tokens[place], self.lengths[place]
        one.deltas = self.deltas[place]
        one.penalized = None if self.penalized is None else self.penalized[place]
        return one

    def _count_steps(self) -> int:
        if self.device.type != "cuda" or self.sampling.is_random(self.rows):
            return 1
        return min(STEPS, max(row.limit - len(row.tokens) for row in self.rows))

    # --- prefill ---------------------------------------------------------------------------------

    def _prefill(self, rows: Sequence[Row], leaders: Sequence[int], first: int):
        """Logits of each row's last prompt token, and rotary deltas.

        Args:
            rows: the leading ones first.
            leaders: for each following row, the leading row that begins as it does.
            first: the slot of the first.
        """
        import torch

        padding = getattr(self.model.config.get_text_config(), "pad_token_id", None) or 0
        inputs = collate(rows, padding)
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
        """Read the text after the pictures, for rows whose beginning was copied."""
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
        """Embeddings (rows, length, width) with the media's features, and Qwen3-VL's deepstack.

        The latter are the features that it adds after its first layers, by layer.
        """
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
        if self._captures and not self.sampling.is_random(self.rows):
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
        """A CUDA graph of one step; the slots do not change (capturing runs nothing)."""
        import torch

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._rehearse(rows, span)  # libraries initialize outside of the capture
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # a server's other threads may put pictures on the GPU meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._run(rows, span)
        return graph

    def _rehearse(self, rows: int, span: int) -> None:
        """One step, undone: only the cache changes, and the next step writes the same there."""
        states = [s for s in (self.tokens, self.lengths, self.penalized) if s is not None]
        before = [state.clone() for state in states]
        self._run(rows, span)
        for state, kept in zip(states, before, strict=True):
            state.copy_(kept)

    # --- choosing and leaving --------------------------------------------------------------------

    def _choose(self, logits, rows: Sequence[Row], place: slice):
        """The next tokens, shape (rows,), from logits (rows, vocabulary).

        A row for which none can be drawn gets an ``error``.
        """
        logits = logits.float()
        seen = None if self.penalized is None else self.penalized[place]
        if seen is not None:
            penalty = self.sampling.repetition_penalty
            scaled = logits.where(logits < 0, logits / penalty).where(logits > 0, logits * penalty)
            logits = scaled.where(seen, logits)
        is_random = self.sampling.is_random(rows)
        tokens = _draw_tokens(self.sampling, logits, rows) if is_random else logits.argmax(-1)
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        return tokens

    def _is_done(self, row: Row) -> bool:
        ended = len(row.tokens) >= row.limit or row.tokens[-1] in self.sampling.endings
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
        """How much of its cache a row may have used; on a GPU steps continue after its end."""
        return min(row.length + len(row.tokens) + STEPS, self.decoder.length)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _span_of_graph(span: int, length: int) -> int:
    """Few spans, so that few graphs are captured: ROOM times a power of two."""
    size = ROOM
    while size < span:
        size *= 2
    return min(size, length)
