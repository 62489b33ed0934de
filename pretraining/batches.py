"""Batches for training, made by CPU workers: scenes, questions as token ids, dense targets.

All rows of a batch share kind, picture size and prefix. A row holds as many conversations about its
scene as fit; `segments` keeps them apart and `offsets` restarts the positions of each.
"""

import random

import numpy as np
import torch
from questions import CHAT, SPELL, TASK_NAMES, Examiner
from scenes import (
    MAX_THINGS,
    clip_rows,
    glyph_targets,
    layer_rows,
    sample_album,
    sample_clip,
    sample_scene,
    thing_targets,
)

DEFAULT_SYSTEM = "You are a helpful assistant."
SYSTEMS = [DEFAULT_SYSTEM] * 9 + [
    "You are terse.",
    "You are a careful teacher.",
    "Answer in short sentences.",
    "你是一个有用的助手。",
]
TASK_INDEX = {name: i for i, name in enumerate(TASK_NAMES)}
IGNORE = -100
RAMP = 1500  # batches until scenes reach their full size


class Encoder:
    """Text to token ids, with the chat template's pieces ready."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        token = tokenizer.token_to_id
        self.pad, self.end = token("<|endoftext|>"), token("<|im_end|>")
        self.image, self.video = token("<|image_pad|>"), token("<|video_pad|>")
        self.vision = (token("<|vision_start|>"), token("<|vision_end|>"))
        self.box_starts = [token("<|box_start|>")]
        self.digits = [token(digit) for digit in "0123456789"]
        self.user = self.ids("<|im_start|>user\n")
        self.turn = self.ids("<|im_end|>\n<|im_start|>assistant\n")
        self.newline = self.ids("\n")

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def many(self, texts):
        """Ids of many texts; SPELL marks borders that no token crosses."""
        pieces = [text.split(SPELL) if SPELL in text else (text,) for text in texts]
        flat = self.tokenizer.encode_batch_fast(
            [p for row in pieces for p in row], add_special_tokens=False
        )
        found, at = [], 0
        for row in pieces:
            ids = []
            for encoding in flat[at : at + len(row)]:
                ids += encoding.ids
            found.append(ids)
            at += len(row)
        return found

    def prefix(self, rng, kind, visual_tokens, images):
        """System prompt and pictures; with several pictures they are sometimes numbered."""
        ids = self.ids(f"<|im_start|>system\n{rng.choice(SYSTEMS)}<|im_end|>\n") + self.user
        if kind == "chat":
            return ids
        pad = self.video if kind == "clip" else self.image
        numbered = kind == "album" and rng.random() < 0.25
        for number in range(images):
            if numbered:
                ids = ids + self.ids(f"Picture {number + 1}: ")
            ids = [*ids, self.vision[0], *[pad] * visual_tokens, self.vision[1]]
        return ids

    def conversation(self, turns):
        """(ids, labels, answer lengths) of [(question, answer)] ids; the prefix opens the first."""
        ids, labels = [], []
        for index, (question, answer) in enumerate(turns):
            asked = (self.newline + self.user if index else []) + question + self.turn
            ids += asked + answer + [self.end]
            labels += [IGNORE] * len(asked) + answer + [self.end]
        return ids, labels


class BatchMaker:
    def __init__(self, config, art, tokenizer):
        self.config, self.art = config, art
        self.encoder = Encoder(tokenizer)
        self.examiner = Examiner(config.get("weights"), config.get("chinese_share", 0.45))

    def make(self, number, progress):
        """Batch `number`, with `progress` 0 to 1 of the run deciding which sizes come."""
        rng = random.Random(self.config["seed"] * 1_000_003 + number)
        kinds = self.config["kinds"]
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        height, width = self.sample_size(rng, kind, progress)
        images, frames = 1, 1
        if kind == "album":
            images = rng.choice([2, 2, 2, 3, 4])
        elif kind == "clip":
            frames = rng.choice(self.config["frames"])
        room = self.config["text_tokens"][kind]
        visual_tokens = (height // 28) * (width // 28) * (frames // 2 if kind == "clip" else 1)
        prefix = self.encoder.prefix(rng, kind, visual_tokens, images)
        room += -(len(prefix) + room) % 16  # attention kernels want whole blocks
        rows = self.row_count(height, width, images, max(1, frames // 2), room)
        crowd = 2 + min(1.0, number / RAMP) * (MAX_THINGS - 2)
        scenes = [self.sample(rng, kind, height, width, images, frames, crowd) for _ in range(rows)]
        batch = self.text(rng, scenes, room, kind)
        batch["prefix"] = torch.tensor(prefix)
        batch |= {"number": number, "kind": kind, "size": (height, width), "frames": frames}
        batch["images"] = 0 if kind == "chat" else images
        return batch | self.pictures(scenes, kind)

    def sample_size(self, rng, kind, progress):
        if kind == "chat":
            return 28, 28
        stages = self.config["sizes"][kind]
        sizes = stages[min(len(stages) - 1, int(progress * len(stages)))]
        height, width = rng.choice(sizes)
        return (width, height) if rng.random() < 0.5 else (height, width)

    def row_count(self, height, width, images, pairs, room):
        patches = (height // 14) * (width // 14) * images * pairs
        cost = patches * 1.25 + room + 30
        return max(4, min(self.config["most_rows"], int(self.config["batch_tokens"] / cost)))

    def sample(self, rng, kind, height, width, images, frames, crowd):
        if kind == "clip":
            return sample_clip(rng, self.art, width, height, frames)
        if kind == "album":
            return sample_album(rng, self.art, width, height, images, max_things=min(4, int(crowd)))
        if kind == "chat":
            return None
        return sample_scene(rng, self.art, width, height, max_things=int(crowd))

    def dialogues(self, rng, scene, kind):
        if kind == "chat":
            return [[("chat", *rng.choice(CHAT))] for _ in range(8)]
        return self.examiner.dialogues(rng, scene, self.config["questions"][kind])

    def text(self, rng, scenes, room, kind):
        """Token arrays (N, room): ids, segments, offsets; labels are a flat list of positions."""
        dialogues = [self.dialogues(rng, scene, kind) for scene in scenes]
        texts = [part for row in dialogues for turns in row for _, q, a in turns for part in (q, a)]
        encoded = iter(self.encoder.many(texts))
        ids = np.full((len(scenes), room), self.encoder.pad, np.int64)
        segments = np.full((len(scenes), room), -1, np.int64)
        offsets = np.zeros((len(scenes), room), np.int64)
        places, targets, answers, tasks = [], [], [], []
        for index, row in enumerate(dialogues):
            used = 0
            for number, turns in enumerate(row):
                pairs = [(next(encoded), next(encoded)) for _ in turns]
                tokens, labels = self.encoder.conversation(pairs)
                if used + len(tokens) > room:
                    continue
                where = slice(used, used + len(tokens))
                ids[index, where], segments[index, where] = tokens, number + 1
                offsets[index, where] = np.arange(len(tokens))
                start = index * room + used - 1  # the position before a token predicts it
                answer = len(tasks) - 1
                for position, label in enumerate(labels):
                    if label == IGNORE:
                        continue
                    if labels[position - 1] == IGNORE:
                        answer += 1
                    places.append(start + position)
                    targets.append(label)
                    answers.append(answer)
                tasks.extend(TASK_INDEX[task] for task, _, _ in turns)
                used += len(tokens)
        lengths = np.bincount(answers, minlength=len(tasks))
        weights = np.minimum(1.0, (12 / np.maximum(lengths, 1)) ** 0.5)[answers]
        boxed = np.isin(targets, self.encoder.box_starts)
        grounded = np.bincount(answers, boxed, minlength=len(tasks)) > 0
        coordinates = grounded[answers] & np.isin(targets, self.encoder.digits)
        weights[coordinates] = self.config["coordinate_weight"]
        return {
            "ids": torch.from_numpy(ids),
            "segments": torch.from_numpy(segments),
            "offsets": torch.from_numpy(offsets),
            "places": torch.tensor(places),
            "targets": torch.tensor(targets),
            "answers": torch.tensor(answers),
            "weights": torch.from_numpy(weights.astype(np.float32)),
            "tasks": torch.tensor(tasks),
        }

    def pictures(self, scenes, kind):
        """Layers (N, pictures, L, fields), backgrounds and, but for clips, dense targets."""
        if kind == "chat":
            return {}
        if kind == "clip":
            layers = np.stack([clip_rows(self.art, clip) for clip in scenes])
            backgrounds = np.stack([np.stack([clip.background] * clip.frames) for clip in scenes])
            return {
                "layers": torch.from_numpy(layers),
                "backgrounds": torch.from_numpy(backgrounds),
            }
        albums = [scene if isinstance(scene, list) else [scene] for scene in scenes]

        def gather(function):
            return torch.from_numpy(
                np.stack([np.stack([function(s) for s in album]) for album in albums])
            )

        layers = gather(lambda scene: layer_rows(self.art, scene))
        used = int((layers[..., 7] > 0).sum(-1).max()) if layers.numel() else 0
        return {
            "layers": layers[:, :, : max(1, used)].contiguous(),
            "backgrounds": gather(lambda scene: scene.background),
            "things": gather(thing_targets),
            "glyphs": gather(glyph_targets),
        }


class BatchStream(torch.utils.data.IterableDataset):
    """Batches first, first + 1, …, dealt out to workers in turn; the trainer sets `progress`."""

    def __init__(self, maker, first, progress):
        self.maker, self.first, self.progress = maker, first, progress

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        index, step = (worker.id, worker.num_workers) if worker else (0, 1)
        torch.set_num_threads(1)
        number = self.first + index
        while True:
            yield self.maker.make(number, self.progress.value)
            number += step


def stream(maker, first, progress, workers, pin):
    return iter(
        torch.utils.data.DataLoader(
            BatchStream(maker, first, progress),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=pin,
        )
    )
