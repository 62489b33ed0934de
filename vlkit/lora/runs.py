"""What a training run was asked for, where it stopped, and what came of it."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vlkit.base_weights import MARKS
from vlkit.datasets.files import read_json
from vlkit.errors import VlkitError
from vlkit.folders import check_shard
from vlkit.lora.coordinates import Text
from vlkit.lora.examples import Example
from vlkit.lora.proving import Checks

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
        from vlkit.lora.run_card import run_card

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
    """Of what rows say and of their media: of files their names, of others their content."""
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
    if isinstance(source, list | tuple):
        return [_media_name(each) for each in source]
    content = source if isinstance(source, bytes) else source.tobytes()
    return hashlib.sha256(content).hexdigest()


def summarize(state: Any, folder: Path) -> LoraRun:
    """A run as its Trainer's state tells it."""
    history = state.log_history
    return LoraRun(
        output_dir=folder,
        steps=state.global_step,
        finished=state.global_step >= state.max_steps,
        losses=_series(history, "loss"),
        evaluations=_series(history, "eval_loss"),
        metrics=_series(history, "eval_accuracy"),
        samples=tuple(
            (step, tuple(tuple(each) for each in told))
            for step, told in _series(history, "samples")
        ),
        seconds=next((e["train_runtime"] for e in history[::-1] if "train_runtime" in e), 0.0),
    )


def _series(history: list[dict], name: str) -> tuple:
    return tuple((each["step"], each[name]) for each in history if name in each)
