"""The thread that owns the model: requests join the rows under way as slots get free."""

from __future__ import annotations

import threading
import time
from collections import deque

from vlkit.batching.feeding import choose_group
from vlkit.batching.group import Row
from vlkit.memory import return_freed_memory
from vlkit.serving.engines import Joined, OneByOne
from vlkit.serving.jobs import Job
from vlkit.serving.limits import RequestError

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
                except Exception as error:  # whatever it is, the next request is answered
                    rows = list(self._engine.rows)
                    self._engine.reset()
                    for row in rows:
                        row.payload.fail(refusal(error))

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
            done = self._engine.advance()
            self._stepped = time.monotonic()
            self._publish(done)

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
                jobs[0].fail(refusal(error))
                return
            self._prefill(jobs[: len(jobs) // 2])
            self._prefill(jobs[len(jobs) // 2 :])
            return
        for job in jobs:
            job.let_media_go()
        self.most_at_once = max(self.most_at_once, self.running + len(done))
        self._publish(done)

    def _publish(self, done: list[Row]) -> None:
        """Tell what was written; who is gone or has met a stop text leaves with the next step."""
        for row in done:
            self.finished += 1
            row.payload.end()
        if self.finished - self._tidied >= TIDY:
            self._tidy()
        for row in self._engine.rows:
            job = row.payload
            if job.live and not job.over:
                job.follow()
            if job.over:
                row.limit = len(row.tokens)

    def _tidy(self) -> None:
        return_freed_memory()
        self._tidied = self.finished


def refusal(error: Exception) -> RequestError:
    """What a request is told whose turn the model did not survive."""
    import torch

    if isinstance(error, torch.cuda.OutOfMemoryError):
        torch.cuda.empty_cache()
        text = "out of GPU memory; send smaller pictures or ask for fewer tokens"
        return RequestError(text, status=503, headers={"Retry-After": "5"})
    return RequestError(f"the model failed: {type(error).__name__}: {error!s:.200}", status=500)
