"""The pictures on the classroom's home page: python docs/panel_pictures.py URL [PANEL …]

URL is that of a running ``vlkit classroom``. Each panel is opened, asked, and photographed in both
themes, with playwright and Chromium; the pictures go to vlkit/cli/classroom.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

import PIL.Image
from playwright.sync_api import Page, sync_playwright

TARGET = Path(__file__).resolve().parents[1] / "vlkit" / "cli" / "classroom"
SIZE, MOST = (640, 400), 29_500  # pixels of a picture, most bytes
ASKED = {  # where the first sample and its first question say less
    "ask": ("city_street", "Detect all objects."),
    "grounding": ("six_shapes", "Detect all objects."),
}
LONG = 240_000  # milliseconds


def main(url: str, *names: str) -> None:
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        for panel in names or ("ask", "grounding", "video", "batch", "lora"):
            for theme in ("light", "dark"):
                page = browser.new_page(viewport={"width": 1120, "height": 760})
                address = f"{url.rstrip('/')}/voila/render/{panel}.ipynb?theme={theme}"
                answer = page.goto(address, wait_until="domcontentloaded", timeout=LONG)
                if answer is not None and answer.ok:
                    write_picture(page, panel, theme)
                page.close()
        browser.close()


def write_picture(page: Page, panel: str, theme: str) -> None:
    place = page.locator(f".vlkit-{panel}")
    place.wait_for(timeout=LONG)
    if panel in ASKED:
        sample, question = ASKED[panel]
        samples = place.locator(".vlkit-samples")
        if samples.get_attribute("open") is None:
            samples.locator("summary").click()
        place.locator(f'.vlkit-sample[data-name="{sample}"]').click()
        samples.locator("summary").click()
        place.locator(".vlkit-prompt textarea").fill(question)
    begin = place.locator(".vlkit-start-button, .vlkit-ask-button").first
    if panel != "lora":
        begin.click()
        place.locator(".vlkit-status", has_text="Done").wait_for(timeout=LONG)
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(1000)
    shot = PIL.Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot = shot.crop((0, 60, 1120, 760))  # without the page's bar
    shot = shot.resize(SIZE, PIL.Image.Resampling.LANCZOS)
    path = TARGET / f"{panel}_{theme}.jpg"
    for quality in range(82, 50, -3):
        shot.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= MOST:
            break


if __name__ == "__main__":
    main(*sys.argv[1:])
