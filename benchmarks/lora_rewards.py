"""A LoRA adapter continues in TRL's GRPO and DPO trainers; the reward is the IoU of the boxes.

    pip install trl
    python benchmarks/lora_rewards.py --minutes 10

The bundled model finds a thing well when it is asked in words of its training ("Locate the red
circle."), and in two of OTHER_WORDS it writes no box, so that no answer earns a reward.
vlkit.lora.train shows it a few boxed answers first; TRL's GRPOTrainer continues that adapter and
rewards answers with the IoU of their boxes, and its DPOTrainer prefers the true box to a shifted
one. Measured on other pictures: the words of the first training, the rewarded words, and words of
no training.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
import warnings
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import torch
import transformers
import trl
from datasets import Dataset
from peft import PeftModel
from reporting import report
from transformers import TrainerCallback

import vlkit
from vlkit.errors import GroundingParseError

KNOWN_WORDS = ("Locate the {}.", "Find the {}.", "Where is the {}?")
OTHER_WORDS = (
    "Could you tell me where the {} might be?",
    "whereabouts of the {}?",
    "In which region do you see the {}?",
)
UNSEEN_WORDS = ("Which part of the picture holds the {}?", "In which corner is the {}?",
                "Where can one find the {}?")  # fmt: skip
COLORS = {"red": "#dd2222", "blue": "#2244dd", "green": "#22aa33", "yellow": "#eecc11"}
SHAPES = ("circle", "square", "triangle")
Row = tuple[PIL.Image.Image, str, vlkit.Box]  # picture, question, true box


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="of GRPO")
    parser.add_argument("--rows", type=int, default=36, help="asked in each kind of words")
    parser.add_argument("--first-rate", type=float, default=4e-4, help="of the first training")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--generations", type=int, default=8, help="answers to each question")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    vlm = vlkit.load(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        talks = [
            [vlkit.user(question, picture), vlkit.assistant(write(vlm, picture, box))]
            for picture, question, box in make_rows(24, OTHER_WORDS, seed=1)
        ]
        run = vlkit.lora.train(vlm, talks, output_dir=Path(folder, "run"),
                               learning_rate=arguments.first_rate, epochs=2)  # fmt: skip
        start = time.perf_counter()
        rewards = grpo(arguments, run.output_dir, Path(folder, "grpo"))
        seconds = time.perf_counter() - start
        dpo(run.output_dir, Path(folder, "dpo"))
        adapters = {"base": None, "trained by vlkit": run.output_dir, "GRPO": Path(folder, "grpo"),
                    "DPO, 4 steps": Path(folder, "dpo")}  # fmt: skip
        scores = {name: measure(adapter, arguments.rows) for name, adapter in adapters.items()}
    result = {
        "command": f"python benchmarks/lora_rewards.py --minutes {arguments.minutes:g}",
        "cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 1),
        "torch": torch.__version__, "transformers": transformers.__version__,
        "trl": trl.__version__, "rows_of_each": arguments.rows,
        "grpo": {"seconds": round(seconds), "steps": len(rewards),
                 "generations": arguments.generations, "learning_rate": arguments.learning_rate,
                 "mean_reward_first_ten_steps": mean(rewards[:10]),
                 "mean_reward_last_ten_steps": mean(rewards[-10:])},
        "accuracy_at_iou_0.5": scores,
    }  # fmt: skip
    report(result, arguments.output)


def make_rows(count: int, wordings: tuple[str, ...], seed: int) -> list[Row]:
    """Pictures of three shapes that differ in colour or form, a question about one of them."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        width, height = rng.choice([(224, 168), (168, 224), (196, 196)])
        picture = PIL.Image.new(
            "RGB", (width, height), rng.choice(["#ffffff", "#eeeeee", "#ddddff"])
        )
        draw = PIL.ImageDraw.Draw(picture)
        things = rng.sample([(color, shape) for color in COLORS for shape in SHAPES], 3)
        cells = rng.sample([(x, y) for x in (0, 1) for y in (0, 1)], 3)
        boxes = []
        for (color, shape), (column, row) in zip(things, cells, strict=True):
            side = rng.randint(28, 60)
            x = column * width // 2 + rng.randint(4, width // 2 - side - 4)
            y = row * height // 2 + rng.randint(4, height // 2 - side - 4)
            box = (x, y, x + side, y + side)
            corners = [(x, y + side), (x + side, y + side), (x + side / 2, y)]
            drawers = {"circle": draw.ellipse, "square": draw.rectangle, "triangle": draw.polygon}
            drawers[shape](corners if shape == "triangle" else box, fill=COLORS[color])
            boxes.append(vlkit.Box(f"{color} {shape}", *map(float, box)))
        wording = wordings[number % len(wordings)]
        rows.append((picture, wording.format(boxes[0].label), boxes[0]))
    return rows


def write(vlm: vlkit.VLM, picture: PIL.Image.Image, box: vlkit.Box) -> str:
    named = vlkit.Box(f"the {box.label}", *box.xyxy)
    return vlkit.format_grounding([named], family=vlm.family, image_size=picture.size)


def open_adapter(adapter: Path) -> tuple[vlkit.VLM, PeftModel]:
    """The bundled model, and it with an adapter that can be trained on."""
    vlm = vlkit.load(device="cpu")
    return vlm, PeftModel.from_pretrained(vlm.model, adapter, is_trainable=True)


class StopAfter(TrainerCallback):
    def __init__(self, minutes: float):
        self.end = time.monotonic() + 60 * minutes

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = time.monotonic() > self.end


def grpo(arguments: argparse.Namespace, adapter: Path, output: Path) -> list[float]:
    """Train with the IoU as reward; the mean reward of each step."""
    vlm, network = open_adapter(adapter)
    warnings.simplefilter("ignore", UserWarning)  # of answers that are cut off

    def iou_reward(completion_ids, truth, size, **_):
        """The IoU of the first box of each answer; 0 without one."""
        rewards = []
        for ids, corners, image_size in zip(completion_ids, truth, size, strict=True):
            text = vlm.processor.tokenizer.decode(ids, skip_special_tokens=False)
            try:
                found = vlkit.parse_grounding(text, family=vlm.family, image_size=tuple(image_size))
            except GroundingParseError:
                found = []
            boxes = [item for item in found if isinstance(item, vlkit.Box)]
            rewards.append(vlkit.iou(boxes[0], vlkit.Box("", *corners)) if boxes else 0.0)
        return rewards

    rows = make_rows(400, OTHER_WORDS, seed=2)
    data = Dataset.from_list([
        {"prompt": [{"role": "user", "content": question}], "image": picture,
         "truth": list(box.xyxy), "size": list(picture.size)}
        for picture, question, box in rows
    ])  # fmt: skip
    config = trl.GRPOConfig(
        str(output), per_device_train_batch_size=arguments.generations,
        num_generations=arguments.generations, max_completion_length=40, logging_steps=1,
        learning_rate=arguments.learning_rate, lr_scheduler_type="constant", save_strategy="no",
        report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        num_train_epochs=9,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        network, iou_reward, config, train_dataset=data, processing_class=vlm.processor,
        callbacks=[StopAfter(arguments.minutes)],
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(output))
    return [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]


def dpo(adapter: Path, output: Path) -> None:
    """Four steps in which the true box is preferred to a shifted one."""
    vlm, network = open_adapter(adapter)
    rows = []
    for picture, question, box in make_rows(8, OTHER_WORDS, seed=3):
        shifted = vlkit.Box(box.label, *(value * 0.6 for value in box.xyxy))
        answers = {"chosen": box, "rejected": shifted}
        said = {name: [{"role": "assistant", "content": write(vlm, picture, answer)}]
                for name, answer in answers.items()}  # fmt: skip
        rows.append({"prompt": [{"role": "user", "content": question}], "images": [picture]} | said)
    config = trl.DPOConfig(
        str(output), per_device_train_batch_size=2, max_steps=4, learning_rate=1e-5,
        save_strategy="no", report_to="none", use_cpu=True, bf16=False, max_length=None,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        network, args=config, train_dataset=Dataset.from_list(rows), processing_class=vlm.processor
    )
    trainer.train()
    trainer.save_model(str(output))


def measure(adapter: Path | None, count: int) -> dict[str, float]:
    """The share of boxes found at IoU 0.5, asked greedily in each kind of words."""
    vlm = vlkit.load(device="cpu", adapter=adapter)
    kinds = {"known words": KNOWN_WORDS, "other words": OTHER_WORDS, "unseen words": UNSEEN_WORDS}
    accuracies = {}
    for name, wordings in kinds.items():
        rows = make_rows(count, wordings, seed=4)
        questions = [vlkit.user(question, picture) for picture, question, _ in rows]
        replies = vlkit.generate_batch(vlm, questions, max_new_tokens=40, progress=False)
        found = [getattr(reply, "boxes", None) for reply in replies]
        truth = [[box] for *_, box in rows]
        evaluation = vlkit.evaluate_grounding(
            found, truth, match_labels=False, coco=False, bootstrap=0
        )
        accuracies[name] = round(evaluation.accuracy, 3)
    return accuracies


def mean(values: list[float]) -> float:
    return round(sum(values) / max(len(values), 1), 3)


if __name__ == "__main__":
    main()
