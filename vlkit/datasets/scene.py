from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.grounding.boxes import Item, Size


@dataclass(frozen=True)
class Scene:
    """One picture and what is in it.

    Attributes:
        image: its file, which need not be there where ``size`` is known.
        size: (width, height) of the upright picture.
        items: boxes, points and quads in its pixels.
        prompt: the question to which the items are the answer, or "".
    """

    image: Path
    size: Size
    items: tuple[Item, ...] = ()
    prompt: str = ""
