"""OpenMP's threads sleep while they wait: set before torch is imported, and a user's own stays."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from jupyter_client.manager import start_new_kernel

from vlkit import threads

ROOT = Path(__file__).resolve().parents[1]
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture
def clean(monkeypatch):
    """An environment that says nothing about waiting."""
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)


def run(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def spins(done):
    """How often each OpenMP library of the process looks before it sleeps (300000 by default)."""
    return set(re.findall(r"GOMP_SPINCOUNT\s*=\s*'(\w+)'", done.stderr))


def test_the_tests_themselves_set_it():
    assert not threads.spinning
    assert any(name in os.environ for name in WAITING)


@pytest.mark.parametrize("code", ["import vlkit, torch", "import vlkit.models; import torch"])
def test_torch_reads_it_where_vlkit_is_imported_first(clean, code):
    code = f"import os; {code}; print(vlkit.threads.spinning, os.environ['OMP_WAIT_POLICY'])"
    done = run("-c", code, OMP_DISPLAY_ENV="VERBOSE")
    assert done.stdout.split() == ["False", "PASSIVE"]
    assert spins(done) == {"0"}


def test_torch_that_was_imported_earlier_has_not_read_it_but_child_processes_do(clean):
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import torch'])"
    done = run(
        "-c", "import torch, vlkit; print(vlkit.threads.spinning)", OMP_DISPLAY_ENV="VERBOSE"
    )
    assert done.stdout.split() == ["True"]
    assert spins(done) and "0" not in spins(done)
    assert spins(run("-c", f"import vlkit; {child}", OMP_DISPLAY_ENV="VERBOSE")) == {"0"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "100"), ("KMP_BLOCKTIME", "20")],
)
@pytest.mark.parametrize("first", ["", "import torch; "])
def test_a_users_own_setting_stays(clean, name, value, first):
    code = f"""{first}import json, os, vlkit
print(json.dumps([{{n: os.environ[n] for n in {WAITING} if n in os.environ}},
                  vlkit.threads.spinning]))"""
    assert json.loads(run("-c", code, **{name: value}).stdout) == [{name: value}, False]


def test_the_command_line_sets_it(clean):
    assert spins(run("-m", "vlkit", "doctor", OMP_DISPLAY_ENV="VERBOSE")) == {"0"}


def test_a_notebooks_kernel_sets_it(clean):
    manager, client = start_new_kernel()
    code = "import os, vlkit, torch\nprint(vlkit.threads.spinning, os.environ['OMP_WAIT_POLICY'])"
    said = []
    try:
        client.execute_interactive(code, output_hook=lambda message: said.append(message))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    text = "".join(m["content"]["text"] for m in said if m["msg_type"] == "stream")
    assert text.split() == ["False", "PASSIVE"]


def test_the_table_in_troubleshooting_is_what_the_benchmark_wrote():
    result = json.loads((ROOT / "benchmarks/results/busy_machine.json").read_text())
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    seconds = r"([\d.]+) to ([\d.]+) s \| "
    rows = re.findall(rf"^\| (\d) \| {seconds * 3}([\d.]+) \|$", page, re.MULTILINE)
    assert [row[0] for row in rows] == list(result["busy"])
    for busy, *shown, others in rows:
        measured = result["busy"][busy]
        spans = [(each["fastest"], each["slowest"]) for each in measured["seconds"].values()]
        assert [float(value) for value in shown] == [value for span in spans for value in span]
        assert float(others) == measured["cores_used_by_others"]


def test_a_block_that_takes_too_long_is_stopped_and_others_go_on():
    def turn(seconds, limit):
        end = time.monotonic() + seconds
        with threads.limit_time(limit):
            while time.monotonic() < end:
                pass
        return "done"

    with ThreadPoolExecutor(4) as pool:
        endless = [pool.submit(turn, 600, 0.01) for _ in range(2)]
        others = [pool.submit(turn, 0.0, 60) for _ in range(200)]
        assert {each.result() for each in others} == {"done"}
        assert {type(each.exception()) for each in endless} == {TimeoutError}
        assert pool.submit(turn, 0, 60).result() == "done"
    assert [each.name for each in threading.enumerate()].count("vlkit-limits") == 1


def test_busy_cores_are_those_that_others_use(monkeypatch):
    """Of three cores two may be used; in a second they work 1.6 s, 0.4 s of it for this process."""

    def core(user, system, idle):
        return SimpleNamespace(user=user, system=system, nice=0.0, idle=idle)

    work = [
        [core(5, 1, 9), core(7, 2, 9), core(0, 0, 9)],
        [core(5.8, 1.2, 9), core(7.5, 2.1, 9.4), core(1, 0, 9)],
    ]
    clock = iter([100.0, 101.0])
    own = iter([3.0, 3.4])
    fake = SimpleNamespace(
        sleep=lambda seconds: None,
        perf_counter=lambda: next(clock),
        process_time=lambda: next(own),
    )
    monkeypatch.setattr(threads, "time", fake)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: work.pop(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert threads.busy_cores(1) == pytest.approx(1.2)


def test_a_busy_process_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            assert threads.busy_cores(0.5) > 0.2  # on a quiet machine 1
        finally:
            process.kill()
