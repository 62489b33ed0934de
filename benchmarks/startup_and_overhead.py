"""What vlkit costs beside bare transformers: import, first answer, every answer.

    python benchmarks/startup_and_overhead.py [--runs 7] [--output benchmarks/results/…json]

Every pair is measured in turns in one run, so that the ratios hold on a busy machine; the model is
the bundled one, in float32 on the CPU. Medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from reporting import report

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "data" / "tiny-qwen2-vl"
PICTURE = ROOT / "data" / "samples" / "six_shapes.png"
QUESTION = "Describe this image."
NEW_TOKENS = 64

WITH_VLKIT = f"""
import vlkit
vlm = vlkit.load()
print(vlkit.generate(vlm, vlkit.user({QUESTION!r}, {str(PICTURE)!r}), max_new_tokens={NEW_TOKENS}))
"""
# the shortest script that does the same: the processor's chat template, as the model cards show it
WITH_TRANSFORMERS = f"""
from transformers import AutoModelForImageTextToText, AutoProcessor
processor = AutoProcessor.from_pretrained({str(MODEL)!r})
model = AutoModelForImageTextToText.from_pretrained({str(MODEL)!r}, dtype="float32")
messages = [{{"role": "user", "content": [{{"type": "image", "image": {str(PICTURE)!r}}},
            {{"type": "text", "text": {QUESTION!r}}}]}}]
inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True,
                                       return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens={NEW_TOKENS}, do_sample=False)
new = output[0, inputs["input_ids"].shape[1]:]
print(processor.decode(new, skip_special_tokens=True))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result = {"import_seconds": import_seconds(arguments.runs)}
    result |= first_answer(arguments.runs)
    result |= every_answer(3 * arguments.runs)
    report(result, arguments.output)


def run_script(code: str) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def import_seconds(runs: int) -> float:
    code = (
        "import time; t = time.perf_counter(); import vlkit; print(time.perf_counter() - t)\n"
        "import sys; assert 'torch' not in sys.modules"
    )
    return round(statistics.median(float(run_script(code)[1]) for _ in range(runs)), 4)


def first_answer(runs: int) -> dict:
    """From process start to the first answer."""
    seconds: dict[str, list[float]] = {"vlkit": [], "transformers": []}
    answers = set()
    for _ in range(runs):
        for name, code in (("vlkit", WITH_VLKIT), ("transformers", WITH_TRANSFORMERS)):
            taken, answer = run_script(code)
            seconds[name].append(taken)
            answers.add(answer)
    assert len(answers) == 1, answers
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "first_answer_seconds": {name: round(value, 2) for name, value in medians.items()},
        "first_answer_ratio": round(medians["vlkit"] / medians["transformers"], 3),
    }


def every_answer(runs: int) -> dict:
    """`vlkit.generate` against the processor and `model.generate` by hand, both loaded."""
    import vlkit

    vlm = vlkit.load()
    message = vlkit.user(QUESTION, PICTURE)

    def bare() -> str:
        inputs = vlm.processor.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        output = vlm.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        return vlm.processor.decode(new, skip_special_tokens=True)

    def ours() -> str:
        return vlkit.generate(vlm, message, max_new_tokens=NEW_TOKENS).text

    assert bare() == ours()
    pairs = []
    for turn in range(runs):
        order = (ours, bare) if turn % 2 else (bare, ours)
        taken = {}
        for call in order:
            start = time.perf_counter()
            call()
            taken[call] = time.perf_counter() - start
        pairs.append((taken[ours], taken[bare]))
    return {
        "generate_seconds": {
            "vlkit": round(statistics.median(a for a, _ in pairs), 4),
            "transformers": round(statistics.median(b for _, b in pairs), 4),
        },
        "generate_ratio": round(statistics.median(a / b for a, b in pairs), 4),
    }


if __name__ == "__main__":
    main()
