"""A Reply: what the model answered, read, counted and shown."""

from __future__ import annotations

import html
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import PIL.Image

from vlkit.comparison import data_url
from vlkit.deferred import DeferredClips, DeferredImages
from vlkit.errors import GroundingParseError, VlkitError
from vlkit.grounding import Box, Item, Point, Size, read_grounding
from vlkit.plotting import draw_boxes, draw_frames
from vlkit.video import Clip


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer; ``prompt_tokens`` counts everything before it, media included."""

    image_tokens: int
    video_tokens: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, eq=False)
class Reply:
    """One answer.

    Attributes:
        text: the answer without special tokens; a prefill stands at its beginning.
        raw: the answer with its special tokens, as the model wrote it.
        usage: token counts.
        seconds: wall time from messages to answer.
        family: of the model, which says how ``raw`` is read.
        images: the upright originals, in the order of the conversation (those of a batch are read
            again from their sources when they are looked at).
        input_sizes: (width, height) of each picture as the model saw it.
        clips: the sampled clips, their frames as the model saw them.
        finish_reason: ``"stop"``, ``"length"`` (``max_new_tokens`` reached) or ``"cancelled"``.
        cost: of a hosted model whose ``prices`` are known, in their currency; else None.
        tokens: the ids of the new tokens; empty where they are not known, as of a row read from
            a file.
    """

    text: str
    raw: str
    usage: Usage
    seconds: float
    family: str
    images: Sequence[PIL.Image.Image] = field(default=(), repr=False)
    input_sizes: tuple[Size, ...] = ()
    clips: Sequence[Clip] = field(default=(), repr=False)
    finish_reason: str = "stop"
    cost: float | None = None
    tokens: tuple[int, ...] = field(default=(), repr=False)

    @property
    def image_sizes(self) -> tuple[Size, ...]:
        """(width, height) of each upright original."""
        if isinstance(self.images, DeferredImages):
            return self.images.sizes
        return tuple(image.size for image in self.images)

    @property
    def clip_sizes(self) -> tuple[tuple[Size, Size], ...]:
        """Of each clip the (width, height) of the original and of the frames as the model saw."""
        if isinstance(self.clips, DeferredClips):
            return self.clips.sizes
        return tuple((clip.info.size, clip.frame_size) for clip in self.clips)

    def grounding(self, image: int = -1) -> list[Item]:
        """Boxes, points and quads read as coordinates of one of the pictures, by default the last.

        Where there is none, of the last clip's frames.

        Raises:
            GroundingParseError: the answer holds coordinates that cannot be read.
        """
        return self._warned(image)

    @property
    def boxes(self) -> list[Box]:
        """Boxes in pixels of the last picture's upright original; see :meth:`grounding`."""
        return [item for item in self._warned() if isinstance(item, Box)]

    @property
    def points(self) -> list[Point]:
        """Points in pixels of the last picture's upright original; see :meth:`grounding`."""
        return [item for item in self._warned() if isinstance(item, Point)]

    def plot(self, image: int = -1, *, clip: int | None = None) -> PIL.Image.Image:
        """The picture (by default the last) with the answer's boxes and points.

        Where there is none, or with ``clip=`` the number of one: the clip's sampled frames with
        their times, and the boxes on each.
        """
        if clip is not None or (self.clips and not self.images):
            shown = _pick(self.clips, -1 if clip is None else clip, "clip")
            return draw_frames(shown, [] if self.images else self._warned())
        if not self.images:
            raise VlkitError("this reply is about no picture; pass one to vlkit.user to plot it")
        return draw_boxes(_pick(self.images, image, "image"), self._warned(image))

    def _warned(self, image: int = -1) -> list[Item]:
        items, left_out = self.read_grounding(image)
        if left_out:
            warnings.warn(left_out, stacklevel=3)  # the line that asked, outside this module
        return items

    def read_grounding(self, image: int = -1) -> tuple[list[Item], str]:
        """:meth:`grounding` with what was left out as a second value, and no warning."""
        if self.images:
            size = _pick(self.image_sizes, image, "image")
            input_size = self.input_sizes[image] if self.input_sizes else None
        elif self.clips:
            size, input_size = self.clip_sizes[-1]
        else:
            return [], ""
        return read_grounding(self.raw, family=self.family, image_size=size, input_size=input_size)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        text = html.escape(self.text).replace("\n", "<br>")
        usage = self.usage
        line = (
            f"{usage.prompt_tokens:,} prompt tokens ({_media_tokens(usage)}), "
            f"{usage.new_tokens:,} new, {self.seconds:.2f} s"
        )
        if self.finish_reason != "stop":
            line += f", ended by {self.finish_reason}"
        if self.cost is not None:
            line += f", cost {self.cost:.2g}"
        pictures = self._repr_pictures()
        return (
            f'<div style="max-width:640px"><p style="font-size:1.05em;margin:4px 0">{text}</p>'
            f'{pictures}<p style="opacity:.65;font-size:.85em;margin:4px 0">{line}</p></div>'
        )

    def _repr_pictures(self) -> str:
        if not self.images and not self.clips:
            return ""
        try:
            items, note = self.read_grounding()
        except GroundingParseError as error:
            items, note = [], str(error)
        if note:
            note = f'<p style="color:#B45309;font-size:.85em;margin:4px 0">{html.escape(note)}</p>'
        if self.images:
            return image_html(draw_boxes(self.images[-1], items), alt=self.text) + note
        return image_html(draw_frames(self.clips[-1], items), alt=self.text) + note


@dataclass(frozen=True)
class Failure:
    """A row of a batch that got no answer.

    Attributes:
        error: what was wrong and what to do, in one line.
        kind: the error's class, such as ``"MediaError"``.
    """

    error: str
    kind: str = "VlkitError"

    def __str__(self) -> str:
        return f"{self.kind}: {self.error}"

    def _repr_html_(self) -> str:
        return f'<p style="color:#B45309;margin:4px 0">{html.escape(str(self))}</p>'


def _pick(those: Sequence, index: int, name: str) -> Any:
    if not -len(those) <= index < len(those):
        raise VlkitError(f"{name}={index} is not there; this reply is about {len(those)}")
    return those[index]


def _media_tokens(usage: Usage) -> str:
    kinds = (("image", usage.image_tokens), ("video", usage.video_tokens))
    parts = [f"{count:,} of them {kind}" for kind, count in kinds if count]
    return ", ".join(parts) or "text alone"


def image_html(picture: PIL.Image.Image, *, width: int = 640, alt: str = "") -> str:
    """An ``<img>`` that holds the picture itself, at most ``width`` pixels wide."""
    picture = picture.convert("RGB")
    picture.thumbnail((width, 2 * width))
    alt = html.escape(alt[:200], quote=True)
    return f'<img src="{data_url(picture)}" alt="{alt}" style="max-width:100%;height:auto">'
