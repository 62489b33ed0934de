"""`vlkit batch`: a table or a folder of pictures in, a file of answers out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from vlkit.cli.options import (
    AdapterOption,
    BaseUrlOption,
    DeviceOption,
    DtypeOption,
    FamilyOption,
    HubOption,
    ImageTokensOption,
    ModelOption,
    QuantizeOption,
    RegionOption,
    RevisionOption,
    SeedOption,
    TemperatureOption,
    TokensOption,
    console,
    errors,
    load_options,
)
from vlkit.errors import VlkitError, counted

_ENDINGS = (".jsonl", ".csv", ".parquet")


_SHOWN = 3  # failures told one by one


def batch(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="IN", help="CSV, JSONL, JSON, Parquet or a folder of pictures.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The answers, .jsonl; or .csv or .parquet, made of a .jsonl beside it at the end."
        ),
    ],
    prompt: Annotated[
        str | None, typer.Option(help='The question; "{name}" is a cell of that column.')
    ] = None,
    image_column: Annotated[
        list[str] | None, typer.Option(help="Column with pictures; may be repeated.")
    ] = None,
    model: ModelOption = None,
    hub: HubOption = "auto",
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    quantize: QuantizeOption = None,
    adapter: AdapterOption = None,
    base_url: BaseUrlOption = None,
    region: RegionOption = None,
    family: FamilyOption = None,
    max_image_tokens: ImageTokensOption = None,
    max_new_tokens: TokensOption = 256,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = None,
    batch_size: Annotated[str, typer.Option(help="The most rows at a time, or auto.")] = "auto",
    agreement: Annotated[
        int, typer.Option(metavar="N", help="Ask N rows again alone and compare.")
    ] = 0,
    resume: Annotated[
        bool, typer.Option(help="Go on with an OUT that holds rows, or refuse it.")
    ] = True,
) -> None:
    """Ask many questions. Killed or stopped, the same command goes on where it was.

    Under `accelerate launch --num_processes N -m vlkit batch …` the rows are shared out.
    """
    import vlkit

    journal = _check_places(source, out, resume)
    options = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed,
        "batch_size": _parse_batch_size(batch_size), "out": journal, "resume": resume,
    }  # fmt: skip
    conversations = vlkit.read_conversations(source, prompt, image=image_column)
    with _processes() as shares:
        vlm = vlkit.load(**load_options(context) | shares.device(device))
        options |= {"agreement": 0 if shares.number else agreement, "progress": not shares.number}
        results = vlkit.generate_batch(vlm, conversations, **options, **shares.of(conversations))
        if results.report.stopped:
            errors.print(
                f"Stopped. The same command goes on with {out}"
                + (f"; what is done lies in {journal}." if journal != out else "."),
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
            raise typer.Exit(130)
        report, results = shares.gather(results, conversations, journal)
    if shares.number:
        return
    if out != journal:
        vlkit.write_table(vlkit.to_frame(results, conversations), out)
    _tell(results, report, source, out)
    failures = sum(isinstance(result, vlkit.Failure) for result in results)
    raise typer.Exit(1 if results and failures == len(results) else 0)


@dataclass(frozen=True)
class Shares:
    """Which rows this process has: every ``count``-th, from ``number`` on."""

    number: int = 0
    count: int = 1
    local_number: int = 0

    def device(self, asked: str) -> dict[str, str]:
        """A GPU of this process's own, where there are several processes and none is asked for."""
        if self.count == 1 or asked != "auto":
            return {}
        import torch

        gpus = torch.cuda.device_count()
        if not gpus:
            return {}
        torch.cuda.set_device(self.local_number % gpus)  # kernels are launched on the current one
        return {"device": f"cuda:{self.local_number % gpus}"}

    def of(self, conversations: Sequence[Any]) -> dict[str, Any]:
        """What `generate_batch` has to know of them."""
        if self.count == 1:
            return {}
        rows = range(self.number, len(conversations), self.count)
        return {"rows": rows, "part": self.number}

    def gather(self, results: Any, conversations: Sequence[Any], journal: Path) -> tuple[Any, list]:
        """Everybody's report and results once all are done; the first process merges the parts."""
        if self.count == 1:
            return results.report, results
        from accelerate.utils import gather_object

        from vlkit.batch.journal import Journal
        from vlkit.generation.reply import record_of, result_of

        rows = self.of(conversations)["rows"]
        own = [record_of(result, row, "") for row, result in zip(rows, results, strict=True)]
        records = sorted(gather_object(own), key=lambda record: record["index"])
        report = _sum_reports(gather_object([results.report]))
        if self.number == 0:
            Journal(journal).close()
        return report, [result_of(each, conversations[each["index"]]) for each in records]


def _sum_reports(reports: list) -> Any:
    sums = {
        name: sum(getattr(each, name) for each in reports) for name in ("resumed", "new_tokens")
    }
    return replace(reports[0], seconds=max(each.seconds for each in reports), **sums)


@contextmanager
def _processes() -> Iterator[Shares]:
    """The processes of `accelerate launch`, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Shares()
        return
    from accelerate import PartialState

    # they only wait for each other, for which no GPU is needed, and as long as it takes
    state = PartialState(cpu=True, timeout=timedelta(days=100))
    try:
        yield Shares(state.process_index, state.num_processes, state.local_process_index)
    finally:
        state.destroy_process_group()


def _check_places(source: str, out: Path, resume: bool) -> Path:
    """The journal's file. Raises VlkitError where something else would be overwritten."""
    if out.suffix.lower() not in _ENDINGS:
        raise VlkitError(f"--out {out} ends in none of {', '.join(_ENDINGS)}; name one of them")
    if not out.expanduser().parent.is_dir():
        raise VlkitError(f"--out {out}: the folder {out.parent} does not exist; create it")
    journal = out.with_suffix(".jsonl")
    for file in {out, journal}:
        if file.resolve() == Path(source).expanduser().resolve():
            raise VlkitError(f"--out {out} would write over {source}; name another file")
    if not resume and _holds_rows(journal):
        beside = f"{journal} beside it" if journal != out else "it"
        raise VlkitError(
            f"--out {out}: {beside} holds rows already; delete it, name another file, or go on "
            "without --no-resume"
        )
    if out != journal and out.exists() and not (resume and journal.exists()):
        raise VlkitError(f"--out {out} exists already; delete it or name another file")
    return journal


def _holds_rows(journal: Path) -> bool:
    return journal.is_file() and journal.stat().st_size > 0


def _parse_batch_size(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _tell(results: list, report: Any, source: str, out: Path) -> None:
    failed = [(row, each) for row, each in enumerate(results, 1) if hasattr(each, "error")]
    for row, failure in failed[:_SHOWN]:
        line = f"row {row:,} of {source}: {failure}"
        errors.print(line, markup=False, highlight=False, soft_wrap=True)
    if len(failed) > _SHOWN:
        more = f"and {len(failed) - _SHOWN:,} more, in {out}"
        errors.print(more, markup=False, highlight=False, soft_wrap=True)
    if report.note:
        errors.print(report.note, markup=False, highlight=False, soft_wrap=True)
    line = f"{counted(len(results), 'row')}, {len(failed):,} failed"
    if report.resumed:
        line += f", {report.resumed:,} done before"
    if report.new_tokens:
        line += f", {report.seconds:.1f} s, {report.tokens_per_second:,.0f} tokens/s"
    if report.agreement is not None:
        line += f", {report.agreement:.0%} as one by one"
    console.print(f"{line}; written to {out}", markup=False, highlight=False, soft_wrap=True)
