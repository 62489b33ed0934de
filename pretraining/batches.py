"""Batches for training, made by CPU workers: scenes, questions as token ids, dense targets.

All rows of a batch share kind and picture sizes. A row begins with a lead of its own (system prompt
and what comes before the first picture), padded on the left to one length, and a tail that all rows
share (pictures and what is between them). Then come as many conversations about its scene as fit;
`segments` keeps them apart and `offsets` restarts the positions of each. Where the question comes
before the pictures, it is part of the lead: then a scene has several rows, each with one
conversation, which share the pictures' encoding.
"""

import math
import random

import numpy as np
import torch
from hard import sample_hard_album, sample_hard_scene
from photo_scenes import sample_photo_album, sample_photo_clip, sample_photo_scene
from questions import CHAT, SPELL, TASK_NAMES, Examiner, place_name
from scenes import (
    MAX_THINGS,
    SMALLEST_EM,
    clip_rows,
    glyph_targets,
    layer_rows,
    reading_order,
    sample_album,
    sample_clip,
    sample_scene,
    thing_targets,
)
from wordings import BETWEEN, LEADS, TRAILS, sample_system

TASK_INDEX = {name: i for i, name in enumerate(TASK_NAMES)}
PLACE_TASKS = [TASK_INDEX["caption"], TASK_INDEX["position"]]
NINTHS = [(x, y) for x in (0.2, 0.5, 0.8) for y in (0.2, 0.5, 0.8)]
PLACES = [(" " if not zh else "") + place_name(x, y, zh) for x, y in NINTHS for zh in (False, True)]
IGNORE = -100
BLOCK = 28  # sides of pictures are multiples of this


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
        self.place_names = [i for text in PLACES for i in self.ids(text)]
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

    def lead(self, rng, before=""):
        """System prompt, the user's turn and what is said before the first picture."""
        system = f"<|im_start|>system\n{sample_system(rng)}<|im_end|>\n"
        if rng.random() < 0.03:
            question, answer = rng.choice(CHAT)
            system += f"<|im_start|>user\n{question}<|im_end|>\n"
            system += f"<|im_start|>assistant\n{answer}<|im_end|>\n"
        return self.ids(system) + self.user + (self.ids(before) if before else [])

    def tail(self, rng, kind, visual_tokens):
        """(what introduces the first picture, pictures and what is between) for so many tokens."""
        if kind == "chat":
            return "", []
        pad = self.video if kind == "clip" else self.image
        numbered = kind == "album" and rng.random() < 0.25
        between = rng.choice(BETWEEN) if rng.random() < 0.3 else ""
        ids = []
        for number, length in enumerate(visual_tokens):
            if number:
                ids += self.ids(f"Picture {number + 1}: " if numbered else between)
            ids += [self.vision[0], *[pad] * length, self.vision[1]]
        return "Picture 1: " if numbered else "", ids

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
        frames = rng.choice(self.config["frames"]) if kind == "clip" else 1
        sizes = self.sample_sizes(rng, kind, progress)
        visual_tokens = [(h // BLOCK) * (w // BLOCK) * max(1, frames // 2) for h, w in sizes]
        opening, tail = self.encoder.tail(rng, kind, visual_tokens)
        first = kind != "chat" and rng.random() < self.config["text_first"]
        copies = self.config["copies"] if first else 1
        room = self.config["text_tokens"]["first" if first else kind]
        count = self.scene_count(4 * sum(visual_tokens), room, copies)
        crowd = 2 + min(1.0, number / self.config["ramp"]) * (MAX_THINGS - 2)
        soft = self.sample_softness(rng)
        scenes = [self.sample(rng, kind, sizes, frames, int(crowd), soft) for _ in range(count)]
        leads, dialogues = self.rows(rng, scenes, kind, first, copies, opening)
        length = max(map(len, leads))
        length += -(length + len(tail) + room) % 16  # attention kernels want whole blocks
        lead = np.full((len(leads), length), self.encoder.pad, np.int64)
        for row, ids in zip(lead, leads, strict=True):
            row[length - len(ids) :] = ids
        batch = self.text(dialogues, room)
        batch["lead"] = torch.from_numpy(lead)
        batch["padding"] = torch.tensor([length - len(ids) for ids in leads])
        batch["prefix"] = torch.tensor([*[self.encoder.user[0]] * length, *tail])
        # One size stands for all pictures that share it.
        batch |= {"number": number, "kind": kind, "frames": frames, "images": len(sizes)}
        batch |= {"soft": soft, "copies": copies}
        batch["sizes"] = sizes[:1] if len(set(sizes)) == 1 else sizes
        return batch | self.pictures(scenes, kind)

    def rows(self, rng, scenes, kind, first, copies, opening):
        """What comes before the pictures of every row, and the conversations after them."""
        leads, rows = [], []
        for scene in scenes:
            dialogues = self.dialogues(rng, scene, kind)
            if not first:
                before = (
                    rng.choice(LEADS) + rng.choice(["", " ", "\n"]) if rng.random() < 0.25 else ""
                )
                leads.append(self.encoder.lead(rng, before + opening))
                rows.append(dialogues)
                continue
            for index in range(copies):
                (task, question, answer), *later = dialogues[index % len(dialogues)]
                before = question + rng.choice(["", "", "", "\n", " "]) + opening
                trail = rng.choice(TRAILS) if rng.random() < 0.12 else ""
                leads.append(self.encoder.lead(rng, before))
                rows.append([[(task, trail, answer), *later]])
        return leads, rows

    def sample_sizes(self, rng, kind, progress):
        """(height, width) of every picture: any multiples of 28 within the stage's bounds."""
        if kind == "chat":
            return []
        stages = self.config["sides"][kind]
        smallest, largest = stages[min(len(stages) - 1, int(progress * len(stages)))]
        images = rng.choice([2, 2, 2, 3, 4]) if kind == "album" else 1
        if images > 1:
            largest = min(largest, BLOCK * math.sqrt(self.config["album_tokens"] / images))
        mixed = rng.random() < self.config["mixed_albums"]
        first = sample_size(rng, smallest, largest)
        rest = [sample_size(rng, smallest, largest) if mixed else first for _ in range(images - 1)]
        return [first, *rest]

    def sample_softness(self, rng):
        """How much smaller the pictures were before they were enlarged to their size."""
        if rng.random() >= self.config["soft_share"]:
            return 1.0
        return rng.choice([rng.uniform(0.5, 0.85), rng.uniform(0.85, 1.0)])

    def scene_count(self, patches, room, copies):
        cost = patches + copies * (patches * 0.25 + room + 40)
        most = self.config["most_rows"] // copies
        return max(2, min(most, int(self.config["batch_tokens"] / cost)))

    def sample(self, rng, kind, sizes, frames, crowd, soft):
        if kind == "chat":
            return None
        height, width = sizes[0]
        photos = bool(self.art.photos) and rng.random() < self.config["photo_share"][kind]
        if kind == "clip" and photos:
            turning = self.config["turning_share"]
            return sample_photo_clip(rng, self.art, width, height, frames, turning)
        if kind == "clip":
            return sample_clip(rng, self.art, width, height, frames, self.config["turning_share"])
        hard, jitter = rng.random() < self.config["hard_share"], self.config["order_jitter"]
        if kind == "album":
            turned, most = [(width, height) for height, width in sizes], min(4, crowd)
            if photos:
                scenes = sample_photo_album(rng, self.art, turned, most=most)
            elif hard:
                scenes = sample_hard_album(rng, self.art, turned, most=min(5, crowd))
            else:
                scenes = sample_album(rng, self.art, turned, max_things=most)
            for scene in scenes:
                reading_order(scene, rng, jitter)
            return scenes
        sample = sample_photo_scene if photos else sample_hard_scene if hard else sample_scene
        scene = sample(
            rng,
            self.art,
            width,
            height,
            max_things=crowd,
            word_share=self.config["word_share"],
            smallest_em=SMALLEST_EM / soft,
        )
        reading_order(scene, rng, jitter)
        return scene

    def dialogues(self, rng, scene, kind):
        if kind == "chat":
            return [[("chat", *rng.choice(CHAT))] for _ in range(8)]
        return self.examiner.dialogues(rng, scene, self.config["questions"][kind])

    def text(self, dialogues, room):
        """Token arrays (N, room): ids, segments, offsets; labels are a flat list of positions."""
        texts = [part for row in dialogues for turns in row for _, q, a in turns for part in (q, a)]
        encoded = iter(self.encoder.many(texts))
        ids = np.full((len(dialogues), room), self.encoder.pad, np.int64)
        segments = np.full((len(dialogues), room), -1, np.int64)
        offsets = np.zeros((len(dialogues), room), np.int64)
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
        digits = np.isin(targets, self.encoder.digits)
        coordinates = grounded[answers] & digits
        last = coordinates & ~np.append(digits[1:], False)
        tells = np.isin(np.array(tasks)[answers], PLACE_TASKS)
        told = tells & np.isin(targets, self.encoder.place_names)
        weights[told] = self.config["place_weight"]
        weights[coordinates] = self.config["coordinate_weight"]
        weights[last] = self.config["last_digit_weight"]
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


def sample_size(rng, smallest, largest):
    """(height, width): as large as a square of a side between the two; nearly all 1:2 to 2:1."""
    side = rng.uniform(smallest, largest)
    limit = math.log(2) if rng.random() < 0.93 else math.log(3)
    stretch = math.exp(rng.uniform(-limit, limit) / 2)
    height, width = (max(3, round(v / BLOCK)) * BLOCK for v in (side * stretch, side / stretch))
    return height, width


class BatchStream(torch.utils.data.IterableDataset):
    """Batches first, first + stride, …, dealt out to workers; the trainer sets `progress`."""

    def __init__(self, maker, first, stride, progress):
        self.maker, self.first, self.stride, self.progress = maker, first, stride, progress

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        index, step = (worker.id, worker.num_workers) if worker else (0, 1)
        torch.set_num_threads(1)
        number = self.first + index * self.stride
        while True:
            yield self.maker.make(number, self.progress.value)
            number += step * self.stride


def stream(maker, first, stride, progress, workers, pin):
    return iter(
        torch.utils.data.DataLoader(
            BatchStream(maker, first, stride, progress),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=pin,
        )
    )
