"""torch was imported before vlkit, so its threads spin: vlkit chooses how many there are."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import psutil
import pytest
import torch

from vlkit import threads

CPU = SimpleNamespace(device=torch.device("cpu"))


@pytest.fixture
def late(monkeypatch):
    """A copy of the module with four cores and threads that spin; ``late.busy`` cores are busy."""
    spec = importlib.util.spec_from_file_location("late_threads", threads.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.spinning, module.busy, module.looks = True, 0.0, 0
    module.now = 1000.0

    def busy_cores():
        module.looks += 1
        return module.busy

    module.busy_cores = busy_cores
    module.time = SimpleNamespace(monotonic=lambda: module.now)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield module
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("busy", "chosen"), [(0.0, 4), (0.4, 4), (0.7, 3), (1.0, 3), (2.6, 1), (4.0, 1), (30.0, 1)]
)
def test_busy_cores_are_left_to_others(late, busy, chosen):
    late.busy = busy
    late.leave_busy_cores(CPU)
    assert torch.get_num_threads() == chosen


def test_the_machine_is_looked_at_now_and_then(late):
    late.busy = 2.0
    late.leave_busy_cores(CPU)
    late.busy = 0.0
    late.leave_busy_cores(CPU)
    assert (torch.get_num_threads(), late.looks) == (2, 1)
    late.now += late.LOOK_AGAIN + 1
    late.leave_busy_cores(CPU)
    assert (torch.get_num_threads(), late.looks) == (4, 2)


def test_a_thread_that_began_earlier_takes_the_number_that_another_chose(late):
    began, chosen, found = threading.Event(), threading.Event(), []

    def answer():
        torch.get_num_threads()
        began.set()
        chosen.wait(30)
        late.leave_busy_cores(CPU)
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=answer)
    thread.start()
    began.wait(30)
    late.busy = 1.0
    late.leave_busy_cores(CPU)
    chosen.set()
    thread.join()
    assert (found, late.looks) == ([3], 1)


def test_fewer_threads_than_cores_stay_where_enough_cores_are_idle(late, monkeypatch):
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 2)  # two physical cores
    torch.set_num_threads(2)
    late.busy = 1.0
    late.leave_busy_cores(CPU)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_in_the_environment_stays(late, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    late.busy = 3.0
    late.leave_busy_cores(CPU)
    assert (torch.get_num_threads(), late.looks) == (4, 0)


def test_a_number_that_the_user_set_stays(late):
    late.busy = 3.0
    torch.set_num_threads(2)
    late.leave_busy_cores(CPU)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(4)
    late.leave_busy_cores(CPU)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(3)
    late.now += late.LOOK_AGAIN + 1
    late.leave_busy_cores(CPU)
    assert torch.get_num_threads() == 3


def test_nothing_changes_where_threads_sleep_or_the_model_is_on_a_gpu(late):
    late.busy = 3.0
    late.leave_busy_cores(SimpleNamespace(device=torch.device("cuda", 0)))
    late.spinning = False
    late.leave_busy_cores(CPU)
    assert (torch.get_num_threads(), late.looks) == (4, 0)


CODE = """
import json, os, torch, vlkit
from vlkit import threads
start, threads.LOOK_AGAIN, found = torch.get_num_threads(), -1, []

def after(busy, work):
    threads.busy_cores = lambda: busy
    result = work()
    found.append(torch.get_num_threads())
    return result

message = vlkit.user("Describe this image.", vlkit.sample("red_circle"))
vlm = after(start, vlkit.load)
after(0, lambda: vlkit.generate(vlm, message, max_new_tokens=2))
after(start, lambda: list(vlkit.generate_batch(vlm, [message], max_new_tokens=2, progress=False)))
print(json.dumps([start, found]))
"""


@pytest.mark.model
@pytest.mark.slow
def test_loading_and_answering_choose(monkeypatch):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
    for name in (*names, "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    start, found = json.loads(done.stdout)
    assert start > 1, "a machine with one core has nothing to choose"
    assert found == [1, start, 1]
