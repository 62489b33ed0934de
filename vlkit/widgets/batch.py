"""``BatchPanel``: the same question about many pictures."""

from __future__ import annotations

import threading
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import traitlets

from vlkit import bundled, errors
from vlkit.batch import answering
from vlkit.datasets import questions, tables
from vlkit.errors import VlkitError
from vlkit.generation.reply import Failure, Reply, attempt
from vlkit.inputs import check_model
from vlkit.media.image import Image, describe_source
from vlkit.media.sources import is_url
from vlkit.widgets.media import LARGEST, item_records, media_and_text, picture_record
from vlkit.widgets.panel import Debounce, WorkPanel, call_code, load_code, on_change

if TYPE_CHECKING:
    import pandas as pd


SAMPLES = "samples"  # as a source, it is the folder of sample pictures
PAGE = 8  # rows in view
THUMBNAIL = 264  # pixels, twice the size on the page
MOST_TEXT = 2000  # characters of an answer
Row = Reply | Failure | None  # None: not answered yet
STATES = ("new", "waiting", "running", "done", "failed", "stopped")
_ORDERS = {
    "answer": lambda row: str(row or ""),
    "slowest first": lambda row: -getattr(row, "seconds", 0.0),
}
_QUIET = 0.2  # seconds without a change before rows are drawn
_TICK = 0.4  # seconds between two updates during a run
_CODE = """import vlkit

vlm = {load}
conversations = vlkit.read_conversations({source}, {prompt!r})
results = {batch}
vlkit.to_frame(results, conversations)"""


class BatchPanel(WorkPanel):
    """Ask about many pictures: name a folder or a table, write the prompt, start; answers come in.

    A prompt may contain ``{column}``; the line under it lists the columns. Rows that fail are shown
    with their reason, and the other rows continue. With a journal (``out``), the next start resumes
    a stopped run. Every control is an attribute (``source``, ``prompt``, ``max_new_tokens``,
    ``out``, ``save_as``, ``shown``, ``order``, ``search``, ``page``), so what a hand can do, code
    can do: ``panel.source.value = "scans"; panel.start(); panel.wait()``.

    Args:
        vlm: from :func:`vlkit.load`.
        source: a folder of pictures, a table's file, or ``"samples"``.
        prompt: the initial prompt.
        language: ``"en"`` or ``"zh"``; the browser's by default.

    Attributes:
        conversations: the rows, from :func:`vlkit.read_conversations`; None where the source
            cannot be read.
        results: Reply or Failure of each row; None where it is not answered yet.
    """

    groups = ("batch",)
    scripts = ("work.js", "batch.js")
    pictures = traitlets.Dict().tag(sync=True)
    large = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        vlm: Any,
        source: str = SAMPLES,
        prompt: str = "Describe this image.",
        *,
        language: str | None = None,
    ):
        check_model(vlm)
        self.vlm = vlm
        self.conversations: Any = None
        self.results: list[Row] = []
        self._stopped, self._begun = threading.Event(), set[int]()
        self._began, self._drawing = 0.0, threading.Lock()
        self._decoded: dict[int, dict | None] = {}  # thumbnails by the row's number
        self._saved, self._saved_failed, self._texts = "", False, list[str]()
        self._answered: tuple[str, str, Any, list[Row]] = ("", "", None, [])
        super().__init__(language, {"source": {"value": str(source)}, "prompt": {"value": prompt}})
        self._later = Debounce(self._draw, _QUIET)
        self._locked = [self.start_button, self.source, self.prompt, self.max_new_tokens, self.out]
        on_change(self._decoded.clear, self.source)
        on_change(self._take_source, self.source, self.prompt)
        on_change(self._later.call, self.shown, self.order, self.search, self.page)
        self._read()
        self._show_code()

    def start(self) -> None:
        """Begin with the present controls and return at once; does nothing during a run."""
        if self._running:
            return
        self._saved = ""
        with self.status.catching():
            self._check_model()
            if not self._read():
                return self._take_source()
            self.results = [None] * len(self.conversations)
            asked = self.source.value, self.prompt.value
            self._answered = (*asked, self.conversations, self.results)
            self._stopped.clear()
            self._begun.clear()
            self._began = time.monotonic()
            self._start_work(self._run, "Answering …")

    def stop(self) -> None:
        """End the run with the rows answered so far, and return at once."""
        self._stopped.set()
        if self._running:
            self.status.say("Stopping …")

    def save(self) -> None:
        """Write the rows to the file in ``save_as``: .csv, .jsonl or .parquet."""
        self._say_saved(lambda: tables.write_table(self.frame, self.save_as.value.strip()))

    def download(self) -> None:
        """Let the browser save the same file."""

        def send() -> str:
            name = PurePath(self.save_as.value.strip()).name
            written = tables.write_table(self.frame, Path(self._uploads.name, name))
            self.save_file(name, written.read_bytes())
            return name

        self._say_saved(send)

    @property
    def frame(self) -> pd.DataFrame:
        """The source's columns and the answers so far; see :func:`vlkit.to_frame`."""
        if not self.results:
            raise VlkitError("there are no answers yet; press Start")
        waiting = Failure("not answered yet", "Waiting")
        return questions.to_frame([row or waiting for row in self.results], self.conversations)

    @property
    def code(self) -> str:
        """Plain Python that does what Start does with the present controls."""
        source = self.source.value.strip()
        return _CODE.format(
            load=load_code(self.vlm),
            source='vlkit.sample("cat").parent' if source == SAMPLES else repr(source),
            prompt=self.prompt.value,
            batch=call_code("vlkit.generate_batch", "vlm", "conversations", **self._options()),
        )

    def _options(self) -> dict:
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens.value}
        return options | ({"out": out} if (out := self.out.value.strip()) else {})

    def _say_saved(self, save: Any) -> None:
        """In a line of its own, what was saved; the run goes on."""
        path = attempt(save)
        self._saved_failed = isinstance(path, Failure)
        done = sum(isinstance(row, Reply) for row in self.results)
        failed = sum(isinstance(row, Failure) for row in self.results)
        more = f", {failed:,} failed" if failed else ""
        answered = f"{done:,} of {len(self.results):,} answered{more}, saved to {path}"
        self._saved = str(path) if self._saved_failed else answered
        self._draw()

    def _take_source(self) -> None:
        """Read another source; the answers to another question stay until the next start."""
        source, _, conversations, results = self._answered
        if self._running:
            return
        if results and self.source.value == source:
            self.conversations, self.results, self._texts = conversations, results, []
            self._later.call()
        else:
            self.results = []
            self._read()

    def _read(self) -> bool:
        """Read the source; True on success. What it leaves out is shown, not printed."""
        self.conversations, self._texts, self._note = None, [], ""
        with self.status.catching(), warnings.catch_warnings(record=True) as notes:
            source = self.source.value.strip()
            if not source:
                raise VlkitError("no source; name a folder of pictures or a table")
            path = bundled.bundled_path("samples") if source == SAMPLES else Path(source)
            self.conversations = questions.read_conversations(
                path, self.prompt.value.strip() or None
            )
            self.status.say("")
            if source != SAMPLES:
                self._note = "; ".join(str(note.message) for note in notes)
        self._later.call()
        return self.conversations is not None

    # --- the run ---------------------------------------------------------------------------------

    def _run(self) -> None:
        ended = threading.Event()
        view = threading.Thread(target=self._follow, args=(ended,), daemon=True)
        view.start()
        try:
            results = answering.generate_batch(
                self.vlm, self.conversations or [], progress=False, stopped=self._stopped,
                on_start=self._begun.add, on_result=self.results.__setitem__, **self._options(),
            )  # fmt: skip
            self.status.say(_outcome(results.report))
        finally:
            ended.set()
            view.join()

    def _finish(self) -> None:
        super()._finish()
        self._draw()

    def _follow(self, ended: threading.Event) -> None:
        while not ended.wait(_TICK):
            self._draw()

    # --- the view --------------------------------------------------------------------------------

    def _draw(self) -> None:
        """Show the page; the browser redraws only rows that changed."""
        with self.status.catching(), self._drawing:
            conversations = self.conversations or ()
            columns = conversations.table.columns if conversations else ()
            states = [self._state(index) for index in range(len(conversations))]
            indices = self._visible(states)
            counts = Counter(states)
            done, left = counts["done"] + counts["failed"], None
            if done and self._running:
                left = (len(states) - done) * (time.monotonic() - self._began) / done
            pictures = {index: self._picture(index) for index in indices}
            with self.hold_sync():
                self.pictures = {str(i): picture for i, picture in pictures.items() if picture}
                self.view = {
                    "model": self.vlm.name, "total": len(states), "left": left,
                    "counts": {state: counts[state] for state in STATES},
                    "rows": [self._record(index, states[index]) for index in indices],
                    "columns": " ".join(f"{{{name}}}" for name in columns), "note": self._note,
                    "saved": self._saved, "saved_failed": self._saved_failed,
                    "answered": self._answered[:2] if self._answered[3] else None,
                }  # fmt: skip

    def _state(self, index: int) -> str:
        result = self.results[index] if self.results else None
        if result is not None:
            return "failed" if isinstance(result, Failure) else "done"
        if not self._running:
            return "stopped" if self.results else "new"
        return "running" if index in self._begun else "waiting"

    def _visible(self, states: Sequence[str]) -> Sequence[int]:
        """The numbers of the rows on the present page."""
        indices: Sequence[int] = range(len(states))
        if self.shown.value != "all rows":
            wanted = "failed" if self.shown.value == "failures" else self.shown.value
            indices = [i for i in indices if states[i] == wanted]
        if words := self.search.value.strip().casefold():
            indices = [i for i in indices if words in self._text(i)]
        if self.results and (key := _ORDERS.get(self.order.value)):
            indices = sorted(indices, key=lambda i: key(self.results[i]))
        elif self.order.value == "state":
            indices = sorted(indices, key=lambda i: STATES.index(states[i]))
        most = max(1, -(-len(indices) // PAGE))
        if self.page.look["max"] != most:
            self.page.look = self.page.look | {"max": most}
            self.page.value = min(self.page.value, most)
        first = (self.page.value - 1) * PAGE
        return indices[first : first + PAGE]

    def _text(self, index: int) -> str:
        """What is searched: the row of the table, its question and its answer."""
        if not self._texts:
            records = self.conversations.table.astype(str).itertuples(index=False)
            self._texts = [" ".join(record).casefold() for record in records]
        answer = str(self.results[index] or "") if self.results else ""
        question = media_and_text(self.conversations[index])[1]
        return f"{self._texts[index]} {question.casefold()} {answer.casefold()}"

    def _record(self, index: int, state: str) -> dict:
        """A row for the browser."""
        media, question = media_and_text(self.conversations[index])
        names = [PurePath(describe_source(medium.source)).name for medium in media]
        record = {
            "index": index, "number": index + 1, "state": state, "name": ", ".join(names),
            "question": question[:300], "parts": [], "items": [], "problem": "",
        }  # fmt: skip
        result = self.results[index] if self.results else None
        if isinstance(result, Failure):
            record["problem"] = result.error if result.kind in vars(errors) else str(result)
        elif result is not None:
            pictured = bool(media) and isinstance(media[-1], Image)
            record |= {
                "parts": [(text[:MOST_TEXT], list(numbers)) for text, numbers in result.parts],
                "items": item_records(result.try_grounding()[0], {}) if pictured else [],
                "seconds": round(result.seconds, 1), "tokens": result.usage.new_tokens,
                "cut": result.finish_reason == "length",
            }  # fmt: skip
        return record

    def _picture(self, index: int) -> dict | None:
        """A row's small picture, read once; a URL only after the model has read it."""
        media, _ = media_and_text(self.conversations[index])
        if not media or (is_url(media[-1].source) and not (self.results and self.results[index])):
            return None
        if index not in self._decoded:
            self._decoded[index] = picture_record(media, THUMBNAIL)
        return self._decoded[index]

    def _do_enlarge(self, index: int) -> None:
        """The row's picture in more pixels."""
        if self._picture(index):
            media, _ = media_and_text(self.conversations[index])
            self.large = {"index": index, **(picture_record(media, LARGEST) or {})}


def _outcome(report: answering.BatchReport) -> str:
    if report.stopped:
        return "Stopped."
    speed = f", {report.tokens_per_second:,.0f} tokens/s" if report.new_tokens else ""
    cost = "" if report.cost is None else f", cost {report.cost:.2g}"
    return f"Done in {report.seconds:.1f} s{speed}{cost}."
