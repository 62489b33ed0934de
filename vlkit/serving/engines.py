"""How rows are run: many joined in the batch engine, or one by one through transformers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from vlkit.batching.answering import choose_path
from vlkit.batching.choosing import Choice
from vlkit.batching.encoding import Encoder
from vlkit.batching.engine import ROOM, STEPS, Engine
from vlkit.batching.fast_rows import launched_on
from vlkit.batching.group import Row
from vlkit.batching.settings import PREFILL_TOKENS, base_model
from vlkit.cores import Cores
from vlkit.generation import all_rows, ending_tokens, seeded
from vlkit.memory import available_memory, count_cost
from vlkit.models import VLM
from vlkit.options import generation_options

SLOTS = {"cuda": 128, "cpu": 32}


def make_engine(vlm: VLM, context: int) -> Joined | OneByOne:
    """The engine for a model; ``note`` says what is lost with it.

    Args:
        vlm: the model; nobody else uses it meanwhile.
        context: the most tokens of a row, prompt and answer.
    """
    path, note = choose_path(vlm)
    return Joined(vlm, context) if path == "fast" else OneByOne(vlm, note)


class Joined:
    """Rows join those under way; the cache grows as they do."""

    note = ""

    def __init__(self, vlm: VLM, context: int):
        penalty = getattr(vlm.model.generation_config, "repetition_penalty", None) or 1.0
        self._choice = Choice(frozenset(ending_tokens(vlm)), repetition_penalty=penalty)
        self._model, self._device = base_model(vlm), vlm.model.device
        self._cost = count_cost(vlm.model.config, 0, value_bytes=vlm.model.dtype.itemsize)
        self._most = -(-(context + STEPS) // ROOM) * ROOM
        self.slots = self._count_slots()
        self._engine: Engine | None = None
        self._encoder = Encoder(self._model)
        self._cores = Cores() if self._device.type == "cpu" else None

    def _count_slots(self) -> int:
        """As many rows of the longest kind as two thirds of the free memory hold."""
        fitting = int(available_memory()[0] * 2 / 3 / (self._cost.cache_per_token * self._most))
        return max(1, min(SLOTS.get(self._device.type, SLOTS["cpu"]), fitting))

    @property
    def rows(self) -> list[Row]:
        """Those under way."""
        return self._engine.rows if self._engine else []

    @property
    def prefill_tokens(self) -> int:
        """How many tokens may be read at once."""
        if self._device.type != "cuda":
            return PREFILL_TOKENS["cpu"]
        fitting = available_memory()[0] // (4 * self._cost.language_per_token)
        return max(1, min(PREFILL_TOKENS["cuda"], fitting))

    def sharing(self) -> AbstractContextManager[None]:
        """Compute beside other threads; on a CPU each has its share of the cores."""
        return self._cores.share() if self._cores else nullcontext()

    @property
    def seeing(self) -> bool:
        """Whether other threads see pictures ahead."""
        return bool(self._cores and self._cores.busy)

    def look(self, row: Row) -> None:
        """On a CPU, see a row's pictures ahead of its turn, in the caller's thread.

        A picture a core is faster than all cores for one picture after the other.
        """
        if self._cores is not None:
            self._encoder.encode_ahead([row])

    def admit(self, rows: list[Row]) -> list[Row]:
        """Read prompts and write the first tokens; rows that this finishes are returned."""
        limits = [row.limit for row in rows]
        engine = self._make_room(max(row.length for row in rows) + STEPS)
        try:
            for row in rows:
                row.limit = min(row.limit, STEPS)  # room is made as it is needed
            with launched_on(self._device), self.sharing():
                return engine.admit(rows)
        finally:
            engine.computed.clear()
            for row, limit in zip(rows, limits, strict=True):
                row.limit = limit

    def advance(self) -> list[Row]:
        """Write a token of each row (a few on a GPU); those that are done are returned."""
        longest = max(row.length + len(row.tokens) for row in self.rows)
        with launched_on(self._device), self.sharing():
            return self._make_room(longest + STEPS).advance()

    def forget(self) -> None:
        """Let go the pictures seen."""
        self._encoder.forget()

    def reset(self) -> None:
        """After an error: whatever was under way is lost."""
        self._engine = None

    def _make_room(self, length: int) -> Engine:
        if self._engine is None:
            self._engine = Engine(self._model, self._choice, self.slots, length)
            self._engine.encoder = self._encoder
        decoder = self._engine.decoder
        if length > decoder.length:
            self._engine.graphs.clear()
            wanted = max(length, decoder.length * 3 // 2)
            decoder.grow(min(self._most, -(-wanted // ROOM) * ROOM))
        return self._engine


class OneByOne:
    """One row at a time through ``model.generate``, for models that the batch engine lacks."""

    slots, prefill_tokens, seeing = 1, 2**31, False

    def __init__(self, vlm: VLM, note: str):
        self._vlm, self.note = vlm, note
        self.rows: list[Row] = []

    def sharing(self) -> AbstractContextManager[None]:
        """Nobody computes beside."""
        return nullcontext()

    def look(self, row: Row) -> None:
        """Pictures are seen in their turn."""

    def admit(self, rows: list[Row]) -> list[Row]:
        """Write the whole answer of the one row; its job follows."""
        from transformers import StoppingCriteriaList

        (row,) = rows
        job, device = row.payload, self._vlm.model.device
        options = generation_options(row.limit, *(row.sampling or (0.0, 1.0)), row.seed)
        tensors = job.waiting.loaded.tensors.to(device, dtype=self._vlm.model.dtype)
        done = StoppingCriteriaList([lambda ids, scores, **_: all_rows(ids, job.over)])
        with seeded(row.seed, options["do_sample"]):
            self._vlm.model.generate(
                **tensors, **options, streamer=_Follower(row), stopping_criteria=done
            )
        return rows

    def advance(self) -> list[Row]:
        """Nothing is under way between two rows."""
        return []

    def forget(self) -> None:
        """Nothing is kept."""

    def reset(self) -> None:
        """Nothing is under way."""


class _Follower:
    """transformers' streamer: the prompt comes first, then token by token."""

    def __init__(self, row: Row):
        self._row, self._prompt = row, True

    def put(self, value: Any) -> None:
        if self._prompt:
            self._prompt = False
            return
        self._row.tokens += value.flatten().tolist()
        self._row.payload.follow()

    def end(self) -> None:
        return None
