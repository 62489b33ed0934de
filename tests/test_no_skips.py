"""The rule of conftest.py: in CI a skipped test is a failed one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_runs():
    pass

@pytest.mark.skipif({skip}, reason="a part is missing")
def test_may_be_skipped():
    pass

@pytest.mark.gpu
def test_needs_a_gpu():
    pytest.skip("there is none")

@pytest.mark.xfail
def test_fails_as_expected():
    assert False
"""


@pytest.mark.parametrize("variable", [None, "CI", "VLKIT_NO_SKIPS"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_skip_fails_the_run_in_ci(tmp_path, variable, skip):
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(TESTS.format(skip=skip))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "VLKIT_NO_SKIPS")}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | ({variable: "1"} if variable else {})
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    refused = skip and variable is not None
    assert result.returncode == (1 if refused else 0), result.stdout
    assert ("FAILED: 1 skipped" in result.stdout) == refused
