"""The VideoPanel under a real mouse, in JupyterLab as a user has it."""

import re
from pathlib import Path

import pytest
from panels import choose_sample, set_number
from playwright.sync_api import expect

REPORTS = Path(__file__).parents[2] / "reports" / "ui"
CELL = """import vlkit

panel = vlkit.widgets.VideoPanel(vlkit.load())
panel"""
# the middle of the frame that the player shows: red where the circle is, else the light ground
MIDDLE = """async (video) => {
    video.currentTime = video.duration / 2;
    await new Promise((done) => video.addEventListener('seeked', done, { once: true }));
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const drawing = canvas.getContext('2d');
    drawing.drawImage(video, 0, 0);
    const at = (x, y) => Array.from(drawing.getImageData(x, y, 1, 1).data.slice(0, 3));
    return [video.videoWidth, video.videoHeight, at(106, 84), at(10, 10)];
}"""


@pytest.fixture
def notebook(run_cells):
    return run_cells(CELL, height=1250)


def test_play_sample_and_ask(notebook):
    panel = notebook.page.locator(".vlkit-video")
    _player_shows_the_clip(panel.locator("video"))
    _slider_changes_frames_and_tokens(panel)
    panel.locator(".vlkit-prompt textarea").fill("How does the red circle move?")
    panel.locator(".vlkit-ask-button").click()
    expect(panel.locator(".vlkit-status")).to_have_text("Done.")
    expect(panel.locator(".vlkit-answer")).to_contain_text("right")
    expect(panel.locator(".vlkit-asked img")).to_be_visible()
    expect(panel.locator(".vlkit-strip img")).to_have_count(8)  # one strip, not two
    REPORTS.mkdir(parents=True, exist_ok=True)
    for theme, name in (("Dark", "video_panel_dark.png"), ("Light", "video_panel.png")):
        notebook.set_theme(f"JupyterLab {theme}")
        notebook.page.screenshot(path=REPORTS / name)
    choose_sample(panel, "moves_down")
    expect(panel.locator(".vlkit-player img")).to_be_visible()  # a GIF is a picture that moves
    expect(panel.locator(".vlkit-player img")).to_have_attribute("alt", "moves_down")
    expect(panel.locator(".vlkit-strip img")).to_have_count(8)
    expect(panel.locator(".vlkit-strip span").last).to_have_text(re.compile(r"1\.\d\d s"))  # of 2
    assert notebook.page_errors == []


def _player_shows_the_clip(player):
    expect(player).to_be_visible()
    player.page.wait_for_function("video => video.readyState >= 2", arg=player.element_handle())
    width, height, middle, ground = player.evaluate(MIDDLE)
    assert (width, height) == (224, 168)
    assert middle[0] > 180 and max(middle[1:]) < 90  # the red circle crosses the middle
    assert min(ground) > 230


def _slider_changes_frames_and_tokens(panel):
    count, strip = panel.locator(".vlkit-count"), panel.locator(".vlkit-strip img")  # of a frame
    expect(count).to_have_text("8 of 96 frames, seen at 224×168: 192 tokens")
    expect(strip).to_have_count(8)
    for control, value in (("fps", 10), ("max-frames", 32)):
        set_number(panel, control, value)
    expect(count).to_contain_text("32 of 96 frames")
    expect(strip).to_have_count(32)
    set_number(panel, "max-frames", 8)
    expect(strip).to_have_count(8)
