"""A process that has imported torch, transformers and vlkit, and whose forks run commands at once.

``python warm_parent.py DESCRIPTOR``, of a socket that listens; see ``warm.py`` for the other end. A
fork ends as a Python of its own does: with exit codes, tracebacks, and what Ctrl-C makes of it. A
fork whose starter has gone is killed.
"""

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback

# transformers.trainer and ipykernel are left out: what they do depends on the kernel they are in
MODULES = (
    "accelerate", "numpy", "pandas", "peft", "torch", "torchvision", "transformers",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.qwen2_vl.processing_qwen2_vl",
    "vlkit.cli.app", "vlkit.generation.generate", "vlkit.batch.answering",
    "IPython.core.interactiveshell", "jupyter_client", "nbformat", "tornado.ioloop", "zmq",
)  # fmt: skip


def wait_for_command(descriptor: int) -> dict:
    """Serve until the parent of the tests ends; return in a fork that has a command to run."""
    with socket.socket(fileno=descriptor) as listener:
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return watch(connection)
            connection.close()
            reap()


def reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def watch(connection: socket.socket) -> dict:
    """Fork once more; the fork returns its command, this process tells how it ended."""
    command, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    request = json.loads(command)
    child = os.fork()
    if child:
        connection.sendall(array.array("i", [child]).tobytes())
        running = threading.Event()
        running.set()
        threading.Thread(target=kill_with, args=(connection, child, running), daemon=True).start()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        running.clear()
        with contextlib.suppress(BrokenPipeError):  # its starter has gone
            connection.sendall(array.array("i", [status]).tobytes())
        os._exit(0)
    connection.close()
    for number, file in enumerate(files):  # stdin, stdout, stderr
        os.dup2(file, number)
        os.close(file)
    os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    if "JPY_PARENT_PID" in os.environ:  # a kernel's, which ends when that process has gone
        os.environ["JPY_PARENT_PID"] = str(os.getppid())
    os.chdir(request["cwd"])
    return request


def kill_with(connection: socket.socket, child: int, running: threading.Event) -> None:
    """Kill the child's process group when the other end of its connection closes."""
    connection.recv(1)
    if running.is_set():
        os.killpg(child, signal.SIGKILL)


def run(program: str, *arguments: str) -> None:
    """What ``python PROGRAM ARGUMENTS…`` does."""
    sys.path[0] = "" if program in ("-m", "-c") else os.path.dirname(program)
    if program == "-m":
        sys.argv = list(arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif program == "-c":
        sys.argv = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<command>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")


def exit_code(arguments: list[str]) -> int:
    """Run it; how it ended, with its traceback or last words printed."""
    try:
        run(*arguments)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main(descriptor: str) -> None:
    for module in MODULES:
        importlib.import_module(module)
    for module in ("tqdm.auto", "tqdm.autonotebook"):  # these depend on it too
        sys.modules.pop(module, None)
    gc.collect()
    gc.freeze()  # what was imported stays, and no fork searches it for garbage
    code = exit_code(wait_for_command(int(descriptor))["arguments"])
    # all that Python does at its end but to take every module apart, which would copy the
    # parent's memory and take a second
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
