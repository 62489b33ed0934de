"""`vlkit lab` in a real browser: the launcher page, and the model chosen once for all notebooks."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jupyter_lab import Lab, NotebookPage
from playwright.sync_api import expect
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect

REPORTS = Path(__file__).parents[2] / "reports" / "ui"
LONG = 120_000


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return tmp_path_factory.mktemp("settings") / "settings.json"


@pytest.fixture(scope="module")
def course(tmp_path_factory, settings, warm_kernels):
    """`vlkit lab`, on copies of the notebooks."""
    place = tmp_path_factory.mktemp("place")
    (place / "jupyter").mkdir()
    folder = place / "course"
    program = ("vlkit", "lab", "--folder", str(folder))
    environment = {"JUPYTER_PATH": str(warm_kernels), "VLKIT_SETTINGS": str(settings)}
    server = Lab(folder, place / "jupyter", program, cwd=place, environment=environment)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def test_the_launcher_page_and_a_model_for_all_notebooks(course, browser, settings):
    context = browser.new_context(viewport={"width": 1000, "height": 1100})
    index = NotebookPage(context.new_page(), course, course.folder / "index.ipynb")
    assert f"{course.url}/lab/tree/index.ipynb" in course.log.read_text()  # what it opens
    expect(index.page.locator("table").first).to_contain_text("00 · Setup")
    index.run_all(120)
    index.show("\npanel")
    panel = index.page.locator(".vlkit-chooser")
    expect(panel.locator(".vlkit-chosen")).to_contain_text("the bundled model")
    _try_and_stop(panel)
    _remember(panel)
    assert json.loads(settings.read_text()) == {"model": "tiny", "max_image_tokens": 64}
    assert "max_image_tokens=64" in panel.locator(".vlkit-chosen").inner_text()
    for theme in ("Dark", "Light"):
        index.set_theme(f"JupyterLab {theme}")
        REPORTS.mkdir(parents=True, exist_ok=True)
        index.page.screenshot(path=REPORTS / f"index_{theme.lower()}.png")
    said = index.run_code("vlm = vlkit.load(); print(vlm, vlm.max_image_tokens)")
    assert f"chosen by {settings}) 64" in said
    _open_the_first_notebook(index)
    assert index.page_errors == index.outside == []
    index.close()
    context.close()


def _try_and_stop(panel):
    panel.locator(".vlkit-try-button").click()
    expect(panel.locator(".vlkit-stop-button")).to_be_enabled()
    expect(panel.locator(".vlkit-busy")).to_be_visible()
    panel.locator(".vlkit-stop-button").click()
    expect(panel.locator(".vlkit-status")).to_have_text("Stopped.")
    panel.locator(".vlkit-try-button").click()
    expect(panel.locator(".vlkit-status")).to_contain_text("It works.", timeout=LONG)
    expect(panel.locator(".vlkit-tried")).to_contain_text("blue square")
    expect(panel.locator(".vlkit-tried img")).to_be_visible()


def _remember(panel):
    """With the keyboard alone, from a control to the button."""
    panel.get_by_text("Options: device").click()
    limit = panel.locator(".vlkit-max-image-tokens input")
    limit.fill("64")
    limit.press("Tab")
    for _ in range(2):  # over Try, to Remember: Stop is disabled
        expect(panel.locator("button:focus")).to_have_count(1)
        panel.page.keyboard.press("Tab")
        if panel.locator(".vlkit-remember-button:focus").count():
            break
    expect(panel.locator(".vlkit-remember-button")).to_be_focused()
    panel.page.keyboard.press("Enter")
    expect(panel.locator(".vlkit-status")).to_contain_text("Remembered in")


def _open_the_first_notebook(index):
    index.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.scrollToItem(0)")
    index.page.get_by_role("link", name="00 · Setup").first.click()
    expect(index.page.locator(".jp-NotebookPanel:visible")).to_contain_text("00 · Setup: from")


def test_a_large_upload_reaches_the_kernel(course):
    """What a browser sends for a file of 20 MB: one message as large, on the kernel's socket."""
    with ThreadPoolExecutor(1) as pool:  # playwright's own loop runs in this thread
        sent = _execute(course, "print(6 * 7)", {"file": "x" * 20_000_000})
        assert pool.submit(asyncio.run, sent).result() == "42\n"


async def _execute(server, code, more):
    where = f"{server.url}/api/kernels"
    headers = {"Authorization": f"token {server.token}"}
    client = AsyncHTTPClient()
    made = await client.fetch(where, method="POST", headers=headers, body="{}", request_timeout=60)
    address = f"{where.replace('http', 'ws', 1)}/{json.loads(made.body)['id']}/channels"
    socket = await websocket_connect(HTTPRequest(address, headers=headers))
    header = {"msg_id": "1", "msg_type": "execute_request", "username": "", "session": "1",
              "date": "2026-01-01T00:00:00Z", "version": "5.3"}  # fmt: skip
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": more}
    await socket.write_message(json.dumps(message | {"content": content}))
    while (text := await asyncio.wait_for(socket.read_message(), 60)) is not None:
        message = json.loads(text)
        if message["msg_type"] == "stream":
            return message["content"]["text"]
    return f"closed: {socket.close_code}"
