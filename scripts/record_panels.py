"""Pictures of the panels in a real JupyterLab: docs/figures/ask.gif, grounding.gif, panel_*.webp.

`python scripts/record_panels.py [ask grounding video batch lora chooser]`; needs Chromium, as
`make ui` does.
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
FIGURES = ROOT / "docs" / "figures"
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from jupyter_lab import Lab, NotebookPage  # noqa: E402
from panels import choose_sample  # noqa: E402

CELL = """import os
os.environ["VLKIT_SETTINGS"] = "settings.json"
import vlkit

vlkit.widgets.{}"""
LORA_DATA = """
import json, PIL.Image, PIL.ImageDraw
rows = []
for i in range(40):
    picture = PIL.Image.new("RGB", (112, 112), "white")
    color, name = (("crimson", "A zib."), ("royalblue", "A wug."))[i % 2]
    PIL.ImageDraw.Draw(picture).rectangle((10 + i, 30, 60 + i, 80), fill=color)
    picture.save(f"{i}.png")
    talk = [{"role": "user", "content": "<image>What is this?"},
            {"role": "assistant", "content": name}]
    rows.append({"messages": talk, "images": [f"{i}.png"]})
with open("zib_or_wug.json", "w") as file:
    json.dump(rows, file)
panel = vlkit.widgets.LoraPanel(vlkit.load(), vlkit.lora.load_conversations("zib_or_wug.json"))
panel.knobs["learning_rate"].value, panel.knobs["batch_size"].value = 1e-3, 4
panel.knobs["epochs"].value = 4.0
panel"""
WIDTH, COLOURS = 720, 96  # pixels and colours of the animations
MOST = 480_000  # bytes of an animation
PICTURE = (800, 920), 26_000  # most pixels of a picture, most bytes
LONG = 300_000  # milliseconds


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
            octree = PIL.Image.Quantize.FASTOCTREE  # keeps the colours of small things
            page = page.quantize(COLOURS, method=octree, dither=PIL.Image.Dither.NONE)
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


def ask_clip(panel: Locator) -> None:
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-status")).to_have_text("Done.", timeout=LONG)


def ask_rows(panel: Locator) -> None:
    panel.locator(".vlkit-prompt textarea").fill("Detect all objects.")
    panel.locator(".vlkit-prompt textarea").press("Tab")
    panel.locator(".vlkit-start-button").click()
    expect(panel.locator(".vlkit-status")).to_contain_text("Done in", timeout=LONG)


def train(panel: Locator) -> None:
    expect(panel.locator(".vlkit-cost")).to_contain_text("steps", timeout=LONG)
    panel.locator(".vlkit-start-button").click()
    expect(panel.locator(".vlkit-status")).to_contain_text("Done:", timeout=LONG)
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-tried td")).to_have_count(3, timeout=LONG)


def choose_model(panel: Locator) -> None:
    panel.get_by_role("radio", name="Qwen/Qwen2-VL-2B-Instruct").click(timeout=LONG)
    panel.locator(".vlkit-try-button").click()
    expect(panel.get_by_role("alertdialog")).to_be_visible()


PANELS = {  # name: its cell, what is done with it
    "ask": (CELL.format("AskPanel(vlkit.load())"), record_ask),
    "grounding": (CELL.format("GroundingPanel(vlkit.load())"), record_grounding),
    "video": (CELL.format("VideoPanel(vlkit.load())"), ask_clip),
    "batch": (CELL.format("BatchPanel(vlkit.load())"), ask_rows),
    "lora": ("import vlkit" + LORA_DATA, train),
    "chooser": (CELL.format("ModelChooser()"), choose_model),
}


def save_picture(panel: Locator, path: Path) -> None:
    """The upper part of a panel, as a small WebP file."""
    size, most = PICTURE
    panel.page.mouse.move(0, 0)
    panel.page.wait_for_timeout(500)
    shot = PIL.Image.open(io.BytesIO(panel.screenshot())).convert("RGB")
    shot = shot.crop((0, 0, shot.width, min(shot.height, shot.width * size[1] // size[0])))
    shot.thumbnail(size, PIL.Image.Resampling.LANCZOS)
    for quality in range(85, 20, -5):
        shot.save(path, quality=quality, method=6)
        if path.stat().st_size <= most:
            break
    print(f"{path.relative_to(ROOT)}: {shot.size}, {path.stat().st_size:,} bytes")


def main(names: list[str]) -> None:
    folder = Path(tempfile.mkdtemp())
    for name in ("lab", "jupyter"):
        (folder / name).mkdir()
    server = Lab(folder / "lab", folder / "jupyter")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    try:
        server.wait_until_ready()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            for name in names or PANELS:
                code, use = PANELS[name]
                kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
                cells = [nbformat.v4.new_code_cell(code)]
                notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
                nbformat.write(notebook, folder / "lab" / f"{name}.ipynb")
                page = browser.new_context(viewport={"width": 1250, "height": 1300}).new_page()
                opened = NotebookPage(page, server, folder / "lab" / f"{name}.ipynb")
                opened.run_all(120)
                hide = "() => window.jupyterapp.commands.execute('application:toggle-left-area')"
                page.evaluate(hide)
                page.wait_for_timeout(1000)
                panel = page.locator(".vlkit-framed")
                expect(panel).to_be_visible(timeout=30_000)
                if recording := use(panel):
                    recording.save(FIGURES / f"{name}.gif")
                save_picture(panel, FIGURES / f"panel_{name}.webp")
                opened.close()
    finally:
        server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
