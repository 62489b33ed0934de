"""What all tests share: models that cost little, no network unless asked, no silent skips."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import jinja2
import pytest

ROOT = Path(__file__).resolve().parents[1]

# peft fills the same template for every checkpoint, and transformers that of a chat for every model
jinja2.Environment.compile = lru_cache(50)(jinja2.Environment.compile)

# before torch is imported here, and for every process that a test starts: one thread each, for
# pytest-xdist runs a worker on each core and the models are tiny
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["VLKIT_SETTINGS"] = ""  # the model that somebody chose at home is not tested
os.environ.pop("VLKIT_MODEL", None)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or no process could be interrupted


@pytest.fixture(scope="session")
def vlm():
    """The bundled model."""
    import vlkit

    loaded = vlkit.load()
    loaded.cache.most_bytes = 2**28  # of pictures and turns; by default an eighth of the memory
    return loaded


def scheduling():
    return getattr(os, "sched_getscheduler", int)(0)


SCHEDULING = scheduling()


@pytest.fixture(scope="module", autouse=True)
def freed_memory():
    """After each file of tests, what it no longer needs goes back to the system."""
    yield
    if memory := sys.modules.get("vlkit.models.memory"):
        gc.collect()
        gc.freeze()  # what is left stays
        memory.return_freed_memory()
    # with a real-time priority, the other workers and a browser would hardly run
    assert scheduling() == SCHEDULING, "a test has changed this process's scheduling"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """``tiny_folder(kind)``: a random-weight model of ``tiny_models.KINDS``; read only."""
    from tiny_models import build_model

    built: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in built:
            built[kind] = build_model(kind, tmp_path_factory.mktemp(kind))
        return built[kind]

    return folder


@pytest.fixture(scope="session")
def tiny_vlm(tiny_folder):
    """``tiny_vlm(kind)``: that model, loaded once."""
    import vlkit

    loaded: dict[str, object] = {}

    def load(kind: str):
        if kind not in loaded:
            loaded[kind] = vlkit.load(tiny_folder(kind))
        return loaded[kind]

    return load


@pytest.fixture(scope="session")
def warm(tmp_path_factory, request):
    """``warm.start(…)`` is a process that need not import torch; see ``helpers/warm.py``."""
    from warm import WarmParent

    address = getattr(request.config, "workerinput", {}).get("warm", "")
    parent = WarmParent(tmp_path_factory.mktemp("warm"), address)
    yield parent
    parent.stop()


@pytest.fixture(scope="session")
def warm_kernels(warm, tmp_path_factory):
    """A folder for JUPYTER_PATH: its kernels need not import torch."""
    return warm.write_kernel_spec(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """vlkit's wheel, built once, whichever worker asks first."""
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheel"
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            subprocess.run(build, check=True, timeout=300)
    return next(folder.glob("*.whl"))


@pytest.fixture
def broken_folder(tiny_folder, tmp_path):
    """A tiny Qwen2-VL of one's own, to damage."""
    return Path(shutil.copytree(tiny_folder("qwen2_vl"), tmp_path / "model"))


@pytest.fixture
def blocked_network(monkeypatch):
    """No connection can be made; the list holds every attempt."""
    attempts: list[object] = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("the network is blocked in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return attempts


# --- pytest-xdist's workers are forks of one warmed parent, which their tests share ---------------

WARM = pytest.StashKey()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if getattr(config.option, "numprocesses", None):  # so not in a worker
        from warm import WarmParent

        config.stash[WARM] = parent = WarmParent(Path(tempfile.mkdtemp(prefix="vlkit-")))
        config.option.tx = [f"popen//python={parent.python}" for _ in config.option.tx]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    if parent := node.config.stash.get(WARM, None):
        node.workerinput["warm"] = parent.address


def pytest_unconfigure(config):
    if parent := config.stash.get(WARM, None):
        parent.stop()
        shutil.rmtree(parent.folder)


def pytest_collection_finish(session):
    """What was imported stays: it is left out of every later search for garbage."""
    gc.collect()
    gc.freeze()


# --- what a test costs ----------------------------------------------------------------------------

COSTS = {  # a fixture, and the marker of every test that asks for it
    "vlm": "model",
    "tiny_vlm": "model",
    "tiny_folder": "model",
    "warm": "model",
    "browser": "browser",
}


# with tests of half a minute: first, so that short ones are left when workers share out the rest
LONG = ("notebooks", "ui", "docs", "cli")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.parent.name not in LONG)
    for item in items:
        for fixture, marker in COSTS.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)


# --- in CI a skipped test is a failed one ---------------------------------------------------------


def _skips_fail() -> bool:
    return bool(os.environ.get("CI") or os.environ.get("VLKIT_NO_SKIPS"))


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # None in a worker
    skipped = reporter and _skips_fail() and reporter.stats.get("skipped")
    if skipped and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    if _skips_fail() and skipped:
        terminalreporter.write_line(
            f"FAILED: {len(skipped)} skipped; with CI or VLKIT_NO_SKIPS set every test must run "
            '(deselect with -m "not gpu" instead)',
            red=True,
        )
