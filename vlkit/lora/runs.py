"""What a training run was asked for, where it stopped, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlkit.datasets.files import read_json
from vlkit.errors import VlkitError
from vlkit.lora.proving import Checks

ARGUMENTS = "training.json"  # beside the adapter: what the run was asked for
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
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    whole = [path for path in found if _is_whole(path)]
    if resume is False and folder.is_dir() and any(folder.iterdir()):
        raise VlkitError(f"{folder} is not empty; pass resume=True to go on, or another folder")
    if resume and not whole:
        raise VlkitError(f"{folder} holds no checkpoint to resume from; pass resume=False")
    newest = max(whole, key=lambda path: int(path.name[11:]), default=None)
    return None if resume is False else newest


def _is_whole(path: Path) -> bool:
    return all(
        any(each.exists() for name in names for each in path.glob(name))
        for names in (_WEIGHTS, _OPTIMIZER, ("scheduler.pt", "latest"), (_STATE,))
    )


def check_same(path: Path, asked: dict) -> None:
    """Raises VlkitError where a run is to be gone on with in another way than it began."""
    began = read_json(path)
    for name, value in asked.items():
        if began.get(name) != value:
            raise VlkitError(
                f"{path.parent} was begun with {name}={began.get(name)!r}, not {value!r}; resume "
                "with the same arguments and data, or train into another folder"
            )


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
