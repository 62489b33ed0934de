"""Panels for notebooks; each also shows the code that does the same."""

from vlkit.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "ask": ["EXAMPLES", "AskPanel", "PicturePicker"],
        "conversation": ["ChatTurn", "Panel"],
        "batch": ["BatchPanel"],
        "chooser": ["ModelChooser"],
        "grounding": ["BoxCanvas", "GroundingPanel"],
        "lora": ["LoraPanel"],
        "panel": ["StatusLine"],
        "video": ["ClipPicker", "VideoPanel"],
    },
)
