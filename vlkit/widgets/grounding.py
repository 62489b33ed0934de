"""``GroundingPanel``, and the canvas on which boxes are drawn by hand."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import anywidget
import ipywidgets as widgets
import PIL.Image
import traitlets

from vlkit import bundled
from vlkit.analysis.logprobs import AnswerLogprobs
from vlkit.datasets.conversations import detect_prompt, locate_prompt
from vlkit.errors import VlkitError
from vlkit.grounding.boxes import Box, Item
from vlkit.grounding.parse import format_grounding
from vlkit.plotting.comparing import TRUTH
from vlkit.widgets.ask import ChatTurn, Panel
from vlkit.widgets.media import PicturePicker, item_record, item_records, thumbnail
from vlkit.widgets.panel import STYLE, front


class BoxCanvas(anywidget.AnyWidget):
    """A picture to draw a box on with mouse or keys; all numbers are pixels of the original.

    Attributes:
        drawn: ``[x1, y1, x2, y2]``, or empty.
        items: the answer's boxes; one that a hand corrects gets other points and ``corrected``,
            one that it hides ``hidden``.
        highlighted: the index of the item under the mouse or the focus; -1 is none.
        threshold: items with a lower confidence are hidden.
        show_truth: whether the true boxes are shown, in black and white.
        busy: while True, drawing is disabled.
        language: ``"en"`` or ``"zh"``; the browser's by default.
    """

    _esm = front("controls.js", "canvas.js", default="boxCanvas")
    _css = STYLE
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
    language = traitlets.Unicode("").tag(sync=True)

    def show_picture(self, picture: PIL.Image.Image | None, about: str = "") -> None:
        """Show another picture, or none; the boxes on the last one are removed."""
        self.drawn, self.items, self.truth, self.highlighted = [], [], [], -1
        with self.hold_sync():
            self.about = about
            self.picture_size = list(picture.size) if picture else [1, 1]
            self.picture = thumbnail(picture) if picture else ""

    def show_items(self, items: list[Item], confidences: Mapping[Item, float]) -> None:
        """Show the boxes, points and quads of an answer, each with its confidence."""
        self.highlighted = -1
        self.items = item_records(items, confidences)

    def show_true(self, boxes: list[Item]) -> None:
        """The true boxes, visible while ``show_truth`` is on."""
        self.truth = [item_record(box, TRUTH, 0, None) for box in boxes]


BOX_QUESTION = "What is in this box? {}"


class OnePicture(PicturePicker):
    """Chooses one picture; another takes its place."""

    several = False


class GroundingPanel(Panel):
    """Draw a box on the picture to ask what is in it, or ask in words and see boxes.

    Names in the answer, boxes and a list under the picture are highlighted together. Each question
    is asked alone. Every control is an attribute (``picker``, ``prompt``, ``threshold``,
    ``show_truth``, ``canvas`` …), so code can do what a hand can do:
    ``panel.canvas.drawn = [40, 40, 140, 140]; panel.ask_box(); panel.wait()``.

    Args:
        vlm: from :func:`vlkit.load`.
        samples: also offer the bundled sample pictures, whose true boxes are known.
        language: ``"en"`` or ``"zh"``; the browser's by default.

    Attributes:
        reply: the Reply to the last question, also a stopped one; None at first, during an
            answer, and after an error.
        turns: the questions with their answers.
        scores: the probabilities of that reply's tokens and boxes, or None.
        items: the boxes, points and quads of that reply, in pixels of the upright original.
    """

    kind, title, continues = "grounding", "Find things in a picture", False
    groups = ("question", "grounding")
    needs = "no picture is chosen; upload one or choose a sample"
    picker_type = OnePicture
    canvas = traitlets.Instance(BoxCanvas).tag(sync=True, **widgets.widget_serialization)
    shown = traitlets.Int(-1).tag(sync=True)  # the turn whose answer is on the canvas

    def __init__(self, vlm: Any, *, samples: bool = True, language: str | None = None):
        self.scores: AnswerLogprobs | None = None
        self.items: list[Item] = []
        canvas = BoxCanvas(language=language or "")
        super().__init__(vlm, samples=samples, language=language, canvas=canvas)
        traitlets.link((self.threshold, "value"), (self.canvas, "threshold"))
        traitlets.link((self.show_truth, "value"), (self.canvas, "show_truth"))
        traitlets.dlink((self.ask_button, "disabled"), (self.canvas, "busy"))
        self.ask_button.observe(self._allow, names="disabled")
        self.canvas.observe(self._allow, names="drawn")
        self.observe(lambda _: self._show_on_canvas(-1), "turns")  # until its answer is there
        self.canvas.on_msg(self._take_key)
        self._allow()

    @staticmethod
    def examples_for(family: str) -> tuple[str, ...]:
        """Questions to choose from; the first one is the initial prompt."""
        return (
            locate_prompt("red circle", family=family),
            detect_prompt(family=family),
            "Generate the caption in English with grounding:",
            locate_prompt("红色圆形", family=family, language="zh"),
            detect_prompt(family=family, language="zh"),
        )

    @property
    def drawn(self) -> Box | None:
        """The drawn box, in pixels of the upright original, or None."""
        return Box("", *self.canvas.drawn) if len(self.canvas.drawn) == 4 else None

    def ask_box(self) -> None:
        """Ask what is in the drawn box, written in the convention of the model's family."""
        if self._running:
            return
        with self.status.catching():
            self._ask(replace(self._asked(), question=BOX_QUESTION.format(self._written_box())))

    def export(self) -> dict:
        """Question, answer and the visible boxes with their corrections, as values for JSON."""
        turn = self.turns[self.shown] if self.shown >= 0 else None
        shown = []
        for item, record in zip(self.items, self.canvas.items, strict=True):
            sure = record["confidence"] is None or record["confidence"] >= self.threshold.value
            if sure and not record.get("hidden"):
                if record.get("corrected"):
                    item = Box(item.label, *record["points"][0], *record["points"][1])
                facts = {k: record[k] for k in ("confidence", "corrected") if k in record}
                shown.append(asdict(item) | facts)
        return {
            "model": self.vlm.name,
            "family": self.vlm.family,
            "picture": self.canvas.about,
            "size": list(self._picture.size) if self._picture else None,
            "question": turn.question if turn else self.prompt.value,
            "answer": turn.reply.raw if turn and turn.reply else None,
            "threshold": self.threshold.value,
            "boxes": shown,
            "drawn": list(self.canvas.drawn) or None,
            "truth": [asdict(box) for box in self._truth()],
        }

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        # Colab loads the canvas only where the output's metadata names a manager
        _, metadata = self.canvas._repr_mimebundle_() or ({}, {})
        return super()._repr_mimebundle_(**kwargs)[0], metadata

    @property
    def _picture(self) -> PIL.Image.Image | None:
        return self.picker.media[0].content if self.picker.media else None

    def _take_media(self) -> None:
        super()._take_media()
        self._show_on_canvas(-1)
        self.canvas.show_picture(self._picture, self.picker.media[0].name if self._picture else "")
        self.canvas.show_true(list(self._truth()))
        self.show_truth.disabled = not self.canvas.truth
        self.show_truth.value &= not self.show_truth.disabled

    def _truth(self) -> tuple[Box, ...]:
        chosen = self.picker.media[0] if self.picker.media else None
        return bundled.samples()[chosen.name].boxes if chosen and chosen.kind == "sample" else ()

    def _written_box(self) -> str:
        if self._picture is None or self.drawn is None:
            raise VlkitError("there is no box; draw one with the mouse on the picture")
        size = self._picture.size
        sizes = {"image_size": size, "input_size": self.vlm.rules.image_size(size)}
        return format_grounding(self.drawn, family=self.vlm.family, **sizes)

    def _finish_turn(self, turn: ChatTurn) -> None:
        """Show the answer's boxes, and how probable they are where the model can tell."""
        reply, number = turn.reply, self.turns.index(turn)
        if reply is None or not reply.raw:
            return
        if turn.asked.media == self.picker.media:  # no other was chosen meanwhile
            self._show_on_canvas(number)
        if self.vlm.scores_tokens:
            self.status.say("Computing the tokens' probabilities …")
            scores = self._score(turn)
            if self.shown == number:
                self.scores = scores
                self.canvas.show_items(self.items, dict(scores.confidences))
            turn.items = item_records(reply.try_grounding()[0], dict(scores.confidences))

    def _show_on_canvas(self, number: int) -> None:
        """Show the answer of a turn on the canvas; of none for -1."""
        reply = self.turns[number].reply if number >= 0 else None
        self.shown, self.scores = number, None
        self.items = reply.try_grounding()[0] if reply else []
        self.canvas.show_items(self.items, {})

    def _allow(self, change: Any = None) -> None:
        self.ask_box_button.disabled = self.drawn is None or self.ask_button.disabled

    def _take_key(self, canvas: BoxCanvas, content: Any, buffers: Any) -> None:
        if content == {"kind": "ask"}:
            self.ask_box()

    def download(self) -> None:
        """Let the browser save :meth:`export` as JSON."""
        with self.status.catching():
            text = json.dumps(self.export(), ensure_ascii=False, indent=2)
            self.save_file("vlkit-boxes.json", text.encode())
