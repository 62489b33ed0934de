"""A running JupyterLab, and a notebook that is open in a browser."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Page, TimeoutError
from served import free_port

LAB_FLAGS = ("--allow-root", "--ip=127.0.0.1", "--port-retries=0", "--expose-app-in-browser")
LAB_CONFIG = {  # nobody outside is asked for news, updates or extensions
    "LabApp": {
        "news_url": None,
        "check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "extension_manager": "readonly",
    }
}
LAB_SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    }
}
NOTEBOOK = "window.jupyterapp?.shell?.currentWidget"  # undefined while a page loads
# runs code in the notebook's kernel and gives what it printed; no cell, so nothing scrolls
RUN = f"""async (code) => {{
    const kernel = {NOTEBOOK}.sessionContext.session.kernel;
    const future = kernel.requestExecute({{ code, store_history: false }});
    let text = '';
    future.onIOPub = (message) => {{ text += message.content.text ?? ''; }};
    await future.done;
    return text;
}}"""
IDLE = f"{NOTEBOOK}?.sessionContext?.session?.kernel?.status === 'idle'"
READ_ERRORS = f"""() => {NOTEBOOK}.content.widgets.flatMap((cell, i) =>
    (cell.model.outputs?.toJSON() ?? []).filter((output) => output.output_type === 'error')
        .map((output) => `cell ${{i}}: ${{output.ename}}: ${{output.evalue}}`))"""
# what cells wrote to stderr, as warnings are
READ_WARNINGS = f"""() => {NOTEBOOK}.content.widgets.flatMap((cell) =>
    (cell.model.outputs?.toJSON() ?? []).filter((output) => output.name === 'stderr')
        .map((output) => [output.text].flat().join('')))"""
READ_PRINTED = READ_WARNINGS.replace("output.name === 'stderr'", "output.output_type === 'stream'")
# the cell whose code ends in this line comes into view
SHOW = f"""async (line) => {{
    const notebook = {NOTEBOOK}.content;
    const index = notebook.widgets.findIndex((cell) =>
        cell.model.type === 'code' && cell.model.sharedModel.source.trim().endsWith(line));
    notebook.activeCellIndex = index;
    await notebook.scrollToItem(index, 'start');
}}"""
# opens a notebook in a page that has JupyterLab already, as a fresh page would have it
OPEN = """async (path) => {
    const { commands, shell } = window.jupyterapp;
    document.documentElement.removeAttribute('style');
    if (shell.leftCollapsed) shell.expandLeft();
    const widget = await commands.execute('docmanager:open', { path, factory: 'Notebook' });
    await widget.context.ready;
    shell.activateById(widget.id);
}"""
# ends its kernel, and closes it without the question whether to save it
CLOSE = f"""async () => {{
    const notebook = {NOTEBOOK};
    await notebook.sessionContext.shutdown();
    notebook.context.model.dirty = false;
    notebook.close();
}}"""
READ_UNRUN = f"""() => {NOTEBOOK}.content.widgets.flatMap((cell, i) =>
    cell.model.type === 'code' && cell.model.sharedModel.source.trim()
        && cell.model.executionCount === null ? [i] : [])"""


class Lab:
    """A running JupyterLab: its address, its token and the folder that it serves."""

    def __init__(
        self, folder, config, program=("jupyterlab",), *, cwd=None, flags=LAB_FLAGS, environment=()
    ):
        self.folder = folder
        self.token = secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = config / "lab.log"
        command = [sys.executable, "-m", *program, "--no-browser", *flags]
        command.append(f"--port={self.url.rpartition(':')[2]}")
        if flags:
            command.append(f"--IdentityProvider.token={self.token}")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=cwd or folder,
                env=os.environ | _jupyter_folders(config) | dict(environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self, path: str = "/api/status", seconds: float = 240) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                opener.open(f"{self.url}{path}?token={self.token}", timeout=5).close()
                return
            except TimeoutError:
                return  # it is there, and at work
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        pytest.fail(f"JupyterLab did not start: {self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        """SIGTERM lets the server end its kernels, which have process groups of their own."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _kill_group(self.process.pid)
            self.process.wait()


class NotebookPage:
    """A notebook open in the browser; ``page`` is playwright's, new or with JupyterLab in it."""

    def __init__(self, page: Page, lab: Lab, path: Path):
        self.page, self.outside, self.page_errors = page, [], []
        self._own = (lab.url, lab.url.replace("http", "ws"), "data:", "blob:")
        self._listeners = {"request": self._note_request, "pageerror": self._note_error}
        for event, listener in self._listeners.items():
            page.on(event, listener)
        where = path.relative_to(lab.folder).as_posix()
        if page.url.startswith(lab.url):
            page.evaluate(OPEN, where)
        else:
            page.goto(f"{lab.url}/lab/tree/{where}?token={lab.token}&reset")
        self.wait_until_idle()

    def _note_request(self, request) -> None:
        if not request.url.startswith(self._own):
            self.outside.append(request.url)

    def _note_error(self, error) -> None:
        self.page_errors.append(str(error))

    def wait_until_idle(self, seconds: float = 240) -> None:
        self.page.wait_for_function(IDLE, timeout=1000 * seconds)

    def run_all(self, seconds: float = 300) -> None:
        """Run every cell, and fail if one was not run or ended in an error."""
        self.page.evaluate(
            """() => { window.vlkitDone = false;
            window.jupyterapp.commands.execute('notebook:run-all-cells')
                .finally(() => { window.vlkitDone = true; }); }"""
        )
        try:
            self.page.wait_for_function("window.vlkitDone", timeout=1000 * seconds)
            self.wait_until_idle()
        except TimeoutError:
            pytest.fail(f"still running after {seconds} s: cells {self.page.evaluate(READ_UNRUN)}")
        assert self.page.evaluate(READ_ERRORS) == []
        assert self.page.evaluate(READ_UNRUN) == []

    def printed(self) -> list[str]:
        """What cells wrote to stdout and stderr."""
        return self.page.evaluate(READ_PRINTED)

    def warnings(self) -> list[str]:
        """What cells wrote to stderr."""
        return self.page.evaluate(READ_WARNINGS)

    def run_code(self, code: str) -> str:
        """Run code in the notebook's kernel; what it printed."""
        return self.page.evaluate(RUN, code)

    def show(self, line: str) -> None:
        """Scroll to the cell whose code ends in this line."""
        self.page.evaluate(SHOW, line)

    def set_theme(self, name: str) -> None:
        """``"JupyterLab Light"`` or ``"JupyterLab Dark"``."""
        self.page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", name
        )
        self.page.wait_for_selector(f'body[data-jp-theme-name="{name}"]', state="attached")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def close(self) -> None:
        """End the kernel, so that notebooks do not share the memory; the page stays."""
        self.page.evaluate(CLOSE)
        for event, listener in self._listeners.items():
            self.page.remove_listener(event, listener)


def _jupyter_folders(config: Path) -> dict[str, str]:
    """Folders of its own, so that nobody's settings change the test nor the test theirs."""
    names = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
    names += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"]
    folders = {name: str(config / name.lower()) for name in names}
    _write_json(config / "jupyter_config_dir" / "jupyter_lab_config.json", LAB_CONFIG)
    for name, settings in LAB_SETTINGS.items():
        path = config / "jupyterlab_settings_dir" / f"{name}.jupyterlab-settings"
        _write_json(path, settings)
    return folders


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
