"""LoRA: data checked and inspected, trained, evaluated, exported."""

from vlkit.lazy import lazy_names

_HOMES = {
    "data": ["TrainingData", "load_conversations"],
    "checking": ["DataError", "Problem"],
    "example": ["Example"],
    "token_labels": ["Labelled", "label_example"],
    "inspection": ["XRay", "inspect"],
    "training": ["train"],
    "trainer": ["LiveCurve"],
    "runs": ["Checks", "LoraRun"],
    "evaluating": ["Comparison", "Scores", "compare", "evaluate", "use_adapter"],
    "exporting": ["export", "export_adapter", "merge"],
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _HOMES)
