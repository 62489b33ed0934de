"""One question after another: transformers' loop, vlkit's generate, stream and batch of one row.

    python benchmarks/one_question.py                       # the bundled model, CPU
    python benchmarks/one_question.py --random-weights 7b   # its shape in random bfloat16

Everything is timed end to end, from a picture in memory to the text. The recipes take turns, each
question is about another picture, and medians are reported; "same picture" asks again about one
that was seen. A chat's time to the first token is that of an answer of one token: the first turn
brings a picture, the second one only a question.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import PIL.Image
import torch
import transformers
from batch_inference import SHAPES, build_random, device_name, padded
from reporting import report

import vlkit

QUESTION = "Describe this image."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random-weights", choices=SHAPES)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--chat-picture", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    report(measure(arguments), arguments.output)


def measure(arguments: argparse.Namespace) -> dict:
    if arguments.random_weights:
        vlm = build_random(arguments.random_weights, arguments.device)
        vlm.model.generation_config.eos_token_id = None
        scene, chat_size = None, (1120, 700)
    else:
        vlm = vlkit.load(device=arguments.device)
        scene, chat_size = PIL.Image.open(vlkit.sample("six_shapes")).convert("RGB"), (560, 560)
    pictures = Pictures(scene)
    chat_size = tuple(arguments.chat_picture or chat_size)
    return {
        "command": " ".join(["python benchmarks/one_question.py", *sys.argv[1:]]),
        "model": arguments.random_weights or "tiny",
        "device": device_name(vlm),
        "load_average_before": round(os.getloadavg()[0], 2),
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "one_row": one_row(vlm, pictures, arguments.new_tokens, arguments.repeats),
        "chat": chat(vlm, pictures, chat_size, arguments.repeats),
        "cache": repr(vlm.cache),
    }


class Pictures:
    """A new picture at each call: noise, or a scene of which one pixel differs."""

    def __init__(self, scene: PIL.Image.Image | None):
        self._scene, self._random = scene, np.random.default_rng(0)

    def new(self, size: tuple[int, int]) -> PIL.Image.Image:
        """A picture of (width, height)."""
        if self._scene is None:
            pixels = self._random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            return PIL.Image.fromarray(pixels)
        picture = self._scene.resize(size)
        picture.putpixel((0, 0), tuple(self._random.integers(0, 256, 3).tolist()))
        return picture


def one_row(vlm: vlkit.VLM, pictures: Pictures, new_tokens: int, repeats: int) -> dict:
    """Seconds and tokens a second of each recipe."""
    options = {"max_new_tokens": new_tokens}
    seen = pictures.new((640, 480))
    vlkit.generate(vlm, vlkit.user(QUESTION, seen), **options)
    written: dict[str, int] = {}

    def ours(row: dict) -> None:
        written["vlkit.generate"] = vlkit.generate(vlm, row, **options).usage.new_tokens

    def streamed(row: dict) -> None:
        stream = vlkit.stream(vlm, row, **options)
        for _ in stream:
            pass
        written["vlkit.stream"] = stream.reply.usage.new_tokens

    recipes: dict[str, Callable[[dict], object]] = {
        "transformers": lambda row: padded(vlm, [row], new_tokens, 1),
        "vlkit.generate": ours,
        "vlkit.stream": streamed,
        "vlkit.generate_batch, 1 row": lambda row: vlkit.generate_batch(
            vlm, [row], progress=False, **options
        ),
        "vlkit.generate, same picture": ours,
    }
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    for _ in range(repeats + 1):
        picture = pictures.new((640, 480))
        for name, recipe in recipes.items():
            if name == "vlkit.stream":  # generate has seen the picture
                vlm.cache.clear()
            row = vlkit.user(QUESTION, picture)
            seconds[name].append(seconds_of(lambda recipe=recipe, row=row: recipe(row)))
    result = {}
    for name, taken in seconds.items():
        middle = median(taken[1:])  # the first is warm-up
        result[name] = {
            "first_call_seconds": round(taken[0], 4),
            "seconds": round(middle, 4),
            "tokens_per_second": round(written["vlkit.generate"] / middle, 1),
            "over_transformers": round(median(seconds["transformers"][1:]) / middle, 2),
        }
    return {"new_tokens": written["vlkit.generate"], "picture": [640, 480], "recipes": result}


def chat(vlm: vlkit.VLM, pictures: Pictures, size: tuple[int, int], repeats: int) -> dict:
    """Seconds to the first token of a chat's first and second turn."""
    first, second = [], []
    for _ in range(repeats + 1):
        talk, picture = vlkit.Chat(vlm, max_new_tokens=1), pictures.new(size)
        first.append(seconds_of(lambda talk=talk, picture=picture: talk.ask(QUESTION, picture)))
        second.append(seconds_of(lambda talk=talk: talk.ask("How many shapes are there?")))
    usage = talk.ask("Which colors?").usage
    return {
        "picture": list(size),
        "picture_tokens": usage.image_tokens,
        "first_turn_seconds": round(median(first[1:]), 4),
        "second_turn_seconds": round(median(second[1:]), 4),
        "second_over_first": round(median(second[1:]) / median(first[1:]), 3),
    }


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
