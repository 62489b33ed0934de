"""The folder of a training run: ``LoraRun``, checkpoints, arguments, lock, checks."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import torch
from filelock import FileLock, Timeout

from vlkit.engine.vision import replaced_forwards
from vlkit.errors import VlkitError, counted
from vlkit.files import read_json
from vlkit.lora.batches import Collator, label_example
from vlkit.lora.curves import Curves, curves_html, read_series
from vlkit.lora.data import Example
from vlkit.models.adapters import MARKS
from vlkit.models.hub import check_shard
from vlkit.models.load import VLM, base_model
from vlkit.plotting.html import FAINT, duration_text, fill_template

_ROUNDED = 8  # epsilons of the dtype by which rounding in many layers moves a value


@dataclass(frozen=True, eq=False)
class Checks:
    """What a training run proves of itself.

    Attributes:
        before, after: share of right answers on held-out rows; None without ``eval_data``.
        table: some of these rows: ``question``, ``truth``, ``before``, ``after``.
        change: how far training moved the logits of a held-out row's answer (or of a training
            row's), on average.
        merged_difference: how far merging the adapter moves them; None without one, or where the
            weights are quantized.
        rounding: how far rounding in the model's dtype may move them.
    """

    before: float | None
    after: float | None
    table: pandas.DataFrame = field(repr=False)
    change: float
    merged_difference: float | None
    rounding: float

    @property
    def passed(self) -> bool:
        """Whether training changed the model, and merging changes little."""
        allowed = 0.1 * self.change + self.rounding
        return 0 < self.change and (self.merged_difference or 0) <= allowed


class Prover:
    """Compares a model's logits before training, after it, and with the adapter merged.

    Args:
        vlm: the model; its adapters have no effect yet.
        example: whose answer is looked at.
        max_length: the most tokens of it.
    """

    def __init__(self, vlm: VLM, example: Example, max_length: int | None):
        self.vlm = vlm
        self.row = label_example(vlm, example, max_length=max_length)
        self.logits = self._answer_logits()

    def check(self, folder: Path, before: dict[str, Any], after: dict[str, Any]) -> Checks:
        """Compare, when training is done.

        Args:
            folder: where an adapter or model was written.
            before, after: from the run's :class:`vlkit.lora.evaluating.Examiner`.
        """
        trained = self._answer_logits()
        merged_difference = None
        adapted = (folder / "adapter_config.json").is_file()
        if adapted and not getattr(self.vlm.model, "is_quantized", False):
            from peft.tuners.lora.layer import Linear

            layers = [part for part in base_model(self.vlm).modules() if type(part) is Linear]
            with replaced_forwards({layer: partial(_merged_layer, layer) for layer in layers}):
                merged_difference = _distance(self._answer_logits(), trained)
        samples = zip(before.get("samples", []), after.get("samples", []), strict=False)
        rows = [(*row, answer) for row, (*_, answer) in samples]
        return Checks(
            before=before.get("eval_accuracy"),
            after=after.get("eval_accuracy"),
            table=pandas.DataFrame(rows, columns=["question", "truth", "before", "after"]),
            change=_distance(trained, self.logits),
            merged_difference=merged_difference,
            rounding=_ROUNDED * torch.finfo(self.vlm.model.dtype).eps * trained.abs().mean().item(),
        )

    def _answer_logits(self) -> Any:
        """(trained tokens, vocabulary), in float32 on the CPU."""
        model = base_model(self.vlm)
        training = model.training
        batch = Collator(0)([self.row])
        tensors = {n: v.to(model.device) for n, v in batch.items() if "labels" not in n}
        with torch.no_grad():
            logits = model.eval()(**tensors, use_cache=False).logits
        model.train(training)
        return logits[0].float().cpu()


def _distance(one: Any, other: Any) -> float:
    return (one - other).abs().mean().item()


def _merged_layer(layer: Any, inner: Any, *_: Any, **__: Any) -> Any:
    """What a layer computes with its adapter merged into the weights."""
    base, name = layer.base_layer, layer.active_adapters[0]
    weight = base.weight + layer.get_delta_weight(name).to(base.weight.dtype)
    return torch.nn.functional.linear(inner, weight, base.bias)


ARGUMENTS = "training.json"  # the run's arguments, in its folder


DATA = ("data", "eval_data")  # arguments of which it holds a hash


_LOCK = ".training.lock"  # exists while a process trains into the folder


_WEIGHTS = ("*model*.safetensors", "pytorch_model_fsdp_0")  # the latter of FSDP


_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0", "latest")  # Trainer, FSDP, DeepSpeed


_STATE = "trainer_state.json"  # written last


Points = tuple[tuple[int, float], ...]  # step, value
Answers = tuple[tuple[str, str, str], ...]  # question, truth, answer


@dataclass(frozen=True, eq=False)
class LoraRun:
    """A training run; made by :func:`vlkit.lora.train`.

    Attributes:
        output_dir: the folder of the adapter, for ``vlkit.load(adapter=…)``, and the checkpoints.
        steps: updates of the weights, including those before a resumption.
        finished: False where a callback stopped it earlier.
        losses: (step, mean loss since the entry before) as logged.
        evaluations: (step, loss on ``eval_data``), at each checkpoint.
        metrics: (step, share of right answers on held-out rows), at each checkpoint.
        samples: (step, ((question, truth, answer), …)) of a few held-out rows, at each checkpoint.
        effect: the largest change of a trained weight; 0 if the model has not changed.
        seconds: of the training alone, without the time before a resumption.
        checks: what the run proves of itself; None on all but the first of several processes, and
            where these shard the model's weights (FSDP, DeepSpeed).
    """

    output_dir: Path
    steps: int
    finished: bool
    losses: Points = field(repr=False)
    evaluations: Points = field(repr=False)
    metrics: Points = field(repr=False, default=())
    samples: tuple[tuple[int, Answers], ...] = field(repr=False, default=())
    effect: float = 0.0
    seconds: float = 0.0
    checks: Checks | None = field(repr=False, default=None)

    def __str__(self) -> str:
        losses = ""
        if self.losses:
            losses = f", loss {self.losses[0][1]:.4f} to {self.losses[-1][1]:.4f}"
        right = f", {self.metrics[-1][1]:.1%} of held-out answers right" if self.metrics else ""
        steps = counted(self.steps, "step") + " (stopped; can be resumed)" * (not self.finished)
        return f"{steps}, {duration_text(self.seconds)}{losses}{right}; {self.output_dir}"

    def _repr_html_(self) -> str:
        curves = Curves(self.losses, self.evaluations, self.metrics)
        return fill_template(
            "vlkit.lora", "run.html.jinja", run=self, faint=FAINT,
            duration=duration_text(self.seconds),
            curves=curves_html({"run": curves}) if self.losses else "",
        )  # fmt: skip


def last_checkpoint(folder: Path, resume: bool | None) -> Path | None:
    """The newest complete checkpoint.

    Args:
        folder: of the run.
        resume: True: there must be one; False: the folder must be new or empty; None: either.

    Raises:
        VlkitError: there is no checkpoint, or the folder is in use.
    """
    if resume is False:
        if folder.exists() and not _is_free(folder):
            raise VlkitError(f"{folder} is not empty; pass resume=True, or another folder")
        return None
    finished = filter(_is_finished, _checkpoints(folder))
    newest_first = sorted(finished, key=lambda path: int(path.name[11:]), reverse=True)
    whole = next(filter(_is_whole, newest_first), None)
    if resume and whole is None:
        raise VlkitError(f"{folder} has no checkpoint to resume from; pass resume=False")
    return whole


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]


def _is_free(folder: Path) -> bool:
    """Whether a run may start in a folder: it has at most what an earlier one left unfinished."""
    unfinished = {ARGUMENTS, MARKS, _LOCK}
    unfinished |= {path.name for path in _checkpoints(folder) if not _is_finished(path)}
    return folder.is_dir() and all(path.name in unfinished for path in folder.iterdir())


def _is_finished(path: Path) -> bool:
    return all(
        any(file.exists() for name in names for file in path.glob(name))
        for names in (_WEIGHTS, _OPTIMIZER, ("scheduler.pt", "latest"), (_STATE,))
    )


def _is_whole(path: Path) -> bool:
    """Whether its files are complete; a copy may have been cut off."""
    try:
        for file in path.glob("*.safetensors"):
            check_shard(file)
        states = [file for name in ("*.pt", "*.pth", "optimizer.bin") for file in path.glob(name)]
        return isinstance(read_json(path / _STATE), dict) and all(map(zipfile.is_zipfile, states))
    except VlkitError:
        return False


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from training into a folder; it is made if it does not exist.

    Raises:
        VlkitError: another process trains into it, or it cannot be written.
    """
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        what = f"another process is training into {folder}"
        raise VlkitError(f"{what}; wait for it, or choose another folder") from None
    except OSError as error:
        raise VlkitError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()
        (folder / _LOCK).unlink(missing_ok=True)


def check_same(path: Path, recipe: dict) -> None:
    """Raises VlkitError where a run is resumed with other arguments than it was started with."""
    first = read_json(path) if path.is_file() else None
    if not isinstance(first, dict):
        raise VlkitError(f"{path} is missing or broken; train into another folder")
    for name, value in recipe.items():
        if name in first and first[name] != value:
            change = f"other {name}" if name in DATA else f"{name}={first[name]!r}, not {value!r}"
            remedy = "resume with the same arguments and data, or train into another folder"
            raise VlkitError(f"{path.parent} was started with {change}; {remedy}")


def summarize(state: Any, folder: Path) -> LoraRun:
    """The run that a Trainer's state describes."""
    history = state.log_history
    return LoraRun(
        output_dir=folder,
        steps=state.global_step,
        finished=state.global_step >= state.max_steps,
        losses=read_series(history, "loss"),
        evaluations=read_series(history, "eval_loss"),
        metrics=read_series(history, "eval_accuracy"),
        samples=tuple((n, tuple(map(tuple, some))) for n, some in read_series(history, "samples")),
        seconds=next((e["train_runtime"] for e in reversed(history) if "train_runtime" in e), 0.0),
    )
