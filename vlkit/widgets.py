"""Panels for notebooks: controls over vlkit's functions, and the code that does the same."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as widgets
import PIL.Image

from vlkit import bundled, generation, media, messages
from vlkit.errors import MediaError, VlkitError
from vlkit.replies import Reply, image_html

EXAMPLES = (
    "Describe this image.",
    "Locate the red circle.",
    "Generate the caption in English with grounding:",
    "这是什么？",
    "框出图中红色圆形的位置",
)
_TOKEN_LIMITS = [("auto", 0), *((f"{n:,}", n) for n in (4, 16, 64, 128, 256, 512, 1024, 4096))]
_OUTCOMES = {"stop": "Done.", "length": "Cut off at max_new_tokens.", "cancelled": "Stopped."}
_CSS = """<style>
.vlkit-panel { color: var(--jp-ui-font-color1, inherit); padding: 4px;
  --jp-widgets-inline-label-width: 104px; --jp-widgets-inline-width: calc(100% - 4px); }
.vlkit-panel .widget-html-content { line-height: 1.45; overflow-wrap: anywhere; }
.vlkit-panel pre { color: inherit; white-space: pre-wrap; word-break: normal; margin: 0; }
.vlkit-panel .vlkit-upload { margin-left: 114px; width: auto; align-self: flex-start; }
.vlkit-view .widget-html-content { display: flex; flex-wrap: wrap; gap: 8px; }
.vlkit-view img { max-height: 200px; object-fit: contain; }
.vlkit-error { border-left: 4px solid var(--jp-error-color1, #d32f2f); padding: 4px 10px; }
</style>"""
_CODE = """import vlkit

# vlm = {load}
message = vlkit.user({message})
reply = vlkit.generate(vlm, message, {options})
reply"""


class AskPanel(widgets.VBox):
    """Ask a model about pictures: choose, write, ask; the answer streams in, its boxes are drawn.

    Errors appear as one line in the panel. Every control is an attribute (``prompt``,
    ``max_new_tokens``, ``temperature``, ``image_tokens``, ``seed``, ``picker``), so what a hand can
    do, code can do: ``panel.prompt.value = "这是什么？"; panel.ask(); panel.wait()``.

    Args:
        vlm: from :func:`vlkit.load`.
        samples: offer the bundled sample pictures beside the upload button.

    Attributes:
        reply: the Reply to the last question, also of a stopped one; None before, while one is
            being answered, and after an error.
    """

    def __init__(self, vlm: Any, *, samples: bool = True):
        self.vlm = vlm
        self.reply: Reply | None = None
        self._thread: threading.Thread | None = None
        self.status = StatusLine()
        self.picker = PicturePicker(self.status, samples=samples)
        self._make_controls()
        self._connect()
        options = [self.max_new_tokens, self.temperature, self.image_tokens, self.seed]
        buttons = widgets.HBox([self.ask_button, self.stop_button])
        left = [self.picker, self.examples, self.prompt, *options, buttons, self.status]
        fold = widgets.Accordion([self._code_view], titles=["The same in plain Python"])
        super().__init__(_columns(left, [self.answer, fold]))
        self.add_class("vlkit-panel").add_class("vlkit-ask")

    def ask(self) -> None:
        """Ask with the present controls and return at once; does nothing while one is answered."""
        if self.ask_button.disabled:
            return
        self.reply, self.answer.value = None, ""
        with self.status.catching():
            self._stream = generation.stream(self.vlm, self._message(), **self._options())
            self._set_running(True)
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the answer within a token and return at once; what is written stays."""
        if self.ask_button.disabled:  # Stream.stop waits for the model, which would freeze the page
            threading.Thread(target=self._stream.stop, daemon=True).start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the answer, at most ``timeout`` seconds; True if none is under way any more."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    @property
    def code(self) -> str:
        """Plain Python that does what Ask does with the present controls; ``vlm`` is the model."""
        limit = self.image_tokens.value
        image = f"vlkit.Image({{}}, max_tokens={limit})" if limit else "{}"
        parts = [repr(self.prompt.value), *map(image.format, self.picker.code)]
        options = [f"{name}={value!r}" for name, value in self._options().items()]
        load = _load_code(self.vlm)
        return _CODE.format(load=load, message=", ".join(parts), options=", ".join(options))

    def _message(self) -> dict:
        if not self.prompt.value.strip():
            raise VlkitError("the prompt is empty; write a question or choose an example")
        limit = self.image_tokens.value or None
        pictures = [media.Image(picture, max_tokens=limit) for _, picture in self.picker.pictures()]
        return messages.user(self.prompt.value, *pictures)

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

    def _make_controls(self) -> None:
        self.examples = widgets.Dropdown(
            options=[("choose one …", ""), *((text, text) for text in EXAMPLES)],
            value=EXAMPLES[0],
            description="Examples",
        )
        self.prompt = widgets.Textarea(
            EXAMPLES[0], placeholder="Ask about the picture …", rows=3, description="Prompt"
        )
        self.max_new_tokens = widgets.IntSlider(256, 1, 2048, description="new tokens ≤")
        self.temperature = widgets.FloatSlider(0.0, min=0.0, max=2.0, description="temperature")
        self.image_tokens = widgets.SelectionSlider(
            options=_TOKEN_LIMITS, value=0, description="image tokens ≤"
        )
        self.seed = widgets.BoundedIntText(0, min=0, max=2**31 - 1, description="seed")
        self.ask_button = widgets.Button(description="Ask", button_style="primary", icon="play")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.answer, self._code_view = widgets.HTML(), widgets.HTML()
        names = ("examples", "prompt", "max_new_tokens", "temperature", "image_tokens", "seed")
        add_classes(self, *names, "ask_button", "stop_button", "answer", "status")

    def _connect(self) -> None:
        self.ask_button.on_click(lambda _: self.ask())
        self.stop_button.on_click(lambda _: self.stop())
        self.examples.observe(self._take_example, names="value")
        self.prompt.observe(self._leave_example, names="value")
        controls = [self.prompt, self.max_new_tokens, self.temperature, self.image_tokens]
        for control in (*controls, self.seed, self.picker.sample, self.picker.upload):
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
            self._code_view.value = f"<pre>{html.escape(self.code)}</pre>"


def _load_code(vlm: Any) -> str:
    options = {name: getattr(vlm, name, None) for name in ("adapter", "max_image_tokens")}
    given = [f", {name}={value!r}" for name, value in options.items() if value is not None]
    return f"vlkit.load({vlm.name!r}{''.join(given)})"


# --- pieces that panels share --------------------------------------------------------------------


class StatusLine(widgets.HTML):
    """One line that says what a panel is doing, or what went wrong."""

    def say(self, text: str) -> None:
        """Show what is going on."""
        self.value = f'<div role="status">{html.escape(text)}</div>'

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Show an error of the block as one line; Jupyter loses those of callbacks and threads."""
        try:
            yield
        except Exception as error:
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            self.value = f'<div role="alert" class="vlkit-error">{html.escape(line)}</div>'


class PicturePicker(widgets.VBox):
    """Upload pictures or choose a sample, and see them; errors go to the status line.

    Attributes:
        upload: the upload button; its pictures count before the sample.
        sample: the samples' dropdown; "" is none.
    """

    def __init__(self, status: StatusLine, *, samples: bool = True):
        self._status = status
        known = bundled.samples() if samples else {}
        self.upload = widgets.FileUpload(
            accept="image/*",
            multiple=True,
            description="Upload pictures",
            tooltip="one or several pictures, together at most 10 MB",
        )
        self.sample = widgets.Dropdown(
            options=[("none", ""), *((name, name) for name in known)],
            value=next(iter(known), ""),
            description="Picture",
        )
        self.view = widgets.HTML()
        add_classes(self, "upload", "sample", "view")
        chooser = [self.sample, self.upload] if known else [self.upload]
        super().__init__([*chooser, self.view])
        self.upload.observe(self._choose, names="value")
        self.sample.observe(self._choose, names="value")
        self._show()

    def pictures(self) -> list[tuple[str, PIL.Image.Image]]:
        """The chosen pictures, upright, by name. Raises MediaError."""
        if self.upload.value:
            return [(file["name"], _read_upload(file)) for file in self.upload.value]
        name = self.sample.value
        return [(name, media.load_image(bundled.sample(name)))] if name else []

    @property
    def code(self) -> list[str]:
        """Python expressions of the chosen pictures; an uploaded one is a file of its name."""
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

    def _show(self) -> None:
        self.view.value = ""
        with self._status.catching():
            self.view.value = "".join(_figure(*named) for named in self.pictures())
            self._status.say("")


def add_classes(panel: widgets.Widget, *names: str) -> None:
    """Give the widgets in these attributes CSS classes: ``ask_button`` becomes vlkit-ask-button."""
    for name in names:
        getattr(panel, name).add_class("vlkit-" + name.replace("_", "-"))


def _read_upload(file: dict) -> PIL.Image.Image:
    try:
        return media.load_image(bytes(file["content"]))
    except MediaError as error:
        raise MediaError(f"{file['name']}: {error}") from error


def _figure(name: str, picture: PIL.Image.Image) -> str:
    caption = html.escape(f"{name}, {picture.width} × {picture.height} pixels")
    return f"<div>{image_html(picture, width=320, alt=name)}<br>{caption}</div>"


def _text_html(text: str) -> str:
    return f'<div style="white-space:pre-wrap" aria-live="polite">{html.escape(text)}</div>'


def _columns(left: list[widgets.Widget], right: list[widgets.Widget]) -> list[widgets.Widget]:
    """Two columns that stand below each other where there is no room; the style comes along."""
    css = widgets.HTML(_CSS, layout=widgets.Layout(display="none"))
    side = widgets.Layout(flex="1 1 260px", max_width="420px")
    main = widgets.Layout(flex="1 1 240px", min_width="0")
    boxes = [widgets.VBox(left, layout=side), widgets.VBox(right, layout=main)]
    return [css, widgets.HBox(boxes, layout=widgets.Layout(flex_flow="row wrap", grid_gap="16px"))]
