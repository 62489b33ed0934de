"""easy-VQA before and after LoRA: 9,673 test questions, each answered by generation.

    python benchmarks/lora_easy_vqa.py --output benchmarks/results/easy_vqa.json
    python benchmarks/lora_easy_vqa.py --rows 2000 --test-rows 500     # a short try

The data are those of the PyPI package easy-vqa (pip install "vlkit[notebooks]"): 4,000 pictures
with 38,575 questions to learn from, 1,000 other pictures with 9,673 to be asked. An answer counts
if it is the whole truth; as usual in VQA, case, articles and full stops aside
(https://visualqa.org/evaluation.html). The truths are learnt in the manner of the bundled model,
"Yes.", "Red.", "The circle.": the bare words would have to be learnt as words first. It has never
written "rectangle", a word that was hardly ever trained, and all such words have nearly the same
vector; so it is taught to spell it, "RECTANGLE.", with the letters in which it reads signs aloud.
Seconds are wall time; where others use the machine too (its load is told), core-seconds say what
was needed.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import easy_vqa
import pandas
import torch
import transformers
from reporting import report

import vlkit
from vlkit.lora import evaluate, load_conversations, train, use_adapter
from vlkit.models.load import VLM

NEW_TOKENS = 12
SHAPES = ("circle", "rectangle", "triangle")
SPLITS = {
    "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
    "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--max-image-tokens", type=int, default=16)
    parser.add_argument("--rows", type=int, default=18_000, help="to learn from; 0: zero-shot only")
    parser.add_argument("--test-rows", type=int, help="questions to be asked, by default all")
    parser.add_argument("--no-baseline", action="store_true", help="only after LoRA")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--target", default="language")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, help="by default a temporary one")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(arguments, arguments.output_dir or Path(scratch) / "adapter")
    report(result, arguments.output)


def measure(arguments: argparse.Namespace, folder: Path) -> dict:
    clock = Clock()
    vlm = vlkit.load(arguments.model, max_image_tokens=arguments.max_image_tokens)
    asked = load_conversations(read_rows("test", arguments.test_rows, arguments.seed))
    clock.lap("reading")
    result: dict = {
        "command": " ".join(["python benchmarks/lora_easy_vqa.py", *sys.argv[1:]]),
        "model": vlm.name,
        "rows_asked": len(asked),
    }
    if not arguments.no_baseline:
        result["zero_shot"] = score(evaluate(vlm, asked, max_new_tokens=NEW_TOKENS).table)
        clock.lap("zero-shot answers")
        print("zero-shot", result["zero_shot"], clock.seconds, flush=True)
    if arguments.rows:
        result |= learn(vlm, asked, arguments, folder, clock)
    return result | {
        "seconds": clock.seconds,
        "core_seconds": clock.core_seconds,
        "minutes": round(sum(clock.seconds.values()) / 60, 2),
        "core_minutes": round(sum(clock.core_seconds.values()) / 60, 2),
        "machine": describe_machine(),
        "load_average_before_and_after": [clock.load, os.getloadavg()],
    }


def learn(vlm: VLM, asked, arguments: argparse.Namespace, folder: Path, clock: Clock) -> dict:
    """Train, and ask again."""
    learnt = load_conversations(read_rows("train", arguments.rows, arguments.seed))
    run = train(
        vlm,
        learnt,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        rank=arguments.rank,
        target=arguments.target,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        output_dir=folder,
    )
    clock.lap("training")
    with use_adapter(vlm, run.output_dir) as tuned:
        after = evaluate(tuned, asked, max_new_tokens=NEW_TOKENS)
    clock.lap("answers after LoRA")
    return {
        "rows_learnt": len(learnt),
        "steps": run.steps,
        "after_lora": score(after.table),
        "losses": [(step, round(loss, 4)) for step, loss in run.losses],
    }


def read_rows(split: str, count: int | None, seed: int) -> list[dict]:
    """Questions of a split in an order drawn by the seed; all of them, or the first ``count``."""
    questions, pictures = (read() for read in SPLITS[split])
    texts, answers, images = questions
    rows = [
        {"image": pictures[image], "question": text, "answer": say(answer)}
        for text, answer, image in zip(texts, answers, images, strict=True)
    ]
    random.Random(seed).shuffle(rows)
    return rows[:count]


def say(answer: str) -> str:
    """An answer as the bundled model would give it."""
    if answer == "rectangle":
        return "RECTANGLE."
    return f"The {answer}." if answer in SHAPES else f"{answer.capitalize()}."


def kind_of(question: str) -> str:
    """What a question asks about."""
    words = question.rstrip("?").split()
    if words[0] == "what":
        return "which color" if "color" in words else "which shape"
    about = "shape" if any(shape in words for shape in SHAPES) else "color"
    return f"is there no {about}" if {"no", "not"} & set(words) else f"is there a {about}"


def score(table: pandas.DataFrame) -> dict:
    """Share of right answers, of all and of each kind of question; what the others are about."""
    right = plain(table["answer"]) == plain(table["truth"])
    kinds = right.groupby(table["question"].map(kind_of)).agg(["mean", "size"])
    wrong, names = table["question"][~right], set(easy_vqa.get_answers()) - {"no"}
    about = Counter(word for text in wrong for word in names & set(text.rstrip("?").split()))
    return {
        "accuracy": round(float(right.mean()), 4),
        "wrong": len(wrong),
        "wrong_questions_about": dict(about.most_common()),
        "kinds": {
            kind: {"accuracy": round(float(row["mean"]), 4), "questions": int(row["size"])}
            for kind, row in kinds.iterrows()
        },
    }


def plain(answers: pandas.Series) -> pandas.Series:
    bare = answers.fillna("").str.strip().str.lower().str.removesuffix(".")
    return bare.str.replace(r"^(a|an|the) ", "", regex=True)


class Clock:
    """Seconds between laps, and those that the processor's cores worked for this program."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.core_seconds: dict[str, float] = {}
        self.load, self._last = os.getloadavg(), (time.perf_counter(), time.process_time())

    def lap(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        self.seconds[name] = round(now[0] - self._last[0], 1)
        self.core_seconds[name] = round(now[1] - self._last[1], 1)
        self._last = now


def describe_machine() -> dict:
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
