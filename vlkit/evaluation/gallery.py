"""``failure_gallery``: a page of the worst answers against the truth."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkit.errors import VlkitError
from vlkit.evaluation.metrics import Evaluation, evaluate_grounding
from vlkit.files import write_whole
from vlkit.media.image import load_image
from vlkit.plotting.comparing import draw_comparison
from vlkit.plotting.html import data_url

_MOST = 600  # characters of a caption's line


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 24px; color: #222; background: #fff; }
.grid { display: grid; gap: 20px; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr));
  align-items: start; }
figure { margin: 0; border: 1px solid #ddd; border-radius: 6px; overflow: hidden; }
figure img { display: block; width: 100%; max-height: 420px; object-fit: contain; }
figcaption { padding: 8px 12px; overflow-wrap: anywhere; }
figcaption b { font-weight: 600; } figcaption div { color: #555; white-space: pre-wrap; }
table { border-collapse: collapse; margin: 12px 0 24px; }
td, th { padding: 3px 12px; text-align: right; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; }
"""


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
    body: str
    head: str = ""
    title: str = "What went worst"

    @property
    def page(self) -> str:
        """The whole page; it needs no other file and no network."""
        title = html.escape(self.title)
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{self.head}\n{self.body}"
            "</body></html>\n"
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write the page."""
        write_whole(Path(path), self.page)
        return Path(path)

    def _repr_html_(self) -> str:
        return f"<style>{_STYLE.replace('body {', '.none {')}</style>{self.body}"


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
        figures.append(_figure(name, image, boxes or [], true or [], caption, means[name]))
    body = f'<div class="grid">{"".join(figures)}</div>\n'
    return Gallery(shown, body, head, title)


def _figure(name: Any, image: Any, boxes: Any, true: Any, caption: str, mean: float) -> str:
    picture = draw_comparison(load_image(image), boxes, true)
    picture.thumbnail((640, 640))
    shown = caption if len(caption) <= _MOST else caption[: _MOST - 1] + "…"
    lines = f"<b>{html.escape(str(name))}</b> mean IoU {mean:.2f}<div>{html.escape(shown)}</div>"
    alt = html.escape(f"truth against answer, picture {name}", quote=True)
    source = data_url(picture.convert("RGB"))
    return f'<figure><img src="{source}" alt="{alt}"><figcaption>{lines}</figcaption></figure>\n'
