"""What can be seen and done while a model is trained: curves, pause, stop."""

from __future__ import annotations

import logging
import re
import threading
import time

import pytest
from lora_talks import noise
from transformers import TrainerCallback

import vlkit
from vlkit.lora import LiveCurve, train
from vlkit.lora.curves import Curves, curves_html
from vlkit.lora.trainer import Steering

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
    assert page.count("<svg") == 2 and page.count("<circle") == 2 * len(run.evaluations)


def test_checkpoints_within_a_second_are_no_fault_of_the_filesystem(small, tmp_path, caplog):
    logger = logging.getLogger("transformers.trainer_utils")
    logger.warning_once.__func__.cache_clear()
    logger.addHandler(caplog.handler)
    run = train(small, ROWS[:3], output_dir=tmp_path / "run", batch_size=1)
    logger.removeHandler(caplog.handler)
    assert run.steps == 3 and caplog.text == ""


def heights(page):
    """The y of the last point of each line."""
    return [float(line.split(",")[-1]) for line in re.findall(r'points="([^"]+)"', page)]


def test_curves_of_several_runs():
    """On a picture lower is less, and lines keep their colours."""
    runs = {
        "good": Curves(losses=[(1, 1.0), (2, 0.2)], metrics=[(2, 0.9)]),
        HOSTILE: Curves(losses=[(1, 1.0), (2, 0.8)], metrics=[(2, 0.4)]),
    }
    page = curves_html(runs)
    good, bad = heights(page)[:2]
    assert good > bad  # pixels count down
    assert HOSTILE not in page and page.count("&lt;script&gt;") >= 1
    assert page.count('stroke="#0072B2"') == 2 and page.count('stroke="#D55E00"') == 2


def test_nothing_yet_and_not_a_number():
    assert "<svg" in curves_html({"run": Curves()})
    page = curves_html({"run": Curves(losses=[(1, float("nan")), (2, 1.0)])})
    assert "nan" not in page


class Steps(TrainerCallback):
    """Counts steps, and lets somebody know of the first."""

    def __init__(self):
        self.count, self.began = 0, threading.Event()

    def on_step_end(self, *args, **kwargs):
        self.count += 1
        self.began.set()


def test_pause_go_on_and_stop(small, tmp_path):
    steering, steps = Steering(), Steps()
    options = {"output_dir": tmp_path / "run", "batch_size": 1}
    runs = []

    def work():
        runs.append(train(small, ROWS[:1] * 120, callbacks=[steps, steering], **options))

    thread = threading.Thread(target=work)
    thread.start()
    assert steps.began.wait(60)
    steering.pause()
    time.sleep(0.5)  # a step may be under way
    count = steps.count
    time.sleep(0.5)
    assert steps.count == count < 120 and steering.paused
    steering.go_on()
    time.sleep(0.2)
    steering.stop()
    thread.join(60)
    (run,) = runs
    assert not run.finished and count < run.steps < 120
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
