"""One set of versions: pyproject, requirements.lock, environment.yml, the README's pip lines."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK_LINES = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
LOCKED = [Requirement(line) for line in LOCK_LINES if line and not line.startswith("#")]


def applies(requirement):
    return requirement.marker is None or Marker(str(requirement.marker)).evaluate()


def test_the_lock_pins_every_package_by_name_and_version_without_urls():
    for requirement in LOCKED:
        assert re.fullmatch(r"==[\w.+!]+", str(requirement.specifier)), requirement
        assert requirement.url is None
    assert not any("http" in line and "://" in line for line in LOCK_LINES)


def test_what_is_installed_is_what_is_locked():
    wrong = {}
    for requirement in filter(applies, LOCKED):
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = "missing"
        if not requirement.specifier.contains(installed.replace("missing", "0"), prereleases=True):
            wrong[requirement.name] = (installed, str(requirement.specifier))
    assert wrong == {}


def test_the_lock_satisfies_every_declared_dependency():
    pins = {
        canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in LOCKED if applies(r)
    }
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for line in (line for group in groups for line in group if not line.startswith("vlkit[")):
        requirement = Requirement(line)
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{line} against {pin}"


def test_conda_installs_the_lock_and_nothing_of_its_own():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    pip = next(line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    assert conda == ["python=3.11", "pip"]
    assert pip == ["-r requirements.lock", "-e ."]
    assert PROJECT["requires-python"] == ">=3.11"


@pytest.mark.parametrize("file", ["README.md", "Makefile"])
def test_readme_and_makefile_install_the_lock_then_vlkit_alone(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "pip install" in line]
    locked = [i for i, line in enumerate(lines) if "-r requirements.lock" in line]
    own = [i for i, line in enumerate(lines) if re.search(r"--no-deps -e \.", line)]
    assert locked and own and locked[0] < own[0]


def test_the_repository_is_small_enough_to_clone():
    import subprocess

    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=60
    )
    names = listed.stdout.decode().split("\0")
    size = sum((ROOT / name).stat().st_size for name in names if (ROOT / name).is_file())
    assert size < 55e6
