"""How good boxes are: questions, metrics, conventions, failures."""

from vlkit.lazy import lazy_names

_HOMES = {
    "metrics": ["Evaluation", "evaluate_grounding", "iou"],
    "asking": ["GroundingRun", "Question", "ask_grounding", "read_questions"],
    "conventions": ["diagnose_boxes"],
    "gallery": ["failure_gallery"],
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _HOMES)
