"""Panels for notebooks; each also shows the code that does the same."""

from vlkit.widgets.ask import EXAMPLES, AskPanel, PicturePicker
from vlkit.widgets.batch import BatchPanel
from vlkit.widgets.chooser import ModelChooser
from vlkit.widgets.grounding import BoxCanvas, GroundingPanel
from vlkit.widgets.lora import LoraPanel
from vlkit.widgets.panel import Panel, StatusLine
from vlkit.widgets.video import ClipPicker, VideoPanel

__all__ = [
    "EXAMPLES",
    "AskPanel",
    "BatchPanel",
    "BoxCanvas",
    "ClipPicker",
    "GroundingPanel",
    "LoraPanel",
    "ModelChooser",
    "Panel",
    "PicturePicker",
    "StatusLine",
    "VideoPanel",
]
