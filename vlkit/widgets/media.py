"""Media that a panel asks about: chosen pictures and clips, their small copies, their boxes."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import PIL.Image
import traitlets

from vlkit import bundled
from vlkit.errors import MediaError, VlkitError
from vlkit.grounding.boxes import Item, Size, coordinates_of
from vlkit.media.image import Image, load_image
from vlkit.media.video import ClipInfo, Video, load_clip, probe_clip
from vlkit.messages import as_messages, iterate_media, read_media_item, text_of
from vlkit.plotting.html import data_url
from vlkit.plotting.labels import PATTERNS, label_styles, text_color
from vlkit.widgets.panel import Control, StatusLine, on_change

LARGEST = 1600  # pixels of the longer side that go to the browser
FRAME = 192  # pixels of a frame's longer side in the strip
_ids = itertools.count()


@dataclass(frozen=True, eq=False)
class ChosenMedium:
    """A picture or clip that is chosen.

    Attributes:
        name: a sample's, a file's, or an address.
        source: a path, an address or the file's bytes.
        kind: ``"sample"``, ``"upload"`` or ``"address"``.
        card: what the browser shows: name, about, thumb.
        content: the upright picture; of a clip its header. None where it cannot be read.
        problem: why it cannot be read.
        key: the same for the same medium.
        asked: what the model is asked about: the upright picture, or the clip's source.
    """

    name: str
    source: Any
    kind: str
    card: dict
    content: Any
    problem: str
    key: Any

    @property
    def asked(self) -> Any:
        return self.source if isinstance(self.content, ClipInfo) else self.content

    @property
    def code(self) -> str:
        """A Python expression; an uploaded file is represented by its name."""
        return f"vlkit.sample({self.name!r})" if self.kind == "sample" else repr(self.name)


class Picker(traitlets.HasTraits):
    """The media that the next question is about, in their order; errors go to the status line.

    Args:
        status: of the panel.
        samples: whether the first sample is chosen, and the others are offered.

    Attributes:
        media: the chosen ones; observe it to follow the choice.
        upload: uploaded files; its ``value``, set by code, is the whole choice.
        sample: the name of the chosen sample in its ``value``; "" is none.
    """

    media: traitlets.Tuple = traitlets.Tuple()
    several = True
    samples: Callable[[], Mapping[str, Any]]
    first_picture: Callable[[Any], PIL.Image.Image]  # what a thumbnail shows; raises MediaError
    read: Callable[[Any], tuple[Any, str, PIL.Image.Image]]  # content, size in words, first picture

    def __init__(self, status: StatusLine, *, samples: bool = True):
        super().__init__()
        self._status, self._setting = status, False
        self.cards = sample_cards(type(self)) if samples else ()
        names = [card["name"] for card in self.cards]
        self.sample = Control("choice", "Sample", next(iter(names), ""), options=["", *names])
        self.upload = Control("upload", "Upload", ())
        on_change(self._take_sample, self.sample)
        on_change(self._take_upload, self.upload)
        self._take_sample()

    def add(self, name: str, source: Any, kind: str, *, more: bool = True) -> None:
        """Choose one more; ``more=False`` puts it in place of all others."""
        medium = self._medium(name, source, kind)
        keep = list(self.media) if more and self.several else []
        if kind != "sample":  # a file of one's own takes the place of a sample
            keep = [each for each in keep if each.kind != "sample"]
        self.choose([*keep, medium])

    def choose(self, media: Sequence[ChosenMedium]) -> None:
        """Replace the choice."""
        if self._status.kind != "busy":  # an answer is under way
            self._status.say("")
        self.media = tuple(media)
        self._setting = True
        self.sample.value = media[0].name if [m.kind for m in media] == ["sample"] else ""
        files = [{"name": m.name, "content": m.source} for m in media if m.kind == "upload"]
        self.upload.value = tuple(files)
        self._setting = False
        with self._status.catching():
            self.check()

    def check(self) -> None:
        """Raises MediaError for the first chosen medium that cannot be read."""
        for medium in self.media:
            if medium.problem:
                raise MediaError(medium.problem)

    def _take_sample(self) -> None:
        if not self._setting:
            names = [self.sample.value] if self.sample.value else []
            self.choose([self._medium(name, bundled.sample(name), "sample") for name in names])

    def _take_upload(self) -> None:
        if not self._setting:
            files = self.upload.value
            self.choose([self._medium(f["name"], bytes(f["content"]), "upload") for f in files])

    def _medium(self, name: str, source: Any, kind: str) -> ChosenMedium:
        content, about, thumb, problem = None, "", "", ""
        try:
            content, about, picture = self.read(source)
            thumb = thumbnail(picture, 320)
        except VlkitError as error:
            problem = str(error)
            if kind == "upload":  # what is read are bytes without a name
                problem = re.sub(r"^(picture|video) of [\d,]+ bytes", lambda _: name, problem)
        card = {"name": name, "about": about, "thumb": thumb, "problem": problem}
        key = next(_ids) if kind == "upload" else name
        return ChosenMedium(name, source, kind, card, content, problem, key)


class PicturePicker(Picker):
    """Chooses pictures: samples, uploads, addresses."""

    samples = staticmethod(bundled.samples)
    first_picture = staticmethod(load_image)

    def read(self, source: Any) -> tuple[PIL.Image.Image, str, PIL.Image.Image]:
        """The upright picture, twice, and its size. Raises MediaError."""
        picture = load_image(source)
        return picture, f"{picture.width} × {picture.height}", picture


class ClipPicker(Picker):
    """Chooses a clip: a sample, an upload, an address."""

    several = False
    samples = staticmethod(bundled.clips)

    @staticmethod
    def first_picture(source: Any) -> PIL.Image.Image:
        """The first frame, small. Raises MediaError."""
        end = min(probe_clip(source).duration, 0.2)
        return small_frames(Video(source, max_frames=2, end=end))[0]

    def source(self) -> Any:
        """The chosen clip: a path, an address or bytes. Raises MediaError where there is none."""
        if not self.media:
            raise MediaError("no clip is chosen; upload one or choose a sample")
        self.check()
        return self.media[0].source

    def read(self, source: Any) -> tuple[ClipInfo, str, PIL.Image.Image]:
        """What the clip's header says, its size and length, its first frame. Raises MediaError."""
        info = probe_clip(source)
        about = f"{info.size[0]} × {info.size[1]}, {info.duration:.1f} s"
        return info, about, self.first_picture(source)


@lru_cache
def sample_cards(picker: type[Picker]) -> tuple[dict, ...]:
    """The bundled media to choose from."""
    return tuple(
        {"name": name, "about": sample.about, "about_zh": sample.about_zh,
         "thumb": thumbnail(picker.first_picture(sample.path), 96)}
        for name, sample in picker.samples().items()
    )  # fmt: skip


def small_frames(video: Video) -> list[PIL.Image.Image]:
    """A clip's sampled frames, at most ``FRAME`` pixels wide and high. Raises MediaError."""

    def small(size: Size, count: int) -> Size:
        scale = FRAME / max(size)
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    return [PIL.Image.fromarray(frame) for frame in load_clip(video, small).frames]


def media_and_text(messages: Any) -> tuple[list, str]:
    """A row's media, and its last text."""
    try:
        checked = as_messages(messages)
        media = [read_media_item(item) for item in iterate_media(checked)]
    except VlkitError:
        return [], ""
    return media, text_of(checked[-1], " ")


def picture_record(media: list, size: int) -> dict | None:
    """The last picture, or a clip's first frame, for the browser; None if it cannot be read."""
    images = [medium for medium in media if isinstance(medium, Image)]
    try:
        if images:
            picture = images[-1].load()
        else:
            picture = replace(media[-1], frames=None, max_frames=2).load().pictures[0]
    except VlkitError:
        return None  # the row's failure says why
    return {"src": thumbnail(picture, size), "size": picture.size}


def thumbnail(picture: PIL.Image.Image, size: int = LARGEST) -> str:
    """A copy as an address, at most ``size`` pixels wide and high."""
    small = picture.convert("RGB")
    small.thumbnail((size, size))
    return data_url(small)


def item_records(items: Sequence[Item], confidences: Mapping[Item, float]) -> list[dict]:
    """Boxes, points and quads as the canvas draws them, in pixels of the original."""
    styles = label_styles(item.label for item in items)
    return [item_record(item, *styles[item.label], confidences.get(item)) for item in items]


def item_record(item: Item, color: str, pattern: int, confidence: float | None) -> dict:
    """One of :func:`item_records`."""
    numbers = coordinates_of(item)  # x, y, x, y …
    return {
        "label": item.label,
        "points": [list(point) for point in zip(numbers[::2], numbers[1::2], strict=True)],
        "color": color,
        "text_color": text_color(color),
        "pattern": list(PATTERNS[pattern]),
        "confidence": confidence,
    }
