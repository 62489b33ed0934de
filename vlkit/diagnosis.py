"""``vlkit.doctor()``: what this machine has, what is wrong, how to fix it."""

from __future__ import annotations

import html
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vlkit.errors import VlkitError, counted
from vlkit.plotting.html import table_html

OLDEST_TRANSFORMERS = (5, 17)
_CORE = ["vlkit", "torch", "torchvision", "transformers", "qwen-vl-utils", "accelerate"]
_CORE += ["modelscope", "huggingface_hub", "pillow", "matplotlib", "jupyterlab", "ipywidgets"]
_EXTRAS = {
    "peft": "lora",
    "bitsandbytes": "quant",
    "openai": "remote",
    "fastapi": "serve",
    "nbclient": "notebooks",
}


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
        lines = []
        for f in self.findings:
            mark = {"ok": "ok  ", "note": "note", "problem": "BAD "}[f.level]
            remedy = f"  → {f.remedy}" if f.remedy else ""
            lines.append(f"{mark} {f.topic}: {f.value}{remedy}")
        return "\n".join([*lines, self._verdict()])

    def _repr_html_(self) -> str:
        color = {"ok": "#009E73", "note": "#B26B00", "problem": "#C0392B"}
        rows = [
            [f'<b style="color:{color[f.level]}">{f.level}</b>']
            + [html.escape(text) for text in (f.topic, f.value, f.remedy)]
            for f in self.findings
        ]
        table = table_html(("", "What", "Found", "To do"), rows)
        return f"{table}<p><b>{html.escape(self._verdict())}</b></p>"

    def _verdict(self) -> str:
        count = len(self.problems)
        return f"{counted(count, 'problem')} to fix." if count else "Ready."


def doctor() -> Diagnosis:
    """Look at packages, accelerators, memory, disk, video readers and models on this machine."""
    checks: list[Callable[[], list[Finding]]] = [
        _check_python, _check_packages, _check_extras, _check_torch, _check_attention,
        _check_memory, _check_disk, _check_video, _check_models,
        _check_choice,
    ]  # fmt: skip
    findings = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:  # one failing check must not hide the others
            topic = check.__name__.removeprefix("_check_")
            findings.append(Finding(topic, f"{type(error).__name__}: {error}", "problem"))
    return Diagnosis(tuple(findings))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _check_python() -> list[Finding]:
    where = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [Finding("python", where)]


def _check_packages() -> list[Finding]:
    versions = {package: _version(package) for package in _CORE}
    missing = [package for package, number in versions.items() if number is None]
    installed = ", ".join(f"{package} {number}" for package, number in versions.items() if number)
    rows = [Finding("packages", installed)]
    if missing:
        remedy = "pip install " + " ".join(missing)
        rows.append(Finding("packages", f"missing: {', '.join(missing)}", "problem", remedy))
    number = versions["transformers"]
    if number and tuple(map(int, number.split(".")[:2])) < OLDEST_TRANSFORMERS:
        remedy = 'pip install -U "transformers>=5.17"'
        rows.append(Finding("transformers", f"{number} is too old", "problem", remedy))
    return rows


def _check_extras() -> list[Finding]:
    missing = [f"vlkit[{extra}]" for package, extra in _EXTRAS.items() if _version(package) is None]
    if not missing:
        return [Finding("extras", ", ".join(f"{p} {_version(p)}" for p in _EXTRAS))]
    remedy = " ".join(f'pip install "{extra}"' for extra in missing[:1])
    return [Finding("extras", f"not installed: {', '.join(missing)}", "note", remedy)]


def _check_torch() -> list[Finding]:
    import torch

    try:
        import torchvision  # noqa: F401
    except Exception as error:  # a build that does not fit torch fails with RuntimeError
        remedy = "install torch and torchvision together, from the same place"
        return [Finding("torchvision", f"does not fit torch ({error})", "problem", remedy)]
    if torch.cuda.is_available():
        return [_describe_gpu(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return [Finding("accelerator", "Apple GPU (mps)")]
    if shutil.which("nvidia-smi") and _driver_answers():
        value = f"an NVIDIA driver is installed, but torch {torch.__version__} finds no GPU"
        remedy = "install a torch built for the driver's CUDA version, or update the driver"
        return [Finding("accelerator", value, "problem", remedy)]
    value = f"none; {os.cpu_count()} CPU cores (enough for the bundled model, slow from 2B on)"
    return [Finding("accelerator", value, "note", "a 7B model wants a GPU with 24 GB")]


def _driver_answers() -> bool:
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _describe_gpu(index: int) -> Finding:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    value = f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return Finding(f"gpu {index}", value + ", no bfloat16", "note", 'use dtype="float16"')
    return Finding(f"gpu {index}", value)


def _check_attention() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        return []
    number = _version("flash-attn")
    if number:
        return [Finding("attention", f"flash-attn {number}")]
    return [Finding("attention", "sdpa", "note", "pip install flash-attn for long prompts")]


def _check_memory() -> list[Finding]:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return []
    value = f"{total / 1e9:.0f} GB"
    if total < 4e9:
        remedy = "use 8 GB or more for the bundled model with JupyterLab"
        return [Finding("memory", value, "note", remedy)]
    return [Finding("memory", value)]


def _check_disk() -> list[Finding]:
    free = shutil.disk_usage(Path.home()).free
    value = f"{free / 1e9:.0f} GB free in the home folder"
    if free < 20e9:
        remedy = "a 7B model takes 17 GB; set HF_HOME to a folder on another disk"
        return [Finding("disk", value, "note", remedy)]
    return [Finding("disk", value)]


def _check_video() -> list[Finding]:
    readers = {"av": "PyAV", "torchcodec": "torchcodec", "decord": "decord"}
    installed = [name for module, name in readers.items() if importlib.util.find_spec(module)]
    if installed:
        return [Finding("video readers", ", ".join(installed))]
    return [Finding("video readers", "none", "note", "pip install av, for clips")]


def _check_models() -> list[Finding]:
    from vlkit.models.hub import available_models

    try:
        models = available_models()
    except VlkitError as error:
        return [Finding("models", str(error), "problem", "reinstall vlkit")]
    sizes = {
        name: sum(f.stat().st_size for f in path.glob("*.safetensors"))
        for name, path in models.items()
    }
    return [
        Finding("models on disk", ", ".join(f"{n} ({s / 1e9:.2f} GB)" for n, s in sizes.items()))
    ]


def _check_choice() -> list[Finding]:
    from vlkit.settings import chosen_model

    try:
        choice = chosen_model()
    except VlkitError as error:
        return [Finding("chosen model", str(error), "problem", "vlkit.settings.forget_model()")]
    value = f"{choice.model}, chosen by {choice.source}" if choice else "the bundled one"
    return [Finding("chosen model", value)]
