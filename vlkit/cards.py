"""A preflight's view in a notebook: a table, and each picture as the model sees it."""

from __future__ import annotations

import html

from vlkit.errors import VlkitError
from vlkit.flight import ClipView, Preflight, View
from vlkit.remote.models import RemoteVLM
from vlkit.replies import image_html

SHOWN = 6  # pictures and clips that are drawn
_CELL = "padding:2px 12px 2px 0;text-align:left;border:none"
_FAINT = "opacity:.65;font-size:.85em"


def preflight_card(plan: Preflight) -> str:
    """HTML that takes its colours from the page, so that it reads on dark and light."""
    rows = "".join(map(_row, plan.views[: 4 * SHOWN]))
    heads = ("picture or clip", "upright", "as seen", "patch grid", "tokens")
    head = "".join(f'<th style="{_CELL}">{name}</th>' for name in heads)
    table = f'<table style="border-collapse:collapse"><tr>{head}</tr>{rows}</table>' if rows else ""
    more = len(plan.views) - 4 * SHOWN
    table += f'<p style="{_FAINT}">and {more:,} more</p>' if more > 0 else ""
    pictures = "".join(map(_figure, plan.views[:SHOWN]))
    lines = "".join(f'<p style="margin:4px 0">{line}</p>' for line in _lines(plan))
    return (
        f'<div style="max-width:900px"><p style="font-size:1.05em;margin:4px 0"><b>'
        f"{html.escape(plan.model)}</b> ({plan.family})</p>{lines}{table}"
        f'<div style="display:flex;flex-wrap:wrap;gap:10px">{pictures}</div></div>'
    )


def _lines(plan: Preflight) -> list[str]:
    usage = plan.usage
    about = "" if plan.prompt_tokens_exact else "about "
    verdict = "fits" if plan.fits_context else "<b>does not fit</b>"
    lines = [
        f"{about}{usage.prompt_tokens:,} prompt tokens ({usage.image_tokens:,} image, "
        f"{usage.video_tokens:,} video) and {usage.new_tokens:,} new: {verdict} the context of "
        f"{plan.context_length:,}"
    ]
    memory = plan.memory
    if plan.cost is not None:
        lines.append(f"about {plan.cost:.2g} by the given prices")
    if isinstance(plan.target.source, RemoteVLM):
        return lines
    if memory is None:
        return [*lines, "memory: the shape of this model is not known here"]
    verdict = "fits" if memory.fits else "<b>does not fit</b>"
    lines.append(
        f"about {_bytes(memory.total)}: weights {_bytes(memory.weights)}, cache "
        f"{_bytes(memory.cache)}, activations {_bytes(memory.activations)}; {verdict} the "
        f"{_bytes(memory.available)} of free {'GPU memory' if memory.place == 'GPU' else 'RAM'}"
        + (f" (× {memory.factor:g} on a CPU)" if memory.factor != 1 else "")
    )
    return lines


def _row(view: View) -> str:
    steps, rows, columns = view.grid
    grid = f"{rows} × {columns}"
    if isinstance(view, ClipView):
        times = view.timestamps
        grid = f"{steps} × {grid}"
        span = f", {len(times)} frames at {times[0]:.2f}–{times[-1]:.2f} s"
    else:
        span = ""
    cells = (
        _short_name(view) + span,
        "{}×{}".format(*view.size),
        "{}×{}".format(*view.input_size),
        grid,
        f"{view.tokens:,}",
    )
    return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"


def _figure(view: View) -> str:
    try:
        drawn = image_html(view.draw(), width=420, alt=_short_name(view))
    except VlkitError as error:  # only its header was read before
        drawn = f'<p style="color:#B45309">{html.escape(str(error))}</p>'
    caption = f"{_short_name(view)}: {view.tokens:,} tokens"
    return (
        f'<figure style="margin:6px 0;max-width:420px">{drawn}<figcaption style="{_FAINT}">'
        f"{caption}</figcaption></figure>"
    )


def _short_name(view: View) -> str:
    """The file's name alone: a notebook that is handed on should not tell folders."""
    return html.escape(view.name.rstrip("/").rpartition("/")[2])


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
