"""``generate_batch`` and its report: rows answered, written, resumed."""

import html
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from vlkit import hooks
from vlkit.batch.journal import Journal, row_keys
from vlkit.errors import VlkitError, check_whole, counted, warn_user
from vlkit.generation.generate import generate, generation_options, schema_option, with_thinking
from vlkit.generation.reply import Failure, Reply, Result, attempt, result_of
from vlkit.media.image import describe_source
from vlkit.messages import as_messages, iterate_media
from vlkit.models.load import Model, Settings, Tally
from vlkit.plotting.html import table_html
from vlkit.settings import MAX_NEW_TOKENS

PAGE, MOST_SHOWN = 10, 50  # rows of a page, and of all pages, in a notebook


@dataclass(frozen=True)
class BatchReport:
    """How a batch went.

    Attributes:
        rows: their number; ``resumed`` of them were in ``out`` already.
        failures: rows without an answer.
        seconds: wall time.
        new_tokens: generated in this call.
        padding: padding's share of the computed prompt tokens.
        batch_size: the most rows at a time.
        path: ``"fast"``, ``"library"`` where transformers' own generate was used, or ``"remote"``.
        note: why, and other remarks.
        agreement: of the rows that were asked again one by one, the share with the same answer;
            None if there were none.
        disagreeing: the indices of the others.
        stopped: whether it was stopped before its end.
        cost: of the rows answered in this call, by a hosted model's ``prices``; else None.
    """

    rows: int
    resumed: int = 0
    failures: int = 0
    seconds: float = 0.0
    new_tokens: int = 0
    padding: float = 0.0
    batch_size: int = 0
    path: str = "fast"
    note: str = ""
    agreement: float | None = None
    disagreeing: tuple[int, ...] = ()
    stopped: bool = False
    cost: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second, end to end."""
        return self.new_tokens / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        parts = [counted(self.rows, "row"), f"{self.failures:,} failed"]
        if self.resumed:
            parts.append(f"{self.resumed:,} answered before")
        parts.append(f"{self.seconds:.1f} s")
        if self.new_tokens:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
            parts.append(f"{self.batch_size} at a time")
            parts += [f"{self.padding:.0%} padding"] * (self.path != "remote")
        if self.cost is not None:
            parts.append(f"cost {self.cost:.4g}")
        if self.agreement is not None:
            parts.append(f"{self.agreement:.0%} agreement with one-by-one answers")
        return ", ".join(parts + ["stopped"] * self.stopped + [self.note] * bool(self.note))

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(str(self))}</p>"


class Results(list):
    """The rows of a batch: Reply and Failure in the order given; ``.report`` describes the run.

    In a notebook it shows itself as a table with thumbnails, in pages.
    """

    report: BatchReport

    def _repr_html_(self) -> str:
        pages = []
        for first in range(0, min(len(self), MOST_SHOWN), PAGE):
            page = self[first : first + PAGE]
            rows = [(str(i), *_row_html(result)) for i, result in enumerate(page, first)]
            table = table_html(("", "", "Answer"), rows, cell="max-width:520px;text-align:left")
            title = f"rows {first} to {first + len(rows) - 1} of {len(self):,}"
            opened = " open" if first == 0 else ""
            pages.append(f"<details{opened}><summary>{title}</summary>{table}</details>")
        more = "<p>the rest: vlkit.to_frame(results)</p>" if len(self) > MOST_SHOWN else ""
        report = getattr(self, "report", None)
        return "".join([report._repr_html_() if report else "", *pages, more])


def _row_html(result: Result) -> tuple[str, str]:
    """A row's thumbnail, and its answer or error."""
    if isinstance(result, Failure):
        return "", result._repr_html_()
    thumbnail = attempt(result.picture_html, result.try_grounding()[0], 160)
    return "" if isinstance(thumbnail, Failure) else thumbnail, result.text_html


def generate_batch(
    vlm: Model,
    conversations: Sequence[Any],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    schema: Mapping | str | None = None,
    thinking: bool | int | None = None,
    batch_size: int | str = "auto",
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    agreement: int = 0,
    on_start: Callable[[int], None] | None = None,
    on_result: Callable[[int, Result], None] | None = None,
    stopped: Event | None = None,
    rows: Sequence[int] | None = None,
    part: int | None = None,
) -> Results:
    """Ask many questions; a row that cannot be answered becomes a Failure, the others continue.

    Greedy answers are those of :func:`vlkit.generate`, in float32 to the token.

    Args:
        vlm: from :func:`vlkit.load`.
        conversations: a list whose items are text, a message or a list of messages.
        max_new_tokens, temperature, top_p, schema, thinking: as for :func:`vlkit.generate`.
        seed: row ``i`` is sampled as ``generate(…, seed=seed + i)`` does it.
        batch_size: the most rows at a time; ``"auto"`` follows from the free memory. For a hosted
            model the most requests at a time; ``"auto"`` is its ``concurrency``.
        out: a JSONL file to which each row is appended as it finishes; the same call resumes a run
            that was stopped or killed. Answers in it are not computed again, failures are.
        resume: with False, an ``out`` that contains rows is refused.
        progress: show a bar.
        agreement: this many rows, chosen at random, are asked again one by one afterwards.
        on_start: called with a row's index when it is read, shortly before the model is asked.
        on_result: called with (index, result) as each row finishes; its errors become warnings.
        stopped: set it to end cleanly with the finished rows, as Ctrl-C does.
        rows: indices of the conversations to do, by default all; the result has only these.
        part: of a run in several processes, the number of this one; see the ``batch`` command.

    Returns:
        Reply or Failure in the order given; ``.report`` is a :class:`BatchReport`.

    Raises:
        VlkitError: wrong options, or an ``out`` that cannot be written.
    """
    from tqdm.auto import tqdm

    start = time.perf_counter()
    vlm = with_thinking(vlm, thinking, schema)
    conversations = check_conversations(conversations)
    indices = _check_rows(rows, len(conversations))
    check_whole("agreement", agreement)
    if batch_size != "auto":
        check_whole("batch_size", batch_size, 1)
    given: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed,
        **schema_option(schema),
    }  # fmt: skip
    options = generation_options(**given)
    record_row = hooks.row_recorder(vlm, conversations, given, batch_size)
    most = batch_size if isinstance(batch_size, int) else None
    settings = Settings(options, seed, most, *vlm.answer_path(), stopped)
    tally, cut = Tally(), False
    callbacks = [record_row] if on_result is None else [record_row, on_result]
    with ExitStack() as stack:
        journal = None
        if out is not None:
            journal = stack.enter_context(Journal(out, resume=resume, part=part))
            drawn_with = seed if options["do_sample"] else None  # greedy answers need no seed
            keys = row_keys(vlm, conversations, options, seed=drawn_with)
        shown = progress and len(indices) > 0
        bar = stack.enter_context(tqdm(total=len(indices), unit="row", disable=not shown))
        done = _Done(bar, tally, callbacks)

        def write(index: int, result: Result) -> Result:
            if not journal:
                return result
            names = attempt(_names, conversations[index])
            names = [] if isinstance(names, Failure) else names
            return journal.append(keys[index], index, result, names)

        try:
            todo = []
            for index in indices:
                record = journal.finished.get(keys[index]) if journal else None
                result = None if record is None else _restore(record, index, conversations[index])
                if record is None or result is None:
                    todo.append(index)
                    continue
                if record["index"] != index:  # rows were moved: the file's last line counts
                    result = write(index, result)
                done.take(index, result)
            asked = conversations if on_start is None else _Noted(conversations, on_start)
            answers = stack.enter_context(closing(vlm.answer_rows(asked, todo, settings, tally)))
            for index, result in answers:
                done.take(index, write(index, result))
                settings.check_stopped()
        except KeyboardInterrupt:
            cut = True
    missing = Failure("stopped before its turn; call again to resume", "Stopped")
    results = Results(done.results.get(index, missing) for index in indices)
    report = BatchReport(
        rows=len(indices), resumed=len(indices) - len(todo), failures=done.failures,
        seconds=time.perf_counter() - start, new_tokens=tally.new_tokens, padding=tally.padding,
        batch_size=tally.batch_size, path=settings.path, stopped=cut, cost=tally.cost,
        note="; ".join([*filter(None, [settings.note]), *tally.notes]),
    )  # fmt: skip
    if agreement and not cut:
        report = replace(report, **_agree(vlm, conversations, done.results, agreement, settings))
    results.report = report
    return results


def answer_all(vlm: Model, conversations: Sequence[Any], **options: Any) -> Results:
    """:func:`generate_batch` for callers that need all; KeyboardInterrupt if it was stopped."""
    results = generate_batch(vlm, conversations, **options)
    if results.report.stopped:
        raise KeyboardInterrupt
    return results


class _Noted(list):
    """Conversations that tell which of them is read."""

    def __init__(self, conversations: list, on_start: Callable[[int], None]):
        super().__init__(conversations)
        self._on_start = on_start

    def __getitem__(self, index: Any) -> Any:
        self._on_start(index)
        return super().__getitem__(index)


class _Done:
    """Finished rows and the progress bar."""

    def __init__(self, bar: Any, tally: Tally, callbacks: list):
        self.results: dict[int, Result] = {}
        self.failures, self._bar, self._tally, self._callbacks = 0, bar, tally, callbacks

    def take(self, index: int, result: Result) -> None:
        self.results[index] = result
        self.failures += isinstance(result, Failure)
        self._bar.update()
        if not self._bar.disable and (seconds := self._bar.format_dict["elapsed"]):
            speed = f"{self._tally.new_tokens / seconds:,.0f} tokens/s"
            self._bar.set_postfix_str(f"{speed}, {self.failures} failed", refresh=False)
        for callback in self._callbacks:
            outcome = attempt(callback, index, result)
            if isinstance(outcome, Failure):
                warn_user(f"row {index}: on_result failed ({outcome}); the batch continues")


def check_conversations(conversations: Any) -> list:
    """The rows as a list. Raises VlkitError for a single conversation."""
    if isinstance(conversations, str | dict) or not hasattr(conversations, "__len__"):
        kind = type(conversations).__name__
        raise VlkitError(f"conversations is a {kind}; pass a list, one conversation for each row")
    return [conversations[index] for index in range(len(conversations))]


def _check_rows(rows: Sequence[int] | None, count: int) -> list[int]:
    indices = list(range(count) if rows is None else rows)
    for index in indices:
        if index not in range(count):
            raise VlkitError(f"rows: no conversation has index {index!r}; there are {count:,}")
    return indices


def _restore(record: dict, index: int, messages: Any) -> Result | None:
    """The row as the file has it; None where it cannot be read back, so it is asked again."""
    result = attempt(result_of, record, messages)
    if not isinstance(result, Failure):
        return result
    warn_user(f"row {index} of out= cannot be read back ({result}); it is asked again")
    return None


def _names(messages: Any) -> list[str]:
    return [describe_source(item[item["type"]]) for item in iterate_media(as_messages(messages))]


def _agree(vlm, conversations, results: dict[int, Result], count: int, settings: Settings) -> dict:
    answers = {index: result for index, result in results.items() if isinstance(result, Reply)}
    chosen = random.Random(settings.seed or 0).sample(list(answers), min(count, len(answers)))
    names = ("max_new_tokens", "temperature", "top_p", "schema")
    options = {n: settings.options[n] for n in names if settings.options.get(n) is not None}
    different = []
    for index in chosen:
        seed, messages = settings.seed_of(index), conversations[index]
        with hooks.as_kind("agreement"):
            alone = attempt(generate, vlm, messages, seed=seed, **options)
        if isinstance(alone, Failure) or alone.raw != answers[index].raw:
            different.append(index)
    share = 1 - len(different) / len(chosen) if chosen else None
    return {"agreement": share, "disagreeing": tuple(sorted(different))}
