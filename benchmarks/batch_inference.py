"""Batch inference: the quickstart loop, transformers' padded batches and vlkit in one run.

    python benchmarks/batch_inference.py                       # bundled model, CPU: 64 mixed rows
    python benchmarks/batch_inference.py --model Qwen/Qwen2-VL-7B-Instruct
    python benchmarks/batch_inference.py --random-weights 7b   # its shape in random bfloat16

Everything is timed end to end, from messages to texts, preprocessing included. With random weights
(or --force-tokens) every answer has exactly --new-tokens tokens; the pictures are 640×480 noise,
each another one. The bundled model is asked 64 questions about the samples instead: pictures, two
pictures and text alone, answers of any length. transformers reads
two of the samples in another way (transparency, EXIF), so a few answers differ for that.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import transformers
from reporting import report

import vlkit
from vlkit.bundled import bundled_path
from vlkit.models.hub import ModelFolder
from vlkit.models.load import VLM, load_processor
from vlkit.models.memory import build_config

SHAPES = {
    "2b": "Qwen/Qwen2-VL-2B-Instruct",
    "7b": "Qwen/Qwen2-VL-7B-Instruct",
    "2.5-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "2.5-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "3-4b": "Qwen/Qwen3-VL-4B-Instruct",
    "3-8b": "Qwen/Qwen3-VL-8B-Instruct",
    "3-30b-a3b": "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "3.5-9b": "Qwen/Qwen3.5-9B",
    "3.5-35b-a3b": "Qwen/Qwen3.5-35B-A3B",
}
QUESTIONS = (
    "Describe this image.",
    "How many objects are there?",
    "这是什么？",
    "Detect all objects.",
    "What color is the largest object? Answer with one word.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--random-weights", choices=SHAPES)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="of random weights bfloat16 by default")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--force-tokens", action="store_true")
    parser.add_argument("--loop-rows", type=int, help="rows of the loops, by default all")
    parser.add_argument("--batches", type=int, nargs="*", help="of transformers' padded batches")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    report(measure(arguments), arguments.output)


def measure(arguments: argparse.Namespace) -> dict:
    if arguments.random_weights:
        vlm = build_random(arguments.random_weights, arguments.device, arguments.dtype)
    else:
        vlm = vlkit.load(arguments.model, device=arguments.device, dtype=arguments.dtype)
    if arguments.random_weights or arguments.force_tokens:
        vlm.model.generation_config.eos_token_id = None
    if arguments.random_weights or arguments.model != "tiny":
        rows = noise_rows(arguments.rows)
    else:
        rows = sample_rows(arguments.rows)
    loop_rows = rows[: arguments.loop_rows]
    recipes = {
        "quickstart loop": (loop_rows, lambda some: loop(vlm, some, arguments.new_tokens)),
        "vlkit.generate loop": (loop_rows, lambda some: one_by_one(vlm, some, arguments)),
    }
    for size in arguments.batches or []:
        recipes[f"transformers, padded batches of {size}"] = (
            rows[:size],
            lambda some, size=size: padded(vlm, some, arguments.new_tokens, size),
        )
    recipes["vlkit.generate_batch, 1 row"] = (rows[:1], lambda some: batch(vlm, some, arguments))
    name = f"vlkit.generate_batch, {len(rows)} rows"
    recipes[name] = (rows, lambda some: batch(vlm, some, arguments))
    measured = run_all(recipes, arguments.repeats)
    texts = {name: each.pop("answers") for name, each in measured.items()}
    reference = texts["quickstart loop"]
    for each, answers in texts.items():
        measured[each]["same_as_loop"] = share_same(answers, reference)
    ours, theirs = measured[name], measured["quickstart loop"]
    if arguments.random_weights or arguments.force_tokens:
        for each in measured.values():
            each["tokens_per_second"] = round(each["rows_per_second"] * arguments.new_tokens, 1)
    return {
        "command": " ".join(["python benchmarks/batch_inference.py", *sys.argv[1:]]),
        "model": arguments.random_weights or arguments.model,
        "weights": "random" if arguments.random_weights else "trained",
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
        "device": device_name(vlm),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": len(rows),
        "new_tokens_at_most": arguments.new_tokens,
        "recipes": measured,
        "rows_per_second_over_loop": round(ours["rows_per_second"] / theirs["rows_per_second"], 2),
    }


# --- the recipes ---------------------------------------------------------------------------------


def loop(vlm: VLM, rows: list, new_tokens: int) -> list:
    """As the model cards show it: one conversation at a time."""
    return [tokens for row in rows for tokens in padded(vlm, [row], new_tokens, 1)]


def padded(vlm: VLM, rows: list, new_tokens: int, size: int) -> list:
    """The chat template of a few rows, padded on the left, and plain generate."""
    answers: list = []
    for start in range(0, len(rows), size):
        inputs = vlm.processor.apply_chat_template(
            [[row] for row in rows[start : start + size]],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(vlm.model.device, dtype=vlm.model.dtype)  # fmt: skip
        with torch.inference_mode():
            output = vlm.model.generate(
                **inputs, max_new_tokens=new_tokens, do_sample=False, temperature=None,
                top_p=None, top_k=None,
            )  # fmt: skip
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        answers += [vlm.processor.tokenizer.decode(each, skip_special_tokens=True) for each in new]
    return answers


def one_by_one(vlm: VLM, rows: list, arguments: argparse.Namespace) -> list:
    return [str(vlkit.generate(vlm, row, max_new_tokens=arguments.new_tokens)) for row in rows]


def batch(vlm: VLM, rows: list, arguments: argparse.Namespace) -> tuple:
    results = vlkit.generate_batch(vlm, rows, max_new_tokens=arguments.new_tokens, progress=False)
    return [str(each) for each in results], results.report


# --- measuring -----------------------------------------------------------------------------------


def run_all(recipes: dict, repeats: int) -> dict:
    """Median seconds of each recipe; all in turns, so that a busy machine is fair to all."""
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    measured: dict[str, dict] = {}
    for repeat in range(repeats + 1):  # the first is warm-up
        for name, (rows, recipe) in recipes.items():
            taken, answers, peak = time_once(lambda rows=rows, recipe=recipe: recipe(rows))
            if repeat == 0:
                measured[name] = {"first_call_seconds": round(taken, 3)}
                continue
            seconds[name].append(taken)
            measured[name] |= read(answers) | peak
    for name, (rows, _) in recipes.items():
        middle = statistics.median(seconds[name])
        measured[name]["seconds"] = round(middle, 3)
        measured[name]["rows"] = len(rows)
        measured[name]["rows_per_second"] = round(len(rows) / middle, 3)
    return measured


def time_once(recipe) -> tuple:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    answers = recipe()
    if cuda:
        torch.cuda.synchronize()
    taken = time.perf_counter() - start
    peak = {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if cuda else {}
    return taken, answers, peak


def read(answers) -> dict:
    if not isinstance(answers, tuple):
        return {"answers": answers}
    texts, report = answers
    return {
        "answers": texts,
        "padding": round(report.padding, 4),
        "batch_size": report.batch_size,
        "path": report.path,
    }


def share_same(answers: list, reference: list) -> float:
    pairs = list(zip(answers, reference, strict=False))
    return round(sum(a == b for a, b in pairs) / len(pairs), 4)


def device_name(vlm: VLM) -> str:
    if vlm.model.device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


# --- rows and models -----------------------------------------------------------------------------


def noise_rows(count: int) -> list[dict]:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, 480, 640, 3), dtype=np.uint8)
    return [vlkit.user("Describe this image.", PIL.Image.fromarray(each)) for each in pixels]


def sample_rows(count: int) -> list[dict]:
    """Mixed rows about the samples: one picture, two pictures, text alone."""
    samples = list(vlkit.samples().values())
    rows = []
    for index in range(count):
        question = QUESTIONS[index % len(QUESTIONS)]
        first, second = (samples[(index + step) % len(samples)].path for step in (0, 1))
        if index % 16 == 7:
            rows.append(vlkit.user("Who are you?"))
        elif index % 16 == 11:
            rows.append(vlkit.user("What is in both pictures?", str(first), str(second)))
        else:
            rows.append(vlkit.user(question, str(first)))
    return rows


def build_random(shape: str, device: str, dtype: str = "auto") -> VLM:
    """A model of a published shape with random weights, and the bundled tokenizer."""
    config, folder = build_config(SHAPES[shape]), bundled_path("tiny-qwen2-vl")
    source = ModelFolder(folder, f"{SHAPES[shape]}, random weights", "local", None, {})
    processor = load_processor(source)
    family = config.model_type.removesuffix("_moe")
    patch = 14 if family.startswith("qwen2") else 16
    size = {"shortest_edge": 4 * (2 * patch) ** 2, "longest_edge": 16_384 * (2 * patch) ** 2}
    for part in (processor.image_processor, processor.video_processor):
        part.size, part.patch_size = dict(size), patch
    tokenizer = processor.tokenizer
    for name in ("image", "video"):
        token = tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>")
        setattr(config, f"{name}_token_id", token)
    place = "cuda" if device == "auto" and torch.cuda.is_available() else device
    place = "cpu" if place == "auto" else place
    torch.manual_seed(0)
    with torch.device(place):
        model = transformers.AutoModelForImageTextToText.from_config(
            config, dtype=torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
        )
    return VLM(model.eval(), processor, family, source)


if __name__ == "__main__":
    main()
