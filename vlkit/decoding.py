"""Readers of clips: the frames at rising times, by seeking where that saves decoding."""

from __future__ import annotations

import bisect
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import PIL.Image

from vlkit.errors import MediaError
from vlkit.grounding import Size
from vlkit.media import load_image
from vlkit.sources import is_url, local_path, read_bytes

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# what holds its frames itself; a playlist would have ffmpeg open what it names
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,ogg,flv,asf,"
    "ivf,nut,h264,hevc,m4v,mjpeg,yuv4mpegpipe"
)
_TURNS = {
    1: PIL.Image.Transpose.ROTATE_90,
    2: PIL.Image.Transpose.ROTATE_180,
    3: PIL.Image.Transpose.ROTATE_270,
}


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


def pictures_of(folder: Path, name: str) -> list[Path]:
    """The picture files of a folder, in natural order: 2 before 10. Raises MediaError."""

    def natural(path: Path) -> list:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]

    found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES]
    if not found:
        raise MediaError(f"{name} is a folder without pictures; pass a folder that holds some")
    return sorted(found, key=natural)


class FrameReader:
    """Reads frames that are taken already."""

    def __init__(self, sources: Sequence[Any], fps: float, name: str):
        if not sources:
            raise MediaError(f"{name} holds no frames")
        self._sources, self._name = sources, name
        self.info = ClipInfo(load_image(sources[0]).size, float(fps), len(sources))

    def __enter__(self) -> FrameReader:
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


class FileReader:
    """Reads an encoded clip through PyAV."""

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
        self._rotation = round(first.rotation / 90) % 4
        size = (first.width, first.height)
        fps, total = self._count()
        self.info = ClipInfo(size[::-1] if self._rotation % 2 else size, fps, total)

    def __enter__(self) -> FileReader:
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
        keyframes = self._keyframes
        if not keyframes:
            return before - after > 10.0  # no index: seek over long stretches only
        position = bisect.bisect_right(keyframes, before) - 1
        return position >= 0 and keyframes[position] > after

    @cached_property
    def _keyframes(self) -> list[float]:
        """Times of the keyframes in the container's index, empty where it has none."""
        base = float(self._stream.time_base or 0)
        entries = [e for e in self._stream.index_entries if e.is_keyframe]
        return sorted(e.timestamp * base - self._origin for e in entries)

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
        return av.open(source, timeout=30.0, options={"format_whitelist": CONTAINERS})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(
            f"{name} is not a clip that can be read ({error}); expected mp4, webm, mov, mkv, avi, "
            "gif …, whole"
        ) from error
