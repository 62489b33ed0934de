"""A page as PDF, printed by a browser that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from vlkit.errors import VlkitError

BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
    "microsoft-edge", "msedge", "brave-browser",
)  # fmt: skip
_MAC = "/Applications/{0}.app/Contents/MacOS/{0}"
SECONDS = 120


def find_browser() -> str | None:
    """The path of a browser of Chromium's kind; ``CHROMIUM`` names another."""
    mac = [_MAC.format(name) for name in ("Google Chrome", "Chromium", "Microsoft Edge")]
    named = [os.environ.get("CHROMIUM"), *BROWSERS, *mac]
    return next((path for name in named if name and (path := shutil.which(name))), None)


def print_page(page: Path, pdf: Path) -> None:
    """Write an HTML file as PDF.

    Raises:
        VlkitError: no browser is installed, or it fails.
    """
    browser = find_browser()
    if browser is None:
        raise VlkitError(
            "a PDF needs Chromium, Chrome or Edge; install one, or set CHROMIUM to its path, or "
            "write a .html and print it from your browser"
        )
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with tempfile.TemporaryDirectory() as profile:
        made = Path(profile) / "page.pdf"
        command = [
            browser, "--headless", "--disable-gpu", "--no-first-run", "--disable-extensions",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--no-pdf-header-footer",
            *(["--no-sandbox"] if root else []), f"--print-to-pdf={made}", page.absolute().as_uri(),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise VlkitError(f"{browser} did not print the page: {error}") from None
        if not made.is_file():
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise VlkitError(f"{browser} did not print the page: {reason:.200}")
        shutil.copyfile(made, pdf)
