"""Clips sampled at exact times, against frames that tell their own number."""

import struct
import warnings
from fractions import Fraction

import numpy as np
import PIL.Image
import pytest
from clips import HEIGHT, WIDTH, frame_of, number_of, write_clip, write_sound

import vlkit
from vlkit.errors import MediaError
from vlkit.media.video import ClipInfo, load_clip, probe_clip, sample_indices


def numbers(clip):
    return [round(number_of(frame)) for frame in clip.frames]


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "ninety.mp4")


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "h264"),
        ("webm", "libvpx-vp9"),
        ("mov", "h264"),
        ("avi", "mpeg4"),
        ("mkv", "h264"),
        ("gif", "gif"),
    ],
)
def test_every_container_gives_the_frames_asked_for(tmp_path, suffix, codec):
    path = write_clip(tmp_path / f"clip.{suffix}", codec=codec)
    clip = load_clip(vlkit.Video(path, fps=4))
    assert clip.frames.shape == (12, HEIGHT, WIDTH, 3)
    assert clip.indices == tuple(np.linspace(0, 89, 12).round().astype(int))
    assert np.abs(np.array([number_of(f) for f in clip.frames]) - clip.indices).max() < 3
    assert clip.timestamps == pytest.approx([i / 30 for i in clip.indices])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_pixels_that_are_not_square_are_said(tmp_path, suffix):
    path = write_clip(tmp_path / f"wide.{suffix}", pixel=Fraction(16, 11))
    with pytest.warns(UserWarning, match=rf"1\.45 times as wide as high; .*{WIDTH} × {HEIGHT}"):
        assert load_clip(path).frame_size == (WIDTH, HEIGHT)
    square = write_clip(tmp_path / f"square.{suffix}", pixel=Fraction(1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_clip(square)


def test_a_rate_above_the_clips_is_said(clip_path):
    with pytest.warns(UserWarning, match="has 30 frames per second, fewer than fps=60; no frame"):
        clip = load_clip(vlkit.Video(clip_path, fps=60))
    assert list(clip.indices) == list(range(90))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_clip(vlkit.Video(clip_path, fps=30))
        load_clip(vlkit.Video([PIL.Image.new("RGB", (28, 28))] * 4, source_fps=1))  # 2 by default


def test_frames_are_those_of_qwen_vl_utils(clip_path):
    from qwen_vl_utils.vision_process import smart_nframes

    random = np.random.default_rng(0)
    for _ in range(2000):
        total, most = int(random.integers(2, 3000)), int(random.integers(2, 400))
        rate, fps = random.uniform(1, 60), random.uniform(0.1, 30)
        info = ClipInfo((64, 64), rate, total)
        limits = {"min_frames": min(4, most // 2 * 2), "max_frames": min(most, total)}
        indices, _ = sample_indices(vlkit.Video("a", fps=fps, max_frames=most), info)
        assert len(indices) == smart_nframes({"fps": fps, **limits}, total, rate)
        frames = int(random.integers(2, total + 1)) // 2 * 2
        indices, _ = sample_indices(vlkit.Video("a", frames=frames), info)
        assert len(indices) == smart_nframes({"nframes": frames}, total, rate)
    for fps in (0.5, 1, 2, 5, 30):
        clip = load_clip(vlkit.Video(clip_path, fps=fps))
        assert len(clip.indices) == smart_nframes({"fps": fps, "max_frames": 90}, 90, 30.0)
        assert numbers(clip) == pytest.approx(list(clip.indices), abs=1)


@pytest.mark.parametrize("gop", [1, 5, 250])
def test_seeking_changes_nothing(tmp_path, gop):
    path = write_clip(tmp_path / "long.mp4", frames=120, fps=10, gop=gop)
    for options in ({"frames": 4}, {"fps": 1.0}, {"start": 7.3, "end": 9.1}, {"fps": 10.0}):
        clip = load_clip(vlkit.Video(path, **options))
        assert numbers(clip) == pytest.approx(list(clip.indices), abs=1), options


def test_a_part_of_the_clip(clip_path):
    clip = load_clip(vlkit.Video(clip_path, fps=3, start=1.0, end=2.0))
    assert (clip.indices[0], clip.indices[-1]) == (30, 60)
    assert clip.timestamps[0] == 1.0 and clip.timestamps[-1] == 2.0
    assert clip.metadata["total_num_frames"] == 31
    beyond = load_clip(vlkit.Video(clip_path, frames=2, start=2.5, end=60))
    assert beyond.indices == (75, 89)


def test_a_frame_is_the_one_on_screen_where_the_rate_varies(tmp_path):
    times = [0.0, 0.1, 0.2, 0.3, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 4.0, 4.1]
    path = write_clip(tmp_path / "varying.mkv", frames=12, times=times, fps=10)
    clip = load_clip(vlkit.Video(path, fps=2))
    shown = [max(i for i, t in enumerate(times) if t <= s + 0.001) for s in clip.timestamps]
    assert [number_of(frame) for frame in clip.frames] == pytest.approx(shown, abs=0.7)


@pytest.mark.parametrize("start", [0.9, 5.0, 60.0])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "ts", "mov", "flv"])
def test_a_clip_may_start_at_any_time(tmp_path, suffix, start):
    codec = {"webm": "libvpx-vp9", "flv": "flv"}.get(suffix, "h264")
    times = [start + i / 10 for i in range(20)]
    path = write_clip(tmp_path / f"c.{suffix}", frames=20, times=times, fps=10, codec=codec)
    clip = load_clip(vlkit.Video(path, frames=10))
    assert (clip.info.total_frames, clip.info.fps) == (20, pytest.approx(10, rel=1e-3))
    assert clip.indices == (0, 2, 4, 6, 8, 11, 13, 15, 17, 19)
    assert [number_of(frame) for frame in clip.frames] == pytest.approx(list(clip.indices), abs=1.1)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "ts"])
def test_sound_may_be_longer_than_the_pictures(tmp_path, suffix):
    codec = "libvpx-vp9" if suffix == "webm" else "h264"
    path = write_clip(tmp_path / f"c.{suffix}", frames=20, fps=10, codec=codec, sound=6)
    clip = load_clip(path)
    assert (clip.info.total_frames, clip.info.duration) == (20, pytest.approx(2))
    assert [number_of(frame) for frame in clip.frames] == pytest.approx([0, 6, 13, 19], abs=0.9)


SLIDES = [0, 0.5, 1, 1.5, 2, 60, 120, 180]
RECORDED = [part + i / 30 for part in (0, 20, 45) for i in range(40)]


@pytest.mark.parametrize("times", [SLIDES, RECORDED], ids=["slides", "recorded"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "ts"])
def test_the_frame_on_screen_by_its_own_time(tmp_path, suffix, times):
    codec = "libvpx-vp9" if suffix == "webm" else "h264"
    path = write_clip(tmp_path / f"c.{suffix}", frames=len(times), times=times, fps=30, codec=codec)
    clip = load_clip(vlkit.Video(path, fps=1000, max_frames=len(times)))
    assert clip.info.total_frames == len(times)
    # a transport stream does not say for how long it shows the last frame
    assert clip.info.duration == pytest.approx(times[-1], abs=0.6 if suffix == "ts" else 0.1)
    for seconds, frame in zip(clip.timestamps, clip.frames, strict=True):
        early, late = (
            max(i for i, time in enumerate(times) if time <= max(0, seconds + slack))
            for slack in (-0.002, 0.002)  # the containers round to milliseconds
        )
        assert early - 0.9 < number_of(frame) < late + 0.9, seconds
    part = load_clip(vlkit.Video(path, fps=1000, start=clip.timestamps[3]))
    assert np.array_equal(part.frames[0], clip.frames[3])


@pytest.mark.parametrize(
    ("name", "codec", "format"),
    [
        ("c.h264", "h264", "h264"),
        ("c.m2v", "mpeg2video", "mpeg2video"),
        ("c.mpg", "mpeg1video", "mpeg"),
        ("c.vob", "mpeg2video", "vob"),
        ("c.ivf", "libvpx", "ivf"),
        ("c.obu", "libsvtav1", "obu"),
    ],
)
def test_streams_that_say_little_of_themselves(tmp_path, name, codec, format):
    path = write_clip(tmp_path / name, frames=100, fps=25, codec=codec, format=format)
    for source in (path, path.read_bytes()):
        assert probe_clip(source).total_frames == 100
        for options in ({"frames": 4}, {"fps": 25.0}, {"start": 2.0, "end": 3.0}):
            clip = load_clip(vlkit.Video(source, **options))
            assert clip.info.fps == 25
            assert numbers(clip) == pytest.approx(list(clip.indices), abs=1)


def place_of_white(frame):
    """(right, below): where the quarter that :func:`mirrored` leaves bright is."""
    height, width = frame.shape[:2]
    halves = frame[:, :, 0] > 190
    quarters = {
        (x, y): halves[y * height // 2 :][: height // 2, x * width // 2 :][:, : width // 2].mean()
        for x in (0, 1)
        for y in (0, 1)
    }
    return max(quarters, key=quarters.__getitem__)


@pytest.mark.parametrize(
    ("matrix", "place", "turned"),
    [
        ((1, 0, 0, 1), (0, 0), False),
        ((-1, 0, 0, 1), (1, 0), False),  # mirrored: left and right exchanged
        ((1, 0, 0, -1), (0, 1), False),
        ((-1, 0, 0, -1), (1, 1), False),
        ((0, 1, -1, 0), (1, 0), True),  # x' = -y, y' = x: a quarter turn clockwise
        ((0, -1, 1, 0), (0, 1), True),
        ((0, 1, 1, 0), (0, 0), True),  # over the diagonal
        ((0, -1, -1, 0), (1, 1), True),
    ],
)
def test_display_matrices_turn_and_mirror(tmp_path, matrix, place, turned):
    """The numbers a, b, c, d of an MP4's track header: x' = a·x + c·y, y' = b·x + d·y."""
    bright = write_clip(tmp_path / "c.mp4", frames=120).read_bytes()  # its last frames are
    data = bytearray(bright)
    at = data.find(b"tkhd") + 4 + 40  # behind the version, flags and times of the box
    a, b, c, d = (65536 * value for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    clip = load_clip(vlkit.Video(bytes(data), start=3.8))
    assert clip.info.size == ((HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT))
    assert place_of_white(clip.frames[0]) == place


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_metadata_is_honoured(tmp_path, rotation):
    upright = load_clip(write_clip(tmp_path / "plain.mp4", frames=8))
    turned = load_clip(write_clip(tmp_path / "turned.mp4", frames=8, rotation=rotation))
    width, height = (HEIGHT, WIDTH) if rotation != 180 else (WIDTH, HEIGHT)
    assert turned.info.size == (width, height)
    expected = np.rot90(upright.frames[0], rotation // 90)
    assert np.abs(turned.frames[0].astype(int) - expected).mean() < 3


def test_one_frame_and_few_frames(tmp_path):
    one = load_clip(write_clip(tmp_path / "one.mp4", frames=1))
    assert one.indices == (0,) and one.frames.shape[0] == 1
    three = load_clip(vlkit.Video(write_clip(tmp_path / "three.mp4", frames=3), fps=2))
    assert three.indices == (0, 2)


def test_frames_that_are_taken_already(tmp_path):
    arrays = [frame_of(i) for i in range(12)]
    for i, array in enumerate(arrays):
        PIL.Image.fromarray(array).save(tmp_path / f"frame{i}.png")  # natural order: 2 before 10
    paths = [tmp_path / f"frame{i}.png" for i in range(12)]
    for source in (
        tmp_path,
        paths,
        arrays,
        np.stack(arrays),
        list(map(PIL.Image.fromarray, arrays)),
    ):
        clip = load_clip(vlkit.Video(source, fps=2, source_fps=4))
        assert numbers(clip) == list(clip.indices) == [0, 2, 4, 7, 9, 11]
        assert clip.timestamps == pytest.approx([i / 4 for i in clip.indices])


def test_no_frame_that_is_given_is_lost():
    for count in (1, 2, 3, 5, 8, 9):
        frames = [frame_of(i) for i in range(count)]
        clip = load_clip(vlkit.Video(frames))
        repeated = [count - 1] if count % 2 and count > 1 else []
        assert numbers(clip) == [*range(count), *repeated]
    assert numbers(load_clip(vlkit.Video([frame_of(i) for i in range(5)], frames=2))) == [0, 4]
    many = [frame_of(i) for i in range(9)]
    assert len(load_clip(vlkit.Video(many, max_frames=8)).frames) == 8


def test_bytes_and_uploads(clip_path):
    from_bytes = load_clip(vlkit.Video(clip_path.read_bytes(), frames=4))
    assert np.array_equal(from_bytes.frames, load_clip(vlkit.Video(clip_path, frames=4)).frames)


def test_memory_is_bounded_by_the_frames_kept(clip_path):
    clip = load_clip(vlkit.Video(clip_path, frames=6), resize=lambda size, count: (56, 28))
    assert clip.frames.shape == (6, 28, 56, 3)
    assert clip.info.size == (WIDTH, HEIGHT)
    assert probe_clip(clip_path) == clip.info


def bad_sources(folder):
    whole = write_clip(folder / "whole.mp4", frames=60, gop=5, size=(320, 240)).read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("This is no clip. " * 50)
    (folder / "headless.mp4").write_bytes(whole[: len(whole) // 2])
    ts = write_clip(folder / "cut.mkv", frames=300, gop=5, size=(320, 240)).read_bytes()
    (folder / "cut.mkv").write_bytes(ts[: len(ts) // 3])
    write_sound(folder / "sound.m4a")
    (folder / "nothing").mkdir()
    return {
        "missing.mp4": "does not exist",
        "empty.mp4": "not a clip",
        "text.mp4": "not a clip|no frame|no pictures",
        "headless.mp4": "not a clip",
        "cut.mkv": "truncated|damaged",
        "sound.m4a": "only sound",
        "nothing": "folder without pictures",
    }


def test_bad_clips_give_one_clear_line(tmp_path):
    for name, match in bad_sources(tmp_path).items():
        with pytest.raises(MediaError, match=match) as raised:
            load_clip(vlkit.Video(tmp_path / name, fps=2))
        assert name in str(raised.value) and "\n" not in str(raised.value)


def test_frames_of_different_sizes(tmp_path):
    with pytest.raises(MediaError, match="frame 1 is 80×56, the first 160×112"):
        load_clip(vlkit.Video([frame_of(0), frame_of(1, 80, 56)]))
    with pytest.raises(MediaError, match="no frames"):
        load_clip(vlkit.Video([]))
    with pytest.raises(MediaError, match=r"expected \(frames, height, width, 3\)"):
        load_clip(vlkit.Video(np.zeros((4, 4), np.uint8)))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fps": 0}, "fps=0"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"frames": 2.5}, "frames=2.5"),
        ({"max_frames": 1}, "max_frames=1"),
        ({"start": -1}, "start=-1"),
        ({"start": 2, "end": 1}, "end=1 must come after start=2"),
        ({"max_frame_tokens": 0}, "max_frame_tokens=0"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(MediaError, match=match):
        vlkit.Video("clip.mp4", **options)


def test_more_asked_than_there_is(clip_path):
    with pytest.raises(MediaError, match=r"frames=100, but that part of .* has 90 frames"):
        load_clip(vlkit.Video(clip_path, frames=100))
    with pytest.raises(MediaError, match=r"start=4 is behind the end .*3\.00 s"):
        load_clip(vlkit.Video(clip_path, start=4))


def test_a_clip_from_a_url(clip_path):
    import functools
    import http.server
    import threading

    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=clip_path.parent)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{clip_path.name}"
    try:
        clip = load_clip(vlkit.Video(url, frames=4))
        assert np.array_equal(clip.frames, load_clip(vlkit.Video(clip_path, frames=4)).frames)
        with pytest.raises(MediaError, match="HTTP 404"):
            load_clip(vlkit.Video(url + ".gone"))
    finally:
        server.shutdown()
        server.server_close()
