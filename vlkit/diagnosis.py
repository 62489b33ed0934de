"""``vlkit.doctor()``: what this machine has, what is wrong, how to fix it."""

import html
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from vlkit.errors import VlkitError, counted
from vlkit.plotting.html import table_html
from vlkit.records.facts import package_version

OLDEST_TRANSFORMERS = (5, 17)
_CORE = (
    "vlkit torch torchvision transformers qwen-vl-utils accelerate modelscope huggingface_hub "
    "pillow matplotlib jupyterlab ipywidgets"
).split()
_EXTRAS = {"peft": "lora", "bitsandbytes": "quant", "openai": "remote", "fastapi": "serve"}
_EXTRAS |= {"nbclient": "notebooks"}
_MARKS = {"ok": "ok  ", "note": "note", "problem": "BAD "}
_COLORS = {"ok": "#009E73", "note": "#D97706", "problem": "#D32F2F"}


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        topic: of the check.
        value: its result.
        level: ``"ok"``, ``"note"`` (works, could be better) or ``"problem"``.
        remedy: what to do, or "".
    """

    topic: str
    value: str
    level: str = "ok"
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings; shows itself in a notebook and as text."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> list[Finding]:
        """What keeps vlkit from working."""
        return [finding for finding in self.findings if finding.level == "problem"]

    def __str__(self) -> str:
        lines = [
            f"{_MARKS[f.level]} {f.topic}: {f.value}" + (f"  → {f.remedy}" if f.remedy else "")
            for f in self.findings
        ]
        return "\n".join([*lines, self._verdict()])

    def _repr_html_(self) -> str:
        # the words keep the page's own color, which is readable in every theme
        rows = [
            [f'<b style="border-left:5px solid {_COLORS[f.level]};padding-left:7px">{f.level}</b>']
            + [html.escape(text) for text in (f.topic, f.value, f.remedy)]
            for f in self.findings
        ]
        table = table_html(("", "What", "Found", "To do"), rows)
        return f"{table}<p><b>{self._verdict()}</b></p>"

    def _verdict(self) -> str:
        count = len(self.problems)
        return f"{counted(count, 'problem')} to fix." if count else "Ready."


def doctor() -> Diagnosis:
    """Look at packages, accelerators, memory, disk, video readers and models on this machine."""
    checks: list[Callable[[], Iterable[Finding]]] = [
        _check_python, _check_packages, _check_extras, _check_torch, _check_memory, _check_disk,
        _check_video, _check_models, _check_choice,
    ]  # fmt: skip
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:  # one failing check must not hide the others
            topic = check.__name__.removeprefix("_check_")
            findings.append(Finding(topic, f"{type(error).__name__}: {error}", "problem"))
    return Diagnosis(tuple(findings))


def _note(topic: str, value: str, remedy: str) -> Finding:
    """What could be better; without a remedy it is as it should be."""
    return Finding(topic, value, "note" if remedy else "ok", remedy)


def _check_python() -> Iterator[Finding]:
    system = f"{platform.system()} {platform.machine()}"
    yield Finding("python", f"{platform.python_version()} on {system}")


def _check_packages() -> Iterator[Finding]:
    versions = {package: package_version(package) for package in _CORE}
    missing = [package for package, number in versions.items() if number is None]
    yield Finding("packages", ", ".join(f"{p} {n}" for p, n in versions.items() if n))
    if missing:
        remedy = "pip install " + " ".join(missing)
        yield Finding("packages", f"missing: {', '.join(missing)}", "problem", remedy)
    number = versions["transformers"]
    if number and tuple(map(int, number.split(".")[:2])) < OLDEST_TRANSFORMERS:
        remedy = 'pip install -U "transformers>=5.17"'
        yield Finding("transformers", f"{number} is too old", "problem", remedy)


def _check_extras() -> Iterator[Finding]:
    versions = {package: package_version(package) for package in _EXTRAS}
    if missing := [f"vlkit[{_EXTRAS[p]}]" for p, number in versions.items() if number is None]:
        yield _note("extras", f"not installed: {', '.join(missing)}", f'pip install "{missing[0]}"')
    else:
        yield Finding("extras", ", ".join(f"{p} {number}" for p, number in versions.items()))


def _check_torch() -> Iterator[Finding]:
    import torch

    try:
        import torchvision  # noqa: F401
    except Exception as error:  # a build that does not fit torch fails with RuntimeError
        remedy = "install torch and torchvision together, from the same place"
        yield Finding("torchvision", f"does not fit torch ({error})", "problem", remedy)
        return
    if torch.cuda.is_available():
        yield from map(_describe_gpu, range(torch.cuda.device_count()))
        number = package_version("flash-attn")
        remedy = "" if number else "pip install flash-attn for long prompts"
        yield _note("attention", f"flash-attn {number}" if number else "sdpa", remedy)
    elif torch.backends.mps.is_available():
        yield Finding("accelerator", "Apple GPU (mps)")
    elif shutil.which("nvidia-smi") and _driver_answers():
        value = f"an NVIDIA driver is installed, but torch {torch.__version__} finds no GPU"
        remedy = "install a torch built for the driver's CUDA version, or update the driver"
        yield Finding("accelerator", value, "problem", remedy)
    else:
        value = f"none; {os.cpu_count()} CPU cores (enough for the bundled model, slow from 2B on)"
        yield _note("accelerator", value, "a 7B model needs a GPU with 24 GB")


def _driver_answers() -> bool:
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=10).returncode == 0
    return False


def _describe_gpu(index: int) -> Finding:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    value = f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return _note(f"gpu {index}", value + ", no bfloat16", 'use dtype="float16"')
    return Finding(f"gpu {index}", value)


def _check_memory() -> Iterator[Finding]:
    total = psutil.virtual_memory().total
    remedy = "use 8 GB or more for the bundled model with JupyterLab" if total < 4e9 else ""
    yield _note("memory", f"{total / 1e9:.0f} GB", remedy)


def _check_disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.home()).free
    remedy = "a 7B model takes 17 GB; set HF_HOME to a folder on another disk"
    value = f"{free / 1e9:.0f} GB free in the home folder"
    yield _note("disk", value, remedy if free < 20e9 else "")


def _check_video() -> Iterator[Finding]:
    readers = {"av": "PyAV", "torchcodec": "torchcodec", "decord": "decord"}
    installed = [name for module, name in readers.items() if importlib.util.find_spec(module)]
    remedy = "" if installed else "pip install av, for clips"
    yield _note("video readers", ", ".join(installed) or "none", remedy)


def _check_models() -> Iterator[Finding]:
    from vlkit.models.hub import available_models, weight_files

    sizes = [
        f"{name} ({sum(f.stat().st_size for f in weight_files(path)) / 1e9:.2f} GB)"
        for name, path in available_models().items()
    ]
    yield Finding("models on disk", ", ".join(sizes))


def _check_choice() -> Iterator[Finding]:
    from vlkit.settings import chosen_model

    try:
        choice = chosen_model()
    except VlkitError as error:
        yield Finding("chosen model", str(error), "problem", "vlkit.settings.forget_model()")
        return
    value = f"{choice.model}, chosen by {choice.source}" if choice else "the bundled one"
    yield Finding("chosen model", value)
