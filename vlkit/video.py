"""Clips: a few frames at exact times, decoded without reading what lies between."""

from __future__ import annotations

import bisect
import io
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from vlkit.errors import MediaError
from vlkit.grounding import Size
from vlkit.media import describe_source, load_image
from vlkit.sources import is_url, local_path, read_bytes

MAX_FRAMES = 128  # a minute at two frames a second
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_TURNS = {
    1: PIL.Image.Transpose.ROTATE_90,
    2: PIL.Image.Transpose.ROTATE_180,
    3: PIL.Image.Transpose.ROTATE_270,
}
Resize = Callable[[Size, int], Size]  # ((width, height) of the upright original, frames) → new size


@dataclass(frozen=True)
class Video:
    """A clip together with how it is to be sampled.

    Args:
        source: path, URL or bytes of mp4, webm, mov, avi, mkv, gif …; or frames that are taken
            already: a folder of pictures (in natural order), a list of anything that
            ``vlkit.Image`` takes, or an array (frames, height, width, 3) of uint8.
        fps: frames to sample per second of the clip.
        frames: how many frames to sample, instead of ``fps``.
        max_frames: the most frames that ``fps`` may give; they are then spread evenly.
        start, end: the part to look at, in seconds.
        max_frame_tokens: the most tokens that one frame may cost.
        source_fps: the rate at which frames that are taken already were taken.
    """

    source: Any
    fps: float = 2.0
    frames: int | None = None
    max_frames: int = MAX_FRAMES
    start: float | None = None
    end: float | None = None
    max_frame_tokens: int | None = None
    source_fps: float = 2.0

    def __post_init__(self):
        _check_options(self)

    def load(self, resize: Resize | None = None) -> Clip:
        """Decode the sampled frames. Raises MediaError. See :func:`load_clip`."""
        return load_clip(self, resize)


@dataclass(frozen=True)
class ClipInfo:
    """What a clip's header says.

    Attributes:
        size: (width, height) of the upright frames.
        fps: its own frames per second (the mean, where they vary).
        total_frames: how many frames it has.
    """

    size: Size
    fps: float
    total_frames: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.total_frames / self.fps


@dataclass(frozen=True, eq=False)
class Clip:
    """The sampled frames of a video.

    Attributes:
        frames: (count, height, width, 3) uint8, upright RGB.
        indices: which of the clip's frames they are, counted at its mean rate.
        range_frames: how many frames the sampled part of the clip has.
        info: the whole clip's size, rate and length.
        name: for messages and reports.
    """

    frames: np.ndarray = field(repr=False)
    indices: tuple[int, ...]
    range_frames: int
    info: ClipInfo
    name: str

    @property
    def frame_size(self) -> Size:
        """(width, height) of ``frames``."""
        return self.frames.shape[2], self.frames.shape[1]

    @property
    def timestamps(self) -> tuple[float, ...]:
        """Seconds from the beginning of the clip at which each frame is on screen."""
        return tuple(index / self.info.fps for index in self.indices)

    @property
    def metadata(self) -> dict:
        """As transformers' ``VideoMetadata`` wants it; with ``do_sample_frames=False``."""
        return {
            "total_num_frames": self.range_frames,
            "fps": self.info.fps,
            "frames_indices": list(self.indices),
            "width": self.info.size[0],
            "height": self.info.size[1],
            "duration": self.range_frames / self.info.fps,
            "video_backend": "pyav",
        }

    @property
    def pictures(self) -> list[PIL.Image.Image]:
        """The frames as PIL images."""
        return [PIL.Image.fromarray(frame) for frame in self.frames]


def load_clip(video: Any, resize: Resize | None = None) -> Clip:
    """Sample a video.

    Frames are chosen by qwen-vl-utils' ``smart_nframes``, evenly spread over the part asked for.
    A frame is the one that is on screen at its time, also where the frame rate varies. Memory is
    bounded by the frames kept; what lies between is skipped by seeking.

    Args:
        video: a :class:`Video` or anything that it takes.
        resize: gives each frame's (width, height) from the original's and the count of frames.

    Raises:
        MediaError: naming the source and the remedy.
    """
    video = video if isinstance(video, Video) else Video(video)
    name = _name(video.source)
    with _open(video, name) as reader:
        indices, range_frames = sample_indices(video, reader.info, name)
        size = resize(reader.info.size, len(indices)) if resize else reader.info.size
        frames = np.empty((len(indices), size[1], size[0], 3), np.uint8)
        for position, picture in enumerate(reader.read(indices)):
            if picture.size != size:
                picture = picture.resize(size, PIL.Image.Resampling.BICUBIC)
            frames[position] = np.asarray(picture)
    return Clip(frames, tuple(indices), range_frames, reader.info, name)


def probe_clip(video: Any) -> ClipInfo:
    """Size, rate and length of a video, from its header; no frame but the first is decoded."""
    video = video if isinstance(video, Video) else Video(video)
    with _open(video, _name(video.source)) as reader:
        return reader.info


def sample_indices(video: Video, info: ClipInfo, name: str = "video") -> tuple[list[int], int]:
    """Which frames a video's options choose, and how many the sampled part has."""
    first, last = _frame_range(video, info, name)
    total = last - first + 1
    if total == 1:
        return [first], 1
    from qwen_vl_utils.vision_process import smart_nframes

    options: dict = {"fps": video.fps, "max_frames": min(video.max_frames, total)}
    options["min_frames"] = min(4, video.max_frames)
    if video.frames is not None:
        if video.frames > total:
            raise MediaError(f"frames={video.frames}, but {name} has only {total} there; ask fewer")
        options = {"nframes": max(2, video.frames)}
    count = min(smart_nframes(options, total, info.fps), total)
    return [round(value) for value in np.linspace(first, last, count)], total


def _frame_range(video: Video, info: ClipInfo, name: str) -> tuple[int, int]:
    start, end = video.start or 0.0, info.duration if video.end is None else video.end
    if start >= info.duration:
        raise MediaError(f"start={start:g} lies behind the end of {name} ({info.duration:.2f} s)")
    first = min(int(np.ceil(start * info.fps - 1e-6)), info.total_frames - 1)
    last = min(int(np.floor(end * info.fps + 1e-6)), info.total_frames - 1)
    return first, max(first, last)


def _check_options(video: Video) -> None:
    positive = {name: getattr(video, name) for name in ("fps", "source_fps", "max_frames")}
    positive |= {n: getattr(video, n) for n in ("frames", "max_frame_tokens")}
    for name, value in positive.items():
        whole = name not in ("fps", "source_fps")
        if value is None and name in ("frames", "max_frame_tokens"):
            continue
        if not isinstance(value, int if whole else int | float) or not 0 < value < 1e6:
            kind = "a whole number" if whole else "a number"
            raise MediaError(f"{name}={value!r} must be {kind} above 0")
    if video.max_frames < 2:
        raise MediaError(f"max_frames={video.max_frames} must be at least 2")
    for name in ("start", "end"):
        value = getattr(video, name)
        if value is not None and not (isinstance(value, int | float) and 0 <= value < 1e9):
            raise MediaError(f"{name}={value!r} must be seconds from the beginning, 0 or more")
    if video.end is not None and video.end <= (video.start or 0):
        raise MediaError(f"end={video.end:g} must come after start={video.start or 0:g}")


def _name(source: Any) -> str:
    if isinstance(source, list | tuple):
        return f"list of {len(source)} frames"
    return describe_source(source).replace("picture of", "video of")


def _open(video: Video, name: str):
    source = video.source
    if isinstance(source, list | tuple):
        return _Frames(list(source), video.source_fps, name)
    if isinstance(source, np.ndarray):
        if source.ndim != 4:
            raise MediaError(f"{name} is no clip; expected (frames, height, width, 3)")
        return _Frames(list(source), video.source_fps, name)
    if isinstance(source, str | os.PathLike) and not is_url(source):
        folder = Path(local_path(source))
        if folder.is_dir():
            return _Frames(_pictures_of(folder, name), video.source_fps, name)
    return _File(source, name)


def _pictures_of(folder: Path, name: str) -> list[Path]:
    def natural(path: Path) -> list:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]

    found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES]
    if not found:
        raise MediaError(f"{name} is a folder without pictures; pass a clip or a folder of frames")
    return sorted(found, key=natural)


class _Frames:
    """A reader of frames that are taken already."""

    def __init__(self, sources: Sequence[Any], fps: float, name: str):
        if not sources:
            raise MediaError(f"{name} holds no frames")
        self._sources, self._name = sources, name
        self.info = ClipInfo(load_image(sources[0]).size, float(fps), len(sources))

    def __enter__(self) -> _Frames:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def read(self, indices: Sequence[int]) -> Iterator[PIL.Image.Image]:
        for index in indices:
            picture = load_image(self._sources[index])
            if picture.size != self.info.size:
                raise MediaError(
                    f"{self._name}: frame {index} is {picture.width}×{picture.height}, the first "
                    f"{self.info.size[0]}×{self.info.size[1]}; frames of a clip have one size"
                )
            yield picture


class _File:
    """A reader of an encoded clip, through PyAV."""

    def __init__(self, source: Any, name: str):
        import av

        self._name = name
        self._container = _open_container(source, name)
        if not self._container.streams.video:
            raise MediaError(f"{name} holds no pictures, only sound; pass a clip with video")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._errors = (av.FFmpegError, ValueError, OSError)
        first = next(self._decode(), None)
        if first is None:
            raise MediaError(f"{name} holds no frame that can be decoded; save it again")
        self._origin = first.time or 0.0
        self._index: list[float] | None = None
        self._rotation = round(first.rotation / 90) % 4
        size = (first.width, first.height)
        fps, total = self._count()
        self.info = ClipInfo(size[::-1] if self._rotation % 2 else size, fps, total)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    def _decode(self) -> Iterator[Any]:
        try:
            yield from self._container.decode(self._stream)
        except self._errors as error:
            raise MediaError(
                f"{self._name} is damaged at byte level ({error}); save it again"
            ) from error

    def _count(self) -> tuple[float, int]:
        """Mean frames per second, and the number of frames."""
        stream, total = self._stream, self._stream.frames
        seconds = None
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        elif self._container.duration:
            seconds = self._container.duration / 1e6
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        if not seconds or not (total or rate):
            return self._count_packets(rate)
        total = total or max(1, round(seconds * rate))
        return (total / seconds if total > 1 else rate or 1.0), total

    def _count_packets(self, rate: float) -> tuple[float, int]:
        self._container.seek(0)
        times = [
            p.pts * p.time_base for p in self._container.demux(self._stream) if p.pts is not None
        ]
        span = float(max(times) - min(times)) if times else 0.0
        total = max(1, len(times))
        return ((total - 1) / span if span else rate or 1.0), total

    def read(self, indices: Sequence[int]) -> Iterator[PIL.Image.Image]:
        """The frame on screen at each index's time; indices rise."""
        frames, shown, ahead = self._seek(0.0), None, None
        tolerance = 0.5 / self.info.fps
        for index in indices:
            time = index / self.info.fps
            if shown is not None and self._keyframe_between(self._time(shown), time):
                frames, shown, ahead = self._seek(time), None, None
            while ahead := ahead or next(frames, None):
                if self._time(ahead) > time + tolerance:
                    break
                shown, ahead = ahead, None
            frame = shown or ahead
            if frame is None or (ahead is None and time - self._time(frame) > self._longest_hold()):
                raise MediaError(
                    f"{self._name} cannot be decoded at {time:.2f} of {self.info.duration:.2f} s; "
                    "it is truncated, so save it again, or pass end="
                )
            yield self._upright(frame)

    def _time(self, frame: Any) -> float:
        return (frame.time or 0.0) - self._origin

    def _longest_hold(self) -> float:
        """How long a last frame may stay on screen before the file counts as truncated."""
        return max(1.0, 3 / self.info.fps)

    def _keyframe_between(self, after: float, before: float) -> bool:
        """Whether seeking to ``before`` saves decoding from ``after`` on."""
        keyframes = self._keyframes()
        if not keyframes:
            return before - after > 10.0  # no index: seek over long stretches only
        position = bisect.bisect_right(keyframes, before) - 1
        return position >= 0 and keyframes[position] > after

    def _keyframes(self) -> list[float]:
        """Times of the keyframes in the container's index, empty where it has none."""
        if self._index is None:
            base = float(self._stream.time_base or 0)
            entries = [e for e in self._stream.index_entries if e.is_keyframe]
            self._index = sorted(e.timestamp * base - self._origin for e in entries)
        return self._index

    def _seek(self, time: float) -> Iterator[Any]:
        """Frames from the last keyframe at or before a time on."""
        for back in (0.0, 2.0, 20.0):
            target = max(0.0, time - back) + self._origin
            self._container.seek(int(target / self._stream.time_base), stream=self._stream)
            frames = self._decode()
            first = next(frames, None)
            if first is not None and (self._time(first) <= time or target <= self._origin):
                return itertools.chain([first], frames)
        self._container.seek(0)
        return self._decode()

    def _upright(self, frame: Any) -> PIL.Image.Image:
        picture = frame.to_image()
        return picture.transpose(_TURNS[self._rotation]) if self._rotation else picture


def _open_container(source: Any, name: str) -> Any:
    import av

    if isinstance(source, bytes | bytearray | memoryview) or is_url(source):
        source = io.BytesIO(read_bytes(source, name))
    elif isinstance(source, str | os.PathLike):
        source = local_path(source)
        if not os.path.isfile(source):
            raise MediaError(f"{name} does not exist, or is no regular file; check the path")
    else:
        raise MediaError(
            f"cannot read a clip from a {type(source).__name__}; pass a path, URL, bytes, a folder "
            "or list of frames, or an array (frames, height, width, 3)"
        )
    try:
        return av.open(source, timeout=30.0)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(
            f"{name} is not a clip that can be read ({error}); expected mp4, webm, mov, mkv, avi, "
            "gif …, whole"
        ) from error
