"""``vlkit convert`` and ``vlkit evaluate-grounding``: data sets with boxes."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

from typer import Argument, Option, echo

import vlkit
from vlkit.cli.options import TokensOption, print_plain, with_load_options
from vlkit.files import check_free, check_writable
from vlkit.settings import MAX_NEW_TOKENS


def convert(
    source: Path = Argument(help="A file or folder with boxes."),
    target: Path = Argument(help="The file or new folder to write."),
    to: str = Option(
        help="coco, yolo, voc, refcoco, label-studio, ms-swift, or a family: qwen_vl, "
        "qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5."
    ),
    source_format: str = Option(
        "auto", "--from", help="The source's format, if its content does not show it."
    ),
    images: Path | None = Option(None, help="The folder with the pictures."),
    max_image_tokens: int | None = Option(
        None, help="The max_image_tokens with which qwen2_5_vl is used."
    ),
    prompt: str | None = Option(
        None,
        help='The question of conversations, with "{label}"; by default that of '
        "evaluate-grounding.",
    ),
    copy_pictures: bool = Option(
        False, "--copy-pictures", help="Copy the pictures next to the file."
    ),
) -> None:
    """Convert a data set's boxes to another format or another generation's convention."""
    report = vlkit.convert(
        source, target, to=to, source_format=source_format, images=images,
        max_image_tokens=max_image_tokens, prompt=prompt, copy_pictures=copy_pictures,
    )  # fmt: skip
    echo(f"{report}, written to {target}")


@with_load_options()
def evaluate_grounding(
    *,
    model: str = Argument(help='"tiny" (bundled), a folder or a hub id.'),
    data: str = Argument(help='"samples" (bundled), or any file or folder that convert reads.'),
    output_dir: Path = Option(
        Path("evaluation"), "--output-dir", "--out", help="A new folder for the results."
    ),
    data_format: str = Option(
        "auto", "--format", help="Of the data, if their content does not show it."
    ),
    images: Path | None = Option(None, help="The folder with the pictures."),
    prompt: str | None = Option(
        None, help='With "{label}"; by default the usual one of the family.'
    ),
    language: Literal["en", "zh"] = Option("en", help="Of the usual prompt."),
    iou: list[float] | None = Option(None, help="Thresholds; 0.5 and 0.75."),
    worst: int = Option(24, min=0, help="How many answers the gallery shows."),
    limit: int | None = Option(None, min=1, help="Only the first questions."),
    load_options: dict[str, Any],
    max_new_tokens: TokensOption = MAX_NEW_TOKENS,
    batch_size: int = Option(0, help="The most rows at a time; 0 is auto."),
) -> None:
    """Ask a model where things are and measure its boxes.

    Writes metrics.json, rows.csv and gallery.html (the worst answers against the truth), all of
    them or none.
    """
    from vlkit.evaluation.asking import ask_grounding, read_questions
    from vlkit.evaluation.metrics import check_thresholds

    check_free(output_dir)
    check_writable(output_dir)
    iou = list(check_thresholds(iou or (0.5, 0.75)))
    ask = partial(read_questions, data, format=data_format, images=images)
    ask(prompt=prompt or "{label}")  # before a large model is loaded
    vlm = vlkit.load(**load_options)
    usual = vlkit.locate_prompt("{label}", family=vlm.family, language=language)
    questions = ask(prompt=prompt or usual)
    run = ask_grounding(
        vlm, questions[:limit], data=Path(data).name, iou=iou,
        max_new_tokens=max_new_tokens, batch_size=batch_size or "auto",
    )  # fmt: skip
    run.save(output_dir, worst=worst)
    metrics = run.evaluation.overall.to_string(na_rep="–", float_format="{:.3f}".format)
    print_plain(f"{metrics}\n(low and high: the 95 % interval)")
    unread = run.to_dict()["unreadable"]
    echo(f"{len(run.questions):,} questions, {unread:,} answers unreadable.")
    echo(f"Written to {output_dir}: metrics.json, rows.csv, gallery.html")
