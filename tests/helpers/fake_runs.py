"""Runs without a model: answers that are made up, so that every number in them is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import PIL.Image

from vlkit import hooks
from vlkit.generation.reply import Reply, Usage

SIZE = (200, 100)


def fake_vlm(name: str = "made-up", **facts):
    """Something that has a name and a family, as a hosted model."""
    known = {"name": name, "family": "qwen2_vl", "identity": {}, "secrets": ()}
    return SimpleNamespace(**known | facts)


class Hashable(SimpleNamespace):
    """Models are told apart by what they are, not by what they hold."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


def model(name: str = "made-up", **facts) -> Hashable:
    """A model that needs no torch."""
    return Hashable(**vars(fake_vlm(name, **facts)))


def answer(raw: str = "Yes.", *, tokens=(1, 2), images=(), seconds: float = 1.0) -> Reply:
    """A Reply about pictures."""
    usage = Usage(64 * len(images), 0, 90, len(tokens))
    sizes = tuple(image.size for image in images)
    return Reply(raw, raw, usage, seconds, "qwen2_vl", tuple(images), sizes, tokens=tuple(tokens))


def boxed(label: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A box in pixels of a picture of ``SIZE``, as Qwen2-VL writes it."""
    (w, h), span = SIZE, 1000
    corners = [
        round(v * span / side) for v, side in zip((x1, y1, x2, y2), (w, h, w, h), strict=True)
    ]
    name = f"<|object_ref_start|>{label}<|object_ref_end|>"
    return f"{name}<|box_start|>({corners[0]},{corners[1]}),({corners[2]},{corners[3]})<|box_end|>"


def picture(color: str = "gray") -> PIL.Image.Image:
    """A picture of one colour."""
    return PIL.Image.new("RGB", SIZE, color)


def saved(folder: Path, name: str = "a.png", color: str = "gray") -> Path:
    """A picture file."""
    picture(color).save(folder / name)
    return folder / name


def ask(vlm, messages, *, reply=None, max_new_tokens=256, temperature=0.0, top_p=1.0, seed=None):
    """Stands for ``vlkit.generate``; gives or raises ``reply``."""
    options = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed,
    }  # fmt: skip
    with hooks.recording("generate", vlm, messages, options) as record:
        if isinstance(reply, BaseException):
            raise reply
        result = answer() if reply is None else reply
        record(result)
    return result
