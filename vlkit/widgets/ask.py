"""``AskPanel``: ask about pictures; the control that chooses them."""

from __future__ import annotations

from typing import Any

import PIL.Image

from vlkit import bundled
from vlkit.datasets.conversations import locate_prompt
from vlkit.media.image import Image, load_image
from vlkit.widgets.conversation import ChosenMedium, Panel, Picker, sample_cards, thumbnail
from vlkit.widgets.panel import Control, StatusLine, call_code


def examples_for(family: str) -> tuple[str, ...]:
    """Questions to choose from, in the words of a generation."""
    return (
        "Describe this image.",
        locate_prompt("red circle", family=family),
        "Generate the caption in English with grounding:",
        "这是什么？",
        locate_prompt("红色圆形", family=family, language="zh"),
    )


EXAMPLES = examples_for("qwen2_vl")
_TOKEN_LIMITS = [("auto", 0), *((f"{n:,}", n) for n in (4, 16, 64, 128, 256, 512, 1024, 4096))]


class AskPanel(Panel):
    """Ask a model about pictures, and go on asking: answers stream in, their boxes are drawn.

    Errors appear as one line in the panel. Every control is an attribute (``prompt``,
    ``max_new_tokens``, ``temperature``, ``image_tokens``, ``seed``, ``picker``), so code can do
    what a hand can do: ``panel.prompt.value = "这是什么？"; panel.ask(); panel.wait()``.

    Args:
        vlm: from :func:`vlkit.load`.
        samples: also offer the bundled sample pictures.
        language: ``"en"`` or ``"zh"``; the browser's by default.

    Attributes:
        reply: the Reply to the last question, also a stopped one; None at first, during an
            answer, and after an error.
        turns: the questions with their answers.
    """

    title = "Ask about pictures"

    def __init__(self, vlm: Any, *, samples: bool = True, language: str | None = None):
        limit = Control(
            "choice", "Most tokens of a picture", 0, options=_TOKEN_LIMITS, fold="Options",
            help="Fewer tokens are faster and show less detail",
        )  # fmt: skip
        super().__init__(
            vlm,
            examples_for(getattr(vlm, "family", "qwen2_vl")),
            lambda status: PicturePicker(status, samples=samples),
            sample_cards() if samples else (),
            {"image_tokens": limit},
            language,
        )

    def _media_options(self) -> dict:
        return {"max_tokens": self.image_tokens.value} if self.image_tokens.value else {}

    def _medium(self, medium: ChosenMedium, reading: dict) -> Image:
        return Image(medium.content, **reading)

    def _medium_code(self, medium: ChosenMedium, reading: dict) -> str:
        return call_code("vlkit.Image", medium.code, **reading) if reading else medium.code


class PicturePicker(Picker):
    """Chooses pictures: samples, uploads, addresses; errors go to the status line."""

    def __init__(self, status: StatusLine, *, samples: bool = True):
        super().__init__(status, list(bundled.samples()) if samples else [])

    def pictures(self) -> list[tuple[str, PIL.Image.Image]]:
        """The chosen pictures, upright, by name. Raises MediaError."""
        self.check()
        return [(medium.name, medium.content) for medium in self.media]

    def read(self, source: Any) -> tuple[PIL.Image.Image, dict]:
        """The upright picture, and its card. Raises MediaError."""
        picture = load_image(source)
        size = f"{picture.width} × {picture.height}"
        return picture, {"about": size, "thumb": thumbnail(picture, 320)}
