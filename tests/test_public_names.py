"""Names that notebooks, documents and users rely on: each is there, and none is hidden by a module.

The list was taken from version 0.1.0.
"""

import json
import subprocess
import sys

PUBLIC = {
    "vlkit": """
        AnswerLogprobs AttentionMap Box Chat Failure Image Point Preflight Quad RemoteVLM Reply
        Sample SampleClip VLM Video __version__ assistant attention_map available_models clips
        compare_paths convert datasets detect_prompt diagnose_boxes doctor draw_boxes
        draw_comparison draw_frames errors evaluate_grounding failure_gallery format_grounding
        from_detections generate generate_batch iou load load_image locate_prompt lora
        memory_table parse_grounding plot_boxes preflight read_conversations records sample
        samples save_boxes seed_everything serving settings stream system to_detections to_frame
        token_logprobs user widgets write_table""",
    "vlkit.errors": "VlkitError MediaError ModelError GroundingParseError RemoteError",
    "vlkit.settings": "chosen_model forget_model remember_model",
    "vlkit.lora": """
        Checks Comparison DataError Example Labelled LiveCurve LoraRun Problem Scores TrainingData
        XRay compare evaluate export export_adapter inspect label_example load_conversations merge
        train use_adapter""",
    "vlkit.records": """
        ModelComparison Record Replay Run RunDiff bibtex compare diff read_run replay report runs
        seed_everything""",
    "vlkit.widgets": """
        AskPanel BatchPanel BoxCanvas ClipPicker EXAMPLES GroundingPanel LoraPanel ModelChooser
        Panel PicturePicker StatusLine VideoPanel""",
    "vlkit.datasets": "Scene read_scenes write_scenes",
    "vlkit.remote": "HostedOptions RemoteVLM is_remote_name load_remote",
    "vlkit.serving": "start",
    # where notebooks, README and documents take names from a room
    "vlkit.models": "VLM load_processor",
    "vlkit.media": "Image Video load_image load_clip",
    "vlkit.grounding": "Box Point Quad parse_grounding format_grounding",
    "vlkit.plotting": "draw_boxes draw_frames draw_patch_grid plot_boxes",
    "vlkit.evaluation": "ask_grounding read_questions",
    "vlkit.cli": "app main",
}
ROOMS = {"datasets", "errors", "lora", "records", "serving", "settings", "widgets"}


def test_public_names_after_every_module_was_imported():
    code = f"""
import importlib, inspect, json, pkgutil, vlkit
for module in pkgutil.walk_packages(vlkit.__path__, "vlkit."):
    if not module.name.endswith(("__main__", "triton_kernels")):
        importlib.import_module(module.name)
problems = []
for package, names in json.loads({json.dumps(json.dumps(PUBLIC))}).items():
    home = importlib.import_module(package)
    for name in names.split():
        if not hasattr(home, name):
            problems.append(f"{{package}}.{{name}} is missing")
        elif inspect.ismodule(getattr(home, name)) and name not in {ROOMS!r}:
            problems.append(f"{{package}}.{{name}} is hidden by a module")
    missing = set(names.split()) - set(dir(home))
    problems += [f"dir({{package}}) lacks {{name}}" for name in sorted(missing)]
print(json.dumps(problems))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == []
