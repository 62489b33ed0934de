"""What others start in place of Python: ``python warm_python.py SOCKET -m ipykernel_launcher …``.

The command runs in a fork of the warmed parent. This process stands for it: signals are passed on,
it ends as the fork ends, and the fork is killed with it.
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


def main(address: str, *arguments: str) -> int:
    if arguments[0] == "-u":  # what torchrun adds: nothing is buffered
        arguments = arguments[1:]
    request = {"arguments": arguments, "cwd": os.getcwd(), "env": dict(os.environ)}
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
    fork = receive(connection)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.killpg(fork, number))
    return receive(connection)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
