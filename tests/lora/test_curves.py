"""What can be seen and done while a model is trained: curves, pause, stop."""

from __future__ import annotations

import logging
import re
import threading
import time
from types import SimpleNamespace

import pytest
from lora_talks import noise
from transformers import TrainerCallback

import vlkit
from vlkit.lora import LiveCurve, callbacks, train
from vlkit.lora.callbacks import Steering
from vlkit.lora.curves import Curves, curves_html

HOSTILE = "<script>alert(1)</script>"
ROWS = [
    [vlkit.user(f"{HOSTILE} {i}", noise(64, 64, i)), vlkit.assistant(f"It is {i}.")]
    for i in range(6)
]


@pytest.fixture(scope="module")
def small(tiny_folder):
    return vlkit.load(tiny_folder("qwen2_vl"))


def test_a_run_is_shown_as_it_grows(small, tmp_path):
    seen = []
    run = train(
        small, ROWS[:4], eval_data=ROWS[4:], output_dir=tmp_path / "run", batch_size=1, epochs=2,
        samples=1, callbacks=[LiveCurve(seen.append)],
    )  # fmt: skip
    assert len(seen) >= len(run.metrics) >= 2
    last = seen[-1]
    assert (last.losses, last.evaluations) == (run.losses, run.evaluations)
    assert last.metrics == run.metrics and last.steps == run.steps == 8
    assert [len(each.losses) for each in seen] == sorted(len(each.losses) for each in seen)
    page = curves_html({"run": last})
    assert HOSTILE not in page and "&lt;script&gt;" in page
    assert page.count("<svg") == 2
    for name in ("held-out-0", "metric-0"):
        assert line_of(page, name).count("<use ") == len(run.evaluations)


def test_checkpoints_within_a_second_are_no_fault_of_the_filesystem(small, tmp_path, caplog):
    logger = logging.getLogger("transformers.trainer_utils")
    logger.warning_once.__func__.cache_clear()
    logger.addHandler(caplog.handler)
    run = train(small, ROWS[:3], output_dir=tmp_path / "run", batch_size=1)
    logger.removeHandler(caplog.handler)
    assert run.steps == 3 and caplog.text == ""


def line_of(page, name):
    """What draws one line: a path through its points, and a mark for each."""
    (line,) = re.findall(rf'<g id="{name}">(.*?)(?=<g id=|</svg>)', page, re.DOTALL)
    return line


def height(page, name):
    """The y of a line's last point."""
    (path,) = re.findall(r'<path d="([^"]+)" clip-path', line_of(page, name))
    return float(path.split()[-1])


def test_curves_of_several_runs():
    """On a picture lower is less, and lines keep their colours."""
    runs = {
        "good": Curves(losses=[(1, 1.0), (2, 0.2)], metrics=[(1, 0.4), (2, 0.9)]),
        HOSTILE: Curves(losses=[(1, 1.0), (2, 0.8)], metrics=[(1, 0.4), (2, 0.4)]),
    }
    page = curves_html(runs)
    assert height(page, "loss-0") > height(page, "loss-1")  # pixels count down
    assert height(page, "metric-0") < height(page, "metric-1")
    assert HOSTILE not in page and page.count("&lt;script&gt;") >= 1
    for i, colour in enumerate(("#0072b2", "#d55e00")):
        assert all(f"stroke: {colour}" in line_of(page, f"{n}-{i}") for n in ("loss", "metric"))


def test_curves_read_on_dark_and_light_pages():
    """Lines keep their colours; letters and axes take the page's; nothing is filled."""
    page = curves_html({"run": Curves(losses=[(i, 1 / i) for i in range(1, 30)], metrics=[(9, 1)])})
    colours = re.findall(r"(?:stroke|fill): ([^;\"]+)", page)
    assert set(colours) == {"none", "currentColor", "#0072b2"}
    assert not re.search(r"#(000000|ffffff)|black|white", page.replace("white-space", ""))


def test_drawing_takes_a_twentieth_of_the_time(monkeypatch):
    """However slow the machine is that draws."""
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    drawn = []

    def draw(curves):
        now[0] += 0.3
        drawn.append(now[0])

    live = LiveCurve(draw)
    state = SimpleNamespace(is_world_process_zero=True, log_history=[], max_steps=9)
    while now[0] < 60:
        live.on_log(None, state, None, {"loss": 1.0})
        now[0] += 0.01
    assert 0.04 < 0.3 * len(drawn) / now[0] <= 0.06


def test_nothing_yet_and_not_a_number():
    assert "<svg" in curves_html({"run": Curves()})
    page = curves_html({"run": Curves(losses=[(1, float("nan")), (2, 1.0)])})
    assert "nan" not in page


class Steps(TrainerCallback):
    """Counts steps; the first and the fourth end when the test says so."""

    def __init__(self):
        self.count, self.waits, self.may_end = 0, threading.Event(), threading.Event()

    def on_step_end(self, *args, **kwargs):
        self.count += 1
        if self.count in (1, 4):
            self.waits.set()
            assert self.may_end.wait(60)
            self.may_end.clear()


def test_pause_resume_and_stop(small, tmp_path):
    steering, steps = Steering(), Steps()
    options = {"output_dir": tmp_path / "run", "batch_size": 1}
    runs = []

    def work():
        runs.append(train(small, ROWS[:1] * 120, callbacks=[steps, steering], **options))

    thread = threading.Thread(target=work)
    thread.start()
    assert steps.waits.wait(60)
    steering.pause()
    steps.waits.clear()
    steps.may_end.set()
    time.sleep(0.5)  # enough for many steps
    assert steps.count == 1 and steering.paused
    steering.resume()
    assert steps.waits.wait(60)
    steering.stop()
    steps.may_end.set()
    thread.join(60)
    (run,) = runs
    assert not run.finished and run.steps == 4
    rest = train(small, ROWS[:1] * 120, resume=True, **options)
    assert rest.finished and rest.steps == 120 and rest.losses[: len(run.losses)] == run.losses


def test_a_stop_before_the_last_step_of_a_pause(small, tmp_path):
    """Stopped while it waits: it does not wait for ever."""
    steering = Steering()
    steering.pause()
    threading.Timer(0.5, steering.stop).start()
    run = train(
        small, ROWS[:1], output_dir=tmp_path / "run", epochs=9, callbacks=[steering], batch_size=1
    )
    assert run.steps == 1 and not run.finished
