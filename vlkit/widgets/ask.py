"""``AskPanel``: ask about pictures; the control that chooses them."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as widgets
import PIL.Image

from vlkit import bundled, messages
from vlkit.datasets.conversations import locate_prompt
from vlkit.errors import MediaError
from vlkit.media.image import Image, load_image
from vlkit.plotting.html import image_html
from vlkit.widgets.panel import Panel, Picker, StatusLine, call_code


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
    """Ask a model about pictures: the answer streams in, and its boxes are drawn.

    Errors appear as one line in the panel. Every control is an attribute (``prompt``,
    ``max_new_tokens``, ``temperature``, ``image_tokens``, ``seed``, ``picker``), so code can do
    what a hand can do: ``panel.prompt.value = "这是什么？"; panel.ask(); panel.wait()``.

    Args:
        vlm: from :func:`vlkit.load`.
        samples: also offer the bundled sample pictures.

    Attributes:
        reply: the Reply to the last question, also a stopped one; None at first, during an
            answer, and after an error.
    """

    def __init__(self, vlm: Any, *, samples: bool = True):
        super().__init__(vlm, examples_for(getattr(vlm, "family", "qwen2_vl")))
        self.picker = PicturePicker(self.status, samples=samples)
        self.image_tokens = widgets.SelectionSlider(
            options=_TOKEN_LIMITS, value=0, description="image tokens ≤"
        )
        watched = [self.image_tokens, self.picker.sample, self.picker.upload]
        self._arrange([self.picker, self.image_tokens], watched)
        self.add_class("vlkit-ask")

    def _media_code(self) -> list[str]:
        limit, pictures = self.image_tokens.value, self.picker.code
        if not limit:
            return pictures
        return [call_code("vlkit.Image", picture, max_tokens=limit) for picture in pictures]

    def _message(self) -> dict:
        limit = self.image_tokens.value or None
        pictures = [Image(picture, max_tokens=limit) for _, picture in self.picker.pictures()]
        return messages.user(self.prompt.value, *pictures)


class PicturePicker(Picker):
    """Uploads pictures or chooses a sample, and shows them; errors go to the status line."""

    def __init__(self, status: StatusLine, *, samples: bool = True):
        super().__init__(
            status,
            list(bundled.samples()) if samples else [],
            "Picture",
            widgets.HTML(),
            accept="image/*",
            multiple=True,
            description="Upload pictures",
            tooltip="one or several pictures, together at most 10 MB",
        )

    def pictures(self) -> list[tuple[str, PIL.Image.Image]]:
        """The chosen pictures, upright, by name. Raises MediaError."""
        if self.upload.value:
            return [(file["name"], _read_upload(file)) for file in self.upload.value]
        name = self.sample.value
        return [(name, load_image(bundled.sample(name)))] if name else []

    def _show(self) -> None:
        self.view.value = ""
        with self._status.catching():
            self.view.value = "".join(_figure(*named) for named in self.pictures())
            self._status.say("")


def _read_upload(file: dict) -> PIL.Image.Image:
    try:
        return load_image(bytes(file["content"]))
    except MediaError as error:
        raise MediaError(f"{file['name']}: {error}") from error


def _figure(name: str, picture: PIL.Image.Image) -> str:
    caption = html.escape(f"{name}, {picture.width} × {picture.height} pixels")
    return f"<div>{image_html(picture, width=320, alt=name)}<br>{caption}</div>"
