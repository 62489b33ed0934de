"""``Video``: which frames of a clip are sampled, and how they are read."""

from __future__ import annotations

import bisect
import io
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from vlkit.errors import MediaError, check_whole, is_number
from vlkit.grounding.boxes import Size
from vlkit.media.image import Deferred, describe_source, load_image
from vlkit.media.sources import is_url, local_path, read_bytes

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# files that contain their frames; a playlist would make ffmpeg open other files
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,ogg,flv,asf,"
    "ivf,nut,h264,hevc,m4v,mjpeg,yuv4mpegpipe"
)


@dataclass(frozen=True)
class ClipInfo:
    """What a clip's header says.

    Attributes:
        size: (width, height) of the upright frames.
        fps: frames per second (the mean, where the rate varies).
        total_frames: the number of its frames.
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

    pictures = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise MediaError(f"{name} is a folder without pictures; pass a folder that contains some")
    return sorted(pictures, key=natural)


class FrameReader:
    """Reads frames that exist already as pictures."""

    def __init__(self, sources: Sequence[Any], fps: float, name: str):
        if not sources:
            raise MediaError(f"{name} contains no frames")
        self._sources, self._name = sources, name
        self.info = ClipInfo(load_image(sources[0]).size, float(fps), len(sources))

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

        self._name = name
        self._container = _open_container(source, name)
        if not self._container.streams.video:
            raise MediaError(f"{name} contains only sound; pass a clip with video")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._errors = (av.FFmpegError, ValueError, OSError)
        first = next(self._decode(), None)
        if first is None:
            raise MediaError(f"{name} contains no frame that can be decoded; save it again")
        self._origin = first.time or 0.0
        self._rotation = round(first.rotation / 90) % 4
        size = (first.width, first.height)
        fps, total = self._count()
        self.info = ClipInfo(size[::-1] if self._rotation % 2 else size, fps, total)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _decode(self) -> Iterator[Any]:
        try:
            yield from self._container.decode(self._stream)
        except self._errors as error:
            raise MediaError(
                f"{self._name} is damaged at byte level ({error}); save it again"
            ) from error

    def _count(self) -> tuple[float, int]:
        """The mean frames per second, and the number of frames."""
        stream, total = self._stream, self._stream.frames
        seconds = (self._container.duration or 0) / 1e6
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        if not seconds or not (total or rate):
            return self._count_packets(rate)
        total = total or max(1, round(seconds * rate))
        return (total / seconds if total > 1 else rate or 1.0), total

    def _count_packets(self, rate: float) -> tuple[float, int]:
        self._container.seek(0)
        packets = self._container.demux(self._stream)
        times = [packet.pts * packet.time_base for packet in packets if packet.pts is not None]
        span = float(max(times) - min(times)) if times else 0.0
        total = max(1, len(times))
        return ((total - 1) / span if span else rate or 1.0), total

    def read(self, indices: Sequence[int]) -> Iterator[PIL.Image.Image]:
        """The frame on screen at each index's time; the indices must be in increasing order."""
        frames, shown, ahead = self._seek(0.0), None, None
        tolerance = 0.5 / self.info.fps
        longest_hold = max(1.0, 3 / self.info.fps)  # of the last frame, or the file is truncated
        for index in indices:
            time = index / self.info.fps
            if shown is not None and self._keyframe_between(self._time(shown), time):
                frames, shown, ahead = self._seek(time), None, None
            while ahead := ahead or next(frames, None):
                if self._time(ahead) > time + tolerance:
                    break
                shown, ahead = ahead, None
            frame = shown or ahead
            if frame is None or (ahead is None and time - self._time(frame) > longest_hold):
                raise MediaError(
                    f"{self._name} cannot be decoded at {time:.2f} of {self.info.duration:.2f} s; "
                    "it is truncated: save it again, or pass end="
                )
            yield self._upright(frame)

    def _time(self, frame: Any) -> float:
        return (frame.time or 0.0) - self._origin

    def _keyframe_between(self, after: float, before: float) -> bool:
        """Whether seeking to ``before`` is faster than decoding everything from ``after``."""
        keyframes = self._keyframes
        if not keyframes:
            return before - after > 10.0  # no index: seek over long gaps only
        position = bisect.bisect_right(keyframes, before) - 1
        return position >= 0 and keyframes[position] > after

    @cached_property
    def _keyframes(self) -> list[float]:
        """Times of the keyframes in the container's index, empty where it has none."""
        base = float(self._stream.time_base or 0)
        entries = [e for e in self._stream.index_entries if e.is_keyframe]
        return sorted(e.timestamp * base - self._origin for e in entries)

    def _seek(self, time: float) -> Iterator[Any]:
        """The frames from the last keyframe at or before a time."""
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
        return picture.rotate(90 * self._rotation, expand=True) if self._rotation else picture


def _open_container(source: Any, name: str) -> Any:
    import av

    if isinstance(source, bytes | bytearray | memoryview) or is_url(source):
        source = io.BytesIO(read_bytes(source, name))
    elif isinstance(source, str | os.PathLike):
        source = local_path(source)
        if not os.path.isfile(source):
            raise MediaError(f"{name} does not exist, or is not a regular file; check the path")
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


def _open(video: Video, name: str):
    source = video.source
    if isinstance(source, np.ndarray) and source.ndim != 4:
        raise MediaError(f"{name} is not a clip; expected (frames, height, width, 3)")
    if isinstance(source, str | os.PathLike) and not is_url(source):
        folder = Path(local_path(source))
        source = pictures_of(folder, name) if folder.is_dir() else source
    if isinstance(source, list | tuple | np.ndarray):
        return FrameReader(list(source), video.source_fps, name)
    return FileReader(source, name)


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
