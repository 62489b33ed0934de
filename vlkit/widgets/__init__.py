"""Panels for notebooks; each also shows the code that does the same."""

from vlkit.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "ask": ["EXAMPLES", "AskPanel", "ChatTurn", "Panel"],
        "batch": ["BatchPanel"],
        "chooser": ["ModelChooser"],
        "grounding": ["BoxCanvas", "GroundingPanel"],
        "lora": ["LoraPanel"],
        "media": ["ClipPicker", "PicturePicker"],
        "panel": ["StatusLine"],
        "video": ["VideoPanel"],
    },
)
