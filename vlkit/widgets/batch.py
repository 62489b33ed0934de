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
import PIL.Image

from vlkit import bundled
from vlkit.batch import run
from vlkit.datasets import questions, tables
from vlkit.errors import VlkitError
from vlkit.generation.reply import Failure, Reply, attempt
from vlkit.grounding.boxes import scale_item
from vlkit.inputs import check_model
from vlkit.media.image import Image, describe_source
from vlkit.media.sources import is_url
from vlkit.messages import as_messages, iterate_media, read_media_item
from vlkit.plotting.draw import draw_boxes
from vlkit.plotting.html import image_html
from vlkit.widgets.panel import (
    Debounce,
    PanelBox,
    StatusLine,
    add_classes,
    buttons,
    code_fold,
    columns,
    load_code,
    show_code,
    style,
)

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

# vlm = {load}
conversations = vlkit.read_conversations({source}, {prompt!r})
results = vlkit.generate_batch(vlm, conversations, {options})
vlkit.to_frame(results, conversations)"""
ROW_CSS = """
.vlkit-row .widget-html-content { line-height: 1.4; width: 100%; }
.vlkit-row-grid { display: grid; grid-template-columns: 30px 132px 1fr; gap: 10px; padding: 6px 0;
  border-top: 1px solid var(--jp-border-color2, #ddd); align-items: start; }
.vlkit-row-grid > * { min-width: 0; overflow-wrap: anywhere; }
.vlkit-row-grid img { width: 132px; max-height: 110px !important; object-fit: contain; }
.vlkit-row-number, .vlkit-row-asked, .vlkit-row-waiting { opacity: .65; font-size: .9em; }
.vlkit-row-number { text-align: right; }
.vlkit-row-answer { white-space: pre-wrap; max-height: 7em; overflow-y: auto; }
.vlkit-batch .widget-label { max-width: none; }
.vlkit-panel .vlkit-columns-line { margin-left: 114px; width: auto; font-size: .9em; opacity: .8; }
"""


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
        self.vlm, self.status = vlm, StatusLine()
        self.conversations: questions.Conversations | None = None
        self.results: list[Row] = []
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._began, self._drawing = 0.0, threading.Lock()
        self._drawn: list[Any] = [None] * PAGE  # what each row in view shows
        self._draw_later = Debounce(self._draw, _QUIET)
        self._make_controls(source, prompt)
        ask = [self.source, self.prompt, self.columns_line, self.max_new_tokens, self.out]
        start = buttons(self.start_button, self.stop_button)
        save = widgets.HBox([self.save_as, self.save_button])
        bar = widgets.HBox([self.bar, self.counts])
        bar.add_class("vlkit-bar")
        left = [style(ROW_CSS), *ask, start, self.status, save]
        chooser = widgets.HBox([self.shown, self.page])
        super().__init__(columns(left, [bar, chooser, *self.rows, code_fold(self._code_view)]))
        self.add_class("vlkit-panel").add_class("vlkit-batch")
        self._connect()
        self._read()

    def start(self) -> None:
        """Begin with the present controls and return at once; does nothing during a run."""
        if self.start_button.disabled or not self._read():
            return
        self.results = [None] * len(self.conversations or ())
        self._stopped.clear()
        self._set_running(True)
        self._thread = threading.Thread(target=self._run, name="vlkit-batch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the run with the rows answered so far, and return at once."""
        self._stopped.set()
        if self.start_button.disabled:
            self.status.say("Stopping …")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for run and view, at most ``timeout`` seconds; True if both are finished."""
        if self._thread is not None:
            self._thread.join(timeout)
        drawn = self._draw_later.wait(timeout)
        return drawn and (self._thread is None or not self._thread.is_alive())

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
        options = ", ".join(f"{name}={value!r}" for name, value in self._options().items())
        source = self.source.value.strip()
        return _CODE.format(
            load=load_code(self.vlm),
            source='vlkit.sample("cat").parent' if source == SAMPLES else repr(source),
            prompt=self.prompt.value,
            options=options,
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
        self.start_button = widgets.Button(description="Start", button_style="primary", icon="play")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.save_as = widgets.Text("answers.csv", description="Save as", **wide)
        self.save_button = widgets.Button(
            description="Save", icon="save", layout=widgets.Layout(width="80px")
        )
        self.bar = widgets.IntProgress(0, 0, 1, layout=widgets.Layout(width="160px"))
        self.counts = widgets.Label("")
        self.shown = widgets.Dropdown(options=["all rows", "failures"], description="Show")
        self.page = widgets.BoundedIntText(1, 1, 1, description="Page")
        self.rows = [widgets.HTML() for _ in range(PAGE)]
        self._code_view = widgets.HTML()
        for row in self.rows:
            row.add_class("vlkit-row")
        names = ("source", "prompt", "columns_line", "max_new_tokens", "out", "start_button")
        add_classes(self, *names, "stop_button", "save_as", "save_button", "counts", "status")
        add_classes(self, "shown", "page")

    def _connect(self) -> None:
        self.start_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        self.save_button.on_click(lambda _: self.save())
        for control in (self.source, self.prompt):
            control.observe(self._take_source, names="value")
        for control in (self.shown, self.page):
            control.observe(lambda _: self._draw_later.call(), names="value")
        for control in (self.source, self.prompt, self.max_new_tokens, self.out):
            control.observe(self._show_code, names="value")
        self._show_code()

    def _show_code(self, change: dict | None = None) -> None:
        show_code(self._code_view, self.code)

    def _options(self) -> dict:
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens.value}
        return options | ({"out": out} if (out := self.out.value.strip()) else {})

    def _take_source(self, change: dict) -> None:
        if not self.start_button.disabled:
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
            self.columns_line.value = html.escape(_columns_line(self.conversations))
            self.status.say("")
        self._draw_later.call()
        return self.conversations is not None

    def _set_running(self, running: bool) -> None:
        self.start_button.disabled, self.stop_button.disabled = running, not running
        for control in (self.source, self.prompt, self.max_new_tokens, self.out):
            control.disabled = running
        if running:
            self._began = time.monotonic()
            self.status.say("Answering …")

    # --- the run ---------------------------------------------------------------------------------

    def _run(self) -> None:
        ended = threading.Event()
        view = threading.Thread(target=self._follow, args=(ended,), daemon=True)
        view.start()
        try:
            with self.status.catching():
                results = run.generate_batch(
                    self.vlm, self.conversations or [], progress=False, stopped=self._stopped,
                    on_result=self._take, **self._options(),
                )  # fmt: skip
                self.status.say(_outcome(results.report))
        finally:
            ended.set()
            view.join()
            self._set_running(False)
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
                if conversations is None or index is None:
                    view.value = ""
                else:
                    shown_row = attempt(row_html, index, conversations[index], result)
                    if isinstance(shown_row, Failure):
                        shown_row = shown_row._repr_html_()
                    view.value = shown_row

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
        if done and self.start_button.disabled:
            speed = len(done) / (time.monotonic() - self._began)
            text += f", {speed:.1f} rows/s, {(total - len(done)) / speed:.0f} s left"
        self.counts.value = text


def _outcome(report: run.BatchReport) -> str:
    if report.stopped:
        return "Stopped."
    speed = f", {report.tokens_per_second:,.0f} tokens/s" if report.new_tokens else ""
    cost = "" if report.cost is None else f", cost {report.cost:.2g}"
    return f"Done in {report.seconds:.1f} s{speed}{cost}."


def _columns_line(conversations: questions.Conversations) -> str:
    names = " ".join(f"{{{name}}}" for name in conversations.table.columns)
    return f"{len(conversations):,} rows; columns {names}"


# --- a row as HTML -------------------------------------------------------------------------------


def row_html(index: int, messages: Any, result: Reply | Failure | None) -> str:
    """A row: its picture with the boxes, the question, the answer; all text is escaped.

    A picture that cannot be read is left out.
    """
    media, question = _read(messages)
    names = ", ".join(PurePath(describe_source(medium.source)).name for medium in media)
    asked = " · ".join(part for part in (names, question) if part)
    return (
        f'<div class="vlkit-row-grid"><div class="vlkit-row-number">{index}</div>'
        f"<div>{_thumbnail(media, result)}</div>"
        f'<div><div class="vlkit-row-asked">{html.escape(asked[:300])}</div>{_answer(result)}</div>'
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
    texts = [item["text"] for item in checked[-1]["content"] if item["type"] == "text"]
    return media, texts[-1] if texts else ""


def _thumbnail(media: list, result: Reply | Failure | None) -> str:
    images = [medium for medium in media if isinstance(medium, Image)]
    if not media or (result is None and is_url(media[-1].source)):  # a URL is not fetched twice
        return ""
    try:
        picture = images[-1].load() if images else _first_frame(media[-1])
    except VlkitError:
        return ""  # the row's failure says why
    scale = min(1.0, THUMBNAIL / max(picture.size))
    small = picture.resize([max(1, round(side * scale)) for side in picture.size])
    boxes = result.try_grounding()[0] if images and isinstance(result, Reply) else []
    drawn = draw_boxes(
        small, [scale_item(item, scale) for item in boxes], labels=False, line_width=3
    )
    return image_html(drawn, width=THUMBNAIL, alt=describe_source(media[-1].source))


def _first_frame(video: Any) -> PIL.Image.Image:
    return replace(video, frames=None, max_frames=2).load().pictures[0]
