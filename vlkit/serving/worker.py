"""The thread that runs the model: rows in, tokens out as events."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from vlkit.engine.scheduler import Scheduler
from vlkit.engine.slots import Row
from vlkit.generation.reply import AnswerText, Thinking, Usage
from vlkit.generation.rows import Library, choose_path, sampling_of
from vlkit.models.load import VLM, base_model
from vlkit.models.memory import return_freed_memory
from vlkit.serving.request import RequestError

SLOTS = {"cuda": 128, "cpu": 32}


def make_engine(vlm: VLM, context: int) -> Scheduler | Library:
    """The engine for a model; for models that the batch engine lacks, one row at a time.

    Args:
        vlm: the model; nothing else may use it meanwhile.
        context: the most tokens of a row, prompt and answer.
    """
    if choose_path(vlm)[0] != "fast":
        return Library(vlm, 1, watch=_send_new_text)
    slots = SLOTS.get(vlm.model.device.type, SLOTS["cpu"])
    return Scheduler(base_model(vlm), sampling_of(vlm), slots, context=context)


def _send_new_text(row: Row) -> bool:
    row.payload.send_new_text()
    return row.payload.done


class OutputPenalties:
    """A logits processor: OpenAI's penalties for tokens that the answer contains.

    Args:
        presence: subtracted from the logit of each such token.
        frequency: subtracted as often as the token occurs.
    """

    def __init__(self, presence: float, frequency: float):
        self._presence, self._frequency = presence, frequency
        self._prompt_length: int | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Logits (1, vocabulary)."""
        self._prompt_length = self._prompt_length or input_ids.shape[1]
        counts = input_ids[0, self._prompt_length :].bincount(minlength=scores.shape[1])
        return scores - self._presence * (counts > 0) - self._frequency * counts


TokenLogprobs = tuple[int, float, list[tuple[int, float]]]  # a token, its own, the likeliest ones


class Logprobs:
    """A logits processor that changes nothing: it keeps the log-probabilities until they are read.

    Args:
        top: how many of the likeliest tokens are read.
    """

    def __init__(self, top: int):
        self._top, self._prompt_length = top, 0
        self._kept: dict[int, Any] = {}  # by place in the answer

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Logits (1, vocabulary)."""
        self._prompt_length = self._prompt_length or input_ids.shape[1]
        self._kept[input_ids.shape[1] - self._prompt_length] = scores[0].log_softmax(-1)
        return scores

    def read(self, place: int, token: int) -> TokenLogprobs:
        """Those of the answer's token at a place, which are then forgotten."""
        logprobs = self._kept.pop(place)
        values, ids = logprobs.topk(self._top)
        top = list(zip(ids.tolist(), values.tolist(), strict=True))
        return token, logprobs[token].item(), top


@dataclass(frozen=True)
class AnswerPiece:
    """A piece of an answer.

    Attributes:
        thinking: of the model, as far as it is certain by now.
        text: of the answer.
        logprobs: of the tokens that were read since the last piece; empty if nobody asked.
    """

    thinking: str
    text: str
    logprobs: list[TokenLogprobs]


@dataclass(frozen=True)
class Ended(AnswerPiece):
    """The last piece: what was not sent before.

    Attributes:
        reason: ``"stop"``, or ``"length"`` if the answer was cut off.
        usage: token counts.
    """

    reason: str
    usage: Usage


Event = AnswerPiece | RequestError  # Ended or an error is the last one


@dataclass(eq=False)
class Job:
    """One request on its way through the model; after ``submit`` only the worker changes it.

    Args:
        row: for the engine; its payload is the job.
        usage: counts of the prompt.
        text: collects the answer.
        thinking: splits it.
        streams: send pieces of text as they come.
        send: takes events, from any thread.
        release: called when the media are not needed any more, maybe more than once.
    """

    row: Row
    usage: Usage
    text: AnswerText
    thinking: Thinking
    _: KW_ONLY
    streams: bool
    send: Callable[[Event], None]
    release: Callable[[], None]

    def __post_init__(self) -> None:
        recorders = (p for p in self.row.processors if isinstance(p, Logprobs))
        self._recorder, self._logprobs = next(recorders, None), list[TokenLogprobs]()
        # where False, the tokens are read once, when the answer is complete
        self.reads_each_step = self.streams or self.text.has_stops or bool(self._recorder)
        self.created = time.monotonic()
        self.cancelled = self._ended = False
        self._unsent = ""
        self.row.payload = self

    @property
    def done(self) -> bool:
        """Whether its row needs no more tokens."""
        return self.cancelled or self._ended

    def cancel(self) -> None:
        """The client has left; the slot is free after the next step. From any thread."""
        self.cancelled = True
        self.release()

    def release_media(self) -> None:
        """The model has read the prompt."""
        self.row.media = []
        self.release()

    def send_new_text(self) -> None:
        """Send the text of the tokens that the engine has written since."""
        self._read_tokens()
        if self.text.stopped:
            self.end()
        elif self._unsent and self.streams:
            self.send(AnswerPiece(*self.thinking.split(self._unsent, last=False), self._logprobs))
            self._unsent, self._logprobs = "", []

    def end(self) -> None:
        """Send the last event."""
        if self._ended:
            return
        self._read_tokens()
        rest = self.thinking.split(self._unsent + self.text.finish(), last=True)
        reason = "stop" if self.text.ended else "length"
        self._ended = True
        usage = replace(self.usage, new_tokens=self.text.read)
        self.send(Ended(*rest, self._logprobs, reason, usage))

    def fail(self, error: RequestError) -> None:
        """Send the last event of a request that has no answer."""
        if not self._ended:
            self._ended = True
            self.release()
            self.send(error)

    def _read_tokens(self) -> None:
        first = self.text.read
        tokens = self.row.tokens[first:]
        self._unsent += self.text.push(tokens)
        if self._recorder is not None:
            entries = [self._recorder.read(first + i, token) for i, token in enumerate(tokens)]
            self._logprobs += entries[: len(entries) - self.text.ended]


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

    def __init__(self, engine: Scheduler | Library):
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
                except Exception as error:  # of no single row; the next request is answered
                    jobs = [*(row.payload for row in self._engine.rows), *self._next]
                    self._engine.reset()
                    self._next = []
                    for job in jobs:
                        _refuse(job, error)

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
                if not self._wake.wait(TIDY_SECONDS if self.finished > self._tidied else None):
                    self._tidy()
            until = time.monotonic() + GATHER_SECONDS
            if self.running:
                until = self._last_step + STEP_SECONDS
            while time.monotonic() < until:
                if not (self._engine.busy_elsewhere if self.running else self.arriving):
                    break  # nothing more is about to come
                self._wake.wait(GATHER_SECONDS / 4)
        return True

    def _work_once(self) -> None:
        """Admit jobs, or write a token of each running row."""
        with self._wake:
            self._queue = deque(job for job in self._queue if not job.cancelled)
        self._next = [job for job in self._next if not job.cancelled]
        if self._should_admit():
            self._admit()
        elif self.running:
            finished = self._engine.advance([])
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
        rows = [job.row for job in self._next]
        finished = self._engine.admit(rows)
        admitted = [job for job in self._next if job.row not in rows]
        self._next = [row.payload for row in rows]
        for job in admitted:
            _serve(job, job.release_media)
        self.most_at_once = max(self.most_at_once, self.running + len(finished))
        self._publish(finished)

    def _publish(self, finished: list[Row]) -> None:
        """Send what was written; rows of jobs that are done leave with the next step."""
        for row in finished:
            self.finished += 1
            job = row.payload
            if row.error is not None:
                _refuse(job, row.error)
            else:
                _serve(job, job.end)
        if self.finished - self._tidied >= TIDY_ANSWERS:
            self._tidy()
        for row in self._engine.rows:
            job = row.payload
            if job.reads_each_step and not job.done:
                _serve(job, job.send_new_text)
            if job.done:
                row.limit = len(row.tokens)

    def _tidy(self) -> None:
        return_freed_memory()
        self._tidied = self.finished


def _serve(job: Job, step: Callable[[], None]) -> None:
    """Do something for a job; whatever it raises, as at a token without text, fails it alone."""
    try:
        step()
    except Exception as error:
        _refuse(job, error)


def _refuse(job: Job, error: Exception) -> None:
    with suppress(RuntimeError):  # the client's event loop has ended
        job.fail(RequestError.of(error))
