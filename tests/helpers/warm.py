"""Processes that have torch from the first moment: forks of one warmed parent.

To import torch, transformers and vlkit takes six seconds of CPU time, so tests that need a process
(to kill it, to interrupt it) start it here. It is like ``subprocess.Popen`` on a Python of its own.
Jupyter starts kernels here too, by the kernel spec that ``write_kernel_spec`` writes, torchrun its
processes, with ``python`` as PYTHON_EXEC, and pytest-xdist its workers, which share the parent.
"""

from __future__ import annotations

import array
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cached_property
from json import dumps
from pathlib import Path

PARENT = Path(__file__).with_name("warm_parent.py")
PYTHON = Path(__file__).with_name("warm_python.py")


class WarmParent:
    """The parent; ``start(…)`` forks a process from it.

    Args:
        folder: for its own files.
        address: of a parent that another process has started; by default this one starts it.
    """

    def __init__(self, folder: Path, address: str = ""):
        self.folder, self.address = folder, address or str(folder / "warm")
        self.process = None if address else self._start_parent()
        self.started: list[WarmProcess] = []

    def _start_parent(self) -> subprocess.Popen:
        """It listens at once; who connects before it is warm waits."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen(128)
            listens = listener.fileno()
            command = [sys.executable, str(PARENT), str(listens)]
            return subprocess.Popen(command, pass_fds=[listens], start_new_session=True)

    def start(self, *arguments, cwd=None, env=None) -> WarmProcess:
        """Run ``-m MODULE …``, ``-c CODE …`` or ``SCRIPT …``, as python would."""
        environment = dict(env or os.environ)
        process = WarmProcess(self.address, arguments, cwd or os.getcwd(), environment)
        self.started.append(process)
        return process

    def run(self, *arguments, timeout=120, **options) -> subprocess.CompletedProcess:
        """Run it to its end; what ``subprocess.run`` gives, with texts."""
        process = self.start(*arguments, **options)
        output, errors = process.communicate(timeout)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    @cached_property
    def python(self) -> str:
        """A program that is called as Python is, and runs in a fork from here."""
        program = self.folder / "python"
        command = shlex.join([sys.executable, "-I", "-S", str(PYTHON), self.address])
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o755)
        return str(program)

    def write_kernel_spec(self, folder: Path) -> Path:
        """Make ``python3`` a kernel forked from here, wherever JUPYTER_PATH names this folder."""
        argv = [self.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        file = folder / "kernels" / "python3" / "kernel.json"
        file.parent.mkdir(parents=True)
        file.write_text(dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
        return folder

    def stop(self) -> None:
        for process in self.started:
            process.close()
        if self.process:
            self.process.kill()
            self.process.wait()


class WarmProcess:
    """A running command: ``pid``, and ``returncode`` when it has ended."""

    def __init__(self, address, arguments, cwd, env):
        self.returncode: int | None = None
        self.outputs = [tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(2)]
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(address)
        request = {"arguments": list(map(str, arguments)), "cwd": str(cwd), "env": env}
        with open(os.devnull) as nothing:
            files = [file.fileno() for file in (nothing, *self.outputs)]
            socket.send_fds(self.connection, [dumps(request).encode()], files)
        self.pid = self._receive()

    def _receive(self) -> int:
        numbers = array.array("i")
        data = self.connection.recv(numbers.itemsize, socket.MSG_WAITALL)
        assert data, "the warmed parent has ended"
        numbers.frombytes(data)
        return numbers[0]

    def wait(self, timeout: float = 120) -> int:
        """Its exit code; negative where a signal ended it."""
        if self.returncode is None:
            self.connection.settimeout(timeout)
            self.returncode = self._receive()
            self.connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        try:
            return self.wait(0)
        except BlockingIOError:
            return None

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What it wrote to stdout and stderr, when it has ended."""
        self.wait(timeout)
        return self.stdout(), self.stderr()

    def stdout(self) -> str:
        return self._read(0)

    def stderr(self) -> str:
        return self._read(1)

    def _read(self, which: int) -> str:
        descriptor = self.outputs[which].fileno()
        return os.pread(descriptor, 1 << 24, 0).decode()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """The process, and those that it has started."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it, if it still runs, and forget what it wrote."""
        self.kill()
        self.wait()
        for file in self.outputs:
            file.close()
