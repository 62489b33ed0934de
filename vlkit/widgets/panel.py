"""The base of all panels: layout, status line, buttons, code."""

from __future__ import annotations

import html
import threading
import time
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from vlkit.errors import VlkitError, failure_line
from vlkit.generation import generate
from vlkit.generation.reply import Reply
from vlkit.inputs import check_model

_CSS = Path(__file__).with_name("panel.css").read_text(encoding="utf-8")


class _AbstractWidget(ABCMeta, type(widgets.VBox)):  # type: ignore[misc]
    """The metaclass of widgets with abstract methods."""


class PanelBox(widgets.VBox):
    """A whole panel; where widgets cannot be shown, one line of text replaces it."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}: run this cell in Jupyter to use it"


class StatusLine(widgets.HTML):
    """One line that says what a panel is doing, or what went wrong."""

    def say(self, text: str) -> None:
        """Show what is going on; a text that ends in an ellipsis is marked as busy."""
        busy = ' class="vlkit-busy"' if text.endswith("…") else ""
        self.value = f'<div role="status"{busy}>{html.escape(text)}</div>'

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Show an error inside as one line; Jupyter loses errors of callbacks and threads."""
        try:
            yield
        except Exception as error:
            line = html.escape(failure_line(error))
            self.value = f'<div role="alert" class="vlkit-error">{line}</div>'


def columns(
    left: Sequence[widgets.Widget], right: Sequence[widgets.Widget]
) -> list[widgets.Widget]:
    """Two columns, below each other on narrow pages, and the panels' style sheet."""
    side = widgets.Layout(flex="1 1 280px", max_width="420px", min_width="0")
    main = widgets.Layout(flex="1 1 280px", min_width="0")
    boxes = [widgets.VBox(left, layout=side), widgets.VBox(right, layout=main)]
    row = widgets.Layout(flex_flow="row wrap", grid_gap="16px")
    return [style(_CSS), widgets.HBox(boxes, layout=row)]


def style(css: str) -> widgets.HTML:
    """A style sheet as an invisible widget."""
    return widgets.HTML(f"<style>{css}</style>", layout=widgets.Layout(display="none"))


def buttons(*row: widgets.Widget) -> widgets.HBox:
    """Buttons in a row under the controls."""
    return widgets.HBox(row).add_class("vlkit-buttons")


def code_fold(view: widgets.HTML) -> widgets.Accordion:
    """The plain code behind a panel, folded."""
    return widgets.Accordion([view], titles=["The same in plain Python"])


def show_code(view: widgets.HTML, code: str) -> None:
    """Show code in the view of a :func:`code_fold`."""
    view.value = f"<pre>{html.escape(code)}</pre>"


def load_code(vlm: Any) -> str:
    """Plain Python that loads this model again."""
    options = {name: getattr(vlm, name, None) for name in ("adapter", "max_image_tokens")}
    options |= getattr(vlm, "load_options", {})  # of a hosted model, without its key
    arguments = [f", {name}={value!r}" for name, value in options.items() if value is not None]
    return f"vlkit.load({vlm.name!r}{''.join(arguments)})"


def add_classes(panel: widgets.Widget, *names: str) -> None:
    """Give the widgets in these attributes CSS classes: ``ask_button`` becomes vlkit-ask-button."""
    for name in names:
        getattr(panel, name).add_class("vlkit-" + name.replace("_", "-"))


_OUTCOMES = {"stop": "Done.", "length": "Cut off at max_new_tokens.", "cancelled": "Stopped."}
_CODE = """import vlkit

# vlm = {load}
message = vlkit.user({message})
reply = vlkit.generate(vlm, message, {options})
reply"""


class Panel(PanelBox, metaclass=_AbstractWidget):
    """The base of AskPanel, VideoPanel and GroundingPanel: asks a question about chosen media.

    Args:
        vlm: from :func:`vlkit.load`.
        status: the line for errors.
        chooser: the widgets that choose media and how to read them.
        watched: those of them whose value changes the code.
        examples: questions to choose from; the first one is the initial prompt.
        above: widgets above the answer.

    Attributes:
        reply: the Reply to the last question, also a stopped one; None at first, during an
            answer, and after an error.
    """

    def __init__(
        self,
        vlm: Any,
        status: StatusLine,
        chooser: list[widgets.Widget],
        watched: list[widgets.Widget],
        *,
        examples: Sequence[str],
        above: Sequence[widgets.Widget] = (),
    ):
        check_model(vlm)
        self.vlm, self.status = vlm, status
        self.reply: Reply | None = None
        self._thread: threading.Thread | None = None
        self._make_controls(examples)
        self._connect(watched)
        ask = [self.examples, self.prompt, self.max_new_tokens, self.temperature, self.seed]
        left = [*chooser, *ask, buttons(self.ask_button, self.stop_button), self.status]
        super().__init__(columns(left, [*above, self.answer, code_fold(self._code_view)]))
        self.add_class("vlkit-panel")

    def ask(self) -> None:
        """Ask with the present controls and return at once; does nothing while one is answered."""
        if self.ask_button.disabled:
            return
        self.reply, self.answer.value = None, ""
        with self.status.catching():
            if not self.prompt.value.strip():
                raise VlkitError("the prompt is empty; write a question or choose an example")
            self._stream = generate.stream(self.vlm, self._message(), **self._options())
            self._set_running(True)
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the answer within a token and return at once; the text so far stays."""
        if self.ask_button.disabled:  # Stream.stop waits for the model, which would freeze the page
            threading.Thread(target=self._stream.stop, daemon=True).start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the answer, at most ``timeout`` seconds; True if it is finished."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    @property
    def code(self) -> str:
        """Plain Python that does what Ask does with the present controls; ``vlm`` is the model."""
        message = ", ".join([repr(self.prompt.value), *self._media_code()])
        options = ", ".join(f"{name}={value!r}" for name, value in self._options().items())
        return _CODE.format(load=load_code(self.vlm), message=message, options=options)

    @abstractmethod
    def _media_code(self) -> list[str]:
        """Python expressions of the chosen media, for :attr:`code`."""

    @abstractmethod
    def _message(self) -> dict:
        """The question with the chosen media. Raises MediaError where none can be read."""

    def _options(self) -> dict:
        names = ("max_new_tokens", "temperature", "seed")
        return {name: getattr(self, name).value for name in names}

    def _follow(self) -> None:
        try:
            with self.status.catching():
                text, due = "", 0.0
                for piece in self._stream:
                    text += piece
                    if time.monotonic() >= due:  # at most 20 views a second
                        self.answer.value = _text_html(text)
                        due = time.monotonic() + 0.05
                self.answer.value = _text_html(text)
                reply = self.reply = self._stream.reply
                self.answer.value = reply._repr_html_()
                self.status.say(_OUTCOMES[reply.finish_reason])
        finally:
            self._set_running(False)

    def _set_running(self, running: bool) -> None:
        if running:
            self.status.say("Answering …")
        self.stop_button.disabled = not running
        self.ask_button.disabled = running

    def _make_controls(self, examples: Sequence[str]) -> None:
        self.examples = widgets.Dropdown(
            options=[("choose one …", ""), *((text, text) for text in examples)],
            value=examples[0],
            description="Examples",
        )
        self.prompt = widgets.Textarea(
            examples[0], placeholder="Ask a question …", rows=3, description="Prompt"
        )
        self.max_new_tokens = widgets.IntSlider(256, 1, 2048, description="new tokens ≤")
        self.temperature = widgets.FloatSlider(0.0, min=0.0, max=2.0, description="temperature")
        self.seed = widgets.BoundedIntText(0, min=0, max=2**31 - 1, description="seed")
        self.ask_button = widgets.Button(description="Ask", button_style="primary", icon="play")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.answer, self._code_view = widgets.HTML(), widgets.HTML()
        names = ("examples", "prompt", "max_new_tokens", "temperature", "seed")
        add_classes(self, *names, "ask_button", "stop_button", "answer", "status")

    def _connect(self, watched: list[widgets.Widget]) -> None:
        self.ask_button.on_click(lambda _: self.ask())
        self.stop_button.on_click(lambda _: self.stop())
        self.examples.observe(self._take_example, names="value")
        self.prompt.observe(self._leave_example, names="value")
        asking = [self.prompt, self.max_new_tokens, self.temperature, self.seed]
        for control in (*asking, *watched):
            control.observe(self._show_code, names="value")
        self._show_code()

    def _take_example(self, change: dict) -> None:
        if change["new"]:
            self.prompt.value = change["new"]

    def _leave_example(self, change: dict) -> None:
        if change["new"] != self.examples.value:
            self.examples.value = ""

    def _show_code(self, change: dict | None = None) -> None:
        with self.status.catching():
            show_code(self._code_view, self.code)


class Picker(widgets.VBox, metaclass=_AbstractWidget):
    """Uploads media or chooses a sample; the latest choice counts, errors go to the status line.

    Attributes:
        upload: the upload button; an uploaded file takes precedence over the sample.
        sample: the samples' dropdown; "" is none.
        view: shows what is chosen.
    """

    def __init__(
        self, status: StatusLine, names: Sequence[str], title: str, view: widgets.Widget, **upload
    ):
        self._status, self.view = status, view
        self.upload = widgets.FileUpload(**upload)
        self.sample = widgets.Dropdown(
            options=[("none", ""), *((name, name) for name in names)],
            value=next(iter(names), ""),
            description=title,
        )
        add_classes(self, "upload", "sample", "view")
        chooser = [self.sample, self.upload] if names else [self.upload]
        super().__init__([*chooser, self.view])
        self.upload.observe(self._choose, names="value")
        self.sample.observe(self._choose, names="value")
        self._show()

    @property
    def code(self) -> list[str]:
        """Python expressions of the choice; an uploaded file is represented by its name."""
        if self.upload.value:
            return [f"{file['name']!r}" for file in self.upload.value]
        return [f"vlkit.sample({self.sample.value!r})"] if self.sample.value else []

    def _choose(self, change: dict) -> None:
        if change["new"]:  # the latest choice counts
            if change["owner"] is self.upload:
                self.sample.value = ""
            else:
                self.upload.value = ()
        self._show()

    @abstractmethod
    def _show(self) -> None:
        """Show the choice in :attr:`view`."""


class Debounce:
    """Calls a function in another thread, once there was no :meth:`call` for a while."""

    def __init__(self, function: Callable[[], None], seconds: float):
        self._function, self._seconds = function, seconds
        self._timer: threading.Timer | None = None
        self._one_at_a_time = threading.Lock()

    def call(self) -> None:
        """Request a call; an earlier request that has not begun is dropped."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(self._seconds, self._run)
        self._timer.daemon = True
        self._timer.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the last call, at most ``timeout`` seconds; True if it is finished."""
        if self._timer is not None:
            self._timer.join(timeout)
        return self._timer is None or not self._timer.is_alive()

    def _run(self) -> None:
        with self._one_at_a_time:
            self._function()


def _text_html(text: str) -> str:
    return f'<div style="white-space:pre-wrap" aria-live="polite">{html.escape(text)}</div>'
