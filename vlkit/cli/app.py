"""The list of commands; ``predict``, ``chat``, ``download``, ``doctor``, ``report``."""

import json
import warnings
from pathlib import Path
from typing import Any, Literal

import typer
from rich.markup import escape
from rich.table import Table
from typer import Argument, Option

import vlkit
from vlkit.cli.batch import batch
from vlkit.cli.grounding import convert, evaluate_grounding
from vlkit.cli.notebooks import PASS_ON, classroom, lab, run
from vlkit.cli.options import LOAD_OPTIONS, console, error_console, print_plain, with_load_options
from vlkit.cli.serve import serve
from vlkit.cli.training import train
from vlkit.errors import VlkitError, counted
from vlkit.files import check_writable


def doctor() -> None:
    """Show what is installed, what is wrong, and how to fix it."""
    diagnosis = vlkit.doctor()
    table = Table("", "what", "found", "to do", box=None)
    color = {"ok": "green", "note": "yellow", "problem": "bold red"}
    for finding in diagnosis.findings:
        level = f"[{color[finding.level]}]{finding.level}[/]"
        table.add_row(level, finding.topic, escape(finding.value), escape(finding.remedy))
    console.print(table)
    problems = len(diagnosis.problems)
    console.print(f"{counted(problems, 'problem')}." if problems else "Ready.")
    raise typer.Exit(1 if diagnosis.problems else 0)


def report(
    run: str = Argument("last", help='A run\'s folder, or "last".'),
    out: list[Path] | None = Option(
        None, help="A .html, .pdf, .md or .bib; may be repeated. By default report.html."
    ),
    directory: Path = Option(Path("runs"), help='Where "last" looks for runs.'),
    most: int = Option(100, min=0, help="How many answers are shown."),
) -> None:
    """Write a report of a recorded run: a self-contained HTML page, PDF, Markdown or BibTeX."""
    record = vlkit.records.read_run(_last(directory) if run == "last" else run)
    for path in out or [Path("report.html")]:
        vlkit.records.report(record, path, most=most)
        print_plain(f"written to {path}")


def _last(directory: Path) -> str:
    """The path of the run that ended last, or was written to last."""
    import pandas

    runs = vlkit.records.runs(directory)
    if not len(runs):
        raise VlkitError(f"{directory} contains no run; record one with vlkit.records.Run")
    started = pandas.to_datetime(runs["started"], utc=True, format="ISO8601")
    ended = started + pandas.to_timedelta(runs["seconds"], unit="s")  # a run may contain others
    return runs["path"][ended.idxmax()]


app = typer.Typer(
    help="A workbench for the Qwen-VL family.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # brackets in a help text are not markup
)


for command in (batch, convert, doctor, evaluate_grounding, train, report, serve):
    app.command()(command)
app.command(context_settings=PASS_ON)(lab)
app.command(context_settings=PASS_ON)(classroom)
app.command(context_settings={"ignore_unknown_options": True})(run)  # a value may be -1


def _show_version(is_set: bool) -> None:
    if is_set:
        typer.echo(f"vlkit {vlkit.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


def main() -> None:
    """The `vlkit` command: errors that a user can fix are one line, not a traceback."""
    warnings.formatwarning = lambda message, *_, **__: f"Note: {message}\n"
    try:
        app(standalone_mode=True)
    except VlkitError as error:
        line = f"[bold red]Error:[/] {escape(str(error))}"
        error_console.print(line, soft_wrap=True, highlight=False)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@app.command()
@with_load_options()
def predict(
    *,
    prompt: str | None = Option(None, help="The question."),
    locate: str | None = Option(
        None, metavar="OBJECT", help="Ask for its box instead, in the model's own words."
    ),
    language: Literal["en", "zh"] = Option("en", help="Of --locate's words."),
    image: list[str] | None = Option(
        None, help="Path or URL of a picture or clip; may be repeated."
    ),
    load_options: dict[str, Any],
    answer_options: dict[str, Any],
    output_dir: Path | None = Option(
        None, help="Write answer.json and the pictures with boxes here."
    ),
    json_output: bool = Option(False, "--json", help="Print the answer as JSON."),
) -> None:
    """Ask one question, about pictures or without."""
    from vlkit.generation.reply import record_of

    if output_dir is not None:
        check_writable(output_dir)  # before a large model answers
    if bool((prompt or "").strip()) == (locate is not None):
        raise VlkitError("pass either --prompt, a question, or --locate, an object to find")
    media = [_read_media(source) for source in image or []]  # before a large model is loaded
    vlm = vlkit.load(**load_options)
    if locate is not None or prompt is None:
        prompt = vlkit.locate_prompt(str(locate), family=vlm.family, language=language)
    reply = vlkit.generate(vlm, vlkit.user(prompt, *media), **answer_options)
    record: dict[str, Any] = {"model": vlm.name, "revision": vlm.revision}
    record |= {"prompt": prompt, "images": image or [], **answer_options}
    record |= record_of(reply)
    if output_dir is not None:
        _write(output_dir, record, reply)
    if json_output:
        typer.echo(json.dumps(record, ensure_ascii=False, indent=2))
    else:
        _show(reply, output_dir)


@app.command()
@with_load_options(name for name in LOAD_OPTIONS if name != "max_image_tokens")
def chat(
    *,
    image: list[str] | None = Option(None, help="Pictures or clips for the first turn."),
    load_options: dict[str, Any],
    answer_options: dict[str, Any],
) -> None:
    """Chat with a model. `/image PATH` adds a picture to the next turn, `/new` starts again."""
    next_media = [_read_media(source) for source in image or []]
    vlm = vlkit.load(**load_options)
    conversation = vlkit.Chat(vlm, **answer_options)
    console.print(f"{escape(vlm.name)} is ready. /image PATH, /new, /quit; Ctrl-C stops an answer.")
    while (line := _read_line()) is not None:
        command, _, rest = line.strip().partition(" ")
        try:
            if command == "/image":
                next_media.append(_read_media(rest.strip()))
                size = getattr(next_media[-1], "size", None)  # a clip has none
                console.print(f"{size[0]}×{size[1]} picture added" if size else "clip added")
            elif command == "/new":
                conversation, next_media = vlkit.Chat(vlm, **answer_options), []
                console.print("a new conversation")
            elif command == "/quit":
                return
            elif command.startswith("/"):
                raise VlkitError(f"{command} is unknown; write /image PATH, /new or /quit")
            elif line.strip():
                _answer(conversation, line, next_media)
                next_media = []
        except VlkitError as error:
            error_console.print(f"[red]{escape(str(error))}[/]", highlight=False)


@app.command()
@with_load_options(("hub", "revision"))
def download(
    *,
    name: str = Argument(metavar="ID", help="owner/name on the hub."),
    patterns: list[str] | None = Argument(
        None, metavar="[FILE]...", help="Only these files or globs."
    ),
    load_options: dict[str, Any],
    local_dir: Path | None = Option(
        None, help="The folder to download to; by default the hub's cache."
    ),
) -> None:
    """Download a model, verify its shards and print the folder. Resumes where it stopped."""
    from vlkit.models.hub import download_model

    typer.echo(download_model(name, patterns or [], local_dir=local_dir, **load_options))


def _read_media(source: str):
    """A picture, or a clip (by its file ending) whose header was read."""
    from vlkit.media.video import probe_clip
    from vlkit.messages import looks_like_clip

    if not source:
        raise VlkitError("name a picture or clip: /image PATH")
    if not looks_like_clip(source):
        return vlkit.load_image(source)
    video = vlkit.Video(source)
    probe_clip(video)
    return video


def _read_line() -> str | None:
    try:
        return console.input("[bold cyan]you:[/] ")
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None


def _answer(conversation, line: str, media: list) -> None:
    pieces = conversation.stream(line, *media)
    try:
        for piece in pieces:
            console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        pieces.close()
        console.print(" [dim](stopped)[/]", end="")
    console.print()


def _write(folder: Path, record: dict, reply) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [*reply.images[:-1], reply.plot()] if reply.images else []
    for number, picture in enumerate(pictures, 1):
        picture.save(folder / f"picture_{number}.png")
    for index in range(len(reply.clips)):
        reply.plot(clip=index).save(folder / f"clip_{index + 1}.png")
    text = json.dumps(record, ensure_ascii=False, indent=2)
    (folder / "answer.json").write_text(text + "\n", encoding="utf-8")


def _show(reply, output_dir: Path | None) -> None:
    console.print(reply.text, markup=False, highlight=False, soft_wrap=True)
    if reply.boxes:
        table = Table("label", "x1", "y1", "x2", "y2", box=None)
        for box in reply.boxes:
            table.add_row(escape(box.label), *(f"{value:.0f}" for value in box.xyxy))
        console.print(table)
    usage = reply.usage
    console.print(
        f"[dim]{usage.prompt_tokens:,} prompt tokens, {usage.new_tokens:,} new, "
        f"{reply.seconds:.2f} s, {reply.finish_reason}{', counts estimated' * usage.estimated}[/]"
    )
    if output_dir is not None:
        console.print(f"[dim]written to {escape(str(output_dir))}[/]")
