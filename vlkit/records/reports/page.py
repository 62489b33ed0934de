"""``report``, ``bibtex``: the page, PDF, Markdown, citations."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import PIL.Image

from vlkit import __version__
from vlkit.errors import VlkitError
from vlkit.files import write_whole
from vlkit.plotting.html import data_url, fill_template, png_url
from vlkit.records.reading import WIDTH, Record, read_run
from vlkit.records.reports import sections

_HUBS = {"huggingface": "https://huggingface.co/", "modelscope": "https://modelscope.cn/models/"}


_TITLE = "{vlkit: a Jupyter workbench for the Qwen-VL family}"  # as in CITATION.cff


def bibtex(run: Any) -> str:
    """BibTeX entries of vlkit, of the models of a run and of their families' papers.

    The bundled model is part of vlkit, whose entry is that of ``CITATION.cff``. A family without
    a paper (Qwen3.5) is cited by the model's page.

    Args:
        run: a Run, or its folder.
    """
    models = list(read_run(run).models.values())
    families = dict.fromkeys(model["family"] for model in models)
    fields = {"title": _TITLE, "author": "{The vlkit developers}", "version": __version__}
    papers = files("vlkit.records.reports").joinpath("papers.bib").read_text(encoding="utf-8")
    by_family = dict(re.findall(r"^% (\w+)\n(@.*?^\})", papers, re.MULTILINE | re.DOTALL))
    of_families = [by_family.get(family, "") for family in families]
    entries = [_entry("software", "vlkit", fields), *of_families, *_pages(models)]
    return "\n\n".join(filter(None, dict.fromkeys(entries))) + "\n"


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


BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
    "microsoft-edge", "msedge", "brave-browser",
)  # fmt: skip


_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")  # in Markdown


_MAC = "/Applications/{0}.app/Contents/MacOS/{0}"


SECONDS = 120


def find_browser() -> str | None:
    """The path of a Chromium-based browser; the variable ``CHROMIUM`` takes precedence."""
    mac = [_MAC.format(name) for name in ("Google Chrome", "Chromium", "Microsoft Edge")]
    named = [os.environ.get("CHROMIUM"), *BROWSERS, *mac]
    return next((path for name in named if name and (path := shutil.which(name))), None)


def print_page(page: str, pdf: Path) -> None:
    """Write a page of HTML as PDF.

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
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as profile:
        source, made = Path(folder) / "report.html", Path(folder) / "report.pdf"
        source.write_text(page, encoding="utf-8")
        command = [
            browser, "--headless", "--disable-gpu", "--no-first-run", "--disable-extensions",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--no-pdf-header-footer",
            *(["--no-sandbox"] if root else []), f"--print-to-pdf={made}", source.as_uri(),
        ]  # fmt: skip
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise VlkitError(f"{browser} did not print the page: {error}") from None
        if not made.is_file():
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise VlkitError(f"{browser} did not print the page: {reason:.200}")
        write_whole(pdf, made.read_bytes())


def report(
    run: Any,
    path: str | os.PathLike = "report.html",
    *,
    truth: sections.Truth | None = None,
    extra: Sequence[tuple[str, Sequence[Sequence[Any]]]] = (),
    most: int = 100,
) -> Path:
    """Write a report of a run.

    Args:
        run: a Run, or its folder.
        path: ``.html`` is one page that needs no other file and no network; ``.pdf`` is that page
            printed by Chromium, Chrome or Edge; ``.md`` is Markdown for a paper's appendix, with
            its pictures in a folder ``NAME_files`` next to it; ``.bib`` is what to cite.
        truth: true boxes by a picture's file name; drawn dashed, with their IoU in the tables.
        extra: (title, rows of cells) of more tables, on the page only.
        most: the number of answers to show; of more answers, these are evenly spread.

    Returns:
        The path.

    Raises:
        VlkitError: there is no run, an unknown ending, a folder that cannot be written, or no
            browser for a PDF.
    """
    record, path = read_run(run), Path(path).expanduser()
    options = {"truth": truth or {}, "extra": extra, "most": most}
    ending = path.suffix.lower()
    if ending in (".html", ".pdf"):
        page = _render("report.html.jinja", record, embed_picture, **options)
        print_page(page, path) if ending == ".pdf" else write_whole(path, page)
    elif ending == ".md":
        folder = path.with_name(f"{path.stem}_files")
        folder.mkdir(parents=True, exist_ok=True)
        text = _render("report.md.jinja", record, partial(_save_picture, folder), **options)
        write_whole(path, re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")
    elif ending == ".bib":
        write_whole(path, bibtex(record))
    else:
        raise VlkitError(f"{path} must end in .html, .pdf, .md or .bib")
    return path


def _render(name: str, record: Record, picture: Any, **facts: Any) -> str:
    """A template filled; ``picture(content, name)`` in it gives the address of a picture."""
    return fill_template(
        "vlkit.records.reports", name, autoescape=name.endswith(".html.jinja"),
        filters={"show": sections.show, "plain": escape_markdown},
        record=record, sections=sections, picture=picture, bibtex=bibtex(record),
        version=__version__, **facts,
    )  # fmt: skip


def embed_picture(content: bytes | PIL.Image.Image, name: str) -> str:
    """A data URL of a picture: of a PNG file's bytes, or of at most 840 pixels in width."""
    if isinstance(content, bytes):
        return png_url(content)
    content = content.convert("RGB")
    content.thumbnail((WIDTH, 2 * WIDTH))
    return data_url(content)


def _save_picture(folder: Path, content: bytes | PIL.Image.Image, name: str) -> str:
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        content.save(folder / name)
    return quote(f"{folder.name}/{name}")


def escape_markdown(text: str) -> str:
    """Text on one line, with the characters of Markdown escaped."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))
