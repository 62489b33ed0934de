"""What each visitor of `vlkit classroom` costs: memory, the page, and an answer.

    python benchmarks/classroom.py [--visitors 10] [--panel grounding] [--output results/….json]

It starts a classroom, opens its page in as many browser contexts as there are visitors (playwright
and Chromium), lets all ask at the same time, and adds up the proportional set size (PSS) of the
classroom and of all its kernels: memory that processes share is counted once. Linux.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
from playwright.sync_api import sync_playwright
from reporting import report

LONG = 300_000  # milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, default=10)
    parser.add_argument("--panel", default="grounding")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vlkit", "classroom", "--no-browser", f"--port={port}"]
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as folder:
        classroom = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}/"
            wait_for(url, classroom)
            result = visit(classroom.pid, f"{url}voila/render/{arguments.panel}.ipynb", arguments)
        finally:
            classroom.terminate()
            classroom.wait(300)  # its kernels end one by one
    report(result, arguments.output)


def wait_for(url: str, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the classroom did not start")


def megabytes(pid: int) -> int:
    """PSS of a process and all below it."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return sum(member.memory_full_info().pss for member in family) // 10**6


def visit(pid: int, url: str, arguments: argparse.Namespace) -> dict:
    count = arguments.visitors
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        alone, pages, opening = megabytes(pid), [], []
        for _ in range(count):
            start = time.perf_counter()
            page = browser.new_context().new_page()
            page.goto(url, wait_until="domcontentloaded", timeout=LONG)
            page.locator(".vlkit-ask-button").first.wait_for(timeout=LONG)
            opening.append(time.perf_counter() - start)
            pages.append(page)
        opened, start = megabytes(pid), time.perf_counter()
        for page in pages:
            page.locator(".vlkit-ask-button").first.click()
        for page in pages:
            page.locator(".vlkit-status", has_text="Done").wait_for(timeout=LONG)
        answered, seconds = megabytes(pid), time.perf_counter() - start
        browser.close()
    return {
        "panel": arguments.panel,
        "visitors": count,
        "classroom_megabytes": alone,
        "visitor_megabytes": {
            "page_open": round((opened - alone) / count),
            "after_an_answer": round((answered - alone) / count),
        },
        "page_opens_seconds": round(sum(opening) / count, 1),
        "all_answered_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
