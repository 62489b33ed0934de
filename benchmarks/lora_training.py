"""LoRA training: the plain recipe, TRL's and Unsloth's (where installed) and vlkit in one run.

    python benchmarks/lora_training.py                        # bundled model, CPU, easy-VQA's rows
    python benchmarks/lora_training.py --random-weights 7b    # its shape in random bfloat16, a GPU
    python benchmarks/lora_training.py --random-weights 7b --quantize 4bit    # QLoRA
    python benchmarks/lora_training.py --random-weights 7b --unsloth 8 --unsloth-checkpointed 8

The plain recipe is transformers' Trainer with PEFT as their documentation shows it, prompts masked:
rows in random order, two at a time, pictures through the tower each time. "same order" is the
plain recipe again with the rows of each update that vlkit takes, so that their losses can be laid
side by side. Unsloth runs in a process of its own (lora_unsloth.py), from the same weights on disk,
its rows in random order. All make updates of --update rows with the same rate and, Unsloth aside,
the same first weights of the adapter. Every step is timed from the end of the one before, reading
of its rows included, writing of checkpoints left out; the first updates warm up. With random
weights the pictures are noise of several sizes, each another one; else they are easy-VQA's kind:
64×64, several questions to each.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import pickle
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import transformers
from batch_inference import SHAPES, build_random
from peft import LoraConfig, get_peft_model
from reporting import report
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

import vlkit
from vlkit.lora.batches import Examples, LengthSampler, guess_lengths
from vlkit.lora.networks import find_modules
from vlkit.models.load import VLM

SIZES = [(640, 480), (480, 640), (336, 448), (728, 560), (560, 420), (812, 616), (448, 448)]
COLORS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
ANSWER = "A picture of noise, coloured dots without any order, from edge to edge. "
WARM = 2  # updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random-weights", choices=SHAPES)
    parser.add_argument("--dtype", default="auto", help="of random weights bfloat16 by default")
    parser.add_argument("--quantize", choices=("4bit", "8bit"), help="the base, for all recipes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--per-picture", type=int, help="rows about each picture; 1 or 8")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--update", type=int, default=8, help="rows of an update of the weights")
    parser.add_argument("--plain", type=int, nargs="*", default=[2], help="its rows at a time")
    parser.add_argument("--ours", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--checkpointed", type=int, nargs="*", default=[], help="as --ours, with")
    parser.add_argument("--unsloth", type=int, nargs="*", default=[], help="rows at a time")
    parser.add_argument("--unsloth-checkpointed", type=int, nargs="*", default=[])
    parser.add_argument(
        "--unsloth-resize", choices=("max", "min"), default="max",
        help="max: the pictures as they are; min: Unsloth's default, at most 512 pixels wide",
    )  # fmt: skip
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    report(measure(arguments), arguments.output)


def measure(arguments: argparse.Namespace) -> dict:
    if arguments.random_weights:
        vlm = random_model(arguments)
        rows = noise_rows(arguments.rows, arguments.per_picture or 1)
    else:
        vlm = vlkit.load(
            device=arguments.device, dtype=arguments.dtype, quantize=arguments.quantize
        )
        rows = color_rows(arguments.rows, arguments.per_picture or 8)
    data = vlkit.lora.load_conversations(rows)
    recipes = {}
    for size in arguments.unsloth:
        recipes[f"Unsloth, {size} at a time"] = (size, unsloth, {})
    for size in arguments.unsloth_checkpointed:
        recipes[f"Unsloth, {size} at a time, checkpointed"] = (size, unsloth, {"checkpoint": True})
    for size in arguments.plain:
        recipes[f"plain, {size} at a time"] = (size, plain, {})
        if trl_is_here():
            recipes[f"SFTTrainer, {size} at a time"] = (size, plain, {"trl": True})
    if arguments.plain:
        recipes["plain, same order"] = (arguments.plain[0], plain, {"sort": True})
    for size in arguments.ours:
        recipes[f"vlkit, {size} at a time"] = (size, ours, {})
    for size in arguments.checkpointed:
        recipes[f"vlkit, {size} at a time, checkpointed"] = (size, ours, {"checkpoint": True})
    measured = {}
    with written(vlm, bool(arguments.unsloth or arguments.unsloth_checkpointed)) as folder:
        for name, (size, recipe, options) in recipes.items():
            if recipe is unsloth:
                options = options | {"weights": folder}
            measured[name] = run_recipe(vlm, data, arguments, size, recipe, options)
            print(name, {k: v for k, v in measured[name].items() if k != "losses"}, flush=True)
    return describe(vlm, data, arguments) | {"recipes": measured} | compare(measured)


def random_model(arguments: argparse.Namespace) -> VLM:
    """Of random weights; to be quantized they are written and loaded as anybody's are."""
    vlm = build_random(arguments.random_weights, arguments.device, arguments.dtype)
    if arguments.quantize is None:
        return vlm
    with tempfile.TemporaryDirectory() as folder:
        vlm.model.save_pretrained(folder)
        vlm.processor.save_pretrained(folder)
        del vlm
        gc.collect()
        torch.cuda.empty_cache()
        options = {"device": arguments.device, "dtype": arguments.dtype}
        return vlkit.load(folder, quantize=arguments.quantize, **options)


def describe(vlm: VLM, data, arguments: argparse.Namespace) -> dict:
    lengths = guess_lengths(vlm, data)
    return {
        "command": " ".join(["python benchmarks/lora_training.py", *sys.argv[1:]]),
        "model": arguments.random_weights or "tiny",
        "weights": "random" if arguments.random_weights else "trained",
        "quantize": arguments.quantize,
        "weights_gb": round(vlm.model.get_memory_footprint() / 1e9, 2),
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
        "device": device_name(vlm),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "load_average": round(os.getloadavg()[0], 1),  # of the machine, this run's own included
        "rows": len(data),
        "rows_per_picture": arguments.per_picture or (1 if arguments.random_weights else 8),
        "epochs": arguments.epochs,
        "rows_per_update": arguments.update,
        "mean_tokens": round(statistics.fmean(lengths), 1),
    }


def compare(measured: dict) -> dict:
    """Ours beside the quickest plain recipe and beside Unsloth; differences of the same losses.

    Of equal memory is what takes no more than the plain recipe.
    """
    own = {name: each for name, each in measured.items() if name.startswith("vlkit")}
    found = {}
    for name, each in own.items():
        peer = measured.get(name.replace("vlkit", "Unsloth"))
        if peer:
            found.setdefault("over_unsloth", {})[name] = {
                "samples_per_second_by_epoch": [
                    round(a / b, 2)
                    for a, b in zip(
                        each["samples_per_second_by_epoch"], peer["samples_per_second_by_epoch"],
                        strict=True,
                    )
                ],
                "peak": round(each["peak_gb"] / peer["peak_gb"], 3),
            }  # fmt: skip
    if "plain, same order" not in measured:
        return found
    reference = measured["plain, same order"]["losses"]
    others = [each for name, each in measured.items() if name.startswith(("plain", "SFT"))]
    speed = max(each["samples_per_second"] for each in others)
    memory = min(each.get("peak_gb", float("inf")) for each in others)
    differences = {
        name: max(abs(a / b - 1) for a, b in zip(each["losses"], reference, strict=True))
        for name, each in own.items()
    }
    found["largest_relative_difference_of_losses"] = {
        name: round(difference, 6) for name, difference in differences.items()
    }
    if fitting := [e["samples_per_second"] for e in own.values() if e.get("peak_gb", 0) <= memory]:
        found["samples_per_second_over_plain_at_equal_memory"] = round(max(fitting) / speed, 2)
    quick = [each for each in own.values() if each["samples_per_second"] >= speed]
    if quick and memory < float("inf"):
        found["smallest_peak_gb_at_plain_speed"] = min(each["peak_gb"] for each in quick)
    return found


# --- the recipes ---------------------------------------------------------------------------------


def run_recipe(vlm, data, arguments, size, recipe, options) -> dict:
    cuda = vlm.model.device.type == "cuda"
    folder = Path(tempfile.mkdtemp())
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(vlm)
    try:
        losses = recipe(vlm, data, arguments, size, folder / "run", clock, **options)
    finally:
        shutil.rmtree(folder)
    per_epoch = len(clock.seconds) // arguments.epochs
    epochs = [
        clock.seconds[max(start, WARM) : start + per_epoch]
        for start in range(0, len(clock.seconds), per_epoch)
    ]
    rate = [round(arguments.update / statistics.fmean(each), 3) for each in epochs if each]
    found = {
        "samples_per_second": round(arguments.update / statistics.fmean(clock.seconds[WARM:]), 3),
        "samples_per_second_by_epoch": rate,
        "losses": [round(loss, 5) for loss in losses],
    }
    peak = clock.peak_gb or (torch.cuda.max_memory_allocated() / 1e9 if cuda else 0)
    return found | ({"peak_gb": round(peak, 2)} if cuda else {})


class Clock(TrainerCallback):
    """Seconds from the end of one update, or of what was written after it, to that of the next."""

    def __init__(self, vlm: VLM):
        self.cuda = vlm.model.device.type == "cuda"
        self.seconds: list[float] = []
        self.start = self.peak_gb = 0.0  # the latter of another process

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_begin(self, *args, **kwargs):
        self.start = self.now()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(self.now() - self.start)
        self.start = self.now()

    def on_save(self, *args, **kwargs):
        self.start = self.now()


def ours(vlm, data, arguments, size, folder, clock, checkpoint=False) -> list[float]:
    run = vlkit.lora.train(
        vlm, data, output_dir=folder, epochs=arguments.epochs, batch_size=size,
        gradient_accumulation=arguments.update // size, gradient_checkpointing=checkpoint,
        learning_rate=arguments.learning_rate, callbacks=[clock],
    )  # fmt: skip
    assert run.effect > 0 and run.checks.change > 0, run
    return [loss for _, loss in run.losses]


def plain(vlm, data, arguments, size, folder, clock, sort=False, trl=False) -> list[float]:
    set_seed(0)
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=list(find_modules(vlm.model, "language"))
    )
    rows = [example.messages_for(vlm) for example in data]
    options = trainer_options(arguments, size, folder) | {
        "remove_unused_columns": False, "use_cpu": not clock.cuda,
    }  # fmt: skip
    if sort:  # the order of all epochs, in one of them
        lengths = guess_lengths(vlm, data)
        sampler = LengthSampler(Examples(vlm, data), lengths, arguments.update, 0)
        ordered = []
        for epoch in range(arguments.epochs):
            sampler.set_epoch(epoch)
            ordered += [rows[i] for i in sampler.order()]
        rows, options = ordered, options | {"num_train_epochs": 1}
    keys = {"callbacks": [clock], "train_dataset": rows}
    keys["data_collator"] = lambda some: collate(vlm, some)
    if trl:
        trainer = sft_trainer(vlm, config, options, keys)
        network = trainer.model
    else:
        network = get_peft_model(vlm.model, config)
        kind = InOrder if sort else Trainer
        trainer = kind(network, TrainingArguments(**options), **keys)
    trainer.train()
    network.unload()
    vlm.model.eval()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trainer_options(arguments, size: int, folder: Path) -> dict:
    return {
        "output_dir": str(folder), "num_train_epochs": arguments.epochs,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": arguments.update // size,
        "learning_rate": arguments.learning_rate, "lr_scheduler_type": "cosine",
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "seed": 0,
    }  # fmt: skip


@contextlib.contextmanager
def written(vlm, needed: bool):
    """A folder of the same weights, in memory where there is such a place."""
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        if needed:
            vlm.model.save_pretrained(folder)
            vlm.processor.save_pretrained(folder)
        yield folder


def unsloth(vlm, data, arguments, size, folder, clock, weights, checkpoint=False) -> list[float]:
    """In a process of its own, from the same weights on disk."""
    folder.mkdir()
    job = {
        "folder": weights, "rows": [example.messages_for(vlm) for example in data],
        "checkpoint": checkpoint, "quantize": arguments.quantize,
        "resize": arguments.unsloth_resize,
        "options": trainer_options(arguments, size, folder),
    }  # fmt: skip
    files = folder / "job.pickle", folder / "found.json"
    files[0].write_bytes(pickle.dumps(job))
    script = Path(__file__).resolve().with_name("lora_unsloth.py")
    torch.cuda.empty_cache()
    subprocess.run([sys.executable, script, *files], check=True, cwd=folder)
    found = json.loads(files[1].read_text())
    clock.seconds, clock.peak_gb = found["seconds"], found["peak_gb"]
    return found["losses"]


class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


def collate(vlm: VLM, rows: list) -> dict:
    """As the documentation does it: the chat template, padding, prompts masked."""
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    batch = vlm.processor.apply_chat_template(rows, processor_kwargs={"padding": True}, **options)
    labels = batch["input_ids"].clone()
    labels[batch["attention_mask"] == 0] = -100
    for row, label in zip(rows, labels, strict=True):
        prompt = vlm.processor.apply_chat_template(
            [row[:-1]], add_generation_prompt=True, **options
        )
        start = int((label == -100).sum())  # padding stands on the left
        label[start : start + prompt["input_ids"].shape[1]] = -100
        label[-1] = -100  # the newline after the end token, which nobody writes
    return dict(batch) | {"labels": labels}


def trl_is_here() -> bool:
    import importlib.util

    return importlib.util.find_spec("trl") is not None


def sft_trainer(vlm: VLM, config, options: dict, keys: dict):
    """It takes `datasets` alone, which would write pictures anew: so one of the rows' numbers."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = keys["train_dataset"]
    keys = keys | {
        "train_dataset": Dataset.from_dict({"row": range(len(rows))}),
        "data_collator": lambda some: collate(vlm, [rows[each["row"]] for each in some]),
    }
    same = {"bf16": False, "gradient_checkpointing": False}  # as the plain recipe: no autocast
    arguments = SFTConfig(
        **options, **same, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}
    )
    return SFTTrainer(
        vlm.model, arguments, peft_config=config, processing_class=vlm.processor, **keys
    )


# --- rows ----------------------------------------------------------------------------------------


def noise_rows(count: int, per_picture: int) -> list:
    random = np.random.default_rng(0)
    rows = []
    for index in range(count):
        if index % per_picture == 0:
            width, height = SIZES[index // per_picture % len(SIZES)]
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            picture = PIL.Image.fromarray(pixels)
        answer = ANSWER * (1 + index % 3)
        rows.append([vlkit.user(f"Question {index}?", picture), vlkit.assistant(answer.strip())])
    return rows


def color_rows(count: int, per_picture: int) -> list:
    random = np.random.default_rng(0)
    rows = []
    for index in range(count):
        if index % per_picture == 0:
            own = COLORS[int(random.integers(len(COLORS)))]
            picture = PIL.Image.new("RGB", (64, 64), "white")
            left, top = (int(n) for n in random.integers(2, 34, 2))
            picture.paste(own, (left, top, left + 28, top + 28))
        asked = COLORS[index % len(COLORS)]
        answer = "yes" if asked == own else "no"
        rows.append([vlkit.user(f"Is there a {asked} shape?", picture), vlkit.assistant(answer)])
    return rows


def device_name(vlm: VLM) -> str:
    if vlm.model.device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
