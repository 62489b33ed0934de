"""Record AskPanel and GroundingPanel in a real JupyterLab: docs/figures/ask.gif, grounding.gif.

`python scripts/record_panels.py`; needs Chromium, as `make ui` does.
"""

import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import PIL.Image
from playwright.sync_api import Locator, expect, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from jupyter_lab import Lab, NotebookPage  # noqa: E402
from panels import choose_sample  # noqa: E402

CELL = "import vlkit\n\nvlkit.widgets.{}(vlkit.load())"
WIDTH, COLOURS = 760, 96  # pixels and colours of the pictures
MOST = 600_000  # bytes of a file


class Recording:
    """Pictures of a panel, each with the time that it stands."""

    def __init__(self, panel: Locator):
        self.panel, self.frames = panel, []

    def take(self, seconds: float = 0.12) -> None:
        area = self.panel.bounding_box()
        shot = PIL.Image.open(io.BytesIO(self.panel.page.screenshot(clip=area)))
        self.frames.append((shot.convert("RGB"), int(1000 * seconds)))

    def ask(self, question: str) -> None:
        prompt = self.panel.locator(".vlkit-prompt textarea")
        for end in range(4, len(question) + 4, 4):
            prompt.fill(question[:end])
            self.take()
        prompt.press("Control+Enter")
        status = self.panel.locator(".vlkit-status")
        for _ in range(60):
            self.panel.page.wait_for_timeout(60)
            self.take()
            if status.text_content() == "Done.":
                break
        expect(status).to_have_text("Done.", timeout=60_000)
        self.take(2)

    def save(self, path: Path) -> None:
        height = max(frame.height for frame, _ in self.frames)
        pictures, times = [], []
        for frame, time in self.frames:
            page = PIL.Image.new("RGB", (frame.width, height), "white")
            page.paste(frame)
            page = page.resize((WIDTH, round(height * WIDTH / frame.width)), PIL.Image.LANCZOS)
            page = page.quantize(COLOURS, dither=PIL.Image.Dither.NONE)
            if pictures and pictures[-1].tobytes() == page.tobytes():
                times[-1] += time
            else:
                pictures.append(page)
                times.append(time)
        more = {"append_images": pictures[1:], "duration": times, "loop": 0, "optimize": True}
        pictures[0].save(path, save_all=True, **more)
        print(f"{path.relative_to(ROOT)}: {len(pictures)} pictures, {path.stat().st_size:,} bytes")
        if path.stat().st_size > MOST:
            sys.exit(f"{path} is larger than {MOST:,} bytes")


def record_ask(panel: Locator) -> Recording:
    recording = Recording(panel)
    recording.take(1)
    choose_sample(panel, "six_shapes")
    panel.page.wait_for_timeout(300)
    recording.take(0.8)
    recording.ask("Detect all objects.")
    for name in ("a pink heart", "a cyan ring"):
        panel.locator(".vlkit-name", has_text=name).hover()
        recording.take(1)
    panel.page.mouse.move(0, 0)
    recording.ask("What color is the heart?")
    return recording


def record_grounding(panel: Locator) -> Recording:
    choose_sample(panel, "three_shapes")
    panel.locator(".vlkit-samples > summary").click()
    panel.page.wait_for_timeout(500)
    recording = Recording(panel)
    recording.take(1)
    recording.ask("Detect all objects.")
    panel.locator(".vlkit-name", has_text="green").hover()
    recording.take(1)
    image = panel.locator(".vlkit-main-picture .vlkit-canvas-stage img").bounding_box()
    place = lambda x, y: (image["x"] + x * image["width"], image["y"] + y * image["height"])  # noqa: E731
    mouse = panel.page.mouse
    mouse.move(*place(0.52, 0.04))
    mouse.down()
    for part in (0.3, 0.6, 1):
        mouse.move(*place(0.52 + 0.45 * part, 0.04 + 0.46 * part))
        recording.take()
    mouse.up()
    recording.take(0.6)
    panel.locator(".vlkit-ask-box-button").click()
    expect(panel.locator(".vlkit-turn")).to_have_count(2)
    expect(panel.locator(".vlkit-status")).to_have_text("Done.", timeout=60_000)
    recording.take(3)
    return recording


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    for name in ("lab", "jupyter"):
        (folder / name).mkdir()
    server = Lab(folder / "lab", folder / "jupyter")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    try:
        server.wait_until_ready()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            for name, record in (("Ask", record_ask), ("Grounding", record_grounding)):
                cell = nbformat.v4.new_code_cell(CELL.format(f"{name}Panel"))
                kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
                notebook = nbformat.v4.new_notebook(cells=[cell], metadata=kernel)
                nbformat.write(notebook, folder / "lab" / f"{name}.ipynb")
                page = browser.new_context(viewport={"width": 1250, "height": 1300}).new_page()
                opened = NotebookPage(page, server, folder / "lab" / f"{name}.ipynb")
                opened.run_all(120)
                hide = "() => window.jupyterapp.commands.execute('application:toggle-left-area')"
                page.evaluate(hide)
                page.wait_for_timeout(1000)
                panel = page.locator(".vlkit-talk")
                expect(panel).to_be_visible(timeout=30_000)
                record(panel).save(ROOT / "docs" / "figures" / f"{name.lower()}.gif")
                opened.close()
    finally:
        server.stop()


if __name__ == "__main__":
    main()
