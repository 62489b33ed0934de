"""Sampling frames from clips: vlkit beside decord and torchcodec, and from a two-hour film.

    python benchmarks/video_decoding.py [--hours 2] [--output FILE.json]

The clips are generated. Every reader gives the same frames at the same size; it runs in a process
of its own, so that peak memory is its own; medians of --runs. A reader that is not installed, or
cannot start, is reported as such.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from reporting import report

SIZE = (336, 196)  # of the frames kept

COMMON = """
import json, resource, sys, time
import numpy as np
path, indices, (width, height) = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
{imports}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
{code}
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([seconds, peak / 1024, (peak - before) / 1024, list(frames.shape)]))
"""
READERS = {
    "vlkit": (
        "import vlkit; from vlkit.media.video import load_clip; import av",
        "video = vlkit.Video(path, frames=len(indices), max_frames=len(indices))\n"
        "clip = load_clip(video, lambda size, count: (width, height))\n"
        "frames = clip.frames; assert list(clip.indices) == indices, clip.indices",
    ),
    "decord": (
        "import decord",
        "reader = decord.VideoReader(path, width=width, height=height)\n"
        "frames = reader.get_batch(indices).asnumpy()",
    ),
    "torchcodec": (
        "import torch; from torchcodec.decoders import VideoDecoder\n"
        "from torchvision.transforms.v2.functional import resize",
        "decoder = VideoDecoder(path, seek_mode='approximate')\n"
        "frames = resize(decoder.get_frames_at(indices).data, [height, width])",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result: dict = {"frames_kept_at": list(SIZE)}
    with tempfile.TemporaryDirectory() as folder:
        short = write(Path(folder) / "short.mp4", seconds=20, size=(1280, 720))
        result["20 s, 1280x720, 40 frames"] = compare(short, 40, 20 * 25, arguments.runs)
        minute = write(Path(folder) / "minute.mp4", seconds=60, size=(1920, 1080))
        film = repeat(minute, Path(folder) / "film.mp4", round(arguments.hours * 60))
        total = round(arguments.hours * 3600 * 25)
        name = f"{arguments.hours:g} h, 1920x1080, 32 frames, {film.stat().st_size / 1e6:.0f} MB"
        result[name] = compare(film, 32, total, 1)
    report(result, arguments.output)


def write(path: Path, *, seconds: int, size: tuple[int, int]) -> Path:
    """A clip of moving bars over noise, a keyframe every 10 s, as streaming services have it."""
    random = np.random.default_rng(0)
    ground = random.integers(0, 80, (size[1], size[0], 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height = size
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", 250
        for number in range(25 * seconds):
            frame = ground.copy()
            left = number * 7 % (size[0] - 100)
            frame[200:400, left : left + 100] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def repeat(source: Path, target: Path, times: int) -> Path:
    """The same packets over and over, without encoding anew."""
    with av.open(str(target), "w") as output:
        stream = None
        for turn in range(times):
            with av.open(str(source)) as once:
                origin = once.streams.video[0]
                stream = stream or output.add_stream_from_template(origin)
                length = origin.duration
                for packet in once.demux(origin):
                    if packet.dts is not None:
                        packet.pts += turn * length
                        packet.dts += turn * length
                        packet.stream = stream
                        output.mux(packet)
    return target


def compare(path: Path, count: int, total: int, runs: int) -> dict:
    indices = [round(value) for value in np.linspace(0, total - 1, count)]
    return {name: measure(name, path, indices, runs) for name in READERS}


def measure(name: str, path: Path, indices: list[int], runs: int) -> dict | str:
    imports, code = READERS[name]
    script = COMMON.format(imports=imports, code=code)
    command = [sys.executable, "-c", script, str(path), json.dumps(indices), json.dumps(SIZE)]
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        if done.returncode:
            return "not measured: " + done.stderr.strip().splitlines()[-1][:120]
        taken.append((*json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - start))
    return {
        "seconds": round(statistics.median(each[0] for each in taken), 2),
        "peak_process_MB": round(max(each[1] for each in taken)),
        "peak_above_imports_MB": round(max(each[2] for each in taken)),
    }


if __name__ == "__main__":
    main()
