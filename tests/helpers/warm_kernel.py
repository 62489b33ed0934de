"""What Jupyter starts as a kernel: ``python warm_kernel.py SOCKET -f CONNECTION_FILE``.

The kernel is a fork of the warmed parent. This process stands for it: signals are passed on, it
ends as the kernel ends, and the kernel is killed with it.
"""

import array
import json
import os
import signal
import socket
import sys


def receive(connection: socket.socket) -> int:
    numbers = array.array("i")
    numbers.frombytes(connection.recv(numbers.itemsize, socket.MSG_WAITALL))
    return numbers[0]


def main(address: str, *options: str) -> int:
    arguments = ["-m", "ipykernel_launcher", *options]
    request = {"arguments": arguments, "cwd": os.getcwd(), "env": dict(os.environ)}
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    socket.send_fds(connection, [json.dumps(request).encode()], [1, 2])
    kernel = receive(connection)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.killpg(kernel, number))
    return receive(connection)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
