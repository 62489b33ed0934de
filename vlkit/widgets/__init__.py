"""Panels for notebooks: controls over vlkit's functions, and the code that does the same."""

from vlkit.widgets.ask import EXAMPLES, AskPanel, PicturePicker
from vlkit.widgets.batch import BatchPanel
from vlkit.widgets.shared import Panel, StatusLine
from vlkit.widgets.video import ClipPicker, VideoPanel

__all__ = [
    "EXAMPLES",
    "AskPanel",
    "BatchPanel",
    "ClipPicker",
    "Panel",
    "PicturePicker",
    "StatusLine",
    "VideoPanel",
]
