"""Open the notebooks in VS Code and look whether all of them is there: cells, outputs, pictures.

``npm install --global code-server`` first, VS Code's own workbench for a browser; it names the
Node that it needs, and compiles a few modules (a C++ compiler, libkrb5-dev). Its built-in notebook
support shows notebooks and what was stored in them; nothing is run. Opens the executed copies that
``make demo`` left in ``reports/`` and the launcher page, or the notebooks named; leaves a
screenshot of each in ``reports/ui/``, and ends with 1 where something is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from playwright.sync_api import Browser, Frame, Page, sync_playwright
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-proxy-server"]
SETTINGS = {
    "workbench.startupEditor": "none",
    "workbench.editorAssociations": {"*.ipynb": "jupyter-notebook"},  # also while it starts
    "workbench.secondarySideBar.defaultVisibility": "hidden",
    "workbench.sideBar.location": "right",
    "chat.disableAIFeatures": True,
    "extensions.autoCheckUpdates": False,
    "telemetry.telemetryLevel": "off",
}
ROW = ".notebookOverlay .monaco-list-row"
LIST = "document.querySelector('.notebookOverlay .monaco-list')"
# outputs and Markdown are in a frame of their own; a row is in the page while it is in view only
READ = """() => {
    const all = (css) => [...document.querySelectorAll('#container ' + css)];
    const shown = (element) => element.getBoundingClientRect().height > 0;
    const outputs = all('.cell_container').filter((cell) => cell.querySelector('.output'));
    const pictures = all('.output img');
    return {
        texts: all('.preview').filter((cell) => cell.shadowRoot?.textContent.trim()).length,
        outputs: outputs.length,
        pictures: pictures.filter((picture) => picture.naturalWidth > 0).length,
        broken: pictures.filter((picture) => picture.complete && !picture.naturalWidth).length
            + all('.output').filter((output) => /renderer/i.test(output.innerText)).length,
    };
}"""
console = Console()


def main(names: list[str]) -> int:
    server, chromium = shutil.which("code-server"), shutil.which("chromium")
    if not server or not (chromium := os.environ.get("CHROMIUM", chromium)):
        missing = "Chromium" if server else "code-server"
        console.print(f"no {missing} on the PATH; the first lines of {Path(__file__).name} say how")
        return 2
    paths = [Path(name) for name in names] or find_notebooks()
    (REPORTS / "ui").mkdir(parents=True, exist_ok=True)
    with serve(server, paths) as (url, folder), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        right = [look(browser, url, folder / path.name, path) for path in paths]
        browser.close()
    return 0 if all(right) else 1


def find_notebooks() -> list[Path]:
    executed = sorted(REPORTS.glob("[0-9]*.ipynb")) or sorted(ROOT.glob("notebooks/[0-9]*.ipynb"))
    return [*executed, ROOT / "notebooks" / "index.ipynb"]


@contextmanager
def serve(program: str, paths: list[Path]) -> Iterator[tuple[str, Path]]:
    """VS Code on a folder of its own with copies of the notebooks: its address and the folder."""
    with tempfile.TemporaryDirectory(prefix="vlkit-vscode-") as where, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        home, folder = Path(where), Path(where, "notebooks")
        folder.mkdir()
        for path in paths:
            shutil.copy(path, folder)
        write_settings(home)
        probe.close()
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(command(program, home, address), stdout=log, stderr=log)
            try:
                wait_for(address)
                yield f"http://{address}", folder
            finally:
                process.terminate()
                process.wait(30)


def write_settings(home: Path) -> None:
    (home / "data" / "User").mkdir(parents=True)
    text = json.dumps(SETTINGS)
    (home / "data" / "User" / "settings.json").write_text(text, encoding="utf-8")
    (home / "config.yaml").write_text("auth: none\n", encoding="utf-8")


def command(program: str, home: Path, address: str) -> list[str]:
    folders = [f"--user-data-dir={home / 'data'}", f"--extensions-dir={home / 'extensions'}"]
    quiet = ["--disable-telemetry", "--disable-update-check", "--disable-workspace-trust"]
    config = [f"--config={home / 'config.yaml'}", f"--bind-addr={address}", "--auth=none"]
    return [program, *config, *folders, *quiet, "--ignore-last-opened"]


def wait_for(address: str, seconds: float = 60) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"code-server did not answer at {address} within {seconds:.0f} s")


def look(browser: Browser, url: str, copy: Path, path: Path) -> bool:
    """Open one, go through it from top to bottom, print what is there; whether it is all."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    page = context.new_page()
    wanted = count(path)
    found = walk(open_notebook(page, url, copy), page, wanted)
    page.screenshot(path=REPORTS / "ui" / f"vscode_{path.stem}.png")
    context.close()
    wrong = {key: (found[key], wanted[key]) for key in wanted if found[key] != wanted[key]}
    verdict = f"[red]not as stored: {wrong}[/]" if wrong else "all there"
    console.print(f"{path.name}: {found} {verdict}", soft_wrap=True, highlight=False)
    return not wrong


def count(path: Path) -> dict[str, int]:
    cells = nbformat.read(path, as_version=4).cells
    outputs = [cell.outputs for cell in cells if cell.cell_type == "code" and cell.outputs]
    data = [output.get("data", {}) for shown in outputs for output in shown]
    return {
        "cells": len(cells),
        "texts": sum(cell.cell_type == "markdown" for cell in cells),
        "outputs": len(outputs),
        "pictures": sum(map(count_pictures, data)),
        "broken": 0,
        "complaints": 0,
    }


def count_pictures(data: dict) -> int:
    """VS Code shows HTML before a picture's own type, as JupyterLab does."""
    if "text/html" in data:
        return "".join(data["text/html"]).count("<img")
    return int(any(kind.startswith("image/") for kind in data))


def open_notebook(page: Page, url: str, path: Path) -> Frame:
    where = f"vscode-remote://{url.removeprefix('http://')}{path}"
    page.goto(f"{url}/?folder={path.parent}&payload={json.dumps([['openFile', where]])}")
    page.wait_for_selector(ROW, state="attached", timeout=120_000)
    for _ in range(600):
        for frame in page.frames:
            if "fake.html" in frame.url and frame.query_selector("#container .preview"):
                return frame
        page.wait_for_timeout(200)
    raise SystemExit(f"{path.name}: VS Code shows none of its text")


def walk(frame: Frame, page: Page, wanted: dict[str, int]) -> dict[str, int]:
    """Down through the cells, for only what was in view is there; then what there is."""
    rows: set[str] = set()
    page.evaluate(f"{LIST}.focus()")
    page.keyboard.press("Control+Home")
    for _ in range(wanted["cells"] + 1):
        page.wait_for_timeout(250)
        rows |= set(page.eval_on_selector_all(ROW, "rows => rows.map(row => row.dataset.index)"))
        page.keyboard.press("ArrowDown")
    toasts = page.locator(".notification-toast").count()
    for _ in range(40):
        found = frame.evaluate(READ) | {"cells": len(rows), "complaints": toasts}
        if found == wanted:
            break
        page.wait_for_timeout(500)
    page.keyboard.press("Control+Home")
    page.wait_for_timeout(1500)
    return {key: found[key] for key in wanted}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
