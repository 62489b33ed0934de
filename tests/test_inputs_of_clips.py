"""Clips on their way to the model, against qwen-vl-utils' rules and the real processors."""

import gc
import re
import weakref

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from clips import frame_of, write_clip
from qwen_vl_utils.vision_process import fetch_video

import vlkit
from vlkit.inputs import prepare_inputs
from vlkit.media import video

KINDS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
RED, BLUE = (220, 40, 40), (40, 80, 220)


def moving_circle(dx, dy, frames=16):
    """A red circle that moves by (dx, dy) pixels a frame, a blue square that stays."""
    pictures = []
    for i in range(frames):
        picture = PIL.Image.new("RGB", (140, 140), "#f4f4f8")
        draw = PIL.ImageDraw.Draw(picture)
        x, y = 52 + dx * (i - frames / 2), 52 + dy * (i - frames / 2)
        draw.ellipse([x, y, x + 34, y + 34], fill=RED)
        draw.rectangle([100, 100, 130, 130], fill=BLUE)
        pictures.append(picture)
    return pictures


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "answer", "answer_zh"),
    [
        ((5, 0), "to the right", "向右移动"),
        ((-5, 0), "to the left", "向左移动"),
        ((0, 5), "down", "向下移动"),
        ((0, -5), "up", "向上移动"),
    ],
)
def test_the_bundled_model_sees_where_things_move(vlm, step, answer, answer_zh):
    clip = vlkit.Video(moving_circle(*step), source_fps=4)
    reply = vlkit.generate(vlm, vlkit.user("How does the red circle move?", clip))
    assert answer in reply.text
    assert answer_zh in vlkit.generate(vlm, vlkit.user("红色圆形往哪个方向移动？", clip)).text
    assert reply.usage.video_tokens == 8 // 2 * (140 // 28) ** 2


def test_a_conversation_goes_on_about_one_clip(vlm):
    chat = vlkit.Chat(vlm)
    chat.ask("Describe this video.", vlkit.Video(moving_circle(5, 0), source_fps=4))
    reply = chat.ask("How does the red circle move?")
    assert "right" in reply.text and len(reply.clips) == 1
    assert "right" in "".join(vlkit.stream(vlm, chat.messages[:1]))


@pytest.fixture
def opened(monkeypatch):
    """The names of the clips that were opened to be decoded."""
    names, really = [], video._open
    monkeypatch.setattr(video, "_open", lambda *given: names.append(given[1]) or really(*given))
    return names


def test_a_conversation_decodes_a_clip_once(vlm, tmp_path, opened):
    one, other = (write_clip(tmp_path / name, frames=20) for name in ("one.mp4", "other.mp4"))
    chat = vlkit.Chat(vlm, max_new_tokens=2)
    first = chat.ask("Describe this video.", one)
    assert opened == [str(one)]
    one.write_bytes(other.read_bytes()[:99])  # a later turn sees what this one saw
    second, _ = chat.ask("And?"), list(chat.stream("And now?"))
    assert opened == [str(one)] and second.clips[0].frames is first.clips[0].frames
    assert chat.messages[0]["content"][0]["video"] == str(one)
    chat.ask("And this?", vlkit.Video(other, frames=2))
    third = chat.ask("And this?", vlkit.Video(other, frames=4))
    assert opened == [str(one), str(other), str(other)]
    assert [len(clip.frames) for clip in third.clips] == [4, 2, 4]
    vlkit.generate(vlm, vlkit.user("?", other), max_new_tokens=1)  # nothing else finds them
    assert len(opened) == 4
    frames = weakref.ref(first.clips[0].frames)
    del chat, first, second, third
    gc.collect()
    assert frames() is None


def test_clips_beyond_a_chats_memory_are_sampled_anew(vlm, tmp_path, opened):
    clips = [write_clip(tmp_path / f"{n}.mp4", frames=20) for n in range(3)]
    one = vlkit.generate(vlm, vlkit.user("?", clips[0]), max_new_tokens=1).clips[0].frames.nbytes
    chat = vlkit.Chat(vlm, max_new_tokens=1)
    chat._clips = video.ClipStore(most_bytes=2 * one)
    opened.clear()
    for clip in clips[:2]:
        chat.ask("?", clip)
    chat.ask("?")
    assert len(opened) == 2
    chat.ask("?", clips[2])
    assert len(opened) == 3
    chat._clips = video.ClipStore(most_bytes=one - 1)
    chat.ask("?")
    assert len(opened) == 6 and not chat._clips._clips


# --- sizes ---------------------------------------------------------------------------------------


def test_frames_get_the_size_that_qwen_vl_utils_gives_them(tiny_vlm, monkeypatch):
    from transformers import Qwen2VLVideoProcessor

    vlm = tiny_vlm("qwen2_vl")
    monkeypatch.setattr(vlm.processor.video_processor, "size", Qwen2VLVideoProcessor().size)
    random = np.random.default_rng(0)
    for _ in range(40):
        width, height = (int(v) for v in random.integers(28, 400, 2))
        count = int(random.integers(1, 5)) * 2
        pictures = [PIL.Image.new("RGB", (width, height))] * count
        frames = fetch_video({"video": pictures, "resized_height": 28, "resized_width": 28})
        assert frames.shape[0] == count
        expected = _reference_size(width, height, count)
        assert vlm.rules.frame_size((width, height), count) == expected


def _reference_size(width, height, count):
    """The size rule of qwen_vl_utils.fetch_video for a clip read from a file."""
    from qwen_vl_utils import vision_process as reference

    low, high = reference.VIDEO_MIN_TOKEN_NUM * 784, reference.VIDEO_MAX_TOKEN_NUM * 784
    total = reference.MODEL_SEQ_LEN * 784 * 0.9
    most = max(min(high, total / count * reference.FRAME_FACTOR), int(low * 1.05))
    tall, wide = reference.smart_resize(height, width, factor=28, min_pixels=low, max_pixels=most)
    return wide, tall


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_on_tokens_per_frame_holds(tiny_vlm, kind):
    vlm = tiny_vlm(kind)
    clip = vlkit.Video(moving_circle(4, 0), frames=4, max_frame_tokens=9)
    inputs = prepare_inputs(vlm, [vlkit.user("What moves?", clip)])
    t, h, w = inputs.tensors["video_grid_thw"][0].tolist()
    assert t == 2 and h * w // 4 <= 9
    assert inputs.clips[0][0].frame_size == (w * _patch(vlm), h * _patch(vlm))


def _patch(vlm):
    return vlm.processor.video_processor.patch_size


# --- what the processors make of it --------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_frames_reach_the_model_once_resized_and_as_they_are(tiny_vlm, kind):
    vlm = tiny_vlm(kind)
    message = vlkit.user("What moves?", vlkit.Video(moving_circle(5, 0), frames=6))
    inputs = prepare_inputs(vlm, [message])
    clip = inputs.clips[0][0]
    reference = vlm.processor.video_processor(
        [torch.from_numpy(clip.frames).permute(0, 3, 1, 2)],
        do_sample_frames=False,
        do_resize=False,
        return_tensors="pt",
    )
    assert torch.equal(inputs.tensors["video_grid_thw"], reference["video_grid_thw"])
    assert torch.allclose(inputs.tensors["pixel_values_videos"], reference["pixel_values_videos"])


def test_qwen2_5_gets_the_seconds_between_its_frames(tiny_vlm, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", frames=80, fps=20)
    for fps in (1.0, 2.0, 5.0):
        clip = vlkit.Video(path, fps=fps)
        inputs = prepare_inputs(tiny_vlm("qwen2_5_vl"), [vlkit.user("What?", clip)])
        seconds = float(inputs.tensors["second_per_grid_ts"][0])
        assert seconds == pytest.approx(2 / fps, rel=0.03)  # two frames make one step


def test_qwen3_is_told_the_time_of_every_pair_of_frames(tiny_vlm, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", frames=80, fps=20)
    vlm = tiny_vlm("qwen3_vl")
    for options in ({"fps": 2}, {"frames": 6, "start": 1.5}):
        inputs = prepare_inputs(vlm, [vlkit.user("What?", vlkit.Video(path, **options))])
        text = vlm.processor.tokenizer.decode(inputs.tensors["input_ids"][0])
        told = [float(t) for t in re.findall(r"<([\d.]+) seconds>", text)]
        times = inputs.clips[0][0].timestamps
        pairs = [(a + b) / 2 for a, b in zip(times[::2], times[1::2], strict=True)]
        assert told == pytest.approx(pairs, abs=0.051)
        steps = text.count("seconds>")  # each with its own pair of tokens, and none around all
        assert text.count("<|vision_start|>") == text.count("<|vision_end|>") == steps


@pytest.mark.parametrize("kind", KINDS)
def test_clips_and_pictures_together(tiny_vlm, tmp_path, kind):
    vlm = tiny_vlm(kind)
    path = write_clip(tmp_path / "clip.mp4", frames=30)
    message = vlkit.user("Compare.", path, vlkit.sample("red_circle"), vlkit.Video(path, frames=8))
    reply = vlkit.generate(vlm, message, max_new_tokens=3)
    inputs = prepare_inputs(vlm, [message])
    ids = inputs.tensors["input_ids"][0]
    grids = inputs.tensors["video_grid_thw"].prod(1) // 4
    assert reply.usage.video_tokens == int(grids.sum())
    assert reply.usage.image_tokens == int((ids == vlm.model.config.image_token_id).sum())
    assert [len(clip.indices) for clip in reply.clips] == [4, 8]
    assert reply.plot().size == (224, 224)
    assert reply.plot(clip=1).width > 700


@pytest.mark.parametrize("kind", KINDS)
def test_one_frame_is_enough(tiny_vlm, tmp_path, kind):
    path = write_clip(tmp_path / "one.mp4", frames=1)
    reply = vlkit.generate(tiny_vlm(kind), vlkit.user("What?", path), max_new_tokens=2)
    assert reply.usage.video_tokens > 0 and len(reply.clips[0].indices) == 1


# --- FACTS: what the usual paths get wrong -------------------------------------------------------


def test_not_every_frame_is_used(tiny_vlm, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", frames=80, fps=27)
    inputs = prepare_inputs(tiny_vlm("qwen2_vl"), [vlkit.user("What?", path)])
    assert len(inputs.clips[0][0].indices) == 4  # of 80, at 2 a second


def test_a_list_of_frames_is_resized_once_and_keeps_its_shape(tiny_vlm):
    frames = [frame_of(i, 336, 224) for i in range(8)]
    inputs = prepare_inputs(tiny_vlm("qwen2_vl"), [vlkit.user("What?", vlkit.Video(frames))])
    width, height = inputs.clips[0][0].frame_size
    assert width / height == pytest.approx(1.5, rel=0.1)
    assert width % 28 == height % 28 == 0


def test_clips_in_messages_written_by_hand(vlm, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", frames=30)
    ours = vlkit.user("What?", vlkit.Video(path, fps=4, end=0.5))
    assert ours["content"][0] == {"type": "video", "video": str(path), "fps": 4, "video_end": 0.5}
    for item in (
        {"type": "video", "video": str(path), "fps": 4, "video_end": 0.5, "nframes": None},
        {"type": "video", "path": path, "fps": 4, "video_end": 0.5},
        {"type": "video_url", "video_url": {"url": str(path)}, "fps": 4, "video_end": 0.5},
    ):
        message = {"role": "user", "content": [item, {"type": "text", "text": "What?"}]}
        inputs = [prepare_inputs(vlm, [m]).tensors for m in (ours, message)]
        assert torch.equal(inputs[0]["input_ids"], inputs[1]["input_ids"])
        assert torch.equal(inputs[0]["pixel_values_videos"], inputs[1]["pixel_values_videos"])
