"""Rows, and the slots in which they are decoded together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from threading import Lock
from typing import Any

import torch
from torch.nn.functional import pad

from vlkit.engine.decoder import SPAN, Decoder
from vlkit.engine.sampling import Sampling, choose_tokens, has_own_choice, not_a_number
from vlkit.engine.vision import PIXELS, Encoder, Medium
from vlkit.errors import one_line, warn_user


@dataclass(eq=False)
class Row:
    """One conversation that the engine answers.

    Attributes:
        tensors: the processor's output for this row, ``input_ids`` of shape (1, length); no pixels.
        media: its pictures, then its clips.
        limit: the most new tokens.
        seed: of its sampling.
        sampling: temperature (0 for the likeliest token) and top_p.
        processors: transformers' logits processors, or alike: each is called with the row's tokens
            (1, length) and logits (1, vocabulary) before temperature and top_p. After an error a
            step is repeated, so they must take the same or fewer tokens again.
        chat: a key of the conversation whose earlier turns the engine remembers, or None.
        watch: called after each token; True ends the answer.
        tokens: the new tokens so far.
        payload: whatever the caller wants to find in the row at the end.
        started: when its prefill began, by ``time.perf_counter``.
        generator: of its random numbers; None draws from torch's own.
        error: what ended this row, and no other.
    """

    tensors: dict[str, Any]
    media: list[Medium]
    limit: int
    seed: int | None = None
    sampling: tuple[float, float] = (0.0, 1.0)
    processors: Sequence[Callable[[Any, Any], Any]] = ()
    chat: Hashable = None
    watch: Callable[[Row], bool] | None = None
    tokens: list[int] = field(default_factory=list)
    payload: Any = None
    started: float = 0.0
    generator: Any = None
    error: Exception | None = None
    positions: Any = None  # rotary, of the prompt's tokens, (3, length)
    _state: Any = None

    def restart(self) -> None:
        """Go back to before the first token."""
        self.tokens.clear()
        self.generator = self.error = self._state = None

    def append(self, token: int) -> None:
        """Add a token; :meth:`rewind` goes back to here."""
        self.tokens.append(token)
        if self.generator is not None:
            self._state = self.generator.get_state()
        if self.watch and self.watch(self):
            self.limit = len(self.tokens)

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
    def spans(self) -> list[tuple[int, int]]:
        """Where in the prompt each medium's tokens begin and end."""
        found = []
        for number, kind in enumerate(("image", "video"), 1):
            places = (self.tensors["mm_token_type_ids"][0] == number).nonzero()[:, 0].tolist()
            patches = [int(medium.grid.prod()) for medium in self.media if medium.kind == kind]
            ends = [end * len(places) // sum(patches) for end in accumulate(patches)]
            starts = [0, *ends][: len(ends)]
            found += [(places[a], places[b - 1] + 1) for a, b in zip(starts, ends, strict=True)]
        return found

    @property
    def delta(self) -> int:
        """What is added to the index of a token after the prompt to get its rotary position."""
        return int(self.positions.max()) + 1 - self.length

    @cached_property
    def marks(self) -> Any:
        """(length, 5): of each prompt token the id, the position and a hash of its whole medium."""
        whole = torch.cat([self.tensors["input_ids"], self.positions, self.positions[:1] * 0])
        for medium, (start, end) in zip(self.media, self.spans, strict=True):
            content = medium.key, *whole[:, start:end].flatten().tolist()
            whole[4, start:end] = hash(content)
        return whole.T

    @cached_property
    def shared(self) -> int:
        """Prompt tokens up to the last picture's or clip's end."""
        return max((end for _, end in self.spans), default=0)

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


def rope_index(model: Any, tensors: dict) -> Any:
    """transformers' rotary positions of a row's prompt, (3, length), on the CPU."""
    ids, kinds = tensors["input_ids"], tensors["mm_token_type_ids"]
    if not kinds.any():
        return torch.arange(ids.shape[1]).expand(3, -1)
    names = ("attention_mask", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    extra = {name: tensors[name] for name in names if name in tensors}
    return model.get_rope_index(ids, mm_token_type_ids=kinds, **extra)[0][:, 0]


def pad_left(rows: Sequence[Row], padding: int) -> Any:
    """The tensors of several rows as transformers' generate takes them, padded on the left.

    Args:
        rows: with the pixels of their media.
        padding: the tokenizer's padding token.
    """
    from transformers import BatchFeature

    longest = max(row.length for row in rows)
    batch: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row.tensors):
        parts = [row.tensors[name] for row in rows if name in row.tensors]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            value = padding if name == "input_ids" else 0
            parts = [pad(part, (longest - part.shape[1], 0), value=value) for part in parts]
        batch[name] = torch.cat(parts)
    for kind, name in PIXELS.items():
        pixels = [medium.pixels for row in rows for medium in row.media if medium.kind == kind]
        batch |= {name: torch.cat(pixels)} if pixels else {}
    return BatchFeature(batch)


STEPS = 8  # decoding steps on a GPU between two looks at the tokens
ROOM = 256  # the cache's length grows in steps of this many tokens
CHUNK = 32  # tokens of a chat's next turn that a captured step reads at once

_capturing = Lock()  # one CUDA graph of the process at a time


class Engine:
    """Slots in which rows are decoded together.

    Args:
        model: the transformers model, without an adapter's wrapper.
        encoder: of pictures and clips; its cache also remembers conversations.
        sampling: how tokens are chosen.
        slots: the most rows at a time.
        length: the most tokens of a row, prompt and answer; it grows when a longer one comes.
        most: the length up to which it grows while answers are written; None makes room for whole
            answers when their rows are admitted.
    """

    def __init__(
        self, model: Any, encoder: Encoder, sampling: Sampling, slots: int, length: int,
        *, most: int | None = None,
    ):  # fmt: skip
        self.most = most
        # not the model itself: an engine that is kept for the next question must not hold it
        self.body, self.config = model.model, model.config
        self.sampling, self.slots, self.encoder = sampling, slots, encoder
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
            vocabulary = self.decoder.lm_head.out_features
            self.penalized = torch.zeros(slots, vocabulary, dtype=torch.bool, device=self.device)
        # captured steps and their logits, by rows and span; None: every step is launched
        self.graphs: dict[tuple[int, int], tuple[Any, Any]] | None = {}
        if self.decoder.asks_the_gpu:
            self.graphs = None
        self.chunk: Engine | None = None
        self.computed: list[list[int]] = []  # lengths of the prompts computed together

    def is_cheap(self) -> bool:
        """Whether it is on a GPU, idle, and takes under a thirtieth of its memory."""
        if self.device.type != "cuda" or self.rows:
            return False
        return self.decoder.nbytes < torch.cuda.get_device_properties(self.device).total_memory / 30

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
        if self.most is None:
            need = max(row.length + row.limit for row in rows)
        else:
            need = max(row.length for row in rows) + STEPS
        self._make_room(need)
        rows, leaders = share_beginnings(rows)
        logits = self._prefill(rows, leaders, first)
        span = slice(first, first + len(rows))
        self.rows += rows
        self.lengths[span] = torch.tensor([row.length for row in rows], device=self.device)
        self.deltas[span] = torch.tensor([row.delta for row in rows], device=self.device)
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
        self.chunk = None
        if self.most is not None:  # in long steps, since each copies the cache
            length = min(self.most, max(length, self.decoder.length * 3 // 2))
        self.decoder.grow(_round_up(length, ROOM), len(self.rows))

    def advance(self) -> list[Row]:
        """Decode a token of every row (a few on a GPU); returns the rows that are done.

        Where a row's limit was lowered to what is written, it leaves, and no step is made. After
        an error, call :meth:`advance_each`.
        """
        if stopped := self.leave():
            return stopped
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
            if self.decoder.linear:  # a state is not overwritten: read all but the last token again
                self._read([row], [0], slot)
                if len(row.tokens) > 1:
                    self._read_answer(row, slot)

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
        watched = any(row.watch for row in self.rows)
        if self.device.type != "cuda" or watched or has_own_choice(self.rows):
            return 1
        return min(STEPS, max(row.limit - len(row.tokens) for row in self.rows))

    # --- prefill ---------------------------------------------------------------------------------

    def _prefill(self, rows: Sequence[Row], leaders: Sequence[int], first: int):
        """Logits of each row's last prompt token.

        Args:
            rows: the leading ones first.
            leaders: for each following row, the leading row that begins as it does.
            first: the slot of the first.
        """
        for row in rows:
            row.positions = rope_index(self.body, row.tensors)
        count = len(rows) - len(leaders)
        starts = [0] * count
        if rows[0].chat is not None:  # such a row is admitted alone
            starts = [self._recall(rows[0], first)]
            if (logits := self._read_chunk(rows[0], starts[0])) is not None:
                return logits
        if self.decoder.linear and (leaders or rows[0].chat is not None):
            return self._prefill_in_two(rows, starts, leaders, first)
        logits = self._read(rows[:count], starts, first)
        if leaders:
            self._share(rows, leaders, first)
            rest = self._read(rows[count:], [row.shared for row in rows[count:]], first + count)
            logits = torch.cat([logits, rest])
        return logits

    def _share(self, rows: Sequence[Row], leaders: Sequence[int], first: int) -> None:
        """Copy the beginnings of leading rows to the rows that follow them."""
        count = len(rows) - len(leaders)
        for slot, (row, leader) in enumerate(zip(rows[count:], leaders, strict=True), count):
            self.decoder.move(first + leader, first + slot, row.shared)

    def _prefill_in_two(
        self, rows: Sequence[Row], starts: list[int], leaders: Sequence[int], first: int
    ):
        """Read beginnings up to the last picture, and then the rest of all rows.

        A state, unlike keys and values, cannot be cut afterwards: it is copied, and kept for a
        chat, where the part that others share has just been read.
        """
        ends = [row.shared or row.length - 1 for row in rows]
        count = len(starts)
        if starts < ends[:count]:
            self._read(rows[:count], starts, first, ends[:count])
        self._share(rows, leaders, first)
        if rows[0].chat is not None and rows[0].shared:
            self._keep(rows[0], first, rows[0].marks[: rows[0].shared])
        return self._read(rows, ends, first)

    def _recall(self, row: Row, slot: int) -> int:
        """Copy what is known of a conversation's beginning into a slot; how many tokens."""
        start, caches = 0, self.decoder.cache.values()
        for marks, *kept in self.encoder.cache.find([row.chat]).values():
            size = min(len(marks), row.length - 1)
            same = (marks[:size] == row.marks[:size]).all(1)
            start = int(same.int().cumprod(0).sum())
            if self.decoder.linear and start < len(marks):  # a state holds for all its tokens
                return 0
            for layer, part in zip(caches, kept, strict=False):
                layer[slot, :start] = part[:start]
            for state, part in zip(self.decoder.states, kept[len(caches) :], strict=True):
                state[slot] = part
        return start

    def _keep(self, row: Row, slot: int, marks: Any) -> None:
        """Remember what a slot holds of a conversation, tokens with these marks."""
        layers = [layer[slot, : len(marks)].clone() for layer in self.decoder.cache.values()]
        states = [state[slot].clone() for state in self.decoder.states]
        self.encoder.cache.keep({row.chat: (marks, *layers, *states)})

    def _remember(self, row: Row, slot: int) -> None:
        """Keep the keys and values of a conversation; after an error those of before stay."""
        if row.chat is None or row.error is not None or self.decoder.linear:
            return
        read = torch.tensor(row.tokens[:-1], dtype=torch.long)  # the last token was not
        places = row.length + row.delta + torch.arange(len(read))
        new = torch.stack([read, places, places, places, places * 0], 1)
        self._keep(row, slot, torch.cat([row.marks, new]))

    def _read(
        self, rows: Sequence[Row], starts: Sequence[int], first: int, ends: Sequence[int] = ()
    ):
        """Read the prompts from ``starts`` on; what comes before is in the slots already.

        Args:
            rows: in the slots from ``first`` on.
            starts: of each row.
            first: the slot of the first.
            ends: of each row; by default its whole prompt.

        Returns:
            (rows, vocabulary) logits of the last tokens.
        """
        ends = ends or [row.length for row in rows]
        rests = [end - start for start, end in zip(starts, ends, strict=True)]
        self.computed.append(rests)
        ids = torch.zeros(len(rows), max(rests), dtype=torch.long)
        places = torch.zeros(3, *ids.shape, dtype=torch.long)
        for index, (row, start, end) in enumerate(zip(rows, starts, ends, strict=True)):
            ids[index, : end - start] = row.tensors["input_ids"][0, start:end]
            places[:, index, : end - start] = row.positions[:, start:end]
        media = [
            medium
            for row, start in zip(rows, starts, strict=True)
            for medium, (begin, _) in zip(row.media, row.spans, strict=True)
            if begin >= start
        ]
        hidden, deep = self._embed(ids.to(self.device), media)
        angles = self.decoder.rotary(hidden, places.to(self.device))
        last = torch.tensor(rests, device=self.device) - 1
        known = torch.tensor(starts, device=self.device) if any(starts) else None
        span = min(_round_up(max(ends), SPAN), self.decoder.length)
        return self.decoder.read(hidden, angles, first, last, deep, known, span)

    def _read_chunk(self, row: Row, start: int):
        """The same for a few words of one row at the end of its prompt, by a captured step.

        Each token is a row of that step, over the same slot: what it stores is there before it
        looks at the tokens up to its own. None where that cannot be done.
        """
        rest = row.length - start
        count = max(STEPS, 1 << (rest - 1).bit_length())
        fits = count <= CHUNK and start + count <= self.decoder.length and start >= row.shared
        if not (self._captures and start and fits and self.slots == 1) or self.decoder.linear:
            return None
        if self.chunk is None:
            self.chunk = copy.copy(self)
            self.chunk.graphs, self.chunk.decoder = {}, self.decoder.narrow(0, CHUNK)
            inputs = self.tokens.new_zeros(3, CHUNK)
            self.chunk.tokens, self.chunk.lengths, self.chunk.deltas = inputs
        chunk = self.chunk
        self.computed.append([rest])
        chunk.tokens[:rest] = row.tensors["input_ids"][0, start:]
        chunk.lengths.copy_(torch.arange(start, start + CHUNK))
        chunk.deltas.fill_(row.delta)
        span = _span_of_graph(start + count, self.decoder.length)
        predict = chunk._replay if chunk._captures else chunk._predict
        return predict(count, span)[rest - 1 : rest]

    def _read_answer(self, row: Row, slot: int) -> None:
        """Read the tokens that a row has written, but for the last one."""
        ids = torch.tensor([row.tokens[:-1]], device=self.device)
        places = torch.arange(ids.shape[1], device=self.device) + row.length + row.delta
        hidden = self.decoder.embed(ids)
        angles = self.decoder.rotary(hidden, places.expand(3, 1, -1))
        start, last = (torch.tensor([n], device=self.device) for n in (row.length, len(ids[0]) - 1))
        span = min(_round_up(row.length + len(ids[0]), SPAN), self.decoder.length)
        self.decoder.read(hidden, angles, slot, last, None, start, span)

    def _embed(self, ids, media: Sequence[Medium]):
        """Embeddings (rows, length, width) with the media's features, and Qwen3-VL's deepstack.

        The latter are the features that it adds after its first layers, by layer.
        """
        hidden = self.decoder.embed(ids)
        if not media:
            return hidden, {}
        features = self.encoder.encode(media)
        places = {
            kind: ids == getattr(self.config, f"{kind}_token_id") for kind in ("image", "video")
        }
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
        self._run(rows, _span_of_graph(span, self.decoder.length) if self._captures else span)
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
        logits = self._replay(rows, span) if self._captures else self._predict(rows, span)
        self.tokens[active] = self._choose(logits, self.rows, active)
        self.lengths[active].add_(1).clamp_(max=span - 1)

    def _predict(self, rows: int, span: int):
        """The next tokens' logits; only the cache and the states change."""
        active = slice(0, rows)
        tokens, lengths, deltas = self.tokens[active], self.lengths[active], self.deltas[active]
        return self.decoder.step(tokens, lengths, deltas, span)

    def _replay(self, rows: int, span: int):
        assert self.graphs is not None
        key = rows, span
        if key not in self.graphs:
            try:
                with _capturing:
                    self.graphs[key] = self._capture(rows, span)
            except torch.cuda.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = one_line(error)
                warn_user(f"steps are not captured as CUDA graphs, which is slower: {reason}")
                self.graphs = None
                return self._predict(rows, span)
        graph, logits = self.graphs[key]
        graph.replay()
        return logits

    def _rehearse(self, rows: int, span: int) -> None:
        """A step that leaves no trace: what it writes into the cache is written again."""
        before = [state[:rows].clone() for state in self.decoder.states]
        self._predict(rows, span)
        for state, kept in zip(self.decoder.states, before, strict=True):
            state[:rows] = kept

    def _capture(self, rows: int, span: int):
        """A CUDA graph of :meth:`_predict`, and the logits that it writes."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._rehearse(rows, span)  # libraries initialize outside of the capture
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads may put pictures on the GPU meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            logits = self._predict(rows, span)
        return graph, logits

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
        tokens = choose_tokens(logits, rows)
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
        self._remember(self.rows[slot], slot)
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
