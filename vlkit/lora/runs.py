"""A training run as a notebook shows it."""

from __future__ import annotations

import hashlib
import html
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vlkit.errors import VlkitError
from vlkit.files import read_json
from vlkit.lora.curves import Curves, curves_html, read_series
from vlkit.lora.example import Example, Text
from vlkit.lora.proof import Checks
from vlkit.media.image import load_image, pixel_hash
from vlkit.media.sources import file_hash
from vlkit.models.adapters import MARKS
from vlkit.models.hub import check_shard

_FAINT = "opacity:.7;font-size:90%"


_CELL = "padding:2px 12px 2px 0;text-align:left;vertical-align:top;border-bottom:1px solid #8884"


_LONGEST = 160  # characters of an answer


def run_card(run: LoraRun) -> str:
    """HTML: how it went, the loss curve, answers before and after, and the checks."""
    parts = [_head(run), _curve(run), _answers(run), _checks(run)]
    return f'<div style="max-width:720px;line-height:1.45">{"".join(parts)}</div>'


def _head(run: LoraRun) -> str:
    stopped = "" if run.finished else ", stopped earlier"
    took = f"{run.seconds:,.0f} s" if run.seconds < 100 else f"{run.seconds / 60:,.1f} min"
    where = html.escape(str(run.output_dir))
    return f"<b>{run.steps:,} steps</b> in {took}{stopped}; written to <code>{where}</code>"


def _curve(run: LoraRun) -> str:
    if not run.losses:
        return ""
    shown = Curves(losses=run.losses, evaluations=run.evaluations, metrics=run.metrics)
    return f'<div style="margin-top:8px">{curves_html({"run": shown})}</div>'


def _answers(run: LoraRun) -> str:
    checks = run.checks
    if checks is None or checks.table.empty:
        return ""
    head = _row(list(checks.table.columns), "th")
    rows = "".join(_row(cells, "td") for cells in checks.table.values.tolist())
    right = ""
    if checks.after is not None:
        before = "" if checks.before is None else f"{checks.before:.0%} before, "
        right = f"; right on held-out rows: {before}<b>{checks.after:.0%}</b> after"
    return (
        f'<div style="margin-top:8px">Held-out answers{right}</div>'
        f'<table style="border-collapse:collapse;font-size:90%">{head}{rows}</table>'
    )


def _row(cells: Sequence, tag: str) -> str:
    shown = (html.escape(_short(str(cell))) for cell in cells)
    return "<tr>" + "".join(f'<{tag} style="{_CELL}">{cell}</{tag}>' for cell in shown) + "</tr>"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def _checks(run: LoraRun) -> str:
    checks = run.checks
    if checks is None:
        return ""
    lines = [f"training moves the logits of an answer by {checks.change:.3g} on average"]
    if checks.merged_difference is not None:
        lines.append(f"merging the adapter moves them by {checks.merged_difference:.2g}")
    if checks.refusal is not None:
        lines.append("a model of the same shape with other weights refuses the adapter")
    mark = "passed" if checks.passed else "<b>failed</b>"
    listed = "".join(f"<li>{line}</li>" for line in lines)
    listed = f'<ul style="margin:0;{_FAINT}">{listed}</ul>'
    return f'<div style="margin-top:8px">Checks {mark}{listed}</div>'


ARGUMENTS = "training.json"  # beside the adapter: what the run was asked for


DATA = ("data", "eval_data")  # of these, digests


_LOCK = ".training.lock"  # while a process trains into the folder


_WEIGHTS = ("*model*.safetensors", "pytorch_model_fsdp_0")  # the latter where FSDP spreads them


_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0", "latest")  # Trainer, FSDP, DeepSpeed


_STATE = "trainer_state.json"  # written last


Answers = tuple[tuple[str, str, str], ...]  # question, truth, answer


@dataclass(frozen=True, eq=False)
class LoraRun:
    """A training run; made by :func:`vlkit.lora.train`.

    Attributes:
        output_dir: where the adapter lies, for ``vlkit.load(adapter=…)``, and the checkpoints.
        steps: updates of the weights, those before a resumption included.
        finished: False where a callback stopped it earlier.
        losses: (step, mean loss since the line before) as logged.
        evaluations: (step, loss on ``eval_data``), at each checkpoint.
        metrics: (step, share of right answers on held-out rows), at each checkpoint.
        samples: (step, ((question, truth, answer), …)) of a few held-out rows, at each checkpoint.
        effect: the largest change of a trained weight; 0 would leave the model as it was.
        seconds: of the training alone, without what was done before a resumption.
        checks: what the run proves of itself; None on all but the first of several processes, and
            where these share one model's weights out (FSDP, DeepSpeed).
    """

    output_dir: Path
    steps: int
    finished: bool
    losses: tuple[tuple[int, float], ...] = field(repr=False)
    evaluations: tuple[tuple[int, float], ...] = field(repr=False)
    metrics: tuple[tuple[int, float], ...] = field(repr=False, default=())
    samples: tuple[tuple[int, Answers], ...] = field(repr=False, default=())
    effect: float = 0.0
    seconds: float = 0.0
    checks: Checks | None = field(repr=False, default=None)

    def _repr_html_(self) -> str:

        return run_card(self)


def last_checkpoint(folder: Path, resume: bool | None) -> Path | None:
    """The newest checkpoint that was written to its end.

    Args:
        folder: of the run.
        resume: whether it is to be gone on from; None where either is right.

    Raises:
        VlkitError: there is one and it is not to be gone on from, or there is none.
    """
    finished = [path for path in _checkpoints(folder) if _is_finished(path)]
    if resume is False:
        if folder.exists() and not _is_free(folder):
            raise VlkitError(f"{folder} is not empty; pass resume=True to go on, or another folder")
        return None
    whole = next(filter(_is_whole, sorted(finished, key=_step, reverse=True)), None)
    if resume and whole is None:
        raise VlkitError(f"{folder} holds no checkpoint to resume from; pass resume=False")
    return whole


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name[11:])


def _is_free(folder: Path) -> bool:
    """Whether nothing is lost of a folder: it holds at most what a run began and never saved."""
    begun = {
        ARGUMENTS,
        MARKS,
        _LOCK,
        *(p.name for p in _checkpoints(folder) if not _is_finished(p)),
    }
    return folder.is_dir() and all(path.name in begun for path in folder.iterdir())


def _is_finished(path: Path) -> bool:
    return all(
        any(each.exists() for name in names for each in path.glob(name))
        for names in (_WEIGHTS, _OPTIMIZER, ("scheduler.pt", "latest"), (_STATE,))
    )


def _is_whole(path: Path) -> bool:
    """Whether its files are as long as they were written; a lost one may have been cut off."""
    try:
        for file in path.glob("*.safetensors"):
            check_shard(file)
        states = [file for name in ("*.pt", "*.pth", "optimizer.bin") for file in path.glob(name)]
        return isinstance(read_json(path / _STATE), dict) and all(map(zipfile.is_zipfile, states))
    except VlkitError:
        return False


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from training into a folder, which is made if need be.

    Raises:
        VlkitError: another one does, or the folder cannot be written.
    """
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise VlkitError(
            f"{folder} is being trained into by another process; wait for it, or take another"
        ) from None
    except OSError as error:
        raise VlkitError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()
        (folder / _LOCK).unlink(missing_ok=True)


def check_same(path: Path, asked: dict) -> None:
    """Raises VlkitError where a run is to be gone on with in another way than it began."""
    began = read_json(path) if path.is_file() else None
    if not isinstance(began, dict):
        raise VlkitError(
            f"{path} is missing or broken, so what the run was begun with is not known; train "
            "into another folder"
        )
    for name, value in asked.items():
        if name in began and began[name] != value:
            here = f"other {name}" if name in DATA else f"{name}={began[name]!r}, not {value!r}"
            raise VlkitError(
                f"{path.parent} was begun with {here}; resume with the same arguments and data, or "
                "train into another folder"
            )


def digest_rows(data: Sequence[Example] | None) -> str | None:
    """A hash of what rows say and of their media: of files the names, of others the content."""
    if data is None:
        return None
    digest = hashlib.sha256()
    for example in data:
        for role, parts in example.turns:
            said = [p.raw if isinstance(p, Text) else _media_name(p[p["type"]]) for p in parts]
            digest.update(repr((role, said)).encode())
    return digest.hexdigest()[:16]


def _media_name(source: Any) -> Any:
    source = getattr(source, "source", source)
    if isinstance(source, str | os.PathLike):
        return Path(source).parts[-2:]
    if isinstance(source, list | tuple) or getattr(source, "ndim", 0) == 4:
        return [_media_name(frame) for frame in source]
    return file_hash(source) if isinstance(source, bytes) else pixel_hash(load_image(source))


def summarize(state: Any, folder: Path) -> LoraRun:
    """A run as its Trainer's state tells it."""
    history = state.log_history
    return LoraRun(
        output_dir=folder,
        steps=state.global_step,
        finished=state.global_step >= state.max_steps,
        losses=read_series(history, "loss"),
        evaluations=read_series(history, "eval_loss"),
        metrics=read_series(history, "eval_accuracy"),
        samples=tuple(
            (step, tuple(map(tuple, answers))) for step, answers in read_series(history, "samples")
        ),
        seconds=next((e["train_runtime"] for e in reversed(history) if "train_runtime" in e), 0.0),
    )
