"""``BatchPanel``: the same question about many pictures."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from vlkit import bundled
from vlkit.batch import answering
from vlkit.datasets import questions, tables
from vlkit.errors import VlkitError
from vlkit.generation.reply import Failure, Reply, attempt
from vlkit.grounding.boxes import scale_item
from vlkit.inputs import check_model
from vlkit.media.image import Image, describe_source
from vlkit.media.sources import is_url
from vlkit.messages import as_messages, iterate_media, read_media_item, text_of
from vlkit.plotting.draw import draw_boxes
from vlkit.plotting.html import image_html
from vlkit.widgets.panel import Debounce, PanelBox, button, buttons, call_code, load_code, on_change

if TYPE_CHECKING:
    import pandas as pd


SAMPLES = "samples"  # as a source, it is the folder of sample pictures
PAGE = 8  # rows in view
THUMBNAIL = 264  # pixels, twice the size on the page
MOST_TEXT = 2000  # characters of an answer
Row = Reply | Failure | None  # None: not answered yet
_QUIET = 0.2  # seconds without a change before rows are drawn
_TICK = 0.4  # seconds between two updates during a run
_CODE = """import vlkit

vlm = {load}
conversations = vlkit.read_conversations({source}, {prompt!r})
results = {batch}
vlkit.to_frame(results, conversations)"""


class BatchPanel(PanelBox):
    """Ask about many pictures: name a folder or a table, write the prompt, start; answers come in.

    A prompt may contain ``{column}``; the line under it lists the columns. Rows that fail are shown
    with their reason, and the other rows continue. With a journal (``out``), the next start resumes
    a stopped run. Every control is an attribute (``source``, ``prompt``,
    ``max_new_tokens``, ``out``, ``save_as``, ``shown``, ``page``), so what a hand can do, code
    can do: ``panel.source.value = "scans"; panel.start(); panel.wait()``.

    Args:
        vlm: from :func:`vlkit.load`.
        source: a folder of pictures, a table's file, or ``"samples"``.
        prompt: the initial prompt.

    Attributes:
        conversations: the rows, from :func:`vlkit.read_conversations`; None where the source
            cannot be read.
        results: Reply or Failure of each row; None where it is not answered yet.
    """

    def __init__(self, vlm: Any, source: str = SAMPLES, prompt: str = "Describe this image."):
        check_model(vlm)
        super().__init__()
        self.vlm = vlm
        self.conversations: questions.Conversations | None = None
        self.results: list[Row] = []
        self._stopped = threading.Event()
        self._began, self._drawing = 0.0, threading.Lock()
        self._drawn: list[Any] = [None] * PAGE  # what each row in view shows
        self._later = Debounce(self._draw, _QUIET)
        self._make_controls(source, prompt)
        ask = [self.source, self.prompt, self.max_new_tokens, self.out]
        self._locked = [self.start_button, *ask]
        start = buttons(self.start_button, self.stop_button)
        save = widgets.HBox([self.save_as, self.save_button])
        left = [*ask[:2], self.columns_line, *ask[2:], start, self.status, save]
        view = [widgets.HBox([self.bar, self.counts]), widgets.HBox([self.shown, self.page])]
        self._lay_out(left, [*view, *self.rows], watched=ask)
        self.add_class("vlkit-batch")
        on_change(self._take_source, self.source, self.prompt)
        on_change(self._later.call, self.shown, self.page)
        self._read()

    def start(self) -> None:
        """Begin with the present controls and return at once; does nothing during a run."""
        if self._running or not self._read():
            return
        self.results = [None] * len(self.conversations or ())
        self._stopped.clear()
        self._began = time.monotonic()
        self._start_work(self._run, "Answering …")

    def stop(self) -> None:
        """End the run with the rows answered so far, and return at once."""
        self._stopped.set()
        if self._running:
            self.status.say("Stopping …")

    def save(self) -> None:
        """Write the rows to the file in ``save_as``: .csv, .jsonl or .parquet."""
        with self.status.catching():
            path = tables.write_table(self.frame, self.save_as.value.strip())
            self.status.say(f"{len(self.results):,} rows saved to {path}.")

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

    # --- controls --------------------------------------------------------------------------------

    def _make_controls(self, source: str, prompt: str) -> None:
        wide = {"continuous_update": False}
        self.source = widgets.Combobox(
            value=str(source), options=[SAMPLES], description="Source", **wide,
            placeholder="a folder, .csv, .jsonl or .parquet",
        )  # fmt: skip
        self.prompt = widgets.Textarea(prompt, rows=3, description="Prompt", **wide)
        self.columns_line = widgets.HTML()
        self.max_new_tokens = widgets.IntSlider(64, 1, 2048, description="new tokens ≤")
        self.out = widgets.Text(
            placeholder="optional: a .jsonl, to resume a run", description="Journal", **wide
        )
        self.start_button = button("Start", "play", self.start, button_style="primary")
        self.save_as = widgets.Text("answers.csv", description="Save as", **wide)
        self.save_button = button("Save", "save", self.save, layout=widgets.Layout(width="80px"))
        self.bar = widgets.IntProgress(0, 0, 1, layout=widgets.Layout(width="160px"))
        self.counts = widgets.Label("")
        self.shown = widgets.Dropdown(options=["all rows", "failures"], description="Show")
        self.page = widgets.BoundedIntText(1, 1, 1, description="Page")
        self.rows = [widgets.HTML() for _ in range(PAGE)]
        for row in self.rows:
            row.add_class("vlkit-row")

    def _options(self) -> dict:
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens.value}
        return options | ({"out": out} if (out := self.out.value.strip()) else {})

    def _take_source(self) -> None:
        if not self._running:
            self.results = []
            self._read()

    def _read(self) -> bool:
        """Read the source; True on success."""
        self.conversations, self.columns_line.value = None, ""
        with self.status.catching():
            source = self.source.value.strip()
            if not source:
                raise VlkitError("no source; name a folder of pictures or a table")
            path = bundled.bundled_path("samples") if source == SAMPLES else Path(source)
            self.conversations = questions.read_conversations(
                path, self.prompt.value.strip() or None
            )
            names = " ".join(f"{{{name}}}" for name in self.conversations.table.columns)
            line = f"{len(self.conversations):,} rows; columns {names}"
            self.columns_line.value = html.escape(line)
            self.status.say("")
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
                on_result=self._take, **self._options(),
            )  # fmt: skip
            self.status.say(_outcome(results.report))
        finally:
            ended.set()
            view.join()

    def _finish(self) -> None:
        super()._finish()
        self._draw()

    def _take(self, index: int, result: Reply | Failure) -> None:
        self.results[index] = result

    def _follow(self, ended: threading.Event) -> None:
        while not ended.wait(_TICK):
            self._draw()

    # --- the view --------------------------------------------------------------------------------

    def _draw(self) -> None:
        """Show the page; only rows that changed are drawn and sent."""
        with self.status.catching(), self._drawing:
            conversations, results, indices = self.conversations, self.results, self._visible()
            self._count(results)
            for place, view in enumerate(self.rows):
                index = indices[place] if place < len(indices) else None
                result = None if index is None or not results else results[index]
                content = (conversations, index, result)
                if self._drawn[place] == content:
                    continue
                self._drawn[place] = content
                row: str | Failure = ""
                if conversations is not None and index is not None:
                    row = attempt(row_html, index, conversations[index], result)
                view.value = row._repr_html_() if isinstance(row, Failure) else row

    def _visible(self) -> Sequence[int]:
        """The numbers of the rows on the present page."""
        indices: Sequence[int] = range(len(self.conversations or ()))
        if self.shown.value == "failures":
            indices = [i for i, row in enumerate(self.results) if isinstance(row, Failure)]
        self.page.max = max(1, -(-len(indices) // PAGE))
        first = (self.page.value - 1) * PAGE
        return indices[first : first + PAGE]

    def _count(self, results: list[Row]) -> None:
        done = [row for row in results if row is not None]
        failed = sum(isinstance(row, Failure) for row in done)
        total = len(self.conversations or ())
        self.bar.max, self.bar.value = max(1, total), len(done)
        text = f"{len(done):,} of {total:,} rows, {failed:,} failed"
        if done and self._running:
            speed = len(done) / (time.monotonic() - self._began)
            text += f", {speed:.1f} rows/s, {(total - len(done)) / speed:.0f} s left"
        self.counts.value = text


def _outcome(report: answering.BatchReport) -> str:
    if report.stopped:
        return "Stopped."
    speed = f", {report.tokens_per_second:,.0f} tokens/s" if report.new_tokens else ""
    cost = "" if report.cost is None else f", cost {report.cost:.2g}"
    return f"Done in {report.seconds:.1f} s{speed}{cost}."


# --- a row as HTML -------------------------------------------------------------------------------


def row_html(index: int, messages: Any, result: Reply | Failure | None) -> str:
    """A row: its picture with the boxes, the question, the answer; all text is escaped.

    A picture that cannot be read is left out.
    """
    media, question = _read(messages)
    names = ", ".join(PurePath(describe_source(medium.source)).name for medium in media)
    title = " · ".join(part for part in (names, question) if part)
    return (
        f'<div class="vlkit-row-grid"><div class="vlkit-row-number">{index}</div>'
        f"<div>{_thumbnail(media, result)}</div>"
        f'<div><div class="vlkit-row-asked">{html.escape(title[:300])}</div>{_answer(result)}</div>'
        "</div>"
    )


def _answer(result: Reply | Failure | None) -> str:
    if result is None:
        return '<div class="vlkit-row-waiting">…</div>'
    text = html.escape(str(result)[:MOST_TEXT])
    if isinstance(result, Failure):
        return f'<div class="vlkit-error">{text}</div>'
    return f'<div class="vlkit-row-answer">{text}</div>'


def _read(messages: Any) -> tuple[list, str]:
    """A row's media, and its last text."""
    try:
        checked = as_messages(messages)
        media = [read_media_item(item) for item in iterate_media(checked)]
    except VlkitError:
        return [], ""
    return media, text_of(checked[-1], " ")


def _thumbnail(media: list, result: Reply | Failure | None) -> str:
    images = [medium for medium in media if isinstance(medium, Image)]
    if not media or (result is None and is_url(media[-1].source)):  # a URL is not fetched twice
        return ""
    try:
        if images:
            picture = images[-1].load()
        else:
            picture = replace(media[-1], frames=None, max_frames=2).load().pictures[0]
    except VlkitError:
        return ""  # the row's failure says why
    scale = min(1.0, THUMBNAIL / max(picture.size))
    small = picture.resize([max(1, round(side * scale)) for side in picture.size])
    boxes = result.try_grounding()[0] if images and isinstance(result, Reply) else []
    drawn = draw_boxes(
        small, [scale_item(item, scale) for item in boxes], labels=False, line_width=3
    )
    return image_html(drawn, width=THUMBNAIL, alt=describe_source(media[-1].source))
