"""How rows are run: many joined in the batch engine, or one by one through transformers."""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from vlkit.engine.scheduler import PREFILL_TOKENS, Waiting, choose_group, launched_on
from vlkit.engine.slots import ROOM, STEPS, Engine, Row, Sampling, advance_each
from vlkit.engine.vision import Cores, Encoder
from vlkit.generation.generate import all_rows, generation_options, seeded
from vlkit.generation.reply import Usage
from vlkit.generation.rows import choose_path
from vlkit.inputs import ending_tokens
from vlkit.models.load import VLM, base_model
from vlkit.models.memory import available_memory, count_cost, return_freed_memory
from vlkit.serving.request import RequestError

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
        self._choice = Sampling(frozenset(ending_tokens(vlm)), repetition_penalty=penalty)
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

    def recover(self) -> None:
        """After a step that raised: as before it."""
        if self._engine is not None:
            self._engine.recover()

    def alone(self, slot: int) -> Joined:
        """The same with one of the rows."""
        one = copy.copy(self)
        one._engine = self._engine and self._engine.alone(slot)
        return one

    def leave(self) -> list[Row]:
        """Take out the rows that are done or failed."""
        return self._engine.leave() if self._engine else []

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
            wanted = max(length, decoder.length * 3 // 2)
            self._engine.grow(min(self._most, -(-wanted // ROOM) * ROOM))
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

    def leave(self) -> list[Row]:
        """Nothing is under way."""
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


@dataclass(frozen=True)
class Ended:
    """The last word on a request.

    Attributes:
        text: what was not given out as a piece.
        reason: ``"stop"``, or ``"length"`` where the answer was cut off.
        usage: token counts.
    """

    text: str
    reason: str
    usage: Usage


Event = str | Ended | RequestError  # a piece of text, or the last word


class AnswerText:
    """An answer's text as its tokens come; what may yet become a stop text is held back.

    Args:
        tokenizer: of the ``tokenizers`` library.
        endings: tokens that end an answer and are never text.
        stops: texts that end it; they are not part of it.
        skip_special: leave out special tokens.
    """

    def __init__(
        self, tokenizer: Any, endings: frozenset[int], stops: Sequence[str], skip_special: bool
    ):
        self._tokenizer, self._endings, self._stops = tokenizer, endings, stops
        self._skip = skip_special
        self._tail: list[int] = []  # tokens whose bytes are no whole character yet
        self._text, self._given = "", 0
        self._longest = max(map(len, stops), default=1)
        self.stopped = self.ended = False

    @property
    def watches(self) -> bool:
        """Whether a stop text may end it."""
        return bool(self._stops)

    def push(self, tokens: Sequence[int]) -> str:
        """The text that is certain now and was not given before."""
        for token in tokens:
            self.ended = self.ended or token in self._endings
            if self.ended:
                break
            self._tail.append(token)
            piece = self._decode_tail()
            if not piece.endswith("\ufffd"):
                self._add(piece)
        return self._give(len(self._text) if self.stopped else len(self._text) - self._held())

    def finish(self) -> str:
        """The rest: what was held back, and bytes that are no whole character."""
        if not self.stopped:
            self._add(self._decode_tail())
        return self._give(len(self._text))

    def _decode_tail(self) -> str:
        return self._tokenizer.decode(self._tail, skip_special_tokens=self._skip)

    def _add(self, piece: str) -> None:
        self._tail.clear()
        start = max(0, len(self._text) - self._longest + 1)
        self._text += piece
        places = [(self._text.find(stop, start), len(stop)) for stop in self._stops]
        whole = [(place + length, place) for place, length in places if place >= 0]
        if whole:  # the one that is complete first counts, however the tokens cut it
            self._text, self.stopped, self.ended = self._text[: min(whole)[1]], True, True

    def _held(self) -> int:
        """Length of the longest end that a stop text begins with."""
        sizes = range(min(self._longest - 1, len(self._text) - self._given), 0, -1)
        tails = (self._text[-size:] for size in sizes)
        return next((len(t) for t in tails if any(s.startswith(t) for s in self._stops)), 0)

    def _give(self, end: int) -> str:
        piece, self._given = self._text[self._given : end], max(self._given, end)
        return piece


class Job:
    """One request on its way through the model; belongs to the worker once it is handed over.

    Args:
        waiting: for choosing whom to read together.
        row: for the engine; its payload is the job.
        usage: counts the prompt.
        text: gathers the answer.
        streams: pieces are wanted as they come.
        send: takes events, from any thread.
        let_go: called when the media are not needed any more, maybe more than once.
    """

    def __init__(
        self,
        waiting: Waiting,
        row: Row,
        usage: Usage,
        text: AnswerText,
        *,
        streams: bool,
        send: Callable[[Event], None],
        let_go: Callable[[], None],
    ):
        self.waiting, self.row, self._usage, self._text = waiting, row, usage, text
        self._send, self._let_go, self._streams = send, let_go, streams
        self.live = streams or text.watches  # has to be looked at while it is written
        self.since = time.monotonic()
        self.cancelled = self._ended = False
        self._read, self._kept = 0, ""
        row.payload = self

    @property
    def over(self) -> bool:
        """Whether its row need not go on."""
        return self.cancelled or self._ended

    def cancel(self) -> None:
        """Nobody waits for it any more; its slot is free within a step. From any thread."""
        self.cancelled = True
        self._let_go()

    def let_media_go(self) -> None:
        """The model has read them."""
        self.waiting.loaded = None
        self.row.media = []
        self._let_go()

    def follow(self) -> None:
        """Give out what the engine has written since."""
        self._push()
        if self._text.stopped:
            self.end()
        elif self._kept and self._streams:
            self._send(self._kept)
            self._kept = ""

    def end(self) -> None:
        """The last event."""
        if self._ended:
            return
        self._push()
        rest = self._kept + self._text.finish()
        reason = "stop" if self._text.ended else "length"
        self._ended = True
        self._send(Ended(rest, reason, replace(self._usage, new_tokens=self._read)))

    def fail(self, error: RequestError) -> None:
        """The last event of a request that has no answer."""
        if not self._ended:
            self._ended = True
            self._let_go()
            self._send(error)

    def _push(self) -> None:
        tokens, self._read = self.row.tokens[self._read :], len(self.row.tokens)
        self._kept += self._text.push(tokens)


GATHER = 0.02  # seconds that an idle model waits for requests whose media are being read


PACE = 0.1  # between two tokens of each row while pictures of the next requests are seen


PATIENCE = 0.25  # seconds that a request waits for others to be read together with


TIDY = 64  # answers after which freed memory goes back to the system,


REST = 2.0  # or seconds without a request


class Worker:
    """Answers jobs until it is closed.

    Attributes:
        arriving: requests whose media are being read; whoever reads them counts.
        finished: requests that were answered.
        most_at_once: rows that were under way together.
    """

    def __init__(self, engine: Joined | OneByOne):
        self._engine = engine
        self._inbox: deque[Job] = deque()
        self._waiting: deque[Job] = deque()
        self._next: list[Job] = []  # those of the waiting that come in before any other
        self._wake, self._closing = threading.Condition(), False
        self.arriving = self.finished = self.most_at_once = self._tidied = 0
        self._stepped = 0.0  # when the rows under way got their last token
        self._thread = threading.Thread(target=self._work, name="vlkit-serve", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Hand a job over."""
        with self._wake:
            self._inbox.append(job)
            self._wake.notify()

    def close(self) -> None:
        """Finish what was handed over, then end."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    @property
    def running(self) -> int:
        """Rows under way."""
        return len(self._engine.rows)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self.arriving + len(self._inbox) + len(self._waiting) + len(self._next)

    # --- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        import torch

        with torch.inference_mode():
            while self._collect():
                try:
                    self._turn()
                except Exception as error:  # of no single row; the next request is answered
                    jobs = [*(row.payload for row in self._engine.rows), *self._next]
                    self._engine.reset()
                    self._next = []
                    for job in jobs:
                        _refuse(job, error)

    def _collect(self) -> bool:
        """Take what has arrived; sleep while there is nothing to do. False at the end."""
        with self._wake:
            while not (self._inbox or self._waiting or self._next or self.running):
                if self._closing:
                    return False
                self._engine.forget()  # nobody's pictures outlast their requests
                rested = not self._wake.wait(REST if self.finished > self._tidied else None)
                if rested:
                    self._tidy()
            until = self._stepped + PACE if self.running else time.monotonic() + GATHER
            while self._more_to_come() and time.monotonic() < until:
                self._wake.wait(GATHER / 4)
            self._waiting += self._inbox
            self._inbox.clear()
        return True

    def _more_to_come(self) -> bool:
        """Rows that are read and written together cost less than one by one."""
        return self._engine.seeing if self.running else bool(self.arriving)

    def _turn(self) -> None:
        """Bring rows in, or write a token of each that is in."""
        self._waiting = deque(job for job in self._waiting if not job.cancelled)
        self._next = [job for job in self._next if not job.cancelled]
        if self._should_admit():
            self._admit()
        elif self.running:
            done = self._advance()
            self._stepped = time.monotonic()
            self._publish(done)

    def _advance(self) -> list[Row]:
        """A step; where it fails, rows take it alone, and only those that fail again are lost."""
        try:
            return self._engine.advance()
        except Exception as error:
            done = advance_each(self._engine, error)
        if not self.running:  # nobody is left: begin with a new cache
            self._engine.reset()
        return done

    def _should_admit(self) -> bool:
        """Many at a time: each prompt that is read holds up the rows under way."""
        slots, waiting = self._engine.slots, [*self._next, *self._waiting]
        free = slots - self.running
        if not waiting or not free:
            return False
        enough = free >= max(1, slots // 8) and len(waiting) >= free // 2
        late = time.monotonic() - waiting[0].since > PATIENCE
        return self.running <= slots // 4 or enough or late

    def _admit(self) -> None:
        """Read a group of the next prompts; none waits for others that came after it."""
        free = self._engine.slots - self.running
        if not self._next:
            self._next = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        jobs = {id(job.waiting): job for job in self._next}
        those = [job.waiting for job in self._next]
        group = choose_group(those, free, self._engine.prefill_tokens)
        chosen = [jobs[id(each)] for each in group]
        self._next = [job for job in self._next if job not in chosen]
        self._prefill(chosen)

    def _prefill(self, jobs: list[Job]) -> None:
        """What fails together is tried in halves; a job that fails alone is told."""
        try:
            done = self._engine.admit([job.row for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                _refuse(jobs[0], error)
                return
            self._prefill(jobs[: len(jobs) // 2])
            self._prefill(jobs[len(jobs) // 2 :])
            return
        for job in jobs:
            _tell(job, job.let_media_go)
        self.most_at_once = max(self.most_at_once, self.running + len(done))
        self._publish(done)

    def _publish(self, done: list[Row]) -> None:
        """Tell what was written; who is gone or has met a stop text leaves with the next step."""
        for row in done:
            self.finished += 1
            job = row.payload
            if row.error is not None:
                _refuse(job, row.error)
            else:
                _tell(job, job.end)
        if self.finished - self._tidied >= TIDY:
            self._tidy()
        for row in self._engine.rows:
            job = row.payload
            if job.live and not job.over:
                _tell(job, job.follow)
            if job.over:
                row.limit = len(row.tokens)

    def _tidy(self) -> None:
        return_freed_memory()
        self._tidied = self.finished


def _tell(job: Job, step: Callable[[], None]) -> None:
    """Do something for a job; whatever it raises, as at a token without text, fails it alone."""
    try:
        step()
    except Exception as error:
        _refuse(job, error)


def _refuse(job: Job, error: Exception) -> None:
    with suppress(RuntimeError):  # the event loop of whoever asked has ended
        job.fail(refusal(error))


def refusal(error: Exception) -> RequestError:
    """What a request is told whose turn the model did not survive."""
    import torch

    if isinstance(error, torch.cuda.OutOfMemoryError):
        torch.cuda.empty_cache()
        text = "out of GPU memory; send smaller pictures or ask for fewer tokens"
        return RequestError(text, status=503, headers={"Retry-After": "5"})
    return RequestError(f"the model failed: {type(error).__name__}: {error!s:.200}", status=500)
