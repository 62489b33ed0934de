"""``VideoPanel``: ask about a clip; the control that chooses it."""

from __future__ import annotations

import html
from pathlib import PurePath
from typing import Any

import ipywidgets as widgets

from vlkit import bundled, messages
from vlkit.analysis.preflight import ClipView, find_target, view_clip
from vlkit.errors import MediaError, VlkitError
from vlkit.grounding.boxes import Size
from vlkit.media.video import ClipInfo, Video, load_clip, probe_clip
from vlkit.plotting.draw import draw_frames
from vlkit.plotting.html import image_html
from vlkit.widgets.panel import Debounce, Panel, Picker, StatusLine, call_code, on_change

CLIP_EXAMPLES = (
    "Describe this video.",
    "How does the red circle move?",
    "What moves to the right?",
    "描述这段视频。",
    "红色圆形往哪个方向移动？",
)
QUIET = 0.3  # seconds without a change before frames are decoded
# what a browser can play, by the file's suffix
_PLAYABLE = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mp4", ".webm": "webm", ".ogv": "ogg"}


class VideoPanel(Panel):
    """Ask a model about a clip: play it, choose the frames, ask; the answer streams in.

    The strip shows the frames that the model will see, with their times; the line above it, their
    number of tokens. Every control is an attribute (``fps``, ``max_frames``, ``part``, ``prompt``,
    ``picker`` …), so code can do what a hand can do:
    ``panel.fps.value = 4; panel.ask(); panel.wait()``.

    Args:
        vlm: from :func:`vlkit.load`.
        samples: also offer the bundled clips.

    Attributes:
        reply: the Reply to the last question, also a stopped one; None at first, during an
            answer, and after an error.
        view: the frames, times and tokens for the present controls, as :func:`vlkit.preflight`
            computes them; None without a clip.
    """

    def __init__(self, vlm: Any, *, samples: bool = True):
        super().__init__(vlm, CLIP_EXAMPLES)
        self._target = find_target(vlm)
        self.view: ClipView | None = None
        self._info: ClipInfo | None = None
        self._later = Debounce(self._show_strip, QUIET)
        self.picker = ClipPicker(self.status, samples=samples)
        self._make_sampling()
        sampling = [self.fps, self.max_frames, self.part]
        chosen = [self.picker.sample, self.picker.upload]
        self._arrange([self.picker, *sampling, self.count], sampling + chosen, [self.strip])
        self.add_class("vlkit-video")
        on_change(self._sample, *sampling)
        on_change(self._take_clip, *chosen)
        self._take_clip()

    @property
    def video(self) -> Video:
        """The chosen clip with the controls' options. Raises MediaError where none is chosen."""
        return Video(self.picker.source(), **self._sampling())

    def _sampling(self) -> dict:
        start, end = self.part.value
        options = {"fps": self.fps.value, "max_frames": self.max_frames.value}
        options |= {"start": start} if start > 0 else {}
        return options | ({"end": end} if end < self.part.max else {})

    def _media_code(self) -> list[str]:
        return [call_code("vlkit.Video", clip, **self._sampling()) for clip in self.picker.code]

    def _message(self) -> dict:
        return messages.user(self.prompt.value, self.video)

    def _make_sampling(self) -> None:
        self.fps = widgets.FloatSlider(
            2.0, min=0.5, max=10.0, step=0.5, readout_format=".1f", description="frames per s"
        )
        self.max_frames = widgets.IntSlider(16, 2, 128, description="frames ≤")
        self.part = widgets.FloatRangeSlider(
            value=(0.0, 1.0), max=1.0, step=0.05, readout_format=".1f", description="from – to"
        )
        self.count, self.strip = widgets.HTML(), widgets.HTML()

    def _take_clip(self) -> None:
        self._info, self.part.disabled = None, True
        with self.status.catching():
            if self.picker.chosen:
                self._info = self.picker.probe()
                self._set_length(self._info.duration)
            self.status.say("")
        self._sample()

    def _set_length(self, duration: float) -> None:
        with self.part.hold_trait_notifications():
            self.part.max, self.part.step = duration, max(0.1, round(duration / 100, 1))
            self.part.value = (0.0, duration)
        self.part.disabled = False

    def _sample(self) -> None:
        self.view, self.count.value = None, ""
        with self.status.catching():
            if self._info is not None:
                self.view = view_clip(self._target, self.video, self._info)
                self.count.value = html.escape(_cost(self.view))
                if 'role="alert"' in self.status.value:
                    self.status.say("")
        self._later.call()

    def _show_strip(self) -> None:
        view, shown = self.view, ""
        with self.status.catching():
            if view is not None:
                columns = 4 if len(view.indices) <= 8 else 8 if len(view.indices) <= 32 else 12
                clip = load_clip(view.video, lambda size, count: _thumbnail(size, 800 // columns))
                alt = f"{len(view.indices)} frames of {self.picker.chosen}"
                shown = image_html(draw_frames(clip, columns=columns), width=824, alt=alt)
        if view is self.view:  # no other clip was chosen meanwhile
            self.strip.value = shown


class ClipPicker(Picker):
    """Uploads a clip or chooses a sample, and plays it; errors go to the status line."""

    def __init__(self, status: StatusLine, *, samples: bool = True):
        super().__init__(
            status,
            list(bundled.clips()) if samples else [],
            "Clip",
            widgets.Box(),
            accept="video/*,image/gif,.mkv",
            multiple=False,
            description="Upload a clip",
            tooltip="mp4, webm, mov, mkv, avi or gif, at most 10 MB",
        )

    @property
    def chosen(self) -> str:
        """The clip's name; "" where none is chosen."""
        return self.upload.value[0]["name"] if self.upload.value else self.sample.value

    def source(self) -> Any:
        """The chosen clip, a path or bytes. Raises MediaError where there is none."""
        if self.upload.value:
            return bytes(self.upload.value[0]["content"])
        if not self.sample.value:
            raise MediaError("no clip is chosen; upload one or choose a sample")
        return bundled.sample(self.sample.value)

    def probe(self) -> ClipInfo:
        """What the chosen clip's header says. Raises MediaError with its name."""
        try:
            return probe_clip(self.source())
        except VlkitError as error:
            name = f"{self.chosen}: " if self.upload.value else ""
            raise MediaError(f"{name}{error}") from error

    def _show(self) -> None:
        with self._status.catching():
            self.view.children = [_player(*self._file())] if self.chosen else []

    def _file(self) -> tuple[str, bytes]:
        source = self.source()
        if isinstance(source, bytes):
            return self.chosen, source
        return source.name, source.read_bytes()


def _player(name: str, content: bytes) -> widgets.Widget:
    suffix = PurePath(name).suffix.lower()
    if suffix == ".gif":
        return widgets.Image(value=content, format="gif")
    if suffix not in _PLAYABLE:
        return widgets.Label(f"Browsers do not play {suffix or 'this'}; see its frames.")
    return widgets.Video(value=content, format=_PLAYABLE[suffix], autoplay=False, loop=False)


def _cost(view: ClipView) -> str:
    width, height = view.input_size
    count = len(view.indices)
    frames = f"{count} of {view.info.total_frames} frames" if count > 1 else "1 frame"
    return f"{frames}, seen at {width}×{height}: {view.tokens:,} tokens"


def _thumbnail(size: Size, width: int) -> Size:
    return width, max(1, round(size[1] * width / size[0]))
