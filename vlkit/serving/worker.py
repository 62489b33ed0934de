"""The thread that runs the model: rows join in the batch engine, or go one by one."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from vlkit.engine.scheduler import PREFILL_TOKENS, Waiting, choose_group, launched_on
from vlkit.engine.slots import ROOM, STEPS, Engine, Row, Sampling
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
    """The engine for a model; its ``note`` says why it is a slow one, if it is.

    Args:
        vlm: the model; nothing else may use it meanwhile.
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
        """Nothing: no other thread computes."""
        return nullcontext()

    def look(self, row: Row) -> None:
        """Nothing: pictures are encoded with their prompt."""

    def admit(self, rows: list[Row]) -> list[Row]:
        """Write the whole answer of the one row; its job reads the tokens as they come."""
        from transformers import StoppingCriteriaList

        (row,) = rows
        job, device = row.payload, self._vlm.model.device
        options = generation_options(row.limit, *(row.sampling or (0.0, 1.0)), row.seed)
        tensors = job.waiting.loaded.tensors.to(device, dtype=self._vlm.model.dtype)
        done = StoppingCriteriaList([lambda ids, scores, **_: all_rows(ids, job.done)])
        with seeded(row.seed, options["do_sample"]):
            self._vlm.model.generate(
                **tensors, **options, streamer=_TokenStreamer(row), stopping_criteria=done
            )
        return rows

    def advance(self) -> list[Row]:
        """Nothing: no row is running between two calls of ``admit``."""
        return []

    def forget(self) -> None:
        """Nothing is kept."""

    def reset(self) -> None:
        """Nothing is running."""


class _TokenStreamer:
    """A streamer for ``generate``, which puts the prompt first, then token by token."""

    def __init__(self, row: Row):
        self._row, self._prompt = row, True

    def put(self, value: Any) -> None:
        if self._prompt:
            self._prompt = False
            return
        self._row.tokens += value.flatten().tolist()
        self._row.payload.send_new_text()

    def end(self) -> None:
        return None


@dataclass(frozen=True)
class Ended:
    """The last event of an answer.

    Attributes:
        text: the rest, which was not sent as a piece.
        reason: ``"stop"``, or ``"length"`` if the answer was cut off.
        usage: token counts.
    """

    text: str
    reason: str
    usage: Usage


Event = str | Ended | RequestError  # a piece of text, or the last event


class AnswerText:
    """An answer's text as its tokens come; what may become a stop text is held back.

    Args:
        tokenizer: of the ``tokenizers`` library.
        endings: tokens that end an answer and are never text.
        stops: texts that end it; they are not part of it.
        skip_special: leave out special tokens.

    Attributes:
        ended: an ending token or a stop text has come.
        stopped: a stop text has come.
    """

    def __init__(
        self, tokenizer: Any, endings: frozenset[int], stops: Sequence[str], skip_special: bool
    ):
        self._tokenizer, self._endings, self._stops = tokenizer, endings, stops
        self._skip_special = skip_special
        self._undecoded: list[int] = []  # the last tokens, while their bytes are half a character
        self._text, self._returned = "", 0  # the whole text, and how much of it was returned
        self._longest_stop = max(map(len, stops), default=1)
        self.stopped = self.ended = False

    @property
    def has_stops(self) -> bool:
        """Whether a stop text may end it."""
        return bool(self._stops)

    def push(self, tokens: Sequence[int]) -> str:
        """Add tokens; returns the new text that is certain now."""
        for token in tokens:
            self.ended = self.ended or token in self._endings
            if self.ended:
                break
            self._undecoded.append(token)
            piece = self._decode()
            if not piece.endswith("\ufffd"):
                self._add(piece)
        held_back = 0 if self.stopped else self._count_held_back()
        return self._return_until(len(self._text) - held_back)

    def finish(self) -> str:
        """The rest: what was held back, and bytes that are not a whole character."""
        if not self.stopped:
            self._add(self._decode())
        return self._return_until(len(self._text))

    def _decode(self) -> str:
        return self._tokenizer.decode(self._undecoded, skip_special_tokens=self._skip_special)

    def _add(self, piece: str) -> None:
        self._undecoded.clear()
        start = max(0, len(self._text) - self._longest_stop + 1)
        self._text += piece
        found = [(self._text.find(stop, start), len(stop)) for stop in self._stops]
        spans = [(place + length, place) for place, length in found if place >= 0]
        if spans:  # the stop text that is complete first counts, however the tokens cut it
            _, place = min(spans)
            self._text, self.stopped, self.ended = self._text[:place], True, True

    def _count_held_back(self) -> int:
        """Length of the longest end of the text with which a stop text begins."""
        most = min(self._longest_stop - 1, len(self._text) - self._returned)
        ends = (self._text[-size:] for size in range(most, 0, -1))
        return next((len(e) for e in ends if any(s.startswith(e) for s in self._stops)), 0)

    def _return_until(self, end: int) -> str:
        piece = self._text[self._returned : end]
        self._returned = max(self._returned, end)
        return piece


class Job:
    """One request on its way through the model; after ``submit`` only the worker changes it.

    Args:
        waiting: for choosing which prompts are read together.
        row: for the engine; its payload is the job.
        usage: counts of the prompt.
        text: collects the answer.
        streams: send pieces of text as they come.
        send: takes events, from any thread.
        release: called when the media are not needed any more, maybe more than once.
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
        release: Callable[[], None],
    ):
        self.waiting, self.row, self._usage, self._text = waiting, row, usage, text
        self._send, self._release, self._streams = send, release, streams
        self.reads_each_step = streams or text.has_stops  # or else only the whole answer
        self.created = time.monotonic()
        self.cancelled = self._ended = False
        self._tokens_read, self._unsent = 0, ""
        row.payload = self

    @property
    def done(self) -> bool:
        """Whether its row needs no more tokens."""
        return self.cancelled or self._ended

    def cancel(self) -> None:
        """The client has left; the slot is free after the next step. From any thread."""
        self.cancelled = True
        self._release()

    def release_media(self) -> None:
        """The model has read the prompt."""
        self.waiting.loaded = None
        self.row.media = []
        self._release()

    def send_new_text(self) -> None:
        """Send the text of the tokens that the engine has written since."""
        self._read_tokens()
        if self._text.stopped:
            self.end()
        elif self._unsent and self._streams:
            self._send(self._unsent)
            self._unsent = ""

    def end(self) -> None:
        """Send the last event."""
        if self._ended:
            return
        self._ended = True
        self._read_tokens()
        rest = self._unsent + self._text.finish()
        reason = "stop" if self._text.ended else "length"
        self._send(Ended(rest, reason, replace(self._usage, new_tokens=self._tokens_read)))

    def fail(self, error: RequestError) -> None:
        """Send the last event of a request that has no answer."""
        if not self._ended:
            self._ended = True
            self._release()
            self._send(error)

    def _read_tokens(self) -> None:
        tokens, self._tokens_read = self.row.tokens[self._tokens_read :], len(self.row.tokens)
        self._unsent += self._text.push(tokens)


# The worker waits for more requests, since prompts that are read together cost less:
GATHER_SECONDS = 0.02  # while the model is idle and media of requests are being read
STEP_SECONDS = 0.1  # between two tokens of each row, while pictures of requests are encoded
GROUP_SECONDS = 0.25  # at most, from a request's arrival
# Memory that was freed goes back to the system:
TIDY_ANSWERS = 64  # after so many answers,
TIDY_SECONDS = 2.0  # or so long after the last one


class Worker:
    """A thread that answers jobs until it is closed.

    Attributes:
        arriving: requests whose media are being read; the threads that read them count here.
        finished: requests that were answered.
        most_at_once: the most rows that were running together.
    """

    def __init__(self, engine: Joined | OneByOne):
        self._engine = engine
        self._wake, self._closing = threading.Condition(), False
        self._queue: deque[Job] = deque()  # submitted; replaced only while holding _wake
        self._next: list[Job] = []  # taken from the queue, but not admitted yet
        self.arriving = self.finished = self.most_at_once = self._tidied = 0
        self._last_step = 0.0  # when the running rows got their last token
        self._thread = threading.Thread(target=self._work, name="vlkit-serve", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Hand a job over. From any thread."""
        with self._wake:
            self._queue.append(job)
            self._wake.notify()

    def close(self) -> None:
        """Finish the submitted jobs, then end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    @property
    def running(self) -> int:
        """Rows that the model is writing."""
        return len(self._engine.rows)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self.arriving + len(self._queue) + len(self._next)

    # --- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        import torch

        with torch.inference_mode():
            while self._wait_for_work():
                try:
                    self._work_once()
                except Exception as error:  # whatever it is, the next request is answered
                    rows = list(self._engine.rows)
                    self._engine.reset()
                    for row in rows:
                        row.payload.fail(RequestError.of(error))

    def _wait_for_work(self) -> bool:
        """Sleep while there is nothing to do, and while more requests are about to come.

        Returns:
            False at the end, once the worker is closed and everything is answered.
        """
        with self._wake:
            while not (self._queue or self._next or self.running):
                if self._closing:
                    return False
                self._engine.forget()  # pictures are kept no longer than their requests
                woken = self._wake.wait(TIDY_SECONDS if self.finished > self._tidied else None)
                if not woken:
                    self._tidy()
            until = time.monotonic() + GATHER_SECONDS
            if self.running:
                until = self._last_step + STEP_SECONDS
            while self._more_to_come() and time.monotonic() < until:
                self._wake.wait(GATHER_SECONDS / 4)
        return True

    def _more_to_come(self) -> bool:
        return self._engine.seeing if self.running else bool(self.arriving)

    def _work_once(self) -> None:
        """Admit jobs, or write a token of each running row."""
        with self._wake:
            self._queue = deque(job for job in self._queue if not job.cancelled)
        self._next = [job for job in self._next if not job.cancelled]
        if self._should_admit():
            self._admit()
        elif self.running:
            finished = self._engine.advance()
            self._last_step = time.monotonic()
            self._publish(finished)

    def _should_admit(self) -> bool:
        """Admit many at a time: the running rows wait while prompts are read."""
        slots, waiting = self._engine.slots, len(self._next) + len(self._queue)
        free = slots - self.running
        if not waiting or not free:
            return False
        first = self._next[0] if self._next else self._queue[0]
        enough = free >= max(1, slots // 8) and waiting >= free // 2
        late = time.monotonic() - first.created > GROUP_SECONDS
        return self.running <= slots // 4 or enough or late

    def _admit(self) -> None:
        """Read a group of prompts.

        Of those that are next, prompts of similar length go first, but no job from the queue
        comes before the last of them.
        """
        free = self._engine.slots - self.running
        if not self._next:
            self._next = [self._queue.popleft() for _ in range(min(free, len(self._queue)))]
        jobs = {id(job.waiting): job for job in self._next}
        candidates = [job.waiting for job in self._next]
        group = choose_group(candidates, free, self._engine.prefill_tokens)
        chosen = [jobs[id(waiting)] for waiting in group]
        self._next = [job for job in self._next if job not in chosen]
        self._prefill(chosen)

    def _prefill(self, jobs: list[Job]) -> None:
        """Read prompts; a group that fails is tried again in halves, down to the job at fault."""
        try:
            finished = self._engine.admit([job.row for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].fail(RequestError.of(error))
                return
            self._prefill(jobs[: len(jobs) // 2])
            self._prefill(jobs[len(jobs) // 2 :])
            return
        for job in jobs:
            job.release_media()
        self.most_at_once = max(self.most_at_once, self.running + len(finished))
        self._publish(finished)

    def _publish(self, finished: list[Row]) -> None:
        """Send what was written; rows of jobs that are done leave with the next step."""
        for row in finished:
            self.finished += 1
            row.payload.end()
        if self.finished - self._tidied >= TIDY_ANSWERS:
            self._tidy()
        for row in self._engine.rows:
            job = row.payload
            if job.reads_each_step and not job.done:
                job.send_new_text()
            if job.done:
                row.limit = len(row.tokens)

    def _tidy(self) -> None:
        return_freed_memory()
        self._tidied = self.finished
