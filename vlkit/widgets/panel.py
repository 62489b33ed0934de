"""The base of all panels: controls, status line, code, and the thread that does the work."""

from __future__ import annotations

import html
import json
import re
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets
from IPython.core.getipython import get_ipython

from vlkit.errors import VlkitError, failure_line
from vlkit.media.image import PICTURE_SUFFIXES

_HERE = Path(__file__).parent
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")  # files that panels offer
_IMPORT = re.compile(r"^import .* from \"\./.*;\n", re.MULTILINE)


def read_text(name: str) -> str:
    """A file of this folder."""
    return (_HERE / name).read_text(encoding="utf-8")


# whole in every panel: which of them is shown last must not change the look of the others
STYLE = "".join(map(read_text, ["panel.css", "canvas.css", "conversation.css", "work.css"]))
CONTROLS = json.loads(read_text("controls.json"))  # by group and name: arguments of Control


def front(*names: str, default: str) -> str:
    """One JavaScript module from files of this folder; ``default`` is what it exports.

    A browser cannot import the files of a kernel, so what they import of each other is joined.
    """
    parts = [_IMPORT.sub("", read_text(name)) for name in names]
    return "\n".join([f"const ZH = {read_text('zh.json')};", *parts, f"export default {default};"])


# --- controls that the browser draws (controls.js) -----------------------------------------------


class Control(traitlets.HasTraits):
    """A control of a :class:`DrawnPanel`; ``observe`` as with ipywidgets.

    Args:
        kind: ``number``, ``slider``, ``range``, ``choice``, ``text``, ``area``, ``toggle``,
            ``button``, or a name that the panel's own script draws.
        label: English; the key of its Chinese in zh.json.
        value: the first value.
        action: what :meth:`click` calls.
        **look: of the field, as ``min``, ``max``, ``step``, ``options``, ``placeholder``, ``help``,
            ``fold``.

    Attributes:
        value: the value; kept between ``min`` and ``max``.
        disabled: whether it can be used.
        look: as given.
    """

    value = traitlets.Any()
    disabled = traitlets.Bool(False)
    look: traitlets.Dict = traitlets.Dict()

    def __init__(
        self, kind: str, label: str, value: Any = None, action: Callable | None = None, **look: Any
    ):
        self.kind, self.label, self._action = kind, label, action
        super().__init__(look=look)
        self.value = value

    def click(self) -> None:
        """Do what the button does, unless it is disabled."""
        if self._action is not None and not self.disabled:
            self._action()

    @property
    def values(self) -> list:
        """The values of a choice."""
        options = self.look["options"]
        return [option[1] if isinstance(option, list | tuple) else option for option in options]

    @traitlets.validate("value")
    def _within(self, proposal: Mapping) -> Any:
        value, low, high = proposal["value"], self.look.get("min"), self.look.get("max")
        if isinstance(value, list | tuple) and low is not None:
            return tuple(min(max(low, part), high) for part in value)
        if self.kind == "choice" and value not in self.values:
            raise traitlets.TraitError(f"{value!r} is not one of {self.values}")
        return value if low is None else min(max(low, value), high)

    @property
    def specification(self) -> dict:
        """Plain values for the browser."""
        facts = {"kind": self.kind, "label": self.label, "value": self.value}
        return facts | {"disabled": self.disabled} | self.look


def make_controls(panel: Any, *groups: str, **start: Mapping) -> dict[str, Control]:
    """The controls of some groups of controls.json, by name; see :class:`DrawnPanel`."""
    made = {}
    for group in groups:
        for name, facts in CONTROLS[group].items():
            facts = {**facts, **start.get(name, {})}
            action = getattr(panel, facts["action"]) if "action" in facts else None
            made[name] = Control(**facts | {"action": action})
    return made


def plain_line(error: Exception) -> str:
    """An error as a reader of no Python understands it: vlkit's own without their class."""
    own = isinstance(error, VlkitError) and str(error)
    return str(error).splitlines()[0] if own else failure_line(error)


class StatusLine(widgets.HTML):
    """One line that says what a panel is doing, or what went wrong.

    Attributes:
        text: the line.
        kind: ``""``, ``"busy"`` or ``"error"``.
    """

    text = traitlets.Unicode("").tag(sync=True)
    kind = traitlets.Unicode("").tag(sync=True)

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Show an error inside as one line; Jupyter loses errors of callbacks and threads."""
        try:
            yield
        except Exception as error:
            self.say(plain_line(error), "error")

    def say(self, text: str, kind: str | None = None) -> None:
        """Show what is going on; a text that ends in an ellipsis is marked as busy."""
        kind = ("busy" if text.endswith("…") else "") if kind is None else kind
        role = "alert" if kind == "error" else "status"
        look = f' class="vlkit-{kind}"' if kind else ""
        self.text, self.kind = text, kind
        self.value = f'<div role="{role}"{look}>{html.escape(text)}</div>'


# --- work in a thread ----------------------------------------------------------------------------


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


_alive: weakref.WeakSet = weakref.WeakSet()
_by_cell: defaultdict[str, weakref.WeakSet] = defaultdict(weakref.WeakSet)


def _note_cell(panel: DrawnPanel) -> None:
    """When the cell that made the panel is run again, the panel stops."""
    shell: Any = get_ipython()
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    if cell := parent.get("metadata", {}).get("cellId"):
        if _stop_panels not in shell.events.callbacks["pre_run_cell"]:
            shell.events.register("pre_run_cell", _stop_panels)
        _by_cell[cell].add(panel)


def _stop_panels(info: Any) -> None:
    for panel in _by_cell.pop(info.cell_id, ()):
        panel.leave()


class DrawnPanel(anywidget.AnyWidget):
    """The base of all panels: controls, a status line, plain code, Stop, a thread for the work.

    A script of this folder draws it. Where widgets cannot be shown, one line of text replaces it.
    The controls are those of its ``groups`` in controls.json; each is an attribute, too, and a
    button calls the method that its ``action`` names.

    Args:
        language: ``"en"`` or ``"zh"``; the browser's by default.
        start: by the name of a control, what differs from controls.json, such as its ``value``.
        **traits: more traits of the panel.

    Attributes:
        status: says what the panel is doing, or what went wrong.
        stop_button: enabled while the panel works.
    """

    language = traitlets.Unicode("").tag(sync=True)
    controls: traitlets.Dict = traitlets.Dict().tag(sync=True)
    shown_code = traitlets.Unicode().tag(sync=True)
    status: Any = traitlets.Instance(StatusLine, ()).tag(sync=True, **widgets.widget_serialization)
    _take_file: Callable[..., None]  # an uploaded file: its name, its content, where it belongs
    vlm: Any = None
    changes = False  # whether its work changes the model's weights
    groups: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()  # files of this folder; the last one exports what draws the panel
    _css = STYLE
    _later = Debounce(lambda: None, 0.0)  # of panels that redraw once the controls rest

    def __init_subclass__(cls, **options: Any):
        if scripts := vars(cls).get("scripts"):
            cls._esm = front("controls.js", *scripts, default=Path(scripts[-1]).stem)
        super().__init_subclass__(**options)

    def __init__(
        self, language: str | None, start: Mapping[str, Mapping] | None = None, **traits: Any
    ):
        self._controls = make_controls(self, "all", *self.groups, **(start or {}))
        self._locked: list[Any] = []  # the controls that are disabled during the work
        self._thread: threading.Thread | None = None
        self._incoming: dict[str, bytearray] = {}  # files of which pieces have arrived
        super().__init__(language=language or "", **traits)
        for name, control in self._controls.items():
            setattr(self, name, control)
            control.observe(lambda _: self._send_controls(), ["value", "disabled", "look"])
        self.stop_button.disabled = True
        self.on_msg(lambda _, content, buffers: self._receive(content, buffers))
        on_change(self._show_code, *self._controls.values())
        _note_cell(self)
        _alive.add(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}: run this cell in Jupyter to use it"

    # --- work in a thread ------------------------------------------------------------------------

    def stop(self) -> None:
        """End the work and return at once."""
        raise NotImplementedError

    def leave(self) -> None:
        """The panel's cell is run again: end the work."""
        if self._running:
            self.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the work and the view, at most ``timeout`` seconds; True if both are done."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._later.wait(timeout) and (self._thread is None or not self._thread.is_alive())

    def _check_model(self) -> None:
        """Raises VlkitError where one panel would ask a model that another changes meanwhile."""
        for other in list(_alive - {self}):
            same = getattr(other.vlm, "model", 0) is getattr(self.vlm, "model", None)  # not served
            if same and other._running and (self.changes or other.changes):
                raise VlkitError("another panel is using this model; wait, or press Stop there")

    @property
    def _running(self) -> bool:
        return not self.stop_button.disabled

    def _start_work(self, work: Callable[[], Any], status: str, done: str = "") -> None:
        """Work in a thread, whose errors are shown; it belongs to the run that is open now."""

        def run() -> None:
            try:
                with self.status.catching():
                    if self.changes:
                        self._check_model()
                    work()
                    if done:
                        self.status.say(done)
            finally:
                self._finish()

        self.status.say(status)
        self._set_running(True)
        context = copy_context()
        self._thread = threading.Thread(target=context.run, args=(run,), daemon=True)
        self._thread.start()

    def _finish(self) -> None:
        """Runs in the thread after the work, also after one that failed."""
        self._set_running(False)

    def _set_running(self, running: bool) -> None:
        self.stop_button.disabled = not running
        for control in self._locked:
            control.disabled = running

    # --- the code --------------------------------------------------------------------------------

    @property
    def code(self) -> str:
        """Plain Python that does what the panel does with the present controls."""
        raise NotImplementedError

    def _show_code(self) -> None:
        with self.status.catching():
            self.shown_code = self.code

    # --- the browser -----------------------------------------------------------------------------

    def save_file(self, name: str, content: bytes) -> None:
        """The browser saves it among its downloads."""
        self.send({"do": "save", "name": name}, [content])

    def _send_controls(self) -> None:
        self.controls = {name: each.specification for name, each in self._controls.items()}

    def _receive(self, content: Any, buffers: Sequence[Any]) -> None:
        """A message of the browser: ``{"do": "set", …}`` calls ``_do_set``."""
        content = dict(content)
        self.send({"do": "got", "id": content.get("id")})
        with self.status.catching():
            getattr(self, f"_do_{content.pop('do')}")(*buffers, **content)

    def _do_set(self, name: str, value: Any) -> None:
        value = tuple(value) if isinstance(value, list) else value
        self._controls[name].value = value
        if self._controls[name].value != value:  # out of its limits: the field shows that
            self._send_controls()

    def _do_click(self, name: str) -> None:
        self._controls[name].click()

    def _do_chunk(self, part: Any, id: str, name: str, last: bool, **place: Any) -> None:
        """A piece of a file; the browser sends the next one once it is told that it has arrived."""
        content = self._incoming.setdefault(id, bytearray())
        content += part
        if last:
            self._take_file(name, bytes(self._incoming.pop(id)), **place)


class WorkPanel(DrawnPanel):
    """The base of BatchPanel, LoraPanel and ModelChooser: a view of plain values, files chosen."""

    view = traitlets.Dict().tag(sync=True)
    listing = traitlets.Dict().tag(sync=True)

    def _update(self, **parts: Any) -> None:
        self.view = self.view | parts

    @cached_property
    def _uploads(self) -> TemporaryDirectory:
        return TemporaryDirectory(prefix="vlkit-")

    def _do_browse(self, path: str) -> None:
        """List a folder of this machine."""
        folder = Path(path).resolve()
        inside = sorted(folder.iterdir(), key=lambda entry: entry.name.lower())
        shown = [e for e in inside if e.is_dir() or e.suffix.lower() in TABLES]
        self.listing = {
            "folder": str(folder), "up": str(folder.parent),
            "pictures": sum(e.suffix.lower() in PICTURE_SUFFIXES for e in inside),
            "entries": [(e.name, str(e), e.is_dir()) for e in shown if e.name[0] != "."],
        }  # fmt: skip

    def _take_file(self, name: str, content: bytes, *, group: str = "", final: bool = True) -> None:
        """The files of a group go to one folder; after the final one it is the source."""
        folder = Path(self._uploads.name, group)
        folder.mkdir(exist_ok=True)
        (folder / Path(name).name).write_bytes(content)
        if final:
            tables = [entry for entry in folder.iterdir() if entry.suffix.lower() in TABLES]
            self._controls["source"].value = str(tables[0] if tables else folder)


def on_change(action: Callable[[], None], *controls: Any) -> None:
    """Call a function whenever the value of one of the controls changes."""
    for control in controls:
        control.observe(lambda _: action(), names="value")


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
