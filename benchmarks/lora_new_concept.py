"""A shape that the bundled model has never seen, learnt from 100 pictures; and what that costs.

    python benchmarks/lora_new_concept.py --output benchmarks/results/lora_new_concept.json

The new shape is the drop: pointed above, round below. Each picture to learn from has one beside one
to three known shapes, and three questions: where the drop is, what the thing of its colour is, and
one of the old skills below. Then other pictures are asked where it is and what it is, and others,
without one, are asked for seven skills of old. All of it is done at several learning rates, with
all else the same: one that is right, and one that is twenty times too high.

Not every name can be learnt by this model: many tokens of its vocabulary were hardly ever trained
and are all alike, so that it cannot tell which of them to write. The tokens of "drop" were trained,
in other words; those of "hourglass" were not.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, pi, sin
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import torch
import transformers
from reporting import report

import vlkit
from vlkit.lora import evaluate, load_conversations, train
from vlkit.models.load import VLM

NEW = "drop"
SIZE = (280, 224)
COLOURS = {
    "red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 220), "yellow": (245, 215, 40),
    "orange": (245, 140, 30), "purple": (140, 60, 190), "pink": (245, 130, 180),
    "black": (20, 20, 20),
}  # fmt: skip
NUMBERS = ("no", "one", "two", "three", "four")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--pictures", type=int, default=100, help="to learn from")
    parser.add_argument("--asked", type=int, default=40, help="pictures with the new shape")
    parser.add_argument("--old", type=int, default=20, help="pictures without it")
    parser.add_argument("--rates", type=float, nargs="*", default=[1e-3, 2e-2])
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--target", default="language")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(arguments, Path(scratch))
    report(result, arguments.output)


def measure(arguments: argparse.Namespace, folder: Path) -> dict:
    rng = random.Random(arguments.seed)
    learnt = [row for i in range(arguments.pictures) for row in lesson(rng, folder / f"l{i}.png")]
    asked = [draw_scene(rng, folder / f"a{i}.png", NEW) for i in range(arguments.asked)]
    old = [draw_scene(rng, folder / f"o{i}.png") for i in range(arguments.old)]
    vlm = vlkit.load(arguments.model)
    exams = {"locate the new shape": [locate(s, s.things[0]) for s in asked]}
    exams["name the new shape"] = [name_it(s, s.things[0]) for s in asked]
    exams |= {name: [skill(rng, scene) for scene in old] for name, skill in SKILLS.items()}
    results = {"before": examine(vlm, exams)}
    print("before", results["before"], flush=True)
    seconds = {}
    for rate in arguments.rates:
        start = time.perf_counter()
        run = train(
            vlm, load_conversations(learnt), output_dir=folder / f"run-{rate:g}",
            epochs=arguments.epochs, learning_rate=rate, rank=arguments.rank,
            target=arguments.target, seed=arguments.seed,
        )  # fmt: skip
        seconds[f"{rate:g}"] = round(time.perf_counter() - start, 1)
        tuned = vlkit.load(arguments.model, adapter=run.output_dir)
        results[f"{rate:g}"] = examine(tuned, exams)
        print(rate, results[f"{rate:g}"], flush=True)
    return {
        "command": " ".join(["python benchmarks/lora_new_concept.py", *sys.argv[1:]]),
        "model": vlm.name,
        "pictures": arguments.pictures,
        "rows_learnt": len(learnt),
        "pictures_asked": {"new shape": len(asked), "old skills": len(old)},
        "right_by_learning_rate": results,
        "training_seconds": seconds,
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "load_average": os.getloadavg(),
        "transformers": transformers.__version__,
    }


def examine(vlm: VLM, exams: dict[str, list]) -> dict[str, float]:
    """The share of right answers: boxes at IoU 0.5, and exact texts."""
    shares = {}
    for name, rows in exams.items():
        scores = evaluate(vlm, load_conversations(rows), max_new_tokens=48, progress=False)
        found = scores.accuracy if scores.grounding is None else scores.grounding.accuracy
        shares[name] = round(float(found), 4)
    new = ("locate the new shape", "name the new shape")
    shares["old skills"] = round(statistics.fmean(v for k, v in shares.items() if k not in new), 4)
    return shares


# --- scenes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    kind: str
    colour: str
    box: vlkit.Box

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"

    @property
    def center(self) -> tuple[float, float]:
        return (self.box.x1 + self.box.x2) / 2, (self.box.y1 + self.box.y2) / 2


@dataclass(frozen=True)
class Scene:
    path: Path
    things: tuple[Thing, ...]


def draw_scene(rng: random.Random, path: Path, new: str | None = None) -> Scene:
    """Two to four things, each of its own kind and colour and apart; the new one first."""
    kinds = rng.sample(list(KNOWN), rng.randint(2, 4))
    kinds = [new, *kinds[1:]] if new else kinds
    colours = rng.sample(list(COLOURS), len(kinds))
    boxes: list[tuple[float, ...]] = []
    while len(boxes) < len(kinds):
        side = rng.randint(44, 84)
        x, y = rng.randint(6, SIZE[0] - side - 6), rng.randint(6, SIZE[1] - side - 6)
        if all(abs(x - a) > max(side, c - a) + 8 or abs(y - b) > max(side, d - b) + 8
               for a, b, c, d in boxes):  # fmt: skip
            boxes.append((x, y, x + side, y + side))
    ground = tuple(rng.randint(225, 255) for _ in range(3))
    large = PIL.Image.new("RGB", (4 * SIZE[0], 4 * SIZE[1]), ground)
    things = []
    for kind, colour, box in zip(kinds, colours, boxes, strict=True):
        points = [(box[0] + x * (box[2] - box[0]), box[1] + y * (box[3] - box[1]))
                  for x, y in (KNOWN | {NEW: DROP})[kind]]  # fmt: skip
        PIL.ImageDraw.Draw(large).polygon([(4 * x, 4 * y) for x, y in points], COLOURS[colour])
        xs, ys = zip(*points, strict=True)
        things.append(Thing(kind, colour, vlkit.Box("", min(xs), min(ys), max(xs), max(ys))))
    large.resize(SIZE, PIL.Image.Resampling.LANCZOS).save(path)
    return Scene(path, tuple(things))


def _round(corners: int, turn: float = -0.25, inner: float = 1.0) -> list[tuple[float, float]]:
    turns = [(turn + i / corners, 0.5 if i % 2 == 0 else 0.5 * inner) for i in range(corners)]
    return [(0.5 + r * cos(2 * pi * t), 0.5 + r * sin(2 * pi * t)) for t, r in turns]


KNOWN = {
    "circle": _round(72),
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "star": _round(10, inner=0.4),
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "hexagon": _round(6, turn=0.0),
}
DROP = [
    (0.5 + 0.5 * sin(t) * sin(t / 2) ** 1.5, 0.5 - 0.5 * cos(t))
    for t in (2 * pi * i / 72 for i in range(72))
]


# --- questions, in the words that the bundled model was trained with -----------------------------


def row(scene: Scene, question: str, answer: str) -> list[dict]:
    return [vlkit.user(question, scene.path), vlkit.assistant(answer)]


def locate(scene: Scene, thing: Thing) -> list[dict]:
    box = vlkit.Box(f"the {thing.name}", *thing.box.xyxy)
    written = vlkit.format_grounding([box], family="qwen2_vl", image_size=SIZE)
    return row(scene, f"Locate the {thing.name}.", written)


def name_it(scene: Scene, thing: Thing) -> list[dict]:
    return row(scene, f"What is the {thing.colour} thing?", f"The {thing.name}.")


def colour_of(scene: Scene, thing: Thing) -> list[dict]:
    return row(scene, f"What color is the {thing.kind}?", f"{thing.colour.capitalize()}.")


def is_there(rng: random.Random, scene: Scene) -> list[dict]:
    there = rng.random() < 0.5
    absent = [kind for kind in KNOWN if kind not in {thing.kind for thing in scene.things}]
    kind = rng.choice(scene.things).kind if there else rng.choice(absent)
    return row(scene, f"Is there a {kind} in the image?", "Yes." if there else "No.")


def count(rng: random.Random, scene: Scene) -> list[dict]:
    number = len(scene.things)
    return row(scene, "How many shapes are there?", f"There are {NUMBERS[number]} shapes.")


def side(rng: random.Random, scene: Scene) -> list[dict]:
    a, b = rng.sample(scene.things, 2)
    axis = 0 if abs(a.center[0] - b.center[0]) > abs(a.center[1] - b.center[1]) else 1
    words = (("to the left of", "to the right of"), ("above", "below"))[axis]
    asked = rng.randint(0, 1)
    yes = (a.center[axis] > b.center[axis]) == bool(asked)
    return row(scene, f"Is the {a.name} {words[asked]} the {b.name}?", "Yes." if yes else "No.")


def not_there(rng: random.Random, scene: Scene) -> list[dict]:
    kind = rng.choice([k for k in KNOWN if k not in {thing.kind for thing in scene.things}])
    return row(scene, f"Locate the {kind}.", f"There is no {kind} in the image.")


SKILLS: dict[str, Callable[[random.Random, Scene], list[dict]]] = {
    "locate": lambda rng, scene: locate(scene, rng.choice(scene.things)),
    "say that it is not there": not_there,
    "name": lambda rng, scene: name_it(scene, rng.choice(scene.things)),
    "colour": lambda rng, scene: colour_of(scene, rng.choice(scene.things)),
    "is there": is_there,
    "count": count,
    "which side": side,
}


def lesson(rng: random.Random, path: Path) -> list[list[dict]]:
    """The questions of one picture to learn from."""
    scene = draw_scene(rng, path, NEW)
    skill = rng.choice([*SKILLS.values()])
    old = replace(scene, things=scene.things[1:])
    asked = old if skill in (SKILLS["locate"], SKILLS["name"]) else scene
    new = scene.things[0]
    return [locate(scene, new), name_it(scene, new), skill(rng, asked)]


if __name__ == "__main__":
    main()
