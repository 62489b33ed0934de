"""Write a report: the HTML page, and the same page as PDF, printed by an installed browser."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlkit import __version__
from vlkit.errors import VlkitError
from vlkit.files import write_whole
from vlkit.plotting.html import image_html, png_url
from vlkit.records.pictures import WIDTH
from vlkit.records.record import Record, read_run
from vlkit.records.reports import sections
from vlkit.records.reports.citations import bibtex
from vlkit.records.reports.sections import cost_plot, curve_plot

BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
    "microsoft-edge", "msedge", "brave-browser",
)  # fmt: skip


_MAC = "/Applications/{0}.app/Contents/MacOS/{0}"


SECONDS = 120


def find_browser() -> str | None:
    """The path of a Chromium-based browser; the variable ``CHROMIUM`` takes precedence."""
    mac = [_MAC.format(name) for name in ("Google Chrome", "Chromium", "Microsoft Edge")]
    named = [os.environ.get("CHROMIUM"), *BROWSERS, *mac]
    return next((path for name in named if name and (path := shutil.which(name))), None)


def print_page(page: Path, pdf: Path) -> None:
    """Write an HTML file as PDF.

    Raises:
        VlkitError: no browser is installed, or it fails.
    """
    browser = find_browser()
    if browser is None:
        raise VlkitError(
            "a PDF needs Chromium, Chrome or Edge; install one, or set CHROMIUM to its path, or "
            "write a .html and print it from your browser"
        )
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with tempfile.TemporaryDirectory() as profile:
        made = Path(profile) / "page.pdf"
        command = [
            browser, "--headless", "--disable-gpu", "--no-first-run", "--disable-extensions",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--no-pdf-header-footer",
            *(["--no-sandbox"] if root else []), f"--print-to-pdf={made}", page.absolute().as_uri(),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise VlkitError(f"{browser} did not print the page: {error}") from None
        if not made.is_file():
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise VlkitError(f"{browser} did not print the page: {reason:.200}")
        shutil.copyfile(made, pdf)


MOST_ANSWERS = 100  # shown with pictures


Extra = Sequence[tuple[str, Sequence[Sequence[Any]]]]


def report(
    run: Any,
    path: str | os.PathLike = "report.html",
    *,
    truth: sections.Truth | None = None,
    extra: Extra = (),
    most: int = MOST_ANSWERS,
) -> Path:
    """Write a report of a run.

    Args:
        run: a Run, or its folder.
        path: ``.html`` is one page that needs no other file and no network; ``.pdf`` is that page
            printed by Chromium, Chrome or Edge; ``.md`` is Markdown for a paper's appendix, with
            its pictures in a folder beside it; ``.bib`` is what to cite.
        truth: true boxes by a picture's file name; drawn dashed, with their IoU in the tables.
        extra: (title, rows of cells) of more tables.
        most: the most answers to show; of more, so many evenly spread.

    Returns:
        The path.

    Raises:
        VlkitError: there is no run, an unknown ending, a folder that cannot be written, or no
            browser for a PDF.
    """
    record, path = read_run(run), Path(path).expanduser()
    ending = path.suffix.lower()
    if ending == ".html":
        write_whole(path, page_html(record, truth=truth, extra=extra, most=most))
    elif ending == ".pdf":
        _write_pdf(path, page_html(record, truth=truth, extra=extra, most=most))
    elif ending == ".md":
        from vlkit.records.reports.markdown import write_markdown

        write_markdown(record, path, truth=truth, most=most)
    elif ending == ".bib":
        write_whole(path, bibtex(record))
    else:
        raise VlkitError(f"{path} must end in .html, .pdf, .md or .bib")
    return path


def page_html(
    record: Record,
    *,
    truth: sections.Truth | None = None,
    extra: Extra = (),
    most: int = MOST_ANSWERS,
) -> str:
    """The page; arguments as for :func:`report`. All text in it is escaped by the template."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    template = files("vlkit.records.reports").joinpath("report.html.jinja")
    how, code = sections.how_to_repeat(record)
    cost = cost_plot(record.answers)
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        title=record.name,
        subtitle=_subtitle(record),
        notes=record.manifest.get("notes"),
        error=record.manifest.get("error"),
        tiles=sections.tiles(record),
        values=list(record.values.items()),
        evaluations=sections.evaluations(record),
        exhibits=[_exhibit(record, line) for line in record.of("exhibit")],
        trainings=[_training(each) for each in sections.training_rows(record)],
        cost=cost and png_url(cost),
        answers=[_answer(record, i, truth or {}) for i in sections.chosen(record, most)],
        count=len(record.answers),
        extra=extra,
        models=sections.model_rows(record),
        options=sections.option_rows(record),
        environment=sections.environment_rows(record),
        how=how,
        code=code,
        bibtex=bibtex(record),
        version=__version__,
        folder=record.path.name,
        show=sections.show,
        numeric=_numeric,
    )


def _subtitle(record: Record) -> str:
    models = dict.fromkeys(
        f"{model['name']} ({model['family']})" for model in record.models.values()
    )
    began = record.manifest["started"][:16].replace("T", " ") + " UTC"
    return " · ".join(filter(None, [began, record.status, *models, record.gap]))


def _answer(record: Record, index: int, truth: sections.Truth) -> dict[str, Any]:
    import markupsafe

    view = sections.view_answer(record, index, truth)
    picture = view.picture and image_html(view.picture, width=WIDTH, alt=view.text)
    before = [{"role": role, "text": text} for role, text in view.before]
    return {**vars(view), "picture": picture and markupsafe.Markup(picture), "before": before}


def _exhibit(record: Record, line: dict) -> dict[str, Any]:
    source = None
    if "file" in line:
        path = record.path / line["file"]
        source = png_url(path.read_bytes()) if path.is_file() else ""
    return {"kind": line["exhibit"], "source": source, **line}


def _training(training: dict) -> dict[str, Any]:
    curve = curve_plot(training["line"])
    held_out = bool(training["line"].get("evaluations"))
    return {**training, "curve": curve and png_url(curve), "held_out": held_out}


def _numeric(rows: Sequence[Sequence[Any]]) -> set[int]:
    """The indices of the columns that contain only numbers."""
    columns = range(len(rows[0])) if rows else range(0)
    return {
        column
        for column in columns
        if all(isinstance(row[column], int | float | None) for row in rows)
        and any(row[column] is not None for row in rows)
    }


def _write_pdf(path: Path, page: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "report.html"
        source.write_text(page, encoding="utf-8")
        print_page(source, path)
