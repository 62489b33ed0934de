"""``ModelChooser``: try a model, and remember it for all notebooks."""

import difflib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from vlkit import bundled, settings
from vlkit.errors import ModelError, VlkitError
from vlkit.generation.reply import result_of
from vlkit.messages import user
from vlkit.models.hub import HUB_ID, available_models, find_model
from vlkit.models.load import hosted_prefix
from vlkit.models.memory import SHAPES, available_memory, count_memory
from vlkit.widgets.panel import CONTROLS, Debounce, WorkPanel, call_code, on_change

SAMPLE, OBJECT = "three_shapes", "blue square"
ROOM = 1.5e9  # bytes for pictures and the cache, next to the weights
_TAIL = 4000  # characters of a trial's standard error that are kept
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours of a terminal
# another process, so that Stop works at once and all memory is freed; it ends with its parent
_PROGRAM = """import os, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
from vlkit.cli import main
main()"""


class ModelChooser(WorkPanel):
    """Choose the model that ``vlkit.load()`` loads by default, try it, and remember it.

    Every control is an attribute (``model``, ``dtype``, ``quantize``, ``device``, ``adapter``,
    ``max_image_tokens`` …), so code can do what a hand can do:
    ``panel.model.value = "Qwen/Qwen2-VL-2B-Instruct"; panel.remember()``.

    Args:
        language: ``"en"`` or ``"zh"``; the browser's by default.

    Attributes:
        answer: the last trial's answer, as ``vlkit predict --json`` prints it.
    """

    groups = ("chooser", "load")
    scripts = ("work.js", "chooser.js")

    def __init__(self, *, language: str | None = None) -> None:
        self.answer: dict[str, Any] | None = None
        self._process: subprocess.Popen | None = None
        self._here = available_models()
        super().__init__(language)
        self._options = {name: self._controls[name] for name in CONTROLS["load"]}
        self._locked = [self.try_button, self.download_button]
        self.view = {"options": list(self._options), "tried": "", "question": None, "models": []}
        with self.status.catching():
            if choice := self._show_chosen():
                self.model.value = choice.model
                for name in self._options.keys() & choice.options.keys():
                    self._options[name].value = choice.options[name]
        self._show_code()
        on_change(self._leave_trial, self.model)
        self._later = Debounce(self._list_models, 0.0)  # torch is imported
        self._later.call()

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

    def try_out(self, *, download: bool = False) -> None:
        """Load the model in another process, ask it one question, and return at once.

        Args:
            download: also a model that is not on this machine; by default the panel asks first.
        """
        if self._running:
            return
        self.answer, self._stopped = None, False
        self._update(tried="", question=None)
        with self.status.catching():
            name = self._name()
            if not download and self._is_elsewhere(name):
                self._update(question={"name": name, "bytes": _weights(name)})
                self.status.say("")
                return
            options = {"model": name, "locate": OBJECT, "image": bundled.sample(SAMPLE)}
            options |= {"max_new_tokens": 64} | self.options
            arguments = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
            colours = {"NO_COLOR": "1", "TERM": "dumb"}
            quiet = {k: v for k, v in os.environ.items() if k != "FORCE_COLOR"} | colours
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, "predict", "--json", *arguments], env=quiet,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            self._start_work(self._follow, "Loading the model and asking it one question …")

    def download_and_try(self) -> None:
        """Try the model, downloaded where it is not on this machine; returns at once."""
        self.try_out(download=True)

    def stop(self) -> None:
        """End the trial and return at once."""
        if self._process is not None and self._running:
            self._stopped = True
            self._process.kill()

    def remember(self) -> None:
        """Write the choice to the settings file, if the model exists or has been tried."""
        with self.status.catching():
            name = self._name()
            if self.answer is None or self._tried != name:
                self._check(name)
            path = settings.remember_model(name, **self.options)
            self.status.say(f"Remembered in {settings.short_path(path)}.")
            self._show_chosen()

    def forget(self) -> None:
        """Delete the settings file."""
        with self.status.catching():
            settings.forget_model()
            self.status.say("Forgotten.")
            self._show_chosen()

    def _leave_trial(self) -> None:
        """Another model is written: what was said about the last one goes."""
        if not self._running:
            self.status.say("")
            self._update(tried="", question=None)

    def _is_elsewhere(self, name: str) -> bool:
        """Whether trying it would download it."""
        is_here = hosted_prefix(name) or Path(name).expanduser().exists() or name in self._here
        return not is_here and bool(HUB_ID.fullmatch(name))

    def _check(self, name: str) -> None:
        """Raises ModelError for a name that load() would not find."""
        if hosted_prefix(name) or name in SHAPES:
            return
        if not self._is_elsewhere(name):
            find_model(name)
            return
        near = difflib.get_close_matches(name, [*SHAPES, *self._here], 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ModelError(
            f"{name} is neither on this machine nor a known model{hint} Press Try to look for it "
            "on the hubs; what has answered can be remembered"
        )

    def _show_chosen(self) -> settings.Choice | None:
        self._update(chosen=None)
        choice = settings.chosen_model()
        call = "vlkit.load('tiny')" if choice is None else ""
        if choice is not None:
            call = call_code("vlkit.load", repr(choice.model), **choice.options)
        self._update(chosen={"call": call, "source": choice.source if choice else ""})
        return choice

    def _list_models(self) -> None:
        """The known models, and whether they fit into this machine's memory."""
        with self.status.catching():
            free, place = available_memory()
            for name in ("tiny", *SHAPES):
                weights = _weights(name)
                needed = weights * (2 if place == "RAM" and name in SHAPES else 1)  # float32
                fits = "yes" if needed + ROOM <= free else "no"
                if fits == "no" and place == "GPU":
                    fits = "4bit" if count_memory(name).four_bit + ROOM <= free else "no"
                record = {"name": name, "bytes": weights, "needed": needed, "fits": fits,
                          "here": name in self._here}  # fmt: skip
                self._update(models=[*self.view["models"], record], free=free, place=place)

    def _name(self) -> str:
        if not self.model.value.strip():
            raise ModelError("no model is chosen; choose one, or write a hub id or a folder")
        return self.model.value.strip()

    def _follow(self) -> None:
        process: Any = self._process
        messages, self._tried = "", self._name()
        while piece := process.stderr.read1(4096):  # progress of a download, or of the weights
            messages = (messages + piece.decode(errors="replace"))[-_TAIL:]
            self._update(progress=_last_line(messages))
        output = process.stdout.read()  # an answer of 64 tokens, which the pipe has room for
        failed = process.wait() != 0
        self._update(progress="")
        if self._stopped:
            self.status.say("Stopped.")
        elif failed:
            raise VlkitError(_last_line(messages))
        else:
            self.answer, self._here = json.loads(output), available_models()
            question = self.answer["prompt"]
            reply: Any = result_of(self.answer, user(question, bundled.sample(SAMPLE)))
            self._update(tried=reply._repr_html_(), asked=question)
            self.status.say("It works. Remember it, or try another.")


def _weights(name: str) -> int:
    """Bytes of a known model's weights, as they are downloaded; 0 where that is unknown."""
    if name == "tiny":
        return sum(f.stat().st_size for f in bundled.bundled_path("tiny-qwen2-vl").iterdir())
    return count_memory(name).bfloat16 if name in SHAPES else 0


def _last_line(text: str) -> str:
    lines = _ESCAPES.sub("", text).splitlines()  # also at \r
    lines = [line.strip() for line in lines if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else "the trial ended without a message"
