"""vlkit: a workbench for the Qwen-VL family. Start with ``vlm = vlkit.load()``."""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "media": ["Image", "load_image"],
    "grounding": ["Box", "Point", "Quad", "parse_grounding", "format_grounding"],
    "metrics": ["iou", "evaluate_grounding"],
    "conventions": ["diagnose_boxes"],
    "gallery": ["failure_gallery"],
    "plotting": ["draw_boxes", "plot_boxes", "draw_frames"],
    "comparison": ["draw_comparison", "save_boxes"],
    "conversion": ["convert"],
    "datasets.detections": ["to_detections", "from_detections"],
    "messages": ["system", "user", "assistant"],
    "hubs": ["available_models"],
    "models": ["VLM", "load"],
    "remote.models": ["RemoteVLM"],
    "bundled": ["Sample", "SampleClip", "clips", "sample", "samples"],
    "video": ["Video"],
    "replies": ["Reply", "Failure"],
    "generation": ["generate", "stream"],
    "chat": ["Chat"],
    "attention": ["attention_map", "AttentionMap"],
    "logprobs": ["token_logprobs", "AnswerLogprobs"],
    "batch": ["generate_batch"],
    "records.seeding": ["seed_everything"],
    "tables": ["read_conversations", "to_frame", "write_table"],
    "shapes": ["memory_table"],
    "flight": ["preflight", "Preflight"],
    "parity": ["compare_paths"],
    "diagnosis": ["doctor"],
}
_MODULES = ["datasets", "errors", "lora", "records", "serving", "settings", "widgets"]
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_WHERE, *_MODULES]


def __getattr__(name: str):
    """Import a public name when it is first used, so that ``import vlkit`` stays fast."""
    if name in _WHERE:
        value = getattr(import_module(f"vlkit.{_WHERE[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"vlkit.{name}")
    else:
        raise AttributeError(f"module 'vlkit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
