"""LoRA: data checked and inspected, trained, evaluated, exported."""

from vlkit.lazy import lazy_names

_HOMES = {
    "data": ["DataError", "Example", "Problem", "TrainingData", "load_conversations"],
    "batches": ["Labelled", "label_example"],
    "inspection": ["XRay", "inspect"],
    "training": ["train"],
    "callbacks": ["LiveCurve"],
    "run_folder": ["Checks", "LoraRun"],
    "evaluating": ["Comparison", "Scores", "compare", "evaluate", "use_adapter"],
    "exporting": ["export", "export_adapter", "merge"],
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _HOMES)
