"""``report``, ``bibtex``: the page, PDF, Markdown, citations."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlkit import __version__
from vlkit.errors import VlkitError
from vlkit.files import write_whole
from vlkit.plotting.html import image_html, png_url
from vlkit.records.record import WIDTH, Record, read_run
from vlkit.records.reports import sections
from vlkit.records.reports.sections import cost_plot, curve_plot

_PAPERS = {  # family: key, title, authors, year, arXiv number
    "qwen_vl": (
        "bai2023qwenvl",
        "Qwen-VL: A Versatile Vision-Language Model for Understanding, Localization, Text Reading, "
        "and Beyond",
        "Bai, Jinze and Bai, Shuai and Yang, Shusheng and Wang, Shijie and Tan, Sinan and "
        "Wang, Peng and Lin, Junyang and Zhou, Chang and Zhou, Jingren",
        2023,
        "2308.12966",
    ),
    "qwen2_vl": (
        "wang2024qwen2vl",
        "Qwen2-VL: Enhancing Vision-Language Model's Perception of the World at Any Resolution",
        "Wang, Peng and Bai, Shuai and Tan, Sinan and Wang, Shijie and Fan, Zhihao and "
        "Bai, Jinze and Chen, Keqin and Liu, Xuejing and Wang, Jialin and Ge, Wenbin and "
        "Fan, Yang and Dang, Kai and Du, Mengfei and Ren, Xuancheng and Men, Rui and "
        "Liu, Dayiheng and Zhou, Chang and Zhou, Jingren and Lin, Junyang",
        2024,
        "2409.12191",
    ),
    "qwen2_5_vl": (
        "bai2025qwen25vl",
        "Qwen2.5-VL Technical Report",
        "Bai, Shuai and Chen, Keqin and Liu, Xuejing and Wang, Jialin and Ge, Wenbin and "
        "Song, Sibo and Dang, Kai and Wang, Peng and Wang, Shijie and Tang, Jun and "
        "Zhong, Humen and Zhu, Yuanzhi and Yang, Mingkun and Li, Zhaohai and Wan, Jianqiang and "
        "Wang, Pengfei and Ding, Wei and Fu, Zheren and Xu, Yiheng and Ye, Jiabo and "
        "Zhang, Xi and Xie, Tianbao and Cheng, Zesen and Zhang, Hang and Yang, Zhibo and "
        "Xu, Haiyang and Lin, Junyang",
        2025,
        "2502.13923",
    ),
    "qwen3_vl": (
        "bai2025qwen3vl",
        "Qwen3-VL Technical Report",
        "Bai, Shuai and Cai, Yuxuan and Chen, Ruizhe and Chen, Keqin and Chen, Xionghui and others",
        2025,
        "2511.21631",
    ),
}


_HUBS = {"huggingface": "https://huggingface.co/", "modelscope": "https://modelscope.cn/models/"}


def bibtex(run: Any) -> str:
    """BibTeX entries of vlkit, of the models of a run and of their families' papers.

    The bundled model is part of vlkit, whose entry is that of ``CITATION.cff``. A family without
    a paper (Qwen3.5) is cited by the model's page.

    Args:
        run: a Run, or its folder.
    """
    models = list(read_run(run).models.values())
    families = dict.fromkeys(model["family"] for model in models)
    entries = [_own(), *map(_paper, families), *_pages(models)]
    return "\n\n".join(filter(None, dict.fromkeys(entries))) + "\n"


def _own() -> str:
    import yaml

    citation = yaml.safe_load(_citation_file().read_text(encoding="utf-8"))
    names = [author.get("name") or _person(author) for author in citation["authors"]]
    authors = " and ".join(f"{{{name}}}" for name in names)
    fields = {"title": f"{{{citation['title']}}}", "author": authors}
    return _entry("software", "vlkit", fields | {"version": str(citation["version"])})


def _person(author: dict) -> str:
    return f"{author['family-names']}, {author['given-names']}"


def _citation_file() -> Path:
    package = Path(str(files("vlkit")))
    places = (package / "CITATION.cff", package.parent / "CITATION.cff")
    return next(place for place in places if place.is_file())


def _paper(family: str) -> str:
    if family not in _PAPERS:
        return ""
    key, title, authors, year, number = _PAPERS[family]
    fields = {"title": f"{{{title}}}", "author": authors, "year": str(year)}
    return _entry("article", key, fields | {"journal": f"arXiv preprint arXiv:{number}"})


def _pages(models: Iterable[dict]) -> Iterator[str]:
    """An entry for each model that has a page on a hub."""
    for model in models:
        if model.get("hub") in _HUBS and "/" in model["name"]:
            owner, _, name = model["name"].partition("/")
            fields = {"title": f"{{{name}}}", "author": f"{{{owner}}}"}
            fields["howpublished"] = rf"\url{{{_HUBS[model['hub']]}{model['name']}}}"
            if commit := model.get("commit") or model.get("revision"):
                fields["note"] = f"revision {commit}"
            yield _entry("misc", re.sub(r"\W+", "", name).lower(), fields)


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items()]
    return f"@{kind}{{{key},\n" + ",\n".join(lines) + "\n}"


def cited(record: Record) -> list[str]:
    """The keys of :func:`bibtex`'s entries."""
    return re.findall(r"^@\w+\{([^,]+),", bibtex(record), re.MULTILINE)


_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def write_markdown(
    record: Record, path: Path, *, truth: sections.Truth | None = None, most: int = 100
) -> None:
    """The report, its pictures in ``NAME_files`` beside it; arguments as for ``report``."""
    folder = path.with_name(f"{path.stem}_files")
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        f"# {_escape(record.name)}",
        _escape(record.manifest.get("notes", "")),
        _escape(f"Incomplete: {record.gap}." if record.gap else ""),
        *_results(record, folder),
        *_trainings(record, folder),
        *_answers(record, folder, truth or {}, most),
        *_settings(record),
    ]
    write_whole(path, "\n\n".join(filter(None, parts)) + "\n")


def _results(record: Record, folder: Path) -> Iterator[str]:
    if record.values or record.of("evaluation") or record.of("exhibit"):
        yield "## Results"
    if record.values:
        yield _table(list(record.values.items()), ["", "value"])
    for found in sections.evaluations(record):
        yield f"### {found['title']}"
        yield _table(found["rows"], found["head"])
    for line in record.of("exhibit"):
        caption = _escape(line["caption"])
        if line["exhibit"] == "text":
            yield _escape(line["text"])
        elif line["exhibit"] == "table":
            yield _table(line["rows"], line["columns"])
            yield f"*{caption}*" if caption else ""
        elif (record.path / line["file"]).is_file():
            target = folder / Path(line["file"]).name
            target.write_bytes((record.path / line["file"]).read_bytes())
            yield f"![{caption}]({_link(target)})"


def _trainings(record: Record, folder: Path) -> Iterator[str]:
    for number, training in enumerate(sections.training_rows(record), 1):
        yield "## Training"
        yield _escape(training["error"])
        if curve := curve_plot(training["line"]):
            target = folder / f"training_{number}.png"
            target.write_bytes(curve)
            yield f"![Loss by step]({_link(target)})"
        yield _table(training["facts"], ["", "value"])


def _answers(record: Record, folder: Path, truth: sections.Truth, most: int) -> Iterator[str]:
    if record.answers:
        yield "## Answers"
    for index in sections.chosen(record, most):
        view = sections.view_answer(record, index, truth)
        yield f"### {view.number}. {_escape(view.question)}"
        yield f"*{_escape(view.about)}*"
        if view.picture is not None:
            target = folder / f"answer_{view.number:03d}.png"
            view.picture.save(target)
            yield f"![{_escape(view.text[:100])}]({_link(target)})"
        yield "\n".join(f"> {_escape(line)}" for line in view.text.splitlines() or [""])
        if view.boxes:
            yield _table(view.boxes, view.box_head)
        yield _escape(view.cost)
    if len(record.answers) > most:
        yield f"{most} of {len(record.answers)} are shown, evenly spread."


def _settings(record: Record) -> Iterator[str]:
    yield "## Settings"
    for model in sections.model_rows(record):
        yield f"### {_escape(model['name'])}"
        yield _table(model["facts"], ["", "value"])
    yield _table(sections.option_rows(record), ["option", "values"])
    yield "## Environment"
    yield _table(sections.environment_rows(record), ["", "value"])
    how, code = sections.how_to_repeat(record)
    yield "## How to repeat it"
    yield "\n\n".join(map(_escape, how))
    yield f"```\n{code}\n```"
    yield "Cite " + ", ".join(f"[@{key}]" for key in cited(record)) + "."


def _table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    if not rows:
        return ""
    cells = [[_escape(sections.show(cell)) for cell in row] for row in rows]
    lines = [[_escape(name) for name in head], ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    """Text in which nothing is markup, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _link(target: Path) -> str:
    return f"{target.parent.name}/{target.name}".replace(" ", "%20")


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
