"""``GroundingPanel``, and the canvas on which boxes are drawn by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import PIL.Image
import traitlets

from vlkit import bundled, messages
from vlkit.analysis.logprobs import AnswerLogprobs, token_logprobs
from vlkit.datasets.conversations import detect_prompt, locate_prompt
from vlkit.errors import MediaError, VlkitError
from vlkit.generation.reply import Reply
from vlkit.grounding.boxes import Box, Item, coordinates_of
from vlkit.grounding.parse import format_grounding
from vlkit.plotting.comparing import TRUTH
from vlkit.plotting.html import data_url
from vlkit.plotting.labels import label_colors, text_color
from vlkit.widgets.ask import PicturePicker
from vlkit.widgets.panel import Panel, button, on_change

_HERE = Path(__file__).parent


_LARGEST = 1600  # pixels of the longer side that go to the browser


class BoxCanvas(anywidget.AnyWidget):
    """A picture to draw a box on with mouse or keys; all numbers are pixels of the original.

    Attributes:
        drawn: ``[x1, y1, x2, y2]``, or empty.
        highlighted: the index of the item under the mouse or the focus; -1 is none.
        threshold: items with a lower confidence are hidden.
        show_truth: whether the true boxes are shown, dashed.
        busy: while True, drawing is disabled.
    """

    _esm = _HERE / "canvas.js"
    _css = _HERE / "canvas.css"
    picture = traitlets.Unicode("").tag(sync=True)
    picture_size = traitlets.List(traitlets.Int(), [1, 1]).tag(sync=True)
    about = traitlets.Unicode("").tag(sync=True)
    items: traitlets.List = traitlets.List().tag(sync=True)
    truth: traitlets.List = traitlets.List().tag(sync=True)
    drawn = traitlets.List(traitlets.Float()).tag(sync=True)
    highlighted = traitlets.Int(-1).tag(sync=True)
    threshold = traitlets.Float(0.0).tag(sync=True)
    show_truth = traitlets.Bool(False).tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)

    def show_picture(self, picture: PIL.Image.Image | None, about: str = "") -> None:
        """Show another picture, or none; the boxes on the last one are removed."""
        self.drawn, self.items, self.truth, self.highlighted = [], [], [], -1
        self.about = about
        if picture is None:
            self.picture = ""
            return
        small = picture.copy()
        small.thumbnail((_LARGEST, _LARGEST))
        self.picture_size = list(picture.size)
        self.picture = data_url(small)

    def show_items(self, items: list[Item], confidences: Mapping[Item, float]) -> None:
        """Show the boxes, points and quads of an answer, each with its confidence."""
        colors = label_colors(item.label for item in items)
        self.highlighted = -1
        self.items = [_record(i, colors[i.label], confidences.get(i)) for i in items]

    def show_true(self, boxes: list[Item]) -> None:
        """The true boxes, visible while ``show_truth`` is on."""
        self.truth = [_record(box, TRUTH, None) | {"truth": True} for box in boxes]


def _record(item: Item, color: str, confidence: float | None) -> dict[str, Any]:
    numbers = coordinates_of(item)  # x, y, x, y …
    return {
        "label": item.label,
        "points": [list(point) for point in zip(numbers[::2], numbers[1::2], strict=True)],
        "color": color,
        "text_color": text_color(color),
        "confidence": confidence,
    }


BOX_QUESTION = "What is in this box? {}"


class GroundingPanel(Panel):
    """Draw a box on the picture to ask what is in it, or ask in words and see boxes.

    The boxes are also a list under the picture; box and line are highlighted together. Every
    control is an attribute (``picker``, ``prompt``, ``threshold``, ``show_truth``, ``canvas`` …),
    so code can do what a hand can do:
    ``panel.canvas.drawn = [40, 40, 140, 140]; panel.ask_box(); panel.wait()``.

    Args:
        vlm: from :func:`vlkit.load`.
        samples: also offer the bundled sample pictures, whose true boxes are known.

    Attributes:
        reply: the Reply to the last question, also a stopped one; None at first, during an
            answer, and after an error.
        scores: the probabilities of that reply's tokens and boxes, or None.
        items: the boxes, points and quads of that reply, in pixels of the upright original.
    """

    def __init__(self, vlm: Any, *, samples: bool = True):
        family = getattr(vlm, "family", "qwen2_vl")  # the panel refuses what is not a model
        examples = (
            locate_prompt("red circle", family=family),
            detect_prompt(family=family),
            "Generate the caption in English with grounding:",
            locate_prompt("红色圆形", family=family, language="zh"),
            detect_prompt(family=family, language="zh"),
        )
        super().__init__(vlm, examples)
        self.picker = PicturePicker(self.status, samples=samples)
        self.picker.children = [c for c in self.picker.children if c is not self.picker.view]
        self.canvas = BoxCanvas()
        self.scores: AnswerLogprobs | None = None
        self.items: list[Item] = []
        self._picture: PIL.Image.Image | None = None
        bar = self._make_box_controls()
        watched = [self.picker.sample, self.picker.upload]
        self._arrange([self.picker], watched, [self.canvas, bar, self.threshold])
        self.add_class("vlkit-grounding")
        self._connect_box_controls()
        on_change(self._take_picture, *watched)
        self._take_picture()

    @property
    def drawn(self) -> Box | None:
        """The drawn box, in pixels of the upright original, or None."""
        return Box("", *self.canvas.drawn) if len(self.canvas.drawn) == 4 else None

    def ask_box(self) -> None:
        """Ask what is in the drawn box, written in the convention of the model's family."""
        if self._running:
            return
        with self.status.catching():
            self.prompt.value = BOX_QUESTION.format(self._written_box())
            self.ask()

    def export(self) -> dict:
        """Question, answer and the visible boxes, as plain values for JSON."""
        answer = None if self.reply is None else self.reply.raw
        shown = [
            asdict(item) | {"confidence": record["confidence"]}
            for item, record in zip(self.items, self.canvas.items, strict=True)
            if record["confidence"] is None or record["confidence"] >= self.threshold.value
        ]
        return {
            "model": self.vlm.name,
            "family": self.vlm.family,
            "picture": self._name,
            "size": list(self._picture.size) if self._picture else None,
            "question": self.prompt.value,
            "answer": answer,
            "threshold": self.threshold.value,
            "boxes": shown,
            "drawn": list(self.canvas.drawn) or None,
            "truth": [asdict(box) for box in self._truth()],
        }

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        # Colab loads the canvas only where the output's metadata names a manager
        _, metadata = self.canvas._repr_mimebundle_() or ({}, {})
        return super()._repr_mimebundle_(**kwargs), metadata

    def _make_box_controls(self) -> widgets.HBox:
        self.ask_box_button = button(
            "What is in this box?", "crop", self.ask_box, disabled=True,
            tooltip="draw a box on the picture first", layout=widgets.Layout(width="auto"),
        )  # fmt: skip
        self.show_truth = widgets.ToggleButton(description="Truth", icon="check-square-o")
        self.export_button = button("Export JSON", "download", self._download)
        self.threshold = widgets.FloatSlider(
            0.0, min=0.0, max=1.0, step=0.05, description="confidence ≥"
        )
        row = [self.ask_box_button, self.show_truth, self.export_button]
        return widgets.HBox(row, layout=widgets.Layout(flex_flow="row wrap"))

    def _connect_box_controls(self) -> None:
        widgets.link((self.threshold, "value"), (self.canvas, "threshold"))
        widgets.link((self.show_truth, "value"), (self.canvas, "show_truth"))
        widgets.dlink((self.ask_button, "disabled"), (self.canvas, "busy"))
        self.ask_button.observe(self._allow, names="disabled")
        self.canvas.observe(self._allow, names="drawn")
        self.canvas.on_msg(lambda _, content, __: self._take_key(content))

    def _take_picture(self) -> None:
        self._name, self._picture, self.items = "", None, []
        self.canvas.show_picture(None)
        with self.status.catching():
            if chosen := self.picker.pictures():
                self._name, self._picture = chosen[-1]
                self.canvas.show_picture(self._picture, self._name)
                self.canvas.show_true(list(self._truth()))
        self.show_truth.disabled = not self.canvas.truth
        if self.show_truth.disabled:
            self.show_truth.value = False

    def _truth(self) -> tuple[Box, ...]:
        name = self.picker.sample.value
        return bundled.samples()[name].boxes if name and not self.picker.upload.value else ()

    def _written_box(self) -> str:
        if self._picture is None or self.drawn is None:
            raise VlkitError("there is no box; draw one with the mouse on the picture")
        return format_grounding(
            self.drawn,
            family=self.vlm.family,
            image_size=self._picture.size,
            input_size=self.vlm.rules.image_size(self._picture.size),
        )

    def _media_code(self) -> list[str]:
        return self.picker.code[-1:]

    def _message(self) -> dict:
        if self._picture is None:
            raise MediaError("no picture is chosen; upload one or choose a sample")
        self._asked = (self._picture, messages.user(self.prompt.value, self._picture))
        self.scores, self.items, self.canvas.items = None, [], []
        return self._asked[1]

    def _follow(self) -> None:
        super()._follow()
        if self.reply is not None and self.reply.raw:
            self._take_reply(self.reply)

    def _take_reply(self, reply: Reply) -> None:
        """Show the answer's boxes, and how probable they are where the model can tell."""
        picture, message = self._asked
        outcome, left_out = self.status.value, ""
        if picture is self._picture:  # no other was chosen meanwhile
            self.items, left_out = reply.try_grounding()
            self.canvas.show_items(self.items, {})
        if self.vlm.scores_tokens:
            self.status.say("Computing the tokens' probabilities …")
            self.scores = token_logprobs(self.vlm, message, answer=reply)
            self.answer.value = self.scores._repr_html_()
            if picture is self._picture:
                self.canvas.show_items(self.items, dict(self.scores.confidences))
            self.status.value = outcome
        if left_out:
            self.status.say(left_out)

    def _allow(self, change: dict) -> None:
        self.ask_box_button.disabled = self.drawn is None or self.ask_button.disabled

    def _take_key(self, content: Any) -> None:
        if isinstance(content, dict) and content.get("kind") == "ask":
            self.ask_box()

    def _download(self) -> None:
        with self.status.catching():
            text = json.dumps(self.export(), ensure_ascii=False, indent=2)
            self.canvas.send({"kind": "download", "name": "vlkit-boxes.json", "text": text})
