"""``Video``: which frames of a clip are sampled, and how they are read."""

from __future__ import annotations

import bisect
import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from vlkit.errors import MediaError, check_whole, is_number, warn_user
from vlkit.grounding.boxes import Size
from vlkit.media.image import TURNS, Deferred, describe_source, load_image, pictures_of
from vlkit.media.sources import is_url, local_path, read_bytes

# files that contain their frames; a playlist would make ffmpeg open other files
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,ogg,flv,asf,"
    "ivf,nut,h264,hevc,obu,m4v,mjpeg,yuv4mpegpipe"
)
_UNSEEKABLE = ("mpeg", "mpegvideo")  # times in them are guessed, and shifted after seeking
_SLACK = 1e-3  # seconds by which containers round the times of frames


@dataclass(frozen=True)
class ClipInfo:
    """What a clip's header says.

    Attributes:
        size: (width, height) of the upright frames.
        fps: frames per second (the mean, where the rate varies).
        total_frames: the number of its frames.
        all_wanted: they exist already, so none may be lost to an odd number of them.
    """

    size: Size
    fps: float
    total_frames: int
    all_wanted: bool = False

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.total_frames / self.fps


class FrameReader:
    """Reads frames that exist already as pictures."""

    def __init__(self, sources: Sequence[Any], fps: float, name: str):
        if not sources:
            raise MediaError(f"{name} contains no frames")
        self._sources, self._name = sources, name
        self.info = ClipInfo(load_image(sources[0]).size, float(fps), len(sources), True)

    def close(self) -> None:
        """No file is open between two frames."""

    def read(self, indices: Sequence[int]) -> Iterator[PIL.Image.Image]:
        for index in indices:
            picture = load_image(self._sources[index])
            if picture.size != self.info.size:
                raise MediaError(
                    f"{self._name}: frame {index} is {picture.width}×{picture.height}, the first "
                    f"{self.info.size[0]}×{self.info.size[1]}; all frames must have one size"
                )
            yield picture


class FileReader:
    """Reads an encoded clip through PyAV."""

    def __init__(self, source: Any, name: str):
        import av

        self._name, self._file = name, _clip_file(source, name)
        self._errors = (av.FFmpegError, ValueError, OSError)
        self._origin = self._step = 0.0  # seconds; between frames where they are counted, else 0
        self._open()
        self._can_seek = self._container.format.name not in _UNSEEKABLE
        first = next(self._decode(), None)
        if first is None:
            raise MediaError(f"{name} contains no frame that can be decoded; save it again")
        self._origin = first[1].time or 0.0
        orientation = _orientation(first[1])
        self._turn = TURNS.get(orientation)
        size = (first[1].width, first[1].height)
        size = size if orientation < 5 else size[::-1]
        if (pixel := self._stream.sample_aspect_ratio or 1) != 1:
            wide = float(pixel if orientation < 5 else 1 / pixel)
            stored = f"its frames are used as they are stored, {size[0]} × {size[1]}"
            warn_user(f"{name} is meant for pixels {wide:.3g} times as wide as high; {stored}")
        # when each frame appears, in order; empty where they are evenly spaced
        self._times: list[float] = []
        self.info = ClipInfo(size, *(self._read_index() or self._read_packets()))

    def _open(self) -> None:
        self._container = _open_container(self._file, self._name)
        if not self._container.streams.video:
            raise MediaError(f"{self._name} contains only sound; pass a clip with video")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _decode(self) -> Iterator[tuple[float, Any]]:
        """Frames, each with its time in seconds from the clip's first."""
        try:
            for number, frame in enumerate(self._container.decode(self._stream)):
                at = (frame.time or 0.0) - self._origin
                yield number * self._step or at, frame
        except self._errors as error:
            raise MediaError(
                f"{self._name} is damaged at byte level ({error}); save it again"
            ) from error

    def _read_index(self) -> tuple[float, int] | None:
        """Frames per second and their number, if the container lists all of them evenly spaced."""
        stream = self._stream
        ticks = [entry.timestamp for entry in stream.index_entries if not entry.is_discard]
        steps = [after - before for before, after in itertools.pairwise(ticks)]
        is_whole = 0 < stream.frames <= len(stream.index_entries)
        if not steps or not is_whole or max(steps) > min(steps) + 1:
            return None
        return self._mean_rate((ticks[-1] - ticks[0]) * stream.time_base, len(ticks)), len(ticks)

    def _read_packets(self) -> tuple[float, int]:
        """Frames per second and their number, from the times of all packets; none is decoded."""
        self._open_again()
        stream, times = self._stream, []
        end = step = 0.0  # seconds: of all streams, and of this one's first frame
        newest = (0.0, 0.0)  # when the last frame appears, and how long it stays
        counted = not self._can_seek  # without times, or with guessed ones
        with suppress(*self._errors):  # what is behind the damage is missing, which read() says
            for packet in self._container.demux():
                if packet.size and not packet.is_discard:
                    time = float((packet.pts or 0) * packet.time_base)
                    held = float((packet.duration or 0) * packet.time_base)
                    end = max(end, time + held)
                    if packet.stream_index == stream.index:
                        times.append(time)
                        newest = max(newest, (time, held))
                        step = step or held
                        counted = counted or packet.pts is None
        total, declared = len(times), float((self._container.duration or 0) / 1e6)
        if counted or not times:
            fps = 1 / step if step else float(stream.guessed_rate or 10)
            self._step, self._can_seek = 1 / fps, False
            return fps, max(1, total)
        first, span = min(times), newest[0] - min(times)
        fps = self._mean_rate(span, total)
        seconds = float((stream.duration or 0) * (stream.time_base or 0))
        if stream.frames > total or end < declared - max(1.0, 3 / fps):  # truncated
            return fps, max(stream.frames, round((seconds or declared - first) * fps))
        spaced = [abs(time - first - i / fps) for i, time in enumerate(sorted(times))]
        if max(spaced) >= 0.5 / fps:
            self._times = sorted(time - first for time in times)
            rate = float(stream.guessed_rate or fps)
            fps = total / (seconds if seconds > span else span + (newest[1] or 1 / rate))
        return fps, total

    def _mean_rate(self, span: Any, total: int) -> float:
        """A declared rate that the frames keep, else that of their times."""
        rates = [float(self._stream.average_rate or 0), float(self._stream.guessed_rate or 0)]
        if total < 2 or not span:
            return next(filter(None, rates), 1.0)
        kept = (rate for rate in rates if abs(rate * float(span) - (total - 1)) < 0.4)
        return next(kept, (total - 1) / float(span))

    def read(self, indices: Sequence[int]) -> Iterator[PIL.Image.Image]:
        """The frame on screen at each index's time; the indices must be in increasing order."""
        frames, shown, ahead = self._seek(0.0), None, None
        tolerance = _SLACK if self._times else 0.5 / self.info.fps
        longest_hold = max(1.0, 3 / self.info.fps)  # of the last frame, or the file is truncated
        for index in indices:
            time = index / self.info.fps
            if self._times:
                time = self._times[bisect.bisect_right(self._times, time + _SLACK) - 1]
            if shown is not None and self._keyframe_between(shown[0], time):
                frames, shown, ahead = self._seek(time), None, None
            while ahead := ahead or next(frames, None):
                if ahead[0] > time + tolerance:
                    break
                shown, ahead = ahead, None
            frame = shown or ahead
            if frame is None or (ahead is None and time - frame[0] > longest_hold):
                raise MediaError(
                    f"{self._name} cannot be decoded at {time:.2f} of {self.info.duration:.2f} s; "
                    "it is truncated: save it again, or pass end="
                )
            picture = frame[1].to_image()
            yield picture if self._turn is None else picture.transpose(self._turn)

    def _keyframe_between(self, after: float, before: float) -> bool:
        """Whether seeking to ``before`` is faster than decoding everything from ``after``."""
        keyframes = self._keyframes
        if not keyframes or not self._can_seek:
            return self._can_seek and before - after > 10.0  # no index: seek over long gaps only
        position = bisect.bisect_right(keyframes, before) - 1
        return position >= 0 and keyframes[position] > after

    @cached_property
    def _keyframes(self) -> list[float]:
        """Times of the keyframes in the container's index, empty where it has none."""
        base = float(self._stream.time_base or 0)
        entries = [e for e in self._stream.index_entries if e.is_keyframe]
        return sorted(e.timestamp * base - self._origin for e in entries)

    def _seek(self, time: float) -> Iterator[tuple[float, Any]]:
        """The frames from the last keyframe at or before a time."""
        with suppress(*self._errors):
            for back in (0.0, 2.0, 20.0) if self._can_seek else ():
                target = max(0.0, time - back) + self._origin
                self._container.seek(int(target / self._stream.time_base), stream=self._stream)
                frames = self._decode()
                first = next(frames, None)
                if first is not None and first[0] <= time + _SLACK:
                    return itertools.chain([first], frames)
        self._open_again()
        return self._decode()

    def _open_again(self) -> None:
        """Begin at the first frame: not every container can be sought."""
        self._container.close()
        self._open()


def _orientation(frame: Any) -> int:
    """A frame's orientation as EXIF numbers it, from its display matrix (a, b, u, c, d, …).

    A point moves to x' = a·x + c·y, y' = b·x + d·y:
    https://ffmpeg.org/doxygen/trunk/group__lavu__video__display.html
    """
    from av.sidedata.sidedata import Type

    data = frame.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return 1
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    if abs(a) >= abs(b):
        return (1, 4, 2, 3)[2 * (a < 0) + (d < 0)]
    return (5, 8, 6, 7)[2 * (c < 0) + (b < 0)]  # x and y change places


def _clip_file(source: Any, name: str) -> str | io.BytesIO:
    """A clip's path, or its bytes."""
    if isinstance(source, bytes | bytearray | memoryview) or is_url(source):
        return io.BytesIO(read_bytes(source, name))
    if not isinstance(source, str | os.PathLike):
        raise MediaError(
            f"cannot read a clip from a {type(source).__name__}; pass a path, URL, bytes, a folder "
            "or list of frames, or an array (frames, height, width, 3)"
        )
    path = local_path(source)
    if not os.path.isfile(path):
        raise MediaError(f"{name} does not exist, or is not a regular file; check the path")
    return path


def _open_container(file: str | io.BytesIO, name: str) -> Any:
    import av

    if isinstance(file, io.BytesIO):
        file.seek(0)
    try:
        return av.open(file, timeout=30.0, options={"format_whitelist": CONTAINERS})
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error  # without the number of the error
        raise MediaError(
            f"{name} is not a clip that can be read ({reason}); expected mp4, webm, mov, mkv, avi, "
            "gif …, whole"
        ) from error


MAX_FRAMES = 128  # a minute at two frames a second
Resize = Callable[[Size, int], Size]  # ((width, height) of the upright original, frames) → new size


@dataclass(frozen=True)
class Video:
    """A clip and how to sample it.

    Args:
        source: path, URL or bytes of mp4, webm, mov, avi, mkv, gif …; or frames that exist
            already: a folder of pictures (in natural order), a list of anything that
            ``vlkit.Image`` takes, or an array (frames, height, width, 3) of uint8.
        fps: frames to sample per second of the clip.
        frames: the number of frames to sample, instead of ``fps``.
        max_frames: the most frames that ``fps`` may result in; they are then spread evenly.
        start, end: the part to sample, in seconds.
        max_frame_tokens: the most tokens for one frame.
        source_fps: the rate of frames that exist already.
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


@dataclass(frozen=True, eq=False)
class Clip:
    """The sampled frames of a video.

    Attributes:
        frames: (count, height, width, 3) uint8, upright RGB.
        indices: which of the clip's frames they are, counted at its mean rate.
        range_frames: the number of frames in the sampled part of the clip.
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
        """For transformers' ``VideoMetadata``, with ``do_sample_frames=False``."""
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


class ClipStore:
    """A cache of sampled clips, so that a conversation decodes each of them once.

    Args:
        most_bytes: of frames kept; the oldest clips are dropped first.
    """

    def __init__(self, most_bytes: int = 2**29):
        self._most_bytes = most_bytes
        self._clips: dict[tuple, tuple[Video, Clip]] = {}  # a Video in it keeps its source's id

    def find(self, video: Video, resize: Resize | None) -> Clip | None:
        """The clip as it was sampled; None where it was not, or resized to another size."""
        _, clip = self._clips.get(_key(video), (None, None))
        if clip is None:
            return None
        size = resize(clip.info.size, len(clip.indices)) if resize else clip.info.size
        return clip if size == clip.frame_size else None

    def keep(self, video: Video, clip: Clip) -> None:
        """Keep a clip, and drop the oldest ones where they take too much memory."""
        self._clips.pop(_key(video), None)
        self._clips[_key(video)] = video, clip
        while sum(kept.frames.nbytes for _, kept in self._clips.values()) > self._most_bytes:
            del self._clips[next(iter(self._clips))]


def _key(video: Video) -> tuple:
    source, *options = vars(video).values()
    return id(source), *options


def load_clip(video: Any, resize: Resize | None = None, *, cache: ClipStore | None = None) -> Clip:
    """Sample a video.

    The number of frames follows qwen-vl-utils' ``smart_nframes``; they are spread evenly over the
    part from ``start`` to ``end``. A frame is the one on screen at its time, also where the frame
    rate varies. Only the sampled frames are kept in memory; seeking skips the ones between.

    Args:
        video: a :class:`Video` or anything that it takes.
        resize: gives each frame's (width, height) from the original's and the number of frames.
        cache: clips sampled before; the clip is looked up there, and kept there.

    Raises:
        MediaError: naming the source and the remedy.
    """
    video = video if isinstance(video, Video) else Video(video)
    if cache and (kept := cache.find(video, resize)):
        return kept
    name = clip_name(video.source)
    with closing(_open(video, name)) as reader:
        indices, range_frames = sample_indices(video, reader.info, name)
        if video.frames is None and video.fps > max(Video.fps, 1.05 * reader.info.fps):
            rate = f"{name} has {reader.info.fps:.3g} frames per second"
            warn_user(f"{rate}, fewer than fps={video.fps:g}; no frame comes twice")
        size = resize(reader.info.size, len(indices)) if resize else reader.info.size
        frames = np.empty((len(indices), size[1], size[0], 3), np.uint8)
        for position, picture in enumerate(reader.read(indices)):
            if picture.size != size:
                picture = picture.resize(size, PIL.Image.Resampling.BICUBIC)
            frames[position] = np.asarray(picture)
    clip = Clip(frames, tuple(indices), range_frames, reader.info, name)
    if cache:
        cache.keep(video, clip)
    return clip


def probe_clip(video: Any) -> ClipInfo:
    """Size, rate and length of a video, from its header; no frame but the first is decoded."""
    video = video if isinstance(video, Video) else Video(video)
    with closing(_open(video, clip_name(video.source))) as reader:
        return reader.info


def sample_indices(video: Video, info: ClipInfo, name: str = "video") -> tuple[list[int], int]:
    """The indices of the frames to sample, and the number of frames in the sampled part."""
    first, last = _frame_range(video, info, name)
    total = last - first + 1
    if total == 1:
        return [first], 1
    if video.frames is not None and video.frames > total:
        raise MediaError(
            f"frames={video.frames}, but that part of {name} has {total} frames; lower frames="
        )
    count = _count_frames(video, total, info.fps)
    wanted = video.frames or max(total / info.fps * video.fps, min(4, total))
    if info.all_wanted and total - 1 < wanted and total + total % 2 <= video.max_frames:
        return [*range(first, last + 1), *[last] * (total % 2)], total  # as qwen-vl-utils does
    return [round(value) for value in np.linspace(first, last, count)], total


def _count_frames(video: Video, total: int, fps: float) -> int:
    """qwen-vl-utils' ``smart_nframes``: an even number, from 4 (if there are) to ``max_frames``."""
    most = min(video.max_frames, total) // 2 * 2
    if video.frames is not None:
        return min(max(2, round(video.frames / 2) * 2), total // 2 * 2)
    count = max(total / fps * video.fps, min(4, video.max_frames // 2 * 2))
    return int(min(count, most)) // 2 * 2


def _frame_range(video: Video, info: ClipInfo, name: str) -> tuple[int, int]:
    start, end = video.start or 0.0, info.duration if video.end is None else video.end
    if start >= info.duration:
        raise MediaError(f"start={start:g} is behind the end of {name} ({info.duration:.2f} s)")
    first = min(int(np.ceil(start * info.fps - 1e-6)), info.total_frames - 1)
    last = min(int(np.floor(end * info.fps + 1e-6)), info.total_frames - 1)
    return first, max(first, last)


def _check_options(video: Video) -> None:
    for name in ("fps", "source_fps"):
        value = getattr(video, name)
        if not is_number(value) or not 0 < value < 1e6:
            raise MediaError(f"{name}={value!r} must be a number above 0")
    check_whole("max_frames", video.max_frames, 2, 10**6, kind=MediaError)
    for name in ("frames", "max_frame_tokens"):
        check_whole(name, getattr(video, name), 1, 10**6, optional=True, kind=MediaError)
    for name in ("start", "end"):
        value = getattr(video, name)
        if value is not None and not (is_number(value) and 0 <= value < 1e9):
            raise MediaError(f"{name}={value!r} must be seconds from the beginning, 0 or more")
    if video.end is not None and video.end <= (video.start or 0):
        raise MediaError(f"end={video.end:g} must come after start={video.start or 0:g}")


def clip_name(source: Any) -> str:
    """A short name of a clip for messages."""
    if isinstance(source, list | tuple):
        return f"list of {len(source)} frames"
    return describe_source(source).replace("picture of", "video of")


def is_frames(source: Any) -> bool:
    """Whether a clip's source is frames that exist already: a list, an array or a folder."""
    if isinstance(source, str | os.PathLike):
        return not is_url(source) and os.path.isdir(local_path(source))
    return isinstance(source, list | tuple | np.ndarray)


def _open(video: Video, name: str):
    source = video.source
    if isinstance(source, np.ndarray) and source.ndim != 4:
        raise MediaError(f"{name} is not a clip; expected (frames, height, width, 3)")
    if not is_frames(source):
        return FileReader(source, name)
    if isinstance(source, str | os.PathLike):
        source = pictures_of(Path(local_path(source)), name)
    return FrameReader(list(source), video.source_fps, name)


class DeferredClips(Deferred):
    """Sampled clips, sampled again on every access.

    Args:
        videos: the sources, with how to sample them.
        sizes: for each clip, (width, height) of the original and of its sampled frames.
    """

    def __init__(self, videos: Sequence[Video], sizes: Sequence[tuple[Size, Size]]):
        self.sources = tuple(videos)
        self.sizes: tuple[tuple[Size, Size], ...] = tuple(
            ((int(w), int(h)), (int(a), int(b))) for (w, h), (a, b) in sizes
        )

    def _read(self, index: int) -> Clip:
        frame_size = self.sizes[index][1]
        return load_clip(self.sources[index], lambda size, count: frame_size)
