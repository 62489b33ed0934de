"""A real JupyterLab in a real browser: one server, one browser and one page for all tests.

``open_notebook(path)`` is all that a test needs; it works for any notebook, those of
``notebooks/`` as well as one that the test has written.
"""

import os
import secrets
import shutil
from pathlib import Path

import nbformat
import pytest
from jupyter_lab import Lab, NotebookPage
from playwright.sync_api import expect, sync_playwright

expect.set_options(timeout=60_000)  # of a busy machine; nothing waits for its end where it holds
FAILED = pytest.StashKey[bool]()
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
]


@pytest.fixture(scope="session")
def lab(tmp_path_factory, warm_kernels):
    """One JupyterLab for all tests, on an empty folder of its own; its kernels start at once."""
    folders = map(tmp_path_factory.mktemp, ("lab", "jupyter"))
    server = Lab(*folders, environment={"JUPYTER_PATH": str(warm_kernels)})
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="package")  # its loop must have ended before other tests start theirs
def browser():
    """Headless Chromium; its absence is a failure, for CI installs it."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.fail("no Chromium: apt-get install chromium, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def shared_page(browser):
    """``shared_page(request)``: a page for the test; the last one's, with JupyterLab, if it passed.

    To load JupyterLab takes eight seconds of CPU time, to open a notebook in it two.
    """
    context, last = browser.new_context(), {}

    def page(request):
        reloads = last and "opened_again" in last["test"].name  # its tab may come back late
        if last and (reloads or last["test"].stash.get(FAILED, False)):
            last.pop("page").close()
        last["test"] = request.node
        if "page" not in last:
            last["page"] = context.new_page()
        return last["page"]

    yield page
    context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    item.stash[FAILED] = report.failed or item.stash.get(FAILED, False)
    return report


@pytest.fixture
def open_notebook(shared_page, lab, request):
    """``open_notebook(path)`` copies the notebook's folder into the lab and opens the notebook."""
    opened = []

    def open_path(path: Path, width: int = 1400, height: int = 1000) -> NotebookPage:
        folder = lab.folder / secrets.token_hex(4)
        shutil.copytree(path.parent, folder)
        page = shared_page(request)
        page.set_viewport_size({"width": width, "height": height})
        opened.append(NotebookPage(page, lab, folder / path.name))
        return opened[-1]

    yield open_path
    for notebook in opened:
        notebook.close()
    assert [notebook.outside for notebook in opened] == [[] for _ in opened]


@pytest.fixture
def run_cells(tmp_path, open_notebook):
    """``run_cells(*sources)``: a notebook of these cells, beside ``tmp_path``'s files, run."""

    def run(*sources: str, height: int = 1000) -> NotebookPage:
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        path = tmp_path / "panel.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
        opened = open_notebook(path, height=height)
        opened.run_all(120)
        return opened

    return run
