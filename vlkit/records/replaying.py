"""``replay``: a run's questions asked again, and the answers compared."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlkit.batch.answering import answer_all
from vlkit.errors import RemoteError, VlkitError, counted
from vlkit.generation.generate import generate
from vlkit.generation.reply import Reply
from vlkit.inputs import check_model
from vlkit.models.load import load
from vlkit.plotting.html import frame_html
from vlkit.records import reading
from vlkit.records.facts import environment, git_state, model_facts
from vlkit.records.reading import Record, answer_of, question_of, read_run

if TYPE_CHECKING:
    import pandas

_COLUMNS = ("kind", "question", "status", "at", "then", "now", "reason")
_LOADED = (
    "weights", "adapter", "commit", "dtype", "device", "gpu", "cuda", "attention", "quantize",
    "max_image_tokens", "family", "hosted",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Replay:
    """What :func:`replay` found; it shows itself in a notebook.

    Attributes:
        rows: a row for each recorded answer: ``status`` is ``"same"`` (token for token),
            ``"differs"`` (``at`` is the first such token, counted from 0) or ``"cannot"``, with
            the ``reason``; ``then`` and ``now`` are the answers.
        environment: what has changed since: ``what``, ``then``, ``now``.
        record: the run that was replayed.
    """

    rows: "pandas.DataFrame"
    environment: "pandas.DataFrame"
    record: Record

    @property
    def identical(self) -> bool:
        """Whether every recorded answer is the same again, token for token."""
        answered = self.rows[self.rows["reason"] != _NO_ANSWER]
        return bool(len(answered)) and bool((answered["status"] == "same").all())

    def __str__(self) -> str:
        counts = self.rows["status"].value_counts()
        parts = [f"{counts[s]} {s}" for s in ("same", "differs", "cannot") if s in counts]
        sentences = [", ".join([counted(len(self.rows), "answer"), *parts])]
        if trainings := self.record.trainings:
            sentences.append(f"{counted(trainings, 'training')} not repeated")
        if self.record.gap:
            sentences.append(self.record.gap)
        if len(self.environment):
            sentences.append(f"changed since: {', '.join(self.environment['what'])}")
        return f"{self.record.name}: {'; '.join(sentences)}"

    def _repr_html_(self) -> str:
        changes = frame_html(self.environment, "changed since", index=False)
        return f"<p>{html.escape(str(self))}</p>{frame_html(self.rows)}{changes}"


_NO_ANSWER = "there was no answer"


def replay(path: Any, vlm: Any = None) -> Replay:
    """Ask everything in a run again, with the same options and seeds, and compare the answers.

    Of an answer that was stopped, only the part that exists is compared. Rows of a batch are asked
    as a batch. Trainings are not repeated; answers of a trained adapter are asked of that adapter.
    A service that cannot be reached, or refuses the key, gets no further questions.

    Args:
        path: the run's folder, or a Run.
        vlm: the model to ask; by default each answer's own is loaded as it was.

    Raises:
        VlkitError: there is no run at ``path``, or ``vlm`` is not a model.
    """
    import pandas

    record = read_run(path)
    if vlm is not None:
        check_model(vlm)
    models = _Models(record, vlm)
    asked = [pair for numbers in _groups(record.answers) for pair in _ask(record, models, numbers)]
    rows = [row for _, row in sorted(asked, key=lambda pair: pair[0])]
    frame = pandas.DataFrame(rows, columns=list(_COLUMNS)).astype({"at": "Int64"})
    changes = [*_changes(record), *models.changes()]
    return Replay(frame, pandas.DataFrame(changes, columns=["what", "then", "now"]), record)


class _Models:
    """The models of a run, loaded when they are needed."""

    def __init__(self, record: Record, vlm: Any):
        self._record, self._vlm = record, vlm
        self._loaded: dict[str, Any] = {}
        self._unreachable: dict[str, RemoteError] = {}

    def get(self, name: str) -> Any:
        if error := self._unreachable.get(name if self._vlm is None else ""):
            raise error
        if name not in self._record.models:
            raise VlkitError(f"the line that describes {name} is missing from the run's records")
        if name not in self._loaded:
            vlm = self._vlm
            self._loaded[name] = _load(self._record.models[name]) if vlm is None else vlm
        return self._loaded[name]

    def give_up(self, name: str, error: Exception) -> None:
        """Stop asking a model after an error that every further question would raise again."""
        if isinstance(error, RemoteError) and error.fatal:
            self._unreachable[name if self._vlm is None else ""] = error

    def changes(self) -> Iterator[tuple[str, Any, Any]]:
        for name, vlm in self._loaded.items():
            then, now = self._record.models[name], model_facts(vlm)
            for key, old, new in reading.differences(then, now):
                if key in _LOADED:
                    yield f"{then['name']}: {key}", _short(old), _short(new)


def _load(facts: dict) -> Any:
    if "hosted" in facts:
        raise VlkitError(f"{facts['name']} is hosted; load it and pass it as vlm=")
    adapter = facts["adapter"] and facts["adapter"]["name"]
    hub: Any = facts["hub"] if facts["hub"] in ("huggingface", "modelscope") else "auto"
    revision = (facts["commit"] or facts["revision"]) if hub != "auto" else None
    device = facts["device"]
    if device.startswith("cuda"):
        import torch

        device = "auto" if device == "cuda:0" or not torch.cuda.is_available() else device
    attention = facts["attention"]
    if attention not in ("sdpa", "eager") and device == "cpu":
        attention = "auto"
    return load(
        facts["name"], hub=hub, revision=revision, adapter=adapter, device=device, attn=attention,
        **{name: facts[name] for name in ("dtype", "quantize", "max_image_tokens")},
    )  # fmt: skip


def _groups(answers: list[dict]) -> list[list[int]]:
    """Numbers of answers that are asked together: rows of one batch, with one set of options."""
    groups: dict[Any, list[int]] = {}
    for number, answer in enumerate(answers):
        batch = answer.get("batch", f"single {number}")
        groups.setdefault((batch, answer["model"]), []).append(number)
    return list(groups.values())


def _ask(record: Record, models: _Models, numbers: list[int]) -> Iterator[tuple[int, dict]]:
    """(number, row) for each answer of a group."""
    questions: dict[int, list[dict]] = {}
    for number in numbers:
        answer = record.answers[number]
        messages, reason = _question(record, answer)
        if messages is None:
            yield number, _row(answer, "cannot", reason=reason)
        else:
            questions[number] = messages
    if not questions:
        return
    name = record.answers[numbers[0]]["model"]
    try:
        replies = _answer(models.get(name), record, questions)
    except Exception as error:  # an edited record may have any options
        models.give_up(name, error)
        replies = dict.fromkeys(questions, error)
    for number, reply in replies.items():
        yield number, _compare(record.answers[number], reply)


def _question(record: Record, answer: dict) -> tuple[list[dict] | None, str]:
    if "raw" not in answer:
        return None, _NO_ANSWER
    if answer["options"].get("temperature") and answer["options"].get("seed") is None:
        return None, "sampled without a seed"
    return reading.messages_of(record, answer)


def _answer(vlm: Any, record: Record, questions: dict[int, list[dict]]) -> dict[int, Any]:
    number = next(iter(questions))
    first = record.answers[number]
    options = dict(first["options"])
    if "batch" not in first:
        if first["finish_reason"] == "cancelled":
            options["max_new_tokens"] = _tokens_of(first)
        return {number: generate(vlm, questions[number], **options)}
    if options["seed"] is not None:
        options["seed"] -= first["index"]
    number_of_row = {record.answers[number]["index"]: number for number in questions}
    conversations: list[Any] = [""] * (max(number_of_row) + 1)
    for index, number in number_of_row.items():
        conversations[index] = questions[number]
    options |= {"batch_size": first["batch_size"], "progress": False, "rows": list(number_of_row)}
    answers = answer_all(vlm, conversations, **options)
    return dict(zip(number_of_row.values(), answers, strict=True))


def _tokens_of(stopped: dict) -> int:
    """The number of tokens of a stopped answer, or an upper bound if a service did not count."""
    if stopped["tokens"]:
        return len(stopped["tokens"])
    return min(stopped["options"]["max_new_tokens"], max(1, len(stopped["raw"].encode())))


def _compare(then: dict, reply: Any) -> dict:
    if not isinstance(reply, Reply):  # a Failure, or an error
        return _row(then, "cannot", reason=str(reply))
    tokens = list(reply.tokens) or None
    now = {"raw": reply.raw, "tokens": tokens}
    if then["finish_reason"] == "cancelled":
        count = then["usage"]["new_tokens"]
        now = {"raw": reply.raw[: len(then["raw"])], "tokens": tokens and tokens[:count]}
    at = reading.first_difference(then, now)
    return _row(then, "same" if at is None else "differs", at=at, now=reply.text)


def _row(answer: dict, status: str, **facts: Any) -> dict:
    row = {"kind": answer["kind"], "question": question_of(answer), "then": answer_of(answer)}
    return row | {"status": status, "reason": "", **facts}


def _changes(record: Record) -> Iterator[tuple[str, Any, Any]]:
    then, now = dict(record.manifest["environment"]), environment()
    packages = then.pop("packages"), now.pop("packages")
    yield from reading.differences(then, now)
    yield from reading.differences(*packages)
    git, state = record.manifest.get("git") or {}, git_state() or {}
    if git.get("commit") != state.get("commit"):
        yield "git commit", (git.get("commit") or "")[:10], (state.get("commit") or "")[:10]
    if git.get("dirty") or state.get("dirty"):
        yield "uncommitted changes", git.get("dirty"), state.get("dirty")


def _short(value: Any) -> Any:
    if isinstance(value, dict) and "sha256" in value:
        return f"{value.get('name', '')} sha256 {value['sha256'][:12]}".strip()
    return value
