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


class PanelBox(widgets.VBox, metaclass=_AbstractWidget):
    """The base of all panels: controls, a status line, plain code, and a thread for the work.

    Where widgets cannot be shown, one line of text replaces the panel.

    Attributes:
        status: says what the panel is doing, or what went wrong.
    """

    def __init__(self) -> None:
        super().__init__()
        self.status, self._code_view = StatusLine(), widgets.HTML()
        self.stop_button = button("Stop", "stop", self.stop, disabled=True)
        self._locked: list[Any] = []  # the controls that are disabled during the work
        self._thread: threading.Thread | None = None
        self._later = Debounce(lambda: None, 0.0)  # of panels that redraw once the controls rest

    def __repr__(self) -> str:
        return f"{type(self).__name__}: run this cell in Jupyter to use it"

    @property
    @abstractmethod
    def code(self) -> str:
        """Plain Python that does what the panel does with the present controls."""

    @abstractmethod
    def stop(self) -> None:
        """End the work and return at once."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the work and the view, at most ``timeout`` seconds; True if both are done."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._later.wait(timeout) and (self._thread is None or not self._thread.is_alive())

    def _lay_out(
        self,
        left: Sequence[widgets.Widget],
        right: Sequence[widgets.Widget],
        watched: Sequence[widgets.Widget],
    ) -> None:
        """Two columns, below each other on narrow pages; the code follows the watched controls."""
        add_classes(self)
        fold = widgets.Accordion([self._code_view], titles=["The same in plain Python"])
        side = widgets.Layout(flex="1 1 280px", max_width="420px", min_width="0")
        main = widgets.Layout(flex="1 1 280px", min_width="0")
        boxes = [widgets.VBox(left, layout=side), widgets.VBox([*right, fold], layout=main)]
        row = widgets.Layout(flex_flow="row wrap", grid_gap="16px")
        style = widgets.HTML(f"<style>{_CSS}</style>", layout=widgets.Layout(display="none"))
        self.children = [style, widgets.HBox(boxes, layout=row)]
        self.add_class("vlkit-panel")
        on_change(self._show_code, *watched)
        self._show_code()

    def _show_code(self) -> None:
        with self.status.catching():
            self._code_view.value = f"<pre>{html.escape(self.code)}</pre>"

    @property
    def _running(self) -> bool:
        return not self.stop_button.disabled

    def _start_work(self, work: Callable[[], None], status: str) -> None:
        """Work in a thread, whose errors are shown."""

        def run() -> None:
            try:
                with self.status.catching():
                    work()
            finally:
                self._finish()

        self.status.say(status)
        self._set_running(True)
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def _finish(self) -> None:
        """Runs in the thread after the work, also after one that failed."""
        self._set_running(False)

    def _set_running(self, running: bool) -> None:
        self.stop_button.disabled = not running
        for control in self._locked:
            control.disabled = running


def button(text: str, icon: str, action: Callable[[], None], **options: Any) -> widgets.Button:
    """A button that calls a function."""
    made = widgets.Button(description=text, icon=icon, **options)
    made.on_click(lambda _: action())
    return made


def buttons(*row: widgets.Widget) -> widgets.HBox:
    """Buttons in a row under the controls."""
    return widgets.HBox(row).add_class("vlkit-buttons")


def on_change(action: Callable[[], None], *controls: widgets.Widget) -> None:
    """Call a function whenever the value of one of the controls changes."""
    for control in controls:
        control.observe(lambda _: action(), names="value")


def add_classes(owner: widgets.Widget) -> None:
    """Give the widgets in public attributes CSS classes: ``ask_button`` is vlkit-ask-button."""
    for name, value in vars(owner).items():
        if isinstance(value, widgets.Widget) and not name.startswith("_"):
            value.add_class("vlkit-" + name.replace("_", "-"))


def call_code(function: str, *arguments: str, **options: Any) -> str:
    """A call as plain Python.

    Args:
        function: its name.
        *arguments: Python expressions.
        **options: values of the named arguments.
    """
    named = (f"{name}={value!r}" for name, value in options.items())
    return f"{function}({', '.join([*arguments, *named])})"


def load_code(vlm: Any) -> str:
    """Plain Python that loads this model again."""
    options = {name: getattr(vlm, name, None) for name in ("adapter", "max_image_tokens")}
    options |= getattr(vlm, "load_options", {})  # of a hosted model, without its key
    options = {name: value for name, value in options.items() if value is not None}
    return call_code("vlkit.load", repr(vlm.name), **options)


_OUTCOMES = {"stop": "Done.", "length": "Cut off at max_new_tokens.", "cancelled": "Stopped."}
_CODE = """import vlkit

# vlm = {load}
message = {message}
reply = {reply}
reply"""


class Panel(PanelBox):
    """The base of AskPanel, VideoPanel and GroundingPanel: asks a question about chosen media.

    Args:
        vlm: from :func:`vlkit.load`.
        examples: questions to choose from; the first one is the initial prompt.

    Attributes:
        reply: the Reply to the last question, also a stopped one; None at first, during an
            answer, and after an error.
    """

    def __init__(self, vlm: Any, examples: Sequence[str]):
        check_model(vlm)
        super().__init__()
        self.vlm = vlm
        self.reply: Reply | None = None
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
        self.ask_button = button("Ask", "play", self.ask, button_style="primary")
        self.answer = widgets.HTML()
        self._locked = [self.ask_button]
        on_change(self._take_example, self.examples)
        on_change(self._leave_example, self.prompt)

    def ask(self) -> None:
        """Ask with the present controls and return at once; does nothing while one is answered."""
        if self._running:
            return
        self.reply, self.answer.value = None, ""
        with self.status.catching():
            if not self.prompt.value.strip():
                raise VlkitError("the prompt is empty; write a question or choose an example")
            self._stream = generate.stream(self.vlm, self._message(), **self._options())
            self._start_work(self._follow, "Answering …")

    def stop(self) -> None:
        """End the answer within a token and return at once; the text so far stays."""
        if self._running:  # Stream.stop waits for the model, which would freeze the page
            threading.Thread(target=self._stream.stop, daemon=True).start()

    @property
    def code(self) -> str:
        """Plain Python that does what Ask does with the present controls; ``vlm`` is the model."""
        return _CODE.format(
            load=load_code(self.vlm),
            message=call_code("vlkit.user", repr(self.prompt.value), *self._media_code()),
            reply=call_code("vlkit.generate", "vlm", "message", **self._options()),
        )

    @abstractmethod
    def _media_code(self) -> list[str]:
        """Python expressions of the chosen media, for :attr:`code`."""

    @abstractmethod
    def _message(self) -> dict:
        """The question with the chosen media. Raises MediaError where none can be read."""

    def _arrange(
        self,
        chooser: Sequence[widgets.Widget],
        watched: Sequence[widgets.Widget],
        above: Sequence[widgets.Widget] = (),
    ) -> None:
        """Lay the panel out.

        Args:
            chooser: the widgets that choose media and how to read them.
            watched: those of them whose value changes the code.
            above: widgets above the answer.
        """
        asking = [self.prompt, self.max_new_tokens, self.temperature, self.seed]
        row = buttons(self.ask_button, self.stop_button)
        left = [*chooser, self.examples, *asking, row, self.status]
        self._lay_out(left, [*above, self.answer], [*asking, *watched])

    def _options(self) -> dict:
        names = ("max_new_tokens", "temperature", "seed")
        return {name: getattr(self, name).value for name in names}

    def _follow(self) -> None:
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

    def _take_example(self) -> None:
        if self.examples.value:
            self.prompt.value = self.examples.value

    def _leave_example(self) -> None:
        if self.prompt.value != self.examples.value:
            self.examples.value = ""


def _text_html(text: str) -> str:
    return f'<div style="white-space:pre-wrap" aria-live="polite">{html.escape(text)}</div>'


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
        add_classes(self)
        chooser = [self.sample, self.upload] if names else [self.upload]
        super().__init__([*chooser, self.view])
        for control in (self.upload, self.sample):
            control.observe(self._choose, names="value")
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
