"""``vlkit batch``: a table or folder of pictures to a file of answers."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from typer import Argument, Exit, Option

import vlkit
from vlkit.cli.options import error_console, print_plain, with_load_options, with_process_device
from vlkit.errors import VlkitError, counted

_ENDINGS = (".jsonl", ".csv", ".parquet")


_SHOWN = 3  # failures that are printed; the file has all


@with_load_options()
def batch(
    *,
    source: str = Argument(metavar="IN", help="CSV, JSONL, JSON, Parquet or a folder of pictures."),
    out: Path = Option(
        help="The answers: .jsonl; or .csv or .parquet, made at the end of a .jsonl next to it."
    ),
    prompt: str | None = Option(
        None, help='The question; "{name}" stands for the cell in column name.'
    ),
    image_column: list[str] | None = Option(None, help="Column with pictures; may be repeated."),
    load_options: dict[str, Any],
    answer_options: dict[str, Any],
    batch_size: str = Option("auto", help="The most rows at a time, or auto."),
    agreement: int = Option(0, metavar="N", help="Ask N rows again one by one and compare."),
    resume: bool = Option(True, help="Resume an OUT that contains rows, or refuse it."),
) -> None:
    """Ask many questions. After a stop or a crash, the same command resumes.

    `accelerate launch --num_processes N -m vlkit batch …` splits the rows among processes.
    """
    journal = _check_paths(source, out, resume)
    size = int(batch_size) if batch_size.isdigit() else batch_size
    options = answer_options | {"batch_size": size, "out": journal, "resume": resume}
    conversations = vlkit.read_conversations(source, prompt, image=image_column)
    with _processes() as shares:
        vlm = vlkit.load(**with_process_device(load_options))
        options |= {"agreement": 0 if shares.number else agreement, "progress": not shares.number}
        results: Any = vlkit.generate_batch(
            vlm, conversations, **options, **shares.row_options(len(conversations))
        )
        if results.report.stopped:
            place = f"; finished rows are in {journal}" if journal != out else ""
            print_plain(f"Stopped. The same command resumes {out}{place}.", error_console)
            raise Exit(130)
        report, results = shares.gather(results, conversations, journal)
    if shares.number:
        return
    if out != journal:
        vlkit.write_table(vlkit.to_frame(results, conversations), out)
    _print_summary(results, report, source, out)
    failures = sum(isinstance(result, vlkit.Failure) for result in results)
    raise Exit(1 if results and failures == len(results) else 0)


@dataclass(frozen=True)
class Shares:
    """The rows of this process: every ``count``-th, starting with ``number``."""

    number: int = 0
    count: int = 1

    def row_options(self, length: int) -> dict[str, Any]:
        """Arguments of `generate_batch` that select this process's rows out of ``length``."""
        if self.count == 1:
            return {}
        return {"rows": range(self.number, length, self.count), "part": self.number}

    def gather(self, results: Any, conversations: Sequence[Any], journal: Path) -> tuple[Any, list]:
        """Report and results of all processes, once all are done; the first merges the files."""
        if self.count == 1:
            return results.report, results
        from accelerate.utils import gather_object

        from vlkit.batch.journal import Journal
        from vlkit.generation.reply import record_of, result_of

        rows = self.row_options(len(conversations))["rows"]
        records = [(row, record_of(each)) for row, each in zip(rows, results, strict=True)]
        records = sorted(gather_object(records), key=lambda record: record[0])
        reports = gather_object([results.report])
        sums = {n: sum(getattr(r, n) for r in reports) for n in ("resumed", "new_tokens")}
        report = replace(reports[0], seconds=max(r.seconds for r in reports), **sums)
        if self.number == 0:
            Journal(journal).close()
        return report, [result_of(record, conversations[row]) for row, record in records]


@contextmanager
def _processes() -> Iterator[Shares]:
    """This process among those of `accelerate launch`; they end together."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Shares()
        return
    from accelerate import PartialState

    # the processes only wait for each other: that needs no GPU, and may take any time
    state = PartialState(cpu=True, timeout=timedelta(days=100))
    try:
        yield Shares(state.process_index, state.num_processes)
    finally:
        state.destroy_process_group()


def _check_paths(source: str, out: Path, resume: bool) -> Path:
    """The journal's file. Raises VlkitError if another file would be overwritten."""
    if out.suffix.lower() not in _ENDINGS:
        raise VlkitError(f"--out {out} must end in {', '.join(_ENDINGS[:-1])} or {_ENDINGS[-1]}")
    if not out.expanduser().parent.is_dir():
        raise VlkitError(f"--out {out}: the folder {out.parent} does not exist; create it")
    journal = out.with_suffix(".jsonl")
    for file in {out, journal}:
        if file.resolve() == Path(source).expanduser().resolve():
            raise VlkitError(f"--out {out} would overwrite {source}; name another file")
    if not resume and journal.is_file() and journal.stat().st_size > 0:
        where = f"{journal} next to it" if journal != out else "it"
        raise VlkitError(
            f"--out {out}: {where} already contains rows; delete it, name another file, or leave "
            "out --no-resume to resume"
        )
    if out != journal and out.exists() and not (resume and journal.exists()):
        raise VlkitError(f"--out {out} already exists; delete it or name another file")
    return journal


def _print_summary(results: list, report: Any, source: str, out: Path) -> None:
    failed = [(row, result) for row, result in enumerate(results, 1) if hasattr(result, "error")]
    for row, failure in failed[:_SHOWN]:
        print_plain(f"row {row:,} of {source}: {failure}", error_console)
    if len(failed) > _SHOWN:
        print_plain(f"and {len(failed) - _SHOWN:,} more, in {out}", error_console)
    if report.note:
        print_plain(report.note, error_console)
    line = f"{counted(len(results), 'row')}, {len(failed):,} failed"
    if report.resumed:
        line += f", {report.resumed:,} resumed"
    if report.new_tokens:
        line += f", {report.seconds:.1f} s, {report.tokens_per_second:,.0f} tokens/s"
    if report.agreement is not None:
        line += f", {report.agreement * 100:.0f} % agreement with one-by-one answers"
    print_plain(f"{line}; written to {out}")
