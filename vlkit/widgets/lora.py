"""``LoraPanel``: fine-tune a model, a control for each argument."""

from __future__ import annotations

import html
import inspect
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from vlkit import lora
from vlkit.errors import VlkitError, counted
from vlkit.files import read_json
from vlkit.inputs import check_loaded
from vlkit.lora import train
from vlkit.lora.curves import Curves, curves_html, read_history
from vlkit.lora.data import as_data
from vlkit.lora.run_folder import ARGUMENTS, DATA
from vlkit.plotting.html import duration_text, table_html
from vlkit.widgets.panel import Debounce, PanelBox, button, buttons, load_code, on_change

if TYPE_CHECKING:
    from vlkit.lora.callbacks import Steering


RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
MAIN = ("epochs", "learning_rate", "rank", "target", "batch_size", "output_dir", "resume")
COSTLY = (  # what :func:`vlkit.lora.inspect` takes too
    "epochs", "rank", "target", "batch_size", "gradient_accumulation", "gradient_checkpointing",
    "quantize", "max_length", "metric", "samples",
)  # fmt: skip
OTHERS = {"vlm", "data", "eval_data", "callbacks", "report_to"}  # arguments without a control
DEFAULTS = {name: option.default for name, option in inspect.signature(train).parameters.items()}
_STATE = "trainer_state.json"
_QUIET = 0.4  # seconds without a change before the cost is computed
_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3)  # of the rows, held out
_CODE = """import vlkit

vlm = {load}
{data}
run = vlkit.lora.train(
    vlm,
    {train_data},
{options})
run"""


# --- the controls of train's arguments -----------------------------------------------------------


class Knobs:
    """The controls; ``knobs[name]`` is the widget of an argument of ``train``.

    Args:
        changed: called after each change of a value.
    """

    def __init__(self, changed: Callable[[], None]):
        self.widgets = _make()
        for name, widget in self.widgets.items():
            widget.add_class(f"vlkit-{name.replace('_', '-')}")
        on_change(changed, *self.widgets.values())

    def __getitem__(self, name: str) -> Any:
        return self.widgets[name]

    @property
    def values(self) -> dict[str, Any]:
        """The arguments for ``train``."""
        values = {name: widget.value for name, widget in self.widgets.items()}
        values["max_length"] = values["max_length"] or None
        values |= {name: values[name].strip() for name in ("output_dir", "target")}
        return values

    @property
    def code(self) -> str:
        """The arguments as lines of a call: the main ones, and those that were changed."""
        return "".join(
            f"    {name}={value!r},\n"
            for name, value in self.values.items()
            if name in MAIN[:-1] or value != DEFAULTS[name]
        )

    @property
    def rows(self) -> list[widgets.Widget]:
        """The main controls, then the others in a fold."""
        rest = [widget for name, widget in self.widgets.items() if name not in MAIN]
        fold = widgets.Accordion([widgets.VBox(rest)], titles=["More arguments"])
        return [*(self.widgets[name] for name in MAIN), fold]


def _make() -> dict[str, widgets.Widget]:
    wide = {"continuous_update": False}
    choose, slide = widgets.Dropdown, widgets.SelectionSlider
    whole = widgets.BoundedIntText
    return {
        "epochs": widgets.BoundedFloatText(1, min=0.01, max=1000, step=0.5, description="epochs"),
        "learning_rate": slide(
            options=[(f"{rate:g}", rate) for rate in RATES], value=2e-4, description="rate", **wide
        ),
        "rank": slide(
            options=[*((str(r), r) for r in RANKS), ("all weights", None)], value=8,
            description="rank", **wide,
        ),
        "alpha": choose(
            options=[("twice the rank", None), *((str(r), r) for r in (*RANKS, 256))],
            description="alpha",
        ),
        "target": widgets.Combobox(
            value="language", options=["language", "vision", "all"], description="target", **wide
        ),
        "batch_size": choose(
            options=["auto", 1, 2, 4, 8, 16, 32, 64], description="batch size"
        ),
        "gradient_accumulation": slide(
            options=[1, 2, 4, 8, 16, 32], description="accumulate", **wide
        ),
        "gradient_checkpointing": widgets.Checkbox(description="gradient checkpointing"),
        "quantize": choose(
            options=[("no", None), ("4 bit (QLoRA)", "4bit"), ("8 bit", "8bit")],
            description="quantize",
        ),
        "max_length": whole(0, min=0, max=2**17, description="max length"),
        "metric": choose(
            options=["auto", ("exact answer", "exact"), ("boxes at IoU", "iou"), ("none", None)],
            description="metric",
        ),
        "samples": widgets.IntSlider(3, 0, 10, description="samples", **wide),
        "seed": whole(0, min=0, max=2**31 - 1, description="seed"),
        "output_dir": widgets.Text("runs/lora-1", description="output", **wide),
        "resume": widgets.Checkbox(description="resume the run in this folder"),
    }  # fmt: skip


# --- saved runs ----------------------------------------------------------------------------------


def list_runs(folder: Path) -> list[Path]:
    """The runs with a checkpoint in a folder, the newest last."""
    runs = [path.parent for path in folder.glob(f"*/{ARGUMENTS}") if _states(path.parent)]
    return sorted(runs, key=lambda run: (run / ARGUMENTS).stat().st_mtime)


def read_run(folder: Path) -> tuple[dict[str, Any], Curves]:
    """A run's arguments, and its curves up to the newest checkpoint.

    Raises:
        VlkitError: there is no run, or its files are damaged.
    """
    states = _states(folder)
    if not states:
        raise VlkitError(f"{folder} contains no run with a checkpoint")
    state = read_json(states[-1])
    history = state.get("log_history", [])
    return read_json(folder / ARGUMENTS), read_history(history, state.get("max_steps", 0))


def runs_html(folders: Sequence[Path]) -> str:
    """The curves of runs in one figure, and a table of their results and different arguments."""
    if not folders:
        return ""
    runs = {folder.name: read_run(folder) for folder in folders}
    names = dict.fromkeys(n for arguments, _ in runs.values() for n in arguments if n not in DATA)
    differing = [
        n for n in names if len({repr(arguments.get(n)) for arguments, _ in runs.values()}) > 1
    ]
    rows = [
        [name, *(arguments.get(n) for n in differing), *_last_values(curves)]
        for name, (arguments, curves) in runs.items()
    ]
    heads = ["run", *differing, "last loss", "held-out loss", "accuracy"]
    cells = [[html.escape(str(value)) for value in row] for row in rows]
    table = table_html(heads, cells, cell="white-space:nowrap")
    figure = curves_html({name: curves for name, (_, curves) in runs.items()})
    return f'{figure}<div style="overflow-x:auto;font-size:.9em;margin-top:6px">{table}</div>'


def _last_values(curves: Curves) -> list[str]:
    series = (curves.losses, curves.evaluations, curves.metrics)
    return [f"{points[-1][1]:.3g}" if points else "" for points in series]


def _states(folder: Path) -> list[Path]:
    """The trainer's state in each checkpoint of a run, the newest last."""
    states = {
        int(number): path
        for path in folder.glob(f"checkpoint-*/{_STATE}")
        if (number := path.parent.name.removeprefix("checkpoint-")).isdigit()
    }
    return [states[number] for number in sorted(states)]


def next_name(output_dir: str) -> str:
    """The folder's name with the next free number at its end."""
    stem = output_dir.rstrip("0123456789")
    number = int(output_dir[len(stem) :] or 1)
    while Path(f"{stem}{number}").exists():
        number += 1
    return f"{stem}{number}" if output_dir != stem else f"{stem}-{number}"


# --- the panel -----------------------------------------------------------------------------------


class LoraPanel(PanelBox):
    """Fine-tune a model: choose data, turn knobs and see what they cost, train, watch, compare.

    Each knob is an argument of :func:`vlkit.lora.train` and found by its name:
    ``panel.knobs["rank"].value = 16; panel.start(); panel.wait()``. Training runs in a thread, so
    the notebook stays usable; do not ask the model before it is done. A stopped run is continued
    with ``resume``.

    Args:
        vlm: from :func:`vlkit.load`, without an adapter.
        data: conversations to learn from; by default a file is chosen in the panel.

    Attributes:
        run: the last finished or stopped :class:`vlkit.lora.LoraRun`; None before.
        xray: what a run with the present knobs costs, from :func:`vlkit.lora.inspect`; None where
            the data or a knob cannot be used.
    """

    def __init__(self, vlm: Any, data: Any = None):
        check_loaded(vlm)
        super().__init__()
        self.vlm = vlm
        self._given = None if data is None else as_data(data)
        self._load_rows = lru_cache(maxsize=1)(lora.load_conversations)
        self._split_rows = lru_cache(maxsize=1)(self._read_and_split)
        self.run: lora.LoraRun | None = None
        self.xray: lora.XRay | None = None
        self._steering: Steering | None = None
        self._model_in_use = threading.Lock()
        self._later = Debounce(self._compute_cost, _QUIET)
        self.knobs = Knobs(self._change)
        self._make_controls()
        steer = buttons(self.start_button, self.pause_button, self.stop_button)
        left = [self.source, self.held_out, *self.knobs.rows, self.cost, steer, self.status]
        saved = widgets.VBox([self.saved, self.comparison])
        fold = widgets.Accordion([saved], titles=["Saved runs"])
        controls = [self.source, self.held_out, *self.knobs.widgets.values()]
        self._locked = [self.start_button, *controls]
        self._lay_out(left, [self.curves, fold], watched=controls)
        self.add_class("vlkit-lora")
        self._connect()

    def start(self) -> None:
        """Train with the present knobs and return at once; does nothing during a run."""
        if self._running:
            return
        from vlkit.lora.callbacks import Steering

        self._steering = Steering()
        self._start_work(self._train, "Training …")

    def pause(self) -> None:
        """Pause after the present step, or continue; returns at once."""
        if steering := self._steering:
            steering.resume() if steering.paused else steering.pause()
            self._show_pause()
            self.status.say("Paused." if steering.paused else "Training …")

    def stop(self) -> None:
        """End after the present step, with a checkpoint from which to continue."""
        if steering := self._steering:
            steering.stop()
            self.status.say("Stopping …")

    @property
    def code(self) -> str:
        """Plain Python that does what Start does with the present knobs."""
        source = self.source.value.strip()
        data = f"data = vlkit.lora.load_conversations({source!r})"
        if self._is_given(source):
            data = f"# data = {source}"
        share, seed = self.held_out.value, self.knobs["seed"].value
        if share:
            data += f"\ntrain_data, eval_data = data.split({share}, seed={seed})"
        eval_argument = "    eval_data=eval_data,\n" if share else ""
        return _CODE.format(
            load=load_code(self.vlm), data=data, train_data="train_data" if share else "data",
            options=eval_argument + self.knobs.code,
        )  # fmt: skip

    # --- controls --------------------------------------------------------------------------------

    def _make_controls(self) -> None:
        files = sorted(str(p) for p in Path().glob("*.json*") if p.suffix in (".json", ".jsonl"))
        name = "" if self._given is None else self._given.name
        self.source = widgets.Combobox(
            value=name, options=[name, *files] if name else files, description="Data",
            placeholder="a .json, .jsonl, .csv or .parquet", continuous_update=False,
        )  # fmt: skip
        self.held_out = widgets.SelectionSlider(
            options=[(f"{share:.0%}", share) for share in _SHARES], value=0.1,
            description="held out", continuous_update=False,
        )  # fmt: skip
        self.start_button = button("Train", "play", self.start, button_style="primary")
        self.pause_button = button("Pause", "pause", self.pause, disabled=True)
        self.cost, self.curves, self.comparison = (widgets.HTML() for _ in range(3))
        self.saved = widgets.SelectMultiple(rows=4, description="Compare")
        self.cost.add_class("vlkit-count")

    def _connect(self) -> None:
        on_change(self._change, self.source, self.held_out)
        on_change(self._show_saved, self.saved)
        on_change(self._list_saved, self.knobs["output_dir"])
        self._list_saved()
        self._take(Curves())
        self._change()

    def _change(self) -> None:
        if not self._running:
            self._later.call()

    def _set_running(self, running: bool) -> None:
        super()._set_running(running)
        self.pause_button.disabled = not running
        self._show_pause()

    def _show_pause(self) -> None:
        paused = self._steering is not None and self._steering.paused
        self.pause_button.description = "Continue" if paused else "Pause"

    # --- data and cost ---------------------------------------------------------------------------

    def _data(self) -> tuple[Any, Any]:
        """The rows to learn from, and those held out or None."""
        source = self.source.value.strip()
        if not source:
            raise VlkitError("no data; name a file of conversations")
        return self._split_rows(source, self.held_out.value, self.knobs["seed"].value)

    def _read_and_split(self, source: str, share: float, seed: int) -> tuple[Any, Any]:
        data: Any = self._given if self._is_given(source) else self._load_rows(source)
        return data.split(share, seed=seed) if share else (data, None)

    def _is_given(self, source: str) -> bool:
        """Whether the source is the data that the panel was made with."""
        return self._given is not None and source == self._given.name

    def _compute_cost(self) -> None:
        with self._model_in_use, self.status.catching():
            if self._running:  # a run is about to begin
                return
            self.xray, self.cost.value = None, ""
            train_data, eval_data = self._data()
            chosen = {name: value for name, value in self.knobs.values.items() if name in COSTLY}
            self.xray = lora.inspect(self.vlm, train_data, eval_data=eval_data, **chosen)
            self.cost.value = _cost_html(self.xray)
            if not self._running:
                self.status.say("")

    # --- the run ---------------------------------------------------------------------------------

    def _train(self) -> None:
        self._finished = False
        from vlkit.lora.callbacks import LiveCurve

        with self._model_in_use:
            self._take(Curves())
            train_data, eval_data = self._data()
            self.run = lora.train(
                self.vlm, train_data, eval_data=eval_data, **self.knobs.values,
                callbacks=[LiveCurve(self._take), self._steering],
            )  # fmt: skip
            self._finished = self.run.finished
            self.status.say(f"{'Done' if self.run.finished else 'Stopped'}: {self.run}")

    def _finish(self) -> None:
        outcome = self.status.value
        self._steering = None
        super()._finish()
        if self._finished:
            self.knobs["resume"].value = False
            self.knobs["output_dir"].value = next_name(self.knobs["output_dir"].value)
        self._list_saved()
        self._later.wait()
        self.status.value = outcome

    def _take(self, curves: Curves) -> None:
        self.curves.value = curves_html({"run": curves})

    def _list_saved(self) -> None:
        folder = Path(self.knobs["output_dir"].value).parent
        runs = list_runs(folder) if folder.is_dir() else []
        self.saved.options = [(run.name, run) for run in runs]

    def _show_saved(self) -> None:
        with self.status.catching():
            self.comparison.value = runs_html(self.saved.value)


def _cost_html(xray: lora.XRay) -> str:
    memory = xray.memory
    share = xray.trained / sum(part.parameters for part in xray.parts)
    lines = [
        f"{xray.rows:,} rows, {max(length.total for length in xray.lengths):,} tokens at most",
        f"{xray.trained:,} weights trained ({share:.1%})",
        f"about {memory.total / 1e9:.1f} of {memory.available / 1e9:.0f} GB {memory.place}",
        f"{counted(xray.steps, 'step')} in about {duration_text(xray.seconds)}",
    ]
    kind = "" if memory.fits else ' class="vlkit-error"'
    return f"<div{kind}>{'<br>'.join(map(html.escape, lines))}</div>"
