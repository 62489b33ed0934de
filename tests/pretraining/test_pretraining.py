"""The bundled model's training code on a CPU: synthetic art, tiny sizes."""

import argparse
import ast
import itertools
import json
import multiprocessing
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import IGNORE, BatchMaker, Encoder
from evaluate import (
    OTHER_WORDS,
    match,
    near_enough,
    order_table,
    other_captions,
    parse,
    phrases,
    score,
    update_card,
    wilson,
)
from hard import sample_alike, sample_hard_album, sample_hard_scene, sample_line, tick_numbers
from photo_scenes import sample_photo_album, sample_photo_clip, sample_photo_scene
from questions import (
    SPELL,
    TASK_NAMES,
    Examiner,
    box_text,
    caption_text,
    deed,
    grounded,
    near_miss,
    negated,
    plain,
)
from renderer import Texture, composite_torch, degrade, jpeg, with_mirrored
from safetensors.torch import save_file
from scenes import (
    MAX_GLYPHS,
    MAX_LAYERS,
    Art,
    Scene,
    Thing,
    clip_rows,
    glyph_targets,
    layer_rows,
    overlap,
    reading_order,
    sample_album,
    sample_clip,
    sample_scene,
)
from tokenizers import Tokenizer
from train import HERE, Trainer, add_kinds, load_config, run, transplant
from wordings import CLOSERS, CLOSERS_ZH, COMPOSED, MORE, OPENERS, OPENERS_ZH, retype
from words import CHARACTERS, COLOR_NAMES, KINDS, NOUNS, PHOTO_KINDS, SHAPES, ZH, alike

CELL = 96


def synthetic_art():
    """Discs for everything: enough to place, draw and ask about."""
    square = [[-0.95, -0.95], [0.95, -0.95], [0.95, 0.95], [-0.95, 0.95]]
    ys, xs = np.mgrid[:CELL, :CELL]
    disc = (np.hypot(xs - 47.5, ys - 47.5) < 46).astype(np.uint8) * 255
    coverage = np.stack([disc, disc * 0, disc * 0, disc], -1)
    glyph = {c: [0, 0.6, 0.05, -0.7, 0.55, 0.0] for c in CHARACTERS}
    meta = {
        "cell": CELL,
        "em": 60,
        "hulls": [square, square],
        "shapes": {s: {"plain": [0], "bordered": [1]} for s in SHAPES},
        "nouns": {n: {"disc": [1]} for n in NOUNS[:20]},
        "fonts": [{"name": "discs", "glyphs": glyph}],
    }
    photos = {
        "photo": 2 * CELL,
        "ground": 32,
        "train": {"kinds": PHOTO_KINDS[:20], "hulls": [square] * 20},
        "unknown": {"kinds": ["", ""], "hulls": [square] * 2},
        "grounds": [np.full((8, 8, 3), 200).tolist()] * 3,
    }
    larger = coverage.repeat(2, 0).repeat(2, 1)
    cells = [
        np.stack([coverage, coverage]),
        with_mirrored(np.stack([larger] * 22)),
        np.full((3, 32, 32, 4), 255, np.uint8),
    ]
    return Art(meta, photos), cells


@pytest.fixture(scope="module")
def art():
    return synthetic_art()[0]


@pytest.fixture(scope="module")
def texture():
    return Texture(synthetic_art()[1], "cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(HERE / "tokenizer.json"))


@pytest.fixture(scope="module")
def config():
    return load_config([HERE / "config.toml", HERE / "restart.toml"], smoke=True)


# ---------------------------------------------------------------- tokenizer


def test_vocabulary_size_and_special_tokens(tokenizer):
    assert 3000 <= tokenizer.get_vocab_size() <= 5000
    for token in ("<|im_start|>", "<|box_start|>", "<|image_pad|>", "<|video_pad|>"):
        assert len(tokenizer.encode(f"a{token}b").ids) == 3


@pytest.mark.parametrize(
    "text", ["Locate the red circle.", "框出图中公交车的位置", "naïve 😀 \t\n ¿x?", "ẞ漢字ひらがな"]
)
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_are_single_tokens(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12345").ids] == list("12345")


def test_names_are_one_token_a_word(tokenizer):
    for name in [*KINDS, *COLOR_NAMES]:
        assert len(tokenizer.encode(" " + name).ids) == len(name.split()), name
    for name in ZH.values():
        assert len(tokenizer.encode(name).ids) == 1, name


def test_everyday_questions_stay_short(tokenizer):
    assert len(tokenizer.encode("Does the image contain a rectangle?").ids) <= 8
    assert len(tokenizer.encode("我想知道这只狗在做什么。").ids) <= 11


# ---------------------------------------------------------------- scenes and questions


def scenes_of(art, count, seed=0):
    rng = random.Random(seed)
    return rng, [sample_scene(rng, art, 224, 168) for _ in range(count)]


def test_scenes_fit_their_picture(art):
    for scene in scenes_of(art, 60)[1]:
        for item in scene.things + scene.words:
            x1, y1, x2, y2 = item.box
            assert -1 <= x1 < x2 <= scene.width + 1 and -1 <= y1 < y2 <= scene.height + 1
        for i, a in enumerate(scene.things):
            assert all(overlap(a.box, b.box) < 0.2 for b in scene.things[:i])


def test_every_task_occurs_in_both_languages(art):
    rng, examiner, seen = random.Random(1), Examiner(), set()
    for number in range(2000):
        scene = (
            sample_scene(rng, art, 224, 224),
            sample_photo_scene(rng, art, 224, 224, max_things=8, word_share=0.4),
            sample_album(rng, art, [(168, 168)] * (2 + number % 3)),
            sample_clip(rng, art, 112, 112, 8),
        )[number % 4]
        for turns in examiner.dialogues(rng, scene, 10):
            seen.update(
                (task, re.search("[一-鿿]", question) is None) for task, question, _ in turns
            )
    assert {(task, english) for task in TASK_NAMES for english in (True, False)} - seen == set()


def test_counts_existence_and_boxes_are_true(art):
    rng, scenes = scenes_of(art, 150, seed=3)
    examiner, checked = Examiner(chinese_share=0.0), 0
    for scene in scenes:
        names = [f"{t.color} {t.kind}" if t.color else t.kind for t in scene.things]
        true_boxes = {box_text(scene.normalised(t.box)) for t in scene.things + scene.words}
        for turns in examiner.dialogues(rng, scene, 12):
            for task, question, answer in turns:
                if task in ("caption", "brief", "grounded_caption"):
                    assert all(
                        name in plain(answer) or ZH[name] in answer
                        for name in names
                        if name in KINDS
                    )
                if task in (
                    "locate",
                    "locate_all",
                    "grounded_caption",
                    "locate_relation",
                    "locate_text",
                ):
                    assert set(re.findall(r"<\|box_start\|>.*?<\|box_end\|>", answer)) <= true_boxes
                    checked += 1
                match = re.fullmatch(r"Is there an? (\w+ ?\w+) in the image\?", question)
                if (
                    task == "exist"
                    and match
                    and match[1] in (f"{c} {s}" for c in COLOR_NAMES for s in SHAPES)
                ):
                    assert (answer == "Yes.") == (match[1] in names)
    assert checked > 100


def test_video_directions_are_true(art):
    rng = random.Random(5)
    for _ in range(80):
        clip = sample_clip(rng, art, 140, 112, 8)
        for actor in clip.actors:
            (x0, y0), (x1, y1) = actor.track[0], actor.track[-1]
            moved = {"right": x1 - x0, "left": x0 - x1, "down": y1 - y0, "up": y0 - y1}
            assert (actor.direction == "still" and max(moved.values()) == 0) or moved[
                actor.direction
            ] > 0.15 * 112


def hard_scenes(art, count, seed=0):
    rng = random.Random(seed)
    return [
        sample_hard_scene(rng, art, 336, 280, max_things=10, word_share=0.9) for _ in range(count)
    ]


def test_hard_scenes_fit_their_tables_and_pictures(art):
    scenes = hard_scenes(art, 120)
    assert any(scene.clutter for scene in scenes)
    assert any(" " in word.text for scene in scenes for word in scene.words)
    for scene in scenes:
        assert layer_rows(art, scene).shape[0] == MAX_LAYERS
        drawn = sum(len(word.text.replace(" ", "")) for word in scene.words)
        assert drawn <= MAX_GLYPHS and glyph_targets(scene)[:, 5].sum() == drawn
        for item in scene.things + scene.words:
            x1, y1, x2, y2 = item.box
            assert -1 <= x1 < x2 <= scene.width + 1 and -1 <= y1 < y2 <= scene.height + 1


def test_lines_and_plots_are_never_named(art):
    examiner, rng = Examiner(chinese_share=0.0), random.Random(4)
    for scene in hard_scenes(art, 60, seed=7):
        if not scene.clutter:
            continue
        named = len(scene.things) + len(scene.words)
        for turns in examiner.dialogues(rng, scene, 12):
            for task, _, answer in turns:
                if task == "grounded_caption":
                    assert answer.count("<|box_start|>") == named


def test_words_of_a_line_stand_one_space_apart():
    rng = random.Random(1)
    for _ in range(200):
        parts = sample_line(rng).split(" ")
        assert 2 <= len(parts) <= 3 and all(parts) and sum(map(len, parts)) <= 12
        assert 2 <= len(sample_alike(rng)) <= 8


def test_ticks_rise_in_even_steps():
    numbers = [float(text) for text in tick_numbers(random.Random(2), 5)]
    steps = [round(b - a, 6) for a, b in itertools.pairwise(numbers)]
    assert len(set(steps)) == 1 and steps[0] > 0


def test_pictures_of_a_hard_album_share_and_differ(art):
    rng, shared, alone = random.Random(3), 0, 0
    for _ in range(40):
        first, second = sample_hard_album(rng, art, [(280, 224), (224, 280)])
        assert (first.width, second.width) == (280, 224)
        keys = [{(t.kind, t.color) for t in scene.things} for scene in (first, second)]
        shared += bool(keys[0] & keys[1])
        alone += bool(keys[0] - keys[1])
    assert shared > 15 and alone > 15


def thing_at(x, y):
    return Thing("star", "red", x, y, 10, 0, box=(x - 10, y - 10, x + 10, y + 10))


def test_level_things_change_places_and_others_never():
    rng, orders = random.Random(0), set()
    level = [thing_at(100, 150), thing_at(104, 150), thing_at(250, 20)]
    scene = Scene(300, 300, list(level), [], np.zeros(20, np.float32))
    for _ in range(50):
        reading_order(scene, rng, 0.012)
        orders.add(tuple(level.index(thing) for thing in scene.things))
    assert orders == {(2, 0, 1), (2, 1, 0)}
    reading_order(scene)
    assert scene.things == [level[2], level[0], level[1]]


def test_both_names_count_for_a_place_at_a_border_only():
    scene = Scene(300, 300, [thing_at(99, 50)], [], np.zeros(20, np.float32))
    item = {"truth": caption_text(scene, ["top left"], False), "also": other_captions(scene, False)}
    right = {
        name: near_enough(item | {"answer": caption_text(scene, [name], False)})
        for name in ("top left", "top", "left", "center")
    }
    assert right == {"top left": True, "top": True, "left": False, "center": False}
    assert other_captions(Scene(300, 300, [thing_at(80, 50)], [], None), False) == [item["truth"]]


def test_turning_things_rest_and_turn(art):
    rng, seen = random.Random(6), 0
    for _ in range(60):
        clip = sample_clip(rng, art, 140, 112, 8, turning=1.0)
        table = clip_rows(art, clip)
        for slot, actor in enumerate(clip.actors):
            moved, turned = (np.ptp(table[:, slot, k]) for k in (1, 6))
            if actor.direction == "turn":
                seen += 1
                assert moved == 0 and turned > 0.5 and "turns round" in deed(actor, False)
            else:
                assert turned == 0
    assert seen > 5


# ---------------------------------------------------------------- renderer


def test_things_are_drawn_where_their_boxes_are(art, texture):
    rng = random.Random(2)
    scene = sample_scene(rng, art, 112, 112, word_share=0.0)
    blank = torch.zeros(1, 3, 112, 112)
    layers = torch.from_numpy(layer_rows(art, scene))[None]
    layers[..., 8:17] = 1.0  # white
    changed = composite_torch(texture, blank, layers)[0].sum(0) > 0.5
    inside = torch.zeros(112, 112, dtype=torch.bool)
    for thing in scene.things:
        x1, y1, x2, y2 = thing.box
        inside[max(0, int(y1) - 2) : int(y2) + 3, max(0, int(x1) - 2) : int(x2) + 3] = True
        assert changed[int((y1 + y2) / 2), int((x1 + x2) / 2)]
    assert not (changed & ~inside).any()


def test_enlarged_pictures_are_softer_and_keep_their_size():
    rng = torch.Generator().manual_seed(0)
    fine = (torch.arange(56) % 2).float().expand(1, 3, 56, 56)
    soft = degrade(fine, rng, soft=0.5)
    assert soft.shape == fine.shape and soft.std() < 0.3 * fine.std()


def test_jpeg_of_high_quality_changes_little():
    ys, xs = torch.meshgrid(torch.linspace(0, 1, 45), torch.linspace(0, 1, 52), indexing="ij")
    image = torch.stack([ys, xs, ys * xs])[None]
    assert (jpeg(image, torch.tensor([95.0])) - image).abs().mean() < 0.02
    assert (jpeg(image, torch.tensor([10.0])) - image).abs().mean() > 0.005


# ---------------------------------------------------------------- the fast forward


def small_batch(maker, kind):
    for number in range(200):
        batch = maker.make(number, 0.0)
        if batch["kind"] == kind:
            return batch
    raise AssertionError(kind)


@pytest.mark.parametrize("text_first", [0.0, 1.0])
@pytest.mark.parametrize(
    ("kind", "mixed"), [("image", 0.0), ("album", 0.0), ("album", 1.0), ("clip", 0.0)]
)
def test_fast_forward_equals_the_library(kind, mixed, text_first, art, texture, tokenizer, config):
    """Every conversation of a packed row scores as it does alone in the library's forward."""
    changes = {"batch_tokens": 1500, "mixed_albums": mixed, "album_tokens": 200}
    changes |= {"text_first": text_first}
    maker = BatchMaker(config["data"] | changes, art, tokenizer)
    batch = small_batch(maker, kind)
    assert (len(batch["sizes"]) > 1) == (mixed == 1.0)
    trainer = Trainer(config, art, texture, tokenizer, "cpu", compiled=False)
    model, forward = trainer.model.eval(), trainer.forward
    with torch.no_grad():
        pixels, grids = trainer.draw(batch)
        hidden, *_ = forward(batch, pixels, grids)
        fast = forward.logits(hidden)
        every = grids * batch["images"] if len(grids) == 1 else grids
        name = "pixel_values_videos" if kind == "clip" else "pixel_values"
        grid_name = "video_grid_thw" if kind == "clip" else "image_grid_thw"
        copies, lead = batch["copies"], batch["lead"]
        assert (copies > 1) == (text_first == 1.0)
        for row in range(2):
            scenes = len(lead) // copies
            own = torch.cat([p.view(scenes, -1, p.shape[-1])[row // copies] for p in pixels])
            tail = batch["prefix"][lead.shape[1] :]
            start = torch.cat([lead[row][batch["padding"][row] :], tail])
            for segment in range(1, 3 if copies == 1 else 2):
                where = batch["segments"][row] == segment
                ids = torch.cat([start, batch["ids"][row][where]])[None]
                kinds = (ids == forward.image_token).int() + 2 * (ids == forward.video_token).int()
                model.model.rope_deltas = None
                slow = model(
                    input_ids=ids,
                    mm_token_type_ids=kinds,
                    attention_mask=torch.ones_like(ids),
                    **{name: own, grid_name: torch.tensor(every)},
                ).logits
                torch.testing.assert_close(
                    fast[row][where], slow[0, len(start) :], atol=2e-4, rtol=1e-3
                )


@pytest.mark.parametrize("kind", ["image", "album", "clip"])
def test_pictures_take_every_size_within_bounds(kind, art, tokenizer, config):
    maker, rng = BatchMaker(config["data"], art, tokenizer), random.Random(0)
    drawn = [maker.sample_sizes(rng, kind, 0.9) for _ in range(400)]
    assert all(v % 28 == 0 and v >= 84 for sizes in drawn for size in sizes for v in size)
    assert len({size for sizes in drawn for size in sizes}) > (30 if kind == "clip" else 100)
    longest = max(sum(h * w for h, w in sizes) // 28**2 for sizes in drawn)
    assert kind != "album" or longest < 1.3 * config["data"]["album_tokens"]


def test_packed_labels_predict_the_answers(art, tokenizer, config):
    batch = small_batch(BatchMaker(config["data"], art, tokenizer), "image")
    predicted = batch["ids"].flatten()[batch["places"] + 1]
    assert torch.equal(predicted, batch["targets"])
    assert int(batch["answers"].max()) + 1 == len(batch["tasks"])


def test_drawn_words_are_spelled_letter_by_letter(tokenizer):
    encoder = Encoder(tokenizer)
    ids = encoder.many([f"the text {SPELL}h{SPELL}e{SPELL}l{SPELL}l{SPELL}o{SPELL}."])[0]
    assert tokenizer.decode(ids) == "the text hello." and len(ids) >= 7
    turns, labels = encoder.conversation([([5], ids), ([6], [7])])
    assert len(turns) == len(labels) and labels.count(IGNORE) < len(labels)


# ---------------------------------------------------------------- the loop


def arguments(**changes):
    values = {
        "workers": 0,
        "seconds": 1e9,
        "steps": 20,
        "log_every": 10,
        "state": None,
        "out": None,
    }
    return argparse.Namespace(**(values | changes))


def test_twenty_steps_learn_and_resume_exactly(
    art, texture, tokenizer, config, tmp_path: Path, capsys
):
    config = config | {"minutes": 1e6, "warmup_steps": 5}
    maker = BatchMaker(config["data"], art, tokenizer)
    trainer = Trainer(config, art, texture, tokenizer, "cpu", compiled=False)
    run(trainer, maker, arguments(steps=19))
    losses = [float(v) for v in re.findall(r"loss .*?image (\d+\.\d+)", capsys.readouterr().out)]
    assert losses and losses[0] < 8.6
    torch.save(trainer.state(), tmp_path / "state.pt")
    trainer.save_weights(tmp_path / "weights")
    assert all(p.stat().st_size < 16 * 2**20 for p in (tmp_path / "weights").iterdir())

    again = Trainer(config, art, texture, tokenizer, "cpu", compiled=False)
    again.load_state(torch.load(tmp_path / "state.pt"))
    for one in (trainer, again):
        torch.manual_seed(0)
        run(one, maker, arguments(steps=1))
    assert trainer.step == again.step == 20
    for a, b in zip(trainer.parameters, again.parameters, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)

    finished = Trainer(config, art, texture, tokenizer, "cpu", compiled=False)
    trainer.model.save_pretrained(tmp_path / "model")
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    heads = {f"heads.{k}": v for k, v in trainer.heads.state_dict().items()}
    save_file(heads, tmp_path / "heads.safetensors")
    finished.load_model(tmp_path / "model", tmp_path / "heads.safetensors")
    assert finished.step == 0 and finished.progress == 0
    for a, b in zip(trainer.parameters, finished.parameters, strict=True):
        torch.testing.assert_close(a, b)

    fresh = Trainer(config, art, texture, tokenizer, "cpu", compiled=False)
    fresh.load_weights(tmp_path / "weights", elapsed=None)
    assert fresh.step == 19
    progress = multiprocessing.Value("d", fresh.progress)
    assert progress.value < 1


# ---------------------------------------------------------------- scoring


def test_boxes_are_matched_by_label_and_overlap():
    truth = parse("<|object_ref_start|>a dog<|object_ref_end|>" + box_text((0.1, 0.1, 0.3, 0.3)))
    near, far = ("a dog", (110, 100, 300, 300)), ("a dog", (600, 600, 800, 800))
    assert match(truth, [far, near])[0][0] > 0.9
    assert match(truth, [far])[0] == [0.0] and match(truth, [])[0] == [0.0]
    assert match(truth, [("a cat", near[1])]) == ([0.0], 1)


def test_lists_are_right_in_any_order():
    a = "The image shows a red star at the top and a dog at the left."
    b = "The image shows a dog at the left and a red star at the top."
    assert phrases(a) == phrases(b) != phrases(b.replace("top", "right"))


def test_made_up_boxes_are_wrong():
    item = {"truth": "There is no dog in the image.", "answer": "There is no dog in the image."}
    assert score(item)[0]
    assert not score(item | {"answer": grounded("the dog", [(0.1, 0.1, 0.2, 0.2)])})[0]


def test_wilson_interval_of_a_known_case():
    low, high = wilson(90, 100)
    assert (round(low, 3), round(high, 3)) == (0.826, 0.945)


def test_questions_in_both_orders_are_counted_for_the_same_questions():
    def item(row, question, right, **more):
        return {"row": row, "question": question, "truth": "", "sizes": [], "right": right} | more

    usual = [item("count", "a", True), item("count", "b", False), item("count", "c", True)]
    first = "text first, one picture"
    again = [item(first, "a", False, base="count"), item(first, "b", False, base="count")]
    assert "| one picture | 2 | 1 | 0 |" in order_table(usual + again).splitlines()


def test_the_card_has_the_tables_of_the_last_evaluation(tmp_path):
    done = json.loads((HERE / "evaluation.json").read_text())
    for name, row in done["rows"].items():
        asked = [item["right"] for item in done["items"] if item["row"] == name]
        if asked:  # else a row that is counted from others
            assert (len(asked), sum(asked)) == (row["n"], row["right"]), name
    card = HERE.parent / "data/tiny-qwen2-vl/README.md"
    copy = tmp_path / "README.md"
    copy.write_text(card.read_text(encoding="utf-8"), encoding="utf-8")
    update_card(copy, done)
    assert copy.read_text(encoding="utf-8") == card.read_text(encoding="utf-8")


def test_the_shipped_tokenizer_is_the_one_that_was_trained(tokenizer):
    shipped = Tokenizer.from_file(str(HERE.parent / "data/tiny-qwen2-vl/tokenizer.json"))
    assert shipped.get_vocab() == tokenizer.get_vocab()
    config = json.loads((HERE.parent / "data/tiny-qwen2-vl/config.json").read_text())
    assert config["text_config"]["vocab_size"] == tokenizer.get_vocab_size()


# ---------------------------------------------------------------- photographs


def photo_scenes(art, count, seed=0):
    rng = random.Random(seed)
    return [
        sample_photo_scene(rng, art, 280, 224, max_things=8, word_share=0.3) for _ in range(count)
    ]


def test_photographed_things_are_inside_their_pictures(art):
    scenes = photo_scenes(art, 150)
    assert any(scene.unknown for scene in scenes) and any(not scene.things for scene in scenes)
    for scene in scenes:
        assert layer_rows(art, scene).shape[0] == MAX_LAYERS
        for thing in scene.things:
            x1, y1, x2, y2 = thing.box
            assert -1 <= x1 < x2 <= scene.width + 1 and -1 <= y1 < y2 <= scene.height + 1


def test_photographs_are_drawn_where_their_boxes_are(art, texture):
    for scene in photo_scenes(art, 12, seed=3):
        scene.clutter, photos = [], [t for t in scene.things if art.is_photo(t.entry)]
        scene.things = photos[:1]
        scene.words = []
        if not photos:
            continue
        layers = torch.from_numpy(layer_rows(art, scene))[None]
        layers[..., 8:17], layers[..., 17] = 1.0, 0.0
        drawn = composite_torch(texture, torch.zeros(1, 3, 224, 280), layers)[0].sum(0) > 0.5
        ys, xs = torch.nonzero(drawn, as_tuple=True)
        x1, y1, x2, y2 = photos[0].box
        assert xs.min() > x1 - 3 and xs.max() < x2 + 3
        assert ys.min() > y1 - 3 and ys.max() < y2 + 3


def test_grounds_fill_the_picture(art, texture):
    rng, seen = random.Random(2), 0
    for _ in range(10):
        clip = sample_photo_clip(rng, art, 140, 112, 8, 0.3)
        if clip.clutter:
            seen += 1
            layers = torch.from_numpy(clip_rows(art, clip))[:1, :1]
            layers[..., 8:17] = 1.0
            drawn = composite_torch(texture, torch.zeros(1, 3, 112, 140), layers)
            assert bool((drawn > 0.2).all())
    assert seen > 1


def test_albums_of_photographs_share_things(art):
    rng = random.Random(4)
    albums = [sample_photo_album(rng, art, [(224, 168), (224, 168)], most=4) for _ in range(20)]
    names = [[{t.kind for t in scene.things} for scene in album] for album in albums]
    assert sum(bool(first & second) for first, second in names) > 8


def test_what_has_no_name_is_never_told(art):
    examiner, rng = Examiner(chinese_share=0.0), random.Random(4)
    for scene in photo_scenes(art, 80, seed=7):
        for turns in examiner.dialogues(rng, scene, 12):
            for task, _, answer in turns:
                if task == "grounded_caption":
                    assert answer.count("<|box_start|>") == len(scene.things) + len(scene.words)
                if task == "region_unknown":
                    assert answer in ("I do not know.", "我不知道。")


def test_nothing_is_called_absent_that_a_wider_name_covers(art):
    assert alike("pigeon", "bird") and alike("rubber duck", "duck") and not alike("dog", "cat")
    rng = random.Random(1)
    for scene in photo_scenes(art, 60, seed=9):
        for _ in range(20):
            kind, _ = near_miss(rng, scene)
            assert not any(alike(kind, thing.kind) for thing in scene.things)


# ---------------------------------------------------------------- wordings


def test_yes_and_no_to_negative_questions():
    """Documented in questions.negated: the answer says what is there."""
    dog = Thing("dog", None, 50, 50, 10, 0, box=(40, 40, 60, 60))
    rng, seen = random.Random(0), set()
    for things in ([dog], []):
        scene = Scene(100, 100, list(things), [], np.zeros(20, np.float32))
        for number in range(600):
            zh = number % 2 == 1
            question, answer = negated(rng, scene, zh)
            absent = "没有" in answer if zh else "there is no " in answer
            if re.search("狗" if zh else r"\bdog\b", question):
                assert absent == (not things), (question, answer)
            else:
                assert absent
            asks_absence = "没有" in question if zh else re.search(r"\bno\b", question)
            yes = answer.startswith(("Yes", "是的"))
            assert yes == (absent if asks_absence else not absent), (question, answer)
            seen.add((zh, yes, absent))
    assert len(seen) == 8


def test_boxes_and_quotes_survive_typing_errors():
    rng = random.Random(0)
    for question in ('Locate the word "Exit".', f"What is in {box_text((0.1, 0.2, 0.3, 0.4))}?"):
        kept = re.search(r'"Exit"|<\|box_start\|>.*<\|box_end\|>', question)[0]
        assert all(kept in retype(rng, question, False) for _ in range(300))


def test_every_list_of_more_wordings_belongs_to_questions():
    source = (HERE / "questions.py").read_text()
    for first, more in [*MORE.items(), *COMPOSED.items()]:
        assert f'"{first}"' in source, first
        assert all(text.count("{") == first.count("{") or "{1}" in text for text in more)


def bare(text):
    """A wording without what typing changes: case, punctuation, spaces and "the"."""
    return re.sub(r"[\s.?!,:，。？！：]|\bthe\b", "", text.lower().replace("{1}", "{}"))


def ways_to_train(wording, templates, openings, endings):
    """Templates that become the wording with at most two openings and one ending around them."""
    text = bare(wording)
    openings = [opening for opening in openings if opening in text]
    starts = {first + second for first in openings for second in openings}
    return {
        templates[text[i:j]]
        for i in range(len(text))
        for j in range(i + 1, len(text) + 1)
        if text[i:j] in templates and text[:i] in starts and text[j:] in endings
    }


def test_no_wording_of_the_evaluation_is_ever_trained():
    """Not even by a polite opening or a closing word before or after a trained one."""
    tree = ast.parse((HERE / "questions.py").read_text())
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    own = [text for text in constants if isinstance(text, str) and text]
    lists = [text for words in (MORE, COMPOSED) for texts in words.values() for text in texts]
    templates = {bare(text): text for text in [*own, *lists]}
    said_before = [*OPENERS, *OPENERS_ZH, *(t for t in own if "{" not in t and len(t) < 24)]
    openings = {"", *map(bare, said_before)}
    endings = {"", *map(bare, CLOSERS + CLOSERS_ZH)}
    around = (templates, openings, endings)
    assert ways_to_train("Hi, please circle the {}. Thanks!", *around) == {"Circle the {}."}
    assert ways_to_train("请告诉我{}的数量。", *around)
    for wording in itertools.chain.from_iterable(OTHER_WORDS.values()):
        assert ways_to_train(wording, *around) == set(), wording


def test_system_prompts_vary_and_leads_end_before_the_pictures(tokenizer):
    encoder, rng = Encoder(tokenizer), random.Random(0)
    leads = [encoder.lead(rng, "Look!\n") for _ in range(40)]
    assert len({tuple(lead) for lead in leads}) > 15
    for lead in leads:
        text = tokenizer.decode(lead, skip_special_tokens=False)
        assert text.startswith("<|im_start|>system\n") and text.endswith("user\nLook!\n")


def test_transplanted_tokens_keep_their_embeddings(tokenizer):
    other = Tokenizer.from_str(tokenizer.to_str())
    other.add_tokens(["stargazing"])
    size = tokenizer.get_vocab_size()
    embedding = torch.arange(size * 4, dtype=torch.float32).view(size, 4)
    moved = transplant(embedding, tokenizer, other)
    torch.testing.assert_close(moved[:size], embedding)
    pieces = tokenizer.encode("stargazing").ids
    torch.testing.assert_close(moved[size], embedding[pieces].mean(0))
    old = torch.arange(12.0).view(6, 2)
    new = add_kinds(old, torch.full((9, 2), -1.0))
    torch.testing.assert_close(new[[0, 1, 2, 3, 7, 8]], old)
