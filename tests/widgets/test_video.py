"""The VideoPanel driven by its traits and buttons, on the bundled model and clips."""

import threading
import time
from typing import ClassVar

import clips
import pytest
from panels import LONG, ask, upload

import vlkit
from vlkit.media import video as video_module
from vlkit.widgets import VideoPanel
from vlkit.widgets.panel import Debounce


@pytest.fixture
def panel(vlm):
    panel = VideoPanel(vlm)
    yield panel
    assert panel.wait(LONG)


def test_direction_of_a_sample_is_that_of_the_scene(panel):
    reply = ask(panel, "How does the red circle move?", "moves_right")
    assert "right" in reply.text
    (turn,) = panel.turns
    assert turn.parts == [[reply.text, []]] and turn.media[0]["name"] == "moves_right"
    assert turn.facts["video_tokens"] == reply.usage.video_tokens
    assert "Done." in panel.status.value


@pytest.mark.parametrize("prompt", ["How does the red circle move?", 'Say "it\'s" {0} \n什么？'])
def test_code_gives_the_same_answer(panel, vlm, prompt):
    panel.picker.sample.value = "moves_right"
    panel.fps.value, panel.max_frames.value, panel.part.value = 4.0, 6, (1.0, 3.0)
    panel.max_new_tokens.value = 12
    reply = ask(panel, prompt)
    namespace = {}
    exec(panel.code, namespace)
    assert namespace["reply"].raw == reply.raw
    assert namespace["reply"].clips[0].timestamps == reply.clips[0].timestamps
    assert 1.0 <= min(reply.clips[0].timestamps) and max(reply.clips[0].timestamps) <= 3.0
    assert len(reply.clips[0].timestamps) == 6


def test_the_count_before_is_what_the_answer_costs(panel):
    panel.max_new_tokens.value = 2
    for fps, max_frames, part in [
        (2.0, 16, (0.0, 4.0)),
        (1.0, 4, (0.5, 3.0)),
        (8.0, 8, (1.0, 2.0)),
    ]:
        panel.fps.value, panel.max_frames.value, panel.part.value = fps, max_frames, part
        reply = ask(panel, "Describe this video.")
        assert panel.view.tokens == reply.usage.video_tokens
        assert panel.view.timestamps == reply.clips[0].timestamps
        assert f"{reply.usage.video_tokens} tokens" in panel.count


def test_counting_reads_the_header_once_and_decodes_nothing(panel, monkeypatch):
    panel.picker.sample.value = "two_ways"
    assert panel.wait(LONG)
    monkeypatch.setattr(video_module, "_open", lambda *args: pytest.fail("the clip was opened"))
    panel._later._seconds = 3600  # no strip in this test
    panel.fps.value = 1.0
    assert "4 of 96 frames" in panel.count and "96 tokens" in panel.count
    panel.fps.value = 4.0
    assert "16 of 96 frames" in panel.count
    panel._later._timer.cancel()


def test_the_strip_follows_once_the_sliders_rest(panel, monkeypatch):
    assert panel.wait(LONG)
    drawn = []
    assert [frame["time"] for frame in panel.strip] == list(panel.view.timestamps)
    assert len(panel.strip) == 8
    assert all(frame["thumb"].startswith("data:image/") for frame in panel.strip)
    show = panel._later._function
    panel._later._function = lambda: drawn.append(panel.fps.value) or show()
    for fps in (2.5, 3.0, 3.5, 4.0):
        panel.fps.value = fps
    assert panel.wait(LONG)
    assert drawn == [4.0]
    assert [frame["time"] for frame in panel.strip] == list(panel.view.timestamps)
    assert len(panel.strip) == 16


class HeldTimer(threading.Timer):
    """Waits until the test says that its time has come."""

    made: ClassVar[list] = []

    def __init__(self, seconds, function):
        super().__init__(3600, function)
        self.seconds = seconds
        self.made.append(self)

    def run(self):
        self.finished.wait()  # until it is cancelled

    def ring(self):
        self.function()
        self.cancel()


def test_debounce_calls_once_after_the_last_request(monkeypatch):
    calls = []
    monkeypatch.setattr(threading, "Timer", HeldTimer)
    monkeypatch.setattr(HeldTimer, "made", [])
    later = Debounce(lambda: calls.append("called"), 0.5)
    for _ in range(5):
        later.call()
    *dropped, last = HeldTimer.made
    assert [timer.seconds for timer in HeldTimer.made] == [0.5] * 5
    assert all(timer.finished.is_set() for timer in dropped) and not last.finished.is_set()
    assert calls == [] and later.wait(0) is False
    last.ring()
    assert later.wait(LONG) and calls == ["called"]


def test_range_follows_the_clip(panel):
    for name, clip in vlkit.clips().items():
        panel.picker.sample.value = name
        low, high = panel.part.look["min"], panel.part.look["max"]
        assert (low, high) == (0.0, pytest.approx(clip.duration, abs=0.01))
        assert panel.part.value == (low, high)
        assert "start=" not in panel.code and "end=" not in panel.code
    panel.picker.sample.value = "moves_right"
    panel.part.value = (1.0, 2.0)
    assert "start=1.0, end=2.0)" in panel.code


@pytest.mark.parametrize(
    ("name", "kind"), [("two_ways", "video/mp4"), ("moves_down", "image/gif"), ("", None)]
)
def test_the_player_has_the_files_own_bytes(panel, name, kind):
    panel.picker.sample.value = name
    content = vlkit.sample(name).read_bytes() if name else None
    assert panel.clip == ({"type": kind, "name": name, "content": content} if kind else {})


def test_an_upload_is_played_sampled_and_asked_about(panel):
    upload(panel, "my clip.mp4", vlkit.sample("moves_up").read_bytes())
    assert panel.picker.sample.value == ""
    assert "vlkit.Video('my clip.mp4', fps=2.0" in panel.code
    assert "up" in ask(panel, "How does the blue square move?").text
    assert panel.clip["name"] == "my clip.mp4" and len(panel.strip) == 8
    panel.picker.sample.value = "one_still"
    assert panel.picker.upload.value == ()


def test_a_clip_that_browsers_do_not_play_is_sampled_all_the_same(panel, tmp_path):
    path = clips.write_clip(tmp_path / "odd.avi", codec="mpeg4", frames=30)
    upload(panel, path.name, path.read_bytes())
    assert panel.clip == {"type": "", "name": "odd.avi", "content": b""}
    assert panel.wait(LONG) and len(panel.strip) == 4


def test_no_clip_and_no_words_are_one_line(panel):
    panel.picker.sample.value = ""
    assert (panel.view, panel.count) == (None, "")
    assert ask(panel, "Describe this video.") is None
    assert "no clip is chosen" in panel.status.value and panel.strip == []
    panel.picker.sample.value = "moves_up"
    assert 'role="alert"' not in panel.status.value
    assert ask(panel, " ") is None
    assert "the prompt is empty" in panel.status.value


def test_an_upload_that_is_no_clip_is_refused_by_name(panel):
    upload(panel, "<i>notes</i>.mp4", b"no clip at all")
    assert 'role="alert"' in panel.status.value
    assert ">&lt;i&gt;notes&lt;/i&gt;.mp4 is not a clip that can be read (Inv" in panel.status.value
    assert "Errno" not in panel.status.value
    assert panel.view is None
    assert ask(panel, "Describe this video.") is None
    assert "<i>" not in panel.status.value and panel.turns == []


def test_a_panel_without_samples_waits_for_a_clip(vlm):
    panel = VideoPanel(vlm, samples=False)
    assert panel.samples == [] and panel.clip == {}
    assert panel.view is None and panel.wait(LONG)
    upload(panel, "a.gif", vlkit.sample("moves_down").read_bytes())
    assert "4 of 20 frames" in panel.count
    assert panel.wait(LONG)


def test_stop_keeps_what_is_written(vlm, panel, monkeypatch):
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", None)
    panel.max_new_tokens.value = 2000
    panel.ask()
    while not panel.turns[-1].text:
        time.sleep(0.02)
    panel.stop_button.click()
    assert panel.wait(LONG)
    assert panel.reply.finish_reason == "cancelled"
    assert "Stopped." in panel.status.value and not panel.ask_button.disabled
