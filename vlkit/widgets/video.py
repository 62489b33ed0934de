"""``VideoPanel``: ask about a clip; the control that chooses it."""

from pathlib import PurePath
from typing import Any

import traitlets

from vlkit.analysis.preflight import ClipView, view_clip
from vlkit.media.video import Video
from vlkit.plotting.html import data_url
from vlkit.widgets.ask import Panel
from vlkit.widgets.media import ChosenMedium, ClipPicker, small_frames
from vlkit.widgets.panel import Debounce, on_change

CLIP_EXAMPLES = (
    "Describe this video.",
    "How does the red circle move?",
    "What moves to the right?",
    "描述这段视频。",
    "红色圆形往哪个方向移动？",
)
QUIET = 0.3  # seconds without a change before frames are decoded
# what a browser can play, by the file's suffix
_PLAYABLE = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm",
             ".ogv": "video/ogg", ".gif": "image/gif"}  # fmt: skip


class VideoPanel(Panel):
    """Ask a model about a clip: play it, choose the frames, ask; the answer streams in.

    The strip shows the frames that the model will see, with their times; the line above it, their
    number of tokens. Times that an answer names are marked on the strip. Every control is an
    attribute (``fps``, ``max_frames``, ``part``, ``prompt``, ``picker`` …), so code can do what a
    hand can do: ``panel.fps.value = 4; panel.ask(); panel.wait()``.

    Args:
        vlm: from :func:`vlkit.load`.
        samples: also offer the bundled clips.
        language: ``"en"`` or ``"zh"``; the browser's by default.

    Attributes:
        reply: the Reply to the last question, also a stopped one; None at first, during an
            answer, and after an error.
        turns: the questions with their answers.
        view: the frames, times and tokens for the present controls, as :func:`vlkit.preflight`
            computes them; None without a clip.
        count: their number and tokens in words.
        strip: each frame's time in seconds, and a small copy of it.
    """

    kind, title = "video", "Ask about a clip"
    groups = ("question", "video")
    needs = "no clip is chosen; upload one or choose a sample"
    picker_type, reader = ClipPicker, Video
    examples_for = staticmethod(lambda family: CLIP_EXAMPLES)
    clip: traitlets.Dict = traitlets.Dict().tag(sync=True)  # the file as the browser plays it
    count = traitlets.Unicode().tag(sync=True)
    strip: traitlets.List = traitlets.List().tag(sync=True)

    def __init__(self, vlm: Any, *, samples: bool = True, language: str | None = None):
        self.view: ClipView | None = None
        self._later = Debounce(self._show_strip, QUIET)
        super().__init__(vlm, samples=samples, language=language)
        on_change(self._sample, self.fps, self.max_frames, self.part)

    @property
    def video(self) -> Video:
        """The chosen clip with the controls' options. Raises MediaError where none is chosen."""
        return Video(self.picker.source(), **self._media_options())

    def _media_options(self) -> dict:
        start, end = self.part.value
        options = {"fps": self.fps.value, "max_frames": self.max_frames.value}
        options |= {"start": start} if start > 0 else {}
        return options | ({"end": end} if end < self.part.look["max"] else {})

    def _take_media(self) -> None:
        clip = self.picker.media[0] if self.picker.media else None
        self.part.disabled = clip is None or clip.content is None
        self.clip = _playable(clip) if clip else {}
        if clip and clip.content:
            duration = clip.content.duration
            step = max(0.1, round(duration / 100, 1))
            with self.part.hold_trait_notifications():
                self.part.look = self.part.look | {"max": duration, "step": step}
                self.part.value = (0.0, duration)
        super()._take_media()
        self._sample()

    def _sample(self) -> None:
        self.view, self.count = None, ""
        clip = self.picker.media[0] if self.picker.media else None
        with self.status.catching():
            if clip and clip.content:
                self.view = view_clip(self.vlm.rules, self.video, clip.content)
                self.count = _cost(self.view)
                if self.status.kind == "error":
                    self.status.say("")
        self._later.call()

    def _show_strip(self) -> None:
        view, shown = self.view, list[dict]()
        with self.status.catching():
            frames = zip(view.timestamps, small_frames(view.video), strict=True) if view else ()
            shown = [{"time": time, "thumb": data_url(frame)} for time, frame in frames]
        if view is self.view:  # no other clip was chosen meanwhile
            self.strip = shown


def _playable(clip: ChosenMedium) -> dict:
    kind = _PLAYABLE.get(PurePath(str(clip.name)).suffix.lower())
    source = clip.source
    if clip.kind == "sample":
        kind, source = _PLAYABLE[source.suffix], source.read_bytes()
    if clip.problem or not isinstance(source, bytes):
        return {}
    return {"type": kind or "", "name": clip.name, "content": source if kind else b""}


def _cost(view: ClipView) -> str:
    width, height = view.input_size
    count = len(view.indices)
    frames = f"{count} of {view.info.total_frames} frames" if count > 1 else "1 frame"
    return f"{frames}, seen at {width}×{height}: {view.tokens:,} tokens"
