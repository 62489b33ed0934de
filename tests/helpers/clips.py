"""Clips drawn on the spot, every frame of which tells its own number."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 160, 112


def frame_of(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A grey frame; the brightness of its top left quarter is twice its number."""
    frame = np.full((height, width, 3), 128, np.uint8)
    frame[: height // 2, : width // 2] = 2 * number % 256
    return frame


def number_of(frame: np.ndarray) -> float:
    """Inverse of :func:`frame_of`, give or take what the codec lost."""
    height, width = frame.shape[:2]
    return frame[height // 8 : height // 4, width // 8 : width // 4].mean() / 2


def write_clip(
    path: Path,
    *,
    frames: int = 90,
    fps: int = 30,
    codec: str = "h264",
    gop: int = 12,
    rotation: int = 0,
    times: list[float] | None = None,
    sound: int = 0,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    format: str | None = None,
    pixel: Fraction | None = None,
) -> Path:
    """Encode numbered frames; ``times`` in seconds makes the rate vary, or start late.

    SVT-AV1 gives root's threads real-time priority, this one's too, which every process started
    here would inherit: it is taken back.

    Args:
        sound: seconds of it.
        format: of the container, where the suffix does not say it.
        pixel: its width over its height.
    """
    scheduling = os.sched_getscheduler(0) if codec == "libsvtav1" else None
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.gop_size = gop
        if times:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if pixel:
            stream.codec_context.sample_aspect_ratio = pixel
        if rotation:
            stream.set_display_rotation(rotation)
        audio = None
        if sound:
            kind = "libopus" if path.suffix == ".webm" else "aac"
            audio = container.add_stream(kind, rate=48000, layout="mono")
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(frame_of(number, *size), format="rgb24")
            if times:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            for number in range(sound * 48000 // 960):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "fltp", "mono")
                silence.sample_rate, silence.pts = 48000, 960 * number
                container.mux(audio.encode(silence))
            container.mux(audio.encode(None))
    if scheduling is not None:
        os.sched_setscheduler(0, scheduling, os.sched_param(0))
    return path


def write_sound(path: Path) -> Path:
    """A file with sound alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        container.mux(stream.encode(_silence()))
        container.mux(stream.encode(None))
    return path


def _silence() -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
    frame.sample_rate = 16000
    return frame
