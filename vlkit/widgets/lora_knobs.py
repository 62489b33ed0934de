"""Controls for what ``vlkit.lora.train`` takes, each by its argument's name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from vlkit.lora import train

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
MAIN = ("epochs", "learning_rate", "rank", "target", "batch_size", "output_dir", "resume")
COSTLY = (  # what :func:`vlkit.lora.inspect` takes too
    "epochs", "rank", "target", "batch_size", "gradient_accumulation", "gradient_checkpointing",
    "quantize", "max_length", "metric", "samples",
)  # fmt: skip
OTHERS = {"vlm", "data", "eval_data", "callbacks", "report_to"}  # arguments that are no knobs
DEFAULTS = {name: each.default for name, each in inspect.signature(train).parameters.items()}


class Knobs:
    """The controls; ``knobs[name]`` is the widget of an argument of ``train``.

    Args:
        changed: called after each change of a value.
    """

    def __init__(self, changed: Callable[[], None]):
        self.widgets = _make()
        for name, widget in self.widgets.items():
            widget.add_class(f"vlkit-{name.replace('_', '-')}")
            widget.observe(lambda _: changed(), names="value")

    def __getitem__(self, name: str) -> Any:
        return self.widgets[name]

    @property
    def values(self) -> dict[str, Any]:
        """What ``train`` is called with."""
        found = {name: widget.value for name, widget in self.widgets.items()}
        found["max_length"] = found["max_length"] or None
        found["output_dir"], found["target"] = (
            found[name].strip() for name in ("output_dir", "target")
        )
        return found

    @property
    def code(self) -> str:
        """The arguments that stand in a call: the main ones, and those that were changed."""
        told = {n: v for n, v in self.values.items() if n in MAIN[:-1] or v != DEFAULTS[n]}
        return "".join(f"    {name}={value!r},\n" for name, value in told.items())

    def lock(self, locked: bool) -> None:
        """Let nothing be changed, or all."""
        for widget in self.widgets.values():
            widget.disabled = locked

    @property
    def rows(self) -> list[widgets.Widget]:
        """The main ones, and the others folded."""
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
        "resume": widgets.Checkbox(description="resume the run that is there"),
    }  # fmt: skip
