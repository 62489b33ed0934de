"""``failure_gallery``: a page of the worst answers against the truth."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlkit.errors import VlkitError
from vlkit.evaluation.metrics import Evaluation, evaluate_grounding
from vlkit.files import write_whole
from vlkit.media.image import load_image
from vlkit.plotting.comparing import draw_comparison
from vlkit.plotting.html import data_url, fill_template

_MOST = 600  # characters of a caption's line


@dataclass(frozen=True, eq=False)
class Gallery:
    """Pictures with captions, the worst first; it shows itself in a notebook.

    Attributes:
        pictures: the names of those shown.
        body: the HTML of the figures.
        head: the HTML above them.
        title: of the page.
    """

    pictures: tuple[Any, ...]
    body: str = field(repr=False)
    head: str = ""
    title: str = "What went worst"

    @property
    def page(self) -> str:
        """The whole page; it needs no other file and no network."""
        return _fill("page", **vars(self))

    def save(self, path: str | os.PathLike) -> Path:
        """Write the page."""
        write_whole(Path(path), self.page)
        return Path(path)

    def _repr_html_(self) -> str:
        return _fill("cell", body=self.body)


def _fill(part: str, **facts: Any) -> str:
    return fill_template("vlkit.evaluation", "gallery.html.jinja", part=part, **facts)


def failure_gallery(
    images: Sequence[Any] | Mapping[Any, Any],
    predicted: Any,
    truth: Any,
    *,
    worst: int = 12,
    captions: Sequence[str] | Mapping[Any, str] | None = None,
    evaluation: Evaluation | None = None,
    title: str = "What went worst",
    head: str = "",
) -> Gallery:
    """The worst pictures by mean IoU, true boxes dashed in blue, the answer's in orange-red.

    Args:
        images: anything that ``vlkit.Image`` takes, for each picture; a mapping if the boxes are.
        predicted, truth: as for :func:`vlkit.evaluate_grounding`.
        worst: the number of pictures.
        captions: a text under each picture, such as question and answer; it is escaped.
        evaluation: of these boxes, if it was computed already.
        title: of the page.
        head: HTML above the pictures, not escaped.

    Raises:
        VlkitError: as ``evaluate_grounding``, or fewer images than pictures.
    """
    evaluation = evaluation or evaluate_grounding(predicted, truth, coco=False, bootstrap=0)
    means = evaluation.rows.groupby("picture")["first_iou"].mean()
    shown = tuple(evaluation.worst(worst))
    figures = []
    for name in shown:
        try:
            image, boxes, true = images[name], predicted[name], truth[name]
            caption = captions[name] if captions else ""
        except (KeyError, IndexError):
            raise VlkitError(f"there is no image or caption for picture {name!r}") from None
        picture = draw_comparison(load_image(image), boxes or [], true or [])
        picture.thumbnail((640, 640))
        caption = caption if len(caption) <= _MOST else caption[: _MOST - 1] + "…"
        figure = {"name": name, "source": data_url(picture), "mean": means[name]}
        figures.append(figure | {"caption": caption})
    return Gallery(shown, _fill("figures", figures=figures), head, title)
