"""LoRA fine-tuning: data that is checked, and an X-ray of what will be trained."""

from importlib import import_module

_HOME = {
    "comparing": ["Comparison", "compare", "use_adapter"],
    "data": ["TrainingData", "load_conversations"],
    "examples": ["Example"],
    "exporting": ["export"],
    "handing_on": ["export_adapter"],
    "inspection": ["XRay", "inspect"],
    "labels": ["Labelled", "label_example"],
    "live": ["LiveCurve"],
    "merging": ["merge"],
    "problems": ["DataError", "Problem"],
    "proving": ["Checks"],
    "runs": ["LoraRun"],
    "scoring": ["Scores", "evaluate"],
    "training": ["train"],
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [*_WHERE]


def __getattr__(name: str):
    """Import a public name when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module 'vlkit.lora' has no attribute {name!r}")
    value = getattr(import_module(f"vlkit.lora.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
