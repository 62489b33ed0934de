"""vlkit: a workbench for the Qwen-VL family. Start with ``vlm = vlkit.load()``."""

from vlkit.lazy import lazy_names
from vlkit.threads import wait_passively

wait_passively()  # before torch is imported: OpenMP then reads how its threads wait

__version__ = "0.2.0"

_HOMES = {
    # the core
    "models.load": ["VLM", "load"],
    "models.hub": ["available_models"],
    "models.memory": ["memory_table"],
    "messages": ["system", "user", "assistant"],
    "media.image": ["Image", "load_image"],
    "media.video": ["Video"],
    "generation.generate": ["generate", "stream", "Chat"],
    "generation.reply": ["Reply", "Failure"],
    "grounding.boxes": ["Box", "Point", "Quad"],
    "grounding.parse": ["parse_grounding", "format_grounding"],
    "plotting.draw": ["draw_boxes", "plot_boxes", "draw_frames"],
    "plotting.comparing": ["draw_comparison", "save_boxes"],
    "bundled": ["Sample", "SampleClip", "clips", "sample", "samples"],
    # the workbench
    "remote.model": ["RemoteVLM"],
    "batch.answering": ["generate_batch"],
    "datasets.conversations": ["detect_prompt", "locate_prompt"],
    "datasets.questions": ["read_conversations", "to_frame"],
    "datasets.tables": ["write_table"],
    "datasets.scenes": ["convert"],
    "datasets.pictures": ["to_detections", "from_detections"],
    "analysis.preflight": ["preflight", "Preflight"],
    "analysis.attention": ["attention_map", "AttentionMap"],
    "analysis.logprobs": ["token_logprobs", "AnswerLogprobs"],
    "analysis.input_paths": ["compare_paths"],
    "evaluation.metrics": ["iou", "evaluate_grounding"],
    "evaluation.conventions": ["diagnose_boxes"],
    "evaluation.gallery": ["failure_gallery"],
    "records.recording": ["seed_everything"],
    "diagnosis": ["doctor"],
    # rooms that are used by their own names
    "datasets": [],
    "errors": [],
    "lora": [],
    "records": [],
    "serving": [],
    "settings": [],
    "widgets": [],
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _HOMES)
__all__ += ["__version__"]
