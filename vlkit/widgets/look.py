"""The look that all panels share: two columns, one line of status, buttons, the code below."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets as widgets

_CSS = Path(__file__).with_name("panel.css").read_text(encoding="utf-8")


class PanelBox(widgets.VBox):
    """A panel as a whole; where widgets are not shown, one line stands for it."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}: run this cell in Jupyter to use it"


class StatusLine(widgets.HTML):
    """One line that says what a panel is doing, or what went wrong."""

    def say(self, text: str) -> None:
        """Show what is going on; what ends in an ellipsis goes on and is marked as busy."""
        busy = ' class="vlkit-busy"' if text.endswith("…") else ""
        self.value = f'<div role="status"{busy}>{html.escape(text)}</div>'

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Show an error of the block as one line; Jupyter loses those of callbacks and threads."""
        try:
            yield
        except Exception as error:
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            self.value = f'<div role="alert" class="vlkit-error">{html.escape(line)}</div>'


def columns(
    left: Sequence[widgets.Widget], right: Sequence[widgets.Widget]
) -> list[widgets.Widget]:
    """Two columns that stand below each other where there is no room; the style comes along."""
    side = widgets.Layout(flex="1 1 280px", max_width="420px", min_width="0")
    main = widgets.Layout(flex="1 1 280px", min_width="0")
    boxes = [widgets.VBox(left, layout=side), widgets.VBox(right, layout=main)]
    row = widgets.Layout(flex_flow="row wrap", grid_gap="16px")
    return [style(_CSS), widgets.HBox(boxes, layout=row)]


def style(css: str) -> widgets.HTML:
    """A style sheet that comes with a panel."""
    return widgets.HTML(f"<style>{css}</style>", layout=widgets.Layout(display="none"))


def buttons(*those: widgets.Widget) -> widgets.HBox:
    """Buttons in a row under the controls."""
    return widgets.HBox(those).add_class("vlkit-buttons")


def code_fold(view: widgets.HTML) -> widgets.Accordion:
    """The plain code behind a panel, folded."""
    return widgets.Accordion([view], titles=["The same in plain Python"])


def show_code(view: widgets.HTML, code: str) -> None:
    """Put code into a view that :func:`code_fold` folds."""
    view.value = f"<pre>{html.escape(code)}</pre>"


def load_code(vlm: Any) -> str:
    """Plain Python that loads this model again."""
    options = {name: getattr(vlm, name, None) for name in ("adapter", "max_image_tokens")}
    options |= getattr(vlm, "load_options", {})  # of a hosted model, without its key
    given = [f", {name}={value!r}" for name, value in options.items() if value is not None]
    return f"vlkit.load({vlm.name!r}{''.join(given)})"


def add_classes(panel: widgets.Widget, *names: str) -> None:
    """Give the widgets in these attributes CSS classes: ``ask_button`` becomes vlkit-ask-button."""
    for name in names:
        getattr(panel, name).add_class("vlkit-" + name.replace("_", "-"))
