"""``LoraPanel``: fine-tune a model, a control for each argument."""

import inspect
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import traitlets

from vlkit import lora
from vlkit.errors import VlkitError
from vlkit.files import read_json
from vlkit.generation.generate import generate
from vlkit.inputs import check_loaded
from vlkit.lora import train
from vlkit.lora.curves import Curves, read_history
from vlkit.lora.data import as_data
from vlkit.lora.run_folder import ARGUMENTS, DATA
from vlkit.messages import user
from vlkit.records.facts import memory_facts
from vlkit.widgets.media import media_and_text, picture_record
from vlkit.widgets.panel import CONTROLS, Control, Debounce, WorkPanel, load_code, on_change

MAIN = ("epochs", "learning_rate", "rank", "target", "batch_size", "output_dir", "resume")
COSTLY = CONTROLS["train"].keys() & inspect.signature(lora.inspect).parameters.keys()
DEFAULTS = {name: option.default for name, option in inspect.signature(train).parameters.items()}
PREVIEW, THUMBNAIL = 6, 200  # rows of the data that are shown, pixels of their pictures
ASKED_AGAIN = 20  # held-out rows that are asked before and after
_READING = "Reading the data and computing the cost …"
_QUIET = 0.4  # seconds without a change before the cost is computed
_TICK = 0.3  # seconds between two views of a run's progress
_CODE = """import vlkit

vlm = {load}
{data}
run = vlkit.lora.train(
    vlm,
    {train_data},
{options})
run"""


# --- the controls of train's arguments -----------------------------------------------------------


def knob_values(knobs: Mapping[str, Control]) -> dict[str, Any]:
    """The arguments for ``train``."""
    values = {name: control.value for name, control in knobs.items()}
    values["max_length"] = values["max_length"] or None
    return values | {name: values[name].strip() for name in ("output_dir", "target")}


# --- saved runs ----------------------------------------------------------------------------------


def list_runs(folder: Path) -> list[Path]:
    """The runs with a checkpoint in a folder, the newest last."""
    runs = [path.parent for path in folder.glob(f"*/{ARGUMENTS}") if _states(path.parent)]
    return sorted(runs, key=lambda run: (run / ARGUMENTS).stat().st_mtime)


def read_run(folder: Path) -> tuple[dict[str, Any], Curves]:
    """A run's arguments, and its curves up to the newest checkpoint.

    Raises:
        VlkitError: the run's files are damaged.
    """
    state = read_json(max(_states(folder), key=lambda path: path.stat().st_mtime))
    history = read_history(state.get("log_history", []), state.get("max_steps", 0))
    return read_json(folder / ARGUMENTS), history


def _states(folder: Path) -> list[Path]:
    """The trainer's state in each checkpoint of a run."""
    return list(folder.glob("checkpoint-*/trainer_state.json"))


def next_name(output_dir: str) -> str:
    """The folder's name with the next free number at its end."""
    stem = output_dir.rstrip("0123456789")
    number = int(output_dir[len(stem) :] or 1)
    while Path(f"{stem}{number}").exists():
        number += 1
    return f"{stem}{number}" if output_dir != stem else f"{stem}-{number}"


def _run_record(folder: Path) -> dict:
    arguments, curves = read_run(folder)
    known = {name: str(value) for name, value in arguments.items() if name not in DATA}
    return {"name": folder.name, "arguments": known, "curves": _curve_record(curves)}


def _curve_record(curves: Curves) -> dict:
    """For the browser, whose JSON has no NaN."""
    record = asdict(curves)
    for name in ("losses", "evaluations", "metrics"):
        record[name] = [point for point in record[name] if math.isfinite(point[1])]
    return record


# --- the panel -----------------------------------------------------------------------------------


class LoraPanel(WorkPanel):
    """Fine-tune a model: choose data, turn knobs and see what they cost, train, watch, try it.

    Each knob is an argument of :func:`vlkit.lora.train` and found by its name:
    ``panel.knobs["rank"].value = 16; panel.start(); panel.wait()``. Training runs in a thread, so
    the notebook stays usable; do not ask the model before it is done. A stopped run is continued
    with ``resume``.

    Args:
        vlm: from :func:`vlkit.load`, without an adapter.
        data: conversations to learn from; by default a file is chosen in the panel.
        language: ``"en"`` or ``"zh"``; the browser's by default.

    Attributes:
        run: the last finished or stopped :class:`vlkit.lora.LoraRun`; None before.
        xray: what a run with the present knobs costs, from :func:`vlkit.lora.inspect`; None where
            the data or a knob cannot be used.
        comparison: the last :class:`vlkit.lora.Comparison` of before and after; None before.
    """

    groups, changes = ("lora", "train"), True
    scripts = ("work.js", "lora.js")
    curves = traitlets.Dict().tag(sync=True)
    progress = traitlets.Dict().tag(sync=True)

    def __init__(self, vlm: Any, data: Any = None, *, language: str | None = None):
        check_loaded(vlm)
        self.vlm = vlm
        self._given = None if data is None else as_data(data)
        self._load_rows = lru_cache(maxsize=1)(self._load_and_preview)
        self._split_rows = lru_cache(maxsize=1)(self._read_and_split)
        self.run: lora.LoraRun | None = None
        self.xray: lora.XRay | None = None
        self.comparison: lora.Comparison | None = None
        self._steering: Any = None
        self._model_in_use = threading.Lock()
        name = "" if self._given is None else self._given.name
        files = sorted(str(path) for path in Path().glob("*.json*"))
        start = {"source": {"value": name, "options": [name, *files] if name else files}}
        start["output_dir"] = {"value": next_name("runs/lora-1")}  # a folder that is free
        super().__init__(language, start)
        self.knobs = {name: self._controls[name] for name in CONTROLS["train"]}
        self._later = Debounce(self._compute_cost, _QUIET)
        after = [self.ask_button, self.compare_button, self.merge_button, self.export_button]
        self._locked = [*after, self.start_button, self.source, self.held_out, *self.knobs.values()]
        self.pause_button.disabled = True
        self._update(model=vlm.name, main=MAIN, knobs=list(self.knobs), rows=[])
        on_change(self._change, self.source, self.held_out, *self.knobs.values())
        on_change(self._show_saved, self.saved)
        on_change(self._list_saved, self.knobs["output_dir"])
        self._list_saved()
        self._show_code()
        self._change()

    def start(self) -> None:
        """Train with the present knobs and return at once; does nothing during a run."""
        if self._running:
            return
        from vlkit.lora.callbacks import LiveCurve, Steering

        self._finished = False
        self._steering, self._curve = Steering(self._take_step), LiveCurve(self._take)
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
        options = {} if not share else {"eval_data": "eval_data"}
        for name, value in knob_values(self.knobs).items():  # the main ones and the changed ones
            if name in MAIN[:-1] or value != DEFAULTS[name]:
                options[name] = repr(value)
        lines = "".join(f"    {name}={value},\n" for name, value in options.items())
        return _CODE.format(
            load=load_code(self.vlm), data=data, train_data="train_data" if share else "data",
            options=lines,
        )  # fmt: skip

    # --- after a run -----------------------------------------------------------------------------

    @property
    def adapter(self) -> Path:
        """The adapter to try: that of the ticked saved run, else of the last run."""
        if self.saved.value:
            return Path(self.saved.value[-1])
        if self.run is None:
            raise VlkitError("there is no adapter yet; train one, or tick a saved run")
        return self.run.output_dir

    def ask(self) -> None:
        """Ask the model without and with the adapter about the chosen row's picture."""
        self._start_work(self._ask, "Asking before and after …", "Done.")

    def compare(self) -> None:
        """Ask the held-out rows without and with the adapter."""
        self._start_work(self._compare, "Asking the held-out rows before and after …", "Done.")

    def merge(self) -> None:
        """Write the model with the adapter's changes in its weights."""
        self._start_work(lambda: self._write("merged", lora.merge), "Merging …")

    def export(self) -> None:
        """Write the adapter alone, for PEFT, vLLM and ms-swift."""
        self._start_work(lambda: self._write("export", lora.export_adapter), "Writing …")

    def _ask(self) -> None:
        with self._model_in_use:
            example = self._load_rows(self.source.value.strip())[self.row.value]
            message = user(self.question.value, *media_and_text(example.messages)[0])
            answers = {}
            for name, adapter in (("before", None), ("after", self.adapter)):
                with lora.use_adapter(self.vlm, adapter) as vlm:
                    answers[name] = generate(vlm, message).text
            self._update(tried={"question": self.question.value, **answers})

    def _compare(self) -> None:
        with self._model_in_use:
            train_data, eval_data = self._data()
            rows = (eval_data or train_data)[:ASKED_AGAIN]
            compared = lora.compare(self.vlm, rows, {"after": self.adapter}, progress=False)
            self.comparison = compared
            scores = {name: score.accuracy for name, score in compared.scores.items()}
            table = compared.table.astype(str).values.tolist()
            self._update(comparison={"scores": scores, "rows": table})

    def _write(self, what: str, write: Callable[..., Path]) -> None:
        folder = next_name(f"{self.adapter}-{what}-1")
        path = write(self.adapter, folder, model=str(self.vlm.folder.path))
        self.status.say(f"Written to {path}.")

    # --- data and cost ---------------------------------------------------------------------------

    def _change(self) -> None:
        if self._running:
            return
        self.xray, source = None, self.source.value.strip()
        self._update(cost=None, invited=not source, rows=self.view["rows"] if source else [])
        self.status.say(_READING if source else "")
        self._later.call()

    def _data(self) -> tuple[Any, Any]:
        """The rows to learn from, and those held out or None."""
        source = self.source.value.strip()
        if not source:
            raise VlkitError("no data; name a file of conversations")
        return self._split_rows(source, self.held_out.value, self.knobs["seed"].value)

    def _read_and_split(self, source: str, share: float, seed: int) -> tuple[Any, Any]:
        data = self._load_rows(source)
        return data.split(share, seed=seed) if share else (data, None)

    def _load_and_preview(self, source: str) -> Any:
        self._update(rows=[])
        data: Any = self._given if self._is_given(source) else lora.load_conversations(source)
        rows = []
        for example in data[:PREVIEW]:
            media, _ = media_and_text(example.messages)
            *asked, answer = example.texts
            picture = picture_record(media, THUMBNAIL) if media else None
            question = " ".join(asked[-1:])
            rows.append({"question": question, "answer": answer, "picture": picture})
        self.question.value = rows[0]["question"] if rows else ""
        self._update(rows=rows, comparison=None, tried=None)
        return data

    def _is_given(self, source: str) -> bool:
        """Whether the source is the data that the panel was made with."""
        return self._given is not None and source == self._given.name

    def _compute_cost(self) -> None:
        with self._model_in_use, self.status.catching():
            if self._running or not self.source.value.strip():  # a run is about to begin
                return
            train_data, eval_data = self._data()
            chosen = {k: v for k, v in knob_values(self.knobs).items() if k in COSTLY}
            xray = lora.inspect(self.vlm, train_data, eval_data=eval_data, **chosen)
            self.xray, memory = xray, xray.memory
            cost = {
                "rows": xray.rows, "held_out": len(eval_data or ()), "trained": xray.trained,
                "tokens": max(length.total for length in xray.lengths),
                "share": xray.trained / sum(part.parameters for part in xray.parts),
                "memory": memory.total, "available": memory.available, "place": memory.place,
                "fits": memory.fits, "steps": xray.steps, "seconds": xray.seconds,
            }  # fmt: skip
            self._update(cost=cost)
            if self.status.text == _READING:
                self.status.say("")

    # --- the run ---------------------------------------------------------------------------------

    def _train(self) -> None:
        with self._model_in_use:
            self._take(Curves())
            self.progress = {}
            train_data, eval_data = self._data()
            self.run = lora.train(
                self.vlm, train_data, eval_data=eval_data, **knob_values(self.knobs),
                callbacks=[self._curve, self._steering],
            )  # fmt: skip
            self._finished = self.run.finished
            self.status.say(f"{'Done' if self.run.finished else 'Stopped'}: {self.run}")

    def _finish(self) -> None:
        super()._finish()
        if self._steering is None:  # it was not a training run
            return
        outcome, kind = self.status.text, self.status.kind
        self._steering = None
        if self._finished:
            self.knobs["resume"].value = False
            self.knobs["output_dir"].value = next_name(self.knobs["output_dir"].value)
        self._list_saved()
        self._later.wait()
        self.status.say(outcome, kind)

    def _take(self, curves: Curves) -> None:
        self.curves = _curve_record(curves)

    def _take_step(self, step: int, steps: int) -> None:
        now = time.monotonic()
        if not self.progress:
            self._first, self._due = (now, step), 0.0
        if now >= self._due or step == steps:
            began, first = self._first
            left = (now - began) / (step - first) * (steps - step) if step > first else None
            used = memory_facts(self.vlm)
            memory = used.get("gpu_peak", used["process"])
            self.progress = {"step": step, "steps": steps, "left": left, "memory": memory}
            self._due = now + _TICK

    def _set_running(self, running: bool) -> None:
        super()._set_running(running)
        self.pause_button.disabled = not running or self._steering is None
        self._show_pause()

    def _show_pause(self) -> None:
        paused = self._steering is not None and self._steering.paused
        self.pause_button.label = "Continue" if paused else "Pause"
        self._send_controls()

    def _list_saved(self) -> None:
        folder = Path(self.knobs["output_dir"].value).parent
        runs = [str(run) for run in (list_runs(folder) if folder.is_dir() else [])]
        self.saved.value = tuple(run for run in self.saved.value if run in runs)
        self.saved.look = {"options": runs}

    def _show_saved(self) -> None:
        with self.status.catching():
            self._update(saved=[_run_record(Path(run)) for run in self.saved.value])
