"""`make docs`: the site is built without a network or a warning, and asks nobody outside."""

import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:::sphinx", "ignore:::myst_parser")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def site(tmp_path, blocked_network, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from build import main

    assert main(tmp_path / "site") == 0  # a warning is a failure
    assert blocked_network == []
    yield tmp_path / "site"
    del sys.modules["build"]


@pytest.mark.slow
def test_every_page_is_built_and_needs_nothing_from_outside(site):
    pages = {path.relative_to(site).as_posix(): path for path in site.rglob("*.html")}
    wanted = [f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")]
    wanted += [path.stem for path in (ROOT / "docs").glob("*.md")]
    assert {f"{name}.html" for name in wanted} <= set(pages)
    for name, path in pages.items():
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(?:https?:)?//', text
        ), name
    reference = pages["reference/vlkit.html"].read_text(encoding="utf-8")
    assert 'id="vlkit.load"' in reference and 'id="vlkit.Box"' in reference
    shell = pages["reference/shell.html"].read_text(encoding="utf-8")
    assert "Usage: vlkit batch" in shell and "--max-new-tokens" in shell
    howto = pages["howto.html"].read_text(encoding="utf-8")
    plain = r'highlight-none[^>]*><div class="highlight"><pre>(<span></span>)?vlkit download Qwen/'
    assert re.search(plain, howto) and "highlight-python" in howto
    course = pages["notebooks/01_image_inference.html"].read_text(encoding="utf-8")
    assert "Asking about pictures" in course and "importlib.util" not in course
