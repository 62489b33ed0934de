"""``ModelChooser``: try a model, and remember it for all notebooks."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from typing import Any

import ipywidgets as widgets

from vlkit import bundled, settings
from vlkit.errors import ModelError, VlkitError
from vlkit.generation.reply import result_of
from vlkit.messages import user
from vlkit.models.hub import HUBS, available_models
from vlkit.models.load import DTYPES
from vlkit.widgets.panel import PanelBox, button, buttons, call_code

SAMPLE, OBJECT = "three_shapes", "blue square"
_TAIL = 4000  # characters of a trial's standard error that are kept
# another process, so that Stop works at once and all memory is freed; it ends with its parent
_PROGRAM = """import os, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
from vlkit.cli import main
main()"""


class ModelChooser(PanelBox):
    """Choose the model that ``vlkit.load()`` loads by default, try it, and remember it.

    Every control is an attribute (``model``, ``dtype``, ``quantize``, ``device``, ``adapter``,
    ``max_image_tokens`` …), so code can do what a hand can do:
    ``panel.model.value = "Qwen/Qwen2-VL-2B-Instruct"; panel.remember()``.

    Attributes:
        answer: the last trial's answer, as ``vlkit predict --json`` prints it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answer: dict[str, Any] | None = None
        self._process: subprocess.Popen | None = None
        self._make_controls()
        trying = buttons(self.try_button, self.stop_button)
        keeping = buttons(self.remember_button, self.forget_button)
        controls = [self.model, *self._options.values()]
        left = [*controls, trying, keeping, self.status]
        self._lay_out(left, [self.chosen, self.tried], watched=controls)
        self.add_class("vlkit-chooser")
        self._begin()

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of :func:`vlkit.load` that are not at their defaults."""
        values = {name: control.value for name, control in self._options.items()}
        values |= {name: values[name].strip() for name in ("revision", "device", "adapter")}
        return {name: value for name, value in values.items() if value not in ("", "auto", None, 0)}

    @property
    def code(self) -> str:
        """Plain Python that remembers the present choice."""
        model = repr(self.model.value.strip())
        remember = call_code("vlkit.settings.remember_model", model, **self.options)
        return f"import vlkit\n\n{remember}\nvlm = vlkit.load()  # here and in every notebook"

    def try_out(self) -> None:
        """Load the model in another process, ask it one question, and return at once."""
        if self._running:
            return
        self.answer, self.tried.value, self._stopped = None, "", False
        with self.status.catching():
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, "predict", *self._arguments()],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            self._start_work(self._follow, "Loading the model and asking it one question …")

    def stop(self) -> None:
        """End the trial and return at once."""
        if self._process is not None and self._running:
            self._stopped = True
            self._process.kill()

    def remember(self) -> None:
        """Write the choice to the settings file."""
        with self.status.catching():
            path = settings.remember_model(self._name(), **self.options)
            self.status.say(f"Remembered in {settings.short_path(path)}.")
            self._show_chosen()

    def forget(self) -> None:
        """Delete the settings file."""
        with self.status.catching():
            settings.forget_model()
            self.status.say("Forgotten.")
            self._show_chosen()

    def _make_controls(self) -> None:
        self.model = widgets.Combobox(
            value="tiny", options=list(available_models()), ensure_option=False,
            description="Model", placeholder="tiny, owner/name or a folder",
        )  # fmt: skip
        self.hub = widgets.Dropdown(options=["auto", *HUBS], description="hub")
        self.revision = widgets.Text(
            placeholder="optional: a commit, to make it repeatable", description="revision"
        )
        self.device = widgets.Combobox(
            value="auto", options=["auto", "cpu", "cuda:0", "mps"], description="device"
        )
        self.dtype = widgets.Dropdown(options=["auto", *DTYPES], description="dtype")
        self.quantize = widgets.Dropdown(
            options=[("no", None), ("8bit", "8bit"), ("4bit", "4bit")], description="quantize"
        )
        self.adapter = widgets.Text(
            placeholder="optional: a LoRA adapter's folder", description="adapter"
        )
        self.max_image_tokens = widgets.BoundedIntText(
            0, min=0, max=2**20, description="image tokens ≤", tooltip="0: the model's limit"
        )
        names = ("hub", "revision", "device", "dtype", "quantize", "adapter", "max_image_tokens")
        self._options: dict[str, Any] = {name: getattr(self, name) for name in names}
        self.try_button = button("Try", "play", self.try_out)
        self.remember_button = button("Remember", "save", self.remember, button_style="primary")
        self.forget_button = button("Forget", "undo", self.forget)
        self.chosen, self.tried = widgets.HTML(), widgets.HTML()
        self._locked = [self.try_button]

    def _begin(self) -> None:
        """Set the controls to the remembered choice."""
        with self.status.catching():
            if choice := self._show_chosen():
                self.model.value = choice.model
                for name, value in choice.options.items():
                    if name in self._options:
                        self._options[name].value = value

    def _show_chosen(self) -> settings.Choice | None:
        self.chosen.value = ""
        choice = settings.chosen_model()
        text = "the bundled model; nothing is remembered."
        if choice is not None:
            call = html.escape(call_code("vlkit.load", repr(choice.model), **choice.options))
            text = f"the model of <b>{call}</b>, chosen by {html.escape(choice.source)}."
        self.chosen.value = f"<div><code>vlkit.load()</code> takes {text}</div>"
        return choice

    def _name(self) -> str:
        if not self.model.value.strip():
            raise ModelError("no model is chosen; choose one, or write a hub id or a folder")
        return self.model.value.strip()

    def _arguments(self) -> list[str]:
        options = {"model": self._name(), "locate": OBJECT, "image": bundled.sample(SAMPLE)}
        options |= self.options
        named = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        return [*named, "--json", "--max-new-tokens=64"]

    def _follow(self) -> None:
        process: Any = self._process
        messages = ""
        while piece := process.stderr.read1(4096):  # progress of a download, or of the weights
            messages = (messages + piece.decode(errors="replace"))[-_TAIL:]
            self.tried.value = f"<pre>{html.escape(_last_line(messages))}</pre>"
        output = process.stdout.read()  # an answer of 64 tokens, which the pipe has room for
        self.tried.value, failed = "", process.wait() != 0
        if self._stopped:
            self.status.say("Stopped.")
        elif failed:
            raise VlkitError(_last_line(messages))
        else:
            self.answer = json.loads(output)
            question = self.answer["prompt"]
            reply: Any = result_of(self.answer, user(question, bundled.sample(SAMPLE)))
            self.tried.value = f"<p>{html.escape(question)}</p>{reply._repr_html_()}"
            self.status.say("It works. Remember it, or try another.")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]  # also at \r
    return lines[-1].removeprefix("Error: ") if lines else "the trial ended without a message"
