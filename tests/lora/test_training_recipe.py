"""Training learns what a bare Trainer with PEFT learns, one row and its pixels at a time."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from lora_talks import CLIP, KINDS, noise, talk
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, set_seed

import vlkit
from vlkit.lora import batches as lora_batches
from vlkit.lora import label_example, load_conversations, train
from vlkit.lora.batches import AHEAD, Examples, FrozenTower, LengthSampler, guess_lengths
from vlkit.lora.networks import find_modules

SHARED, OTHER = noise(120, 90), noise(60, 90)
ROWS = [
    talk(("What is this?", SHARED), "A red square."),
    talk("Hello", "Hi there, and a longer answer than the others have."),
    talk(("Which?", SHARED), "Seven."),
    talk(("What?", OTHER), "A cat.", "Which colour?", "It is grey."),
    talk(("What moves?", CLIP), "Nothing."),
    talk(("Same?", noise(90, 84), noise(56, 84, 1)), "No."),
]
NOTHING = SimpleNamespace(holds=lambda key: False)  # a tower that keeps nothing
OPTIONS = {"epochs": 3, "learning_rate": 1e-2}
UPDATE = 2


class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def plain_losses(vlm, data, folder):
    """Rows alone, without padding; all logits; positions and pictures by the model itself."""
    set_seed(0)
    lengths = guess_lengths(vlm, data)
    sampler = LengthSampler(Examples(vlm, data), lengths, UPDATE, 0)
    rows = []
    for epoch in range(OPTIONS["epochs"]):
        sampler.set_epoch(epoch)
        rows += [label_example(vlm, data[i]) for i in sampler.order()]
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=list(find_modules(vlm.model, "language"))
    )
    network = get_peft_model(vlm.model, config)
    trainer = InOrder(
        network,
        TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=1,
            gradient_accumulation_steps=UPDATE, num_train_epochs=1,
            learning_rate=OPTIONS["learning_rate"], lr_scheduler_type="cosine", logging_steps=1,
            report_to="none", save_strategy="no", remove_unused_columns=False, use_cpu=True,
        ),
        train_dataset=rows,
        data_collator=lambda some: {**some[0].tensors, "labels": some[0].labels},
    )  # fmt: skip
    trainer.model_accepts_loss_kwargs = True  # tokens count alike in all rows of an update
    trainer.train()
    network.unload()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_the_plain_recipe(tiny_folder, tmp_path, kind):
    vlm, data = vlkit.load(tiny_folder(kind)), load_conversations(ROWS)
    expected = plain_losses(vlm, data, tmp_path / "plain")
    assert expected[-1] < 0.8 * expected[0]
    run = train(vlm, data, output_dir=tmp_path / "run", batch_size=UPDATE, **OPTIONS)
    assert [loss for _, loss in run.losses] == pytest.approx(expected, rel=2e-3)


def patches_of(data, vlm):
    """Of each medium that is not the same as one before."""
    media = [
        medium
        for i in range(len(data))
        for medium in Examples(vlm, data, tower=NOTHING).prepare(i).media
    ]
    return {medium.key: len(medium.pixels) for medium in media}


def test_each_picture_is_seen_once(tiny_folder, tmp_path):
    """A picture in two rows, and in a third one from a file; three epochs, each evaluated."""
    vlm = vlkit.load(tiny_folder("qwen2_vl"))
    SHARED.save(tmp_path / "shared.png")
    data = load_conversations([*ROWS, talk(("Who?", tmp_path / "shared.png"), "Nobody.")])
    seen = []
    vlm.model.model.visual.patch_embed.register_forward_hook(
        lambda module, given, made: seen.append(len(made))
    )
    options = {"batch_size": 2, "epochs": 3, "metric": None, "samples": 0}
    train(vlm, data, eval_data=data, output_dir=tmp_path / "run", **options)
    expected = patches_of(data, vlm)
    assert len(expected) == 5
    proof = 3 * expected[next(iter(expected))]  # before, after, merged
    assert sum(seen) == sum(expected.values()) + proof


@pytest.mark.parametrize(("target", "batches"), [("vision", 6), ("language", 2)])
def test_a_batch_takes_one_call_of_the_tower(tiny_folder, tmp_path, target, batches):
    """Of a frozen one in the first epoch alone."""
    vlm, calls = vlkit.load(tiny_folder("qwen2_vl")), []
    data = load_conversations([talk(("What?", noise(84, 84, i)), "Noise.") for i in range(8)])
    vlm.model.model.visual.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    train(vlm, data, output_dir=tmp_path / "run", batch_size=4, epochs=3, target=target)
    assert len(calls) == batches + 3  # the proof asks before, after and merged


def test_features_beyond_the_budget_are_computed_again(tiny_folder, tmp_path, monkeypatch):
    vlm, data = vlkit.load(tiny_folder("qwen3_vl")), load_conversations(ROWS)
    plenty = train(vlm, data, output_dir=tmp_path / "a", batch_size=UPDATE, **OPTIONS)
    monkeypatch.setattr(lora_batches, "SHARE", 0)
    none = train(vlm, data, output_dir=tmp_path / "b", batch_size=UPDATE, **OPTIONS)
    assert [loss for _, loss in none.losses] == pytest.approx([loss for _, loss in plenty.losses])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [0, 2])
def test_a_row_of_known_pictures_is_as_if_read(tiny_folder, kind, cut):
    vlm = vlkit.load(tiny_folder(kind))
    rows = [
        *ROWS[:4],
        ROWS[5],
        talk(("And?", SHARED, OTHER), "A long answer, cut where it ends."),
    ]
    data = load_conversations(rows)
    limit = label_example(vlm, data[5]).length - cut
    tower = FrozenTower(vlm.model)
    known = Examples(vlm, data, limit, tower)
    for index in (0, 3, 4):
        tower.encode(known.prepare(index).media)
    for index in (0, 1, 2, 5):
        row, whole = known.prepare(index), label_example(vlm, data[index], max_length=limit)
        assert all(medium.pixels is None for medium in row.media)
        assert torch.equal(row.labels, whole.labels)
        names = set(whole.tensors) - {"pixel_values"}
        assert names == set(row.tensors)
        for name in names:
            assert torch.equal(row.tensors[name], whole.tensors[name]), name


def test_updates_hold_rows_of_like_lengths_however_they_are_divided():
    lengths = [10, 500, 11, 499, 12, 498, 13, 497, 14]
    sampler = LengthSampler(Examples(None, lengths), lengths, 4, seed=1)
    orders = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order) == list(range(9))
        spans = [
            max(some) - min(some)
            for some in ([lengths[i] for i in order[k : k + 4]] for k in (0, 4))
        ]
        assert sum(span < 10 for span in spans) >= 1
        orders.append(order)
    assert len(set(map(tuple, orders))) > 1
    sampler.set_epoch(2)
    assert list(sampler) == orders[2]


class Slow(Examples):
    """Prepares rows in turn, and remembers which."""

    def __init__(self, count, workers):
        super().__init__(None, range(count), workers=workers)
        self.asked, self.gate = [], threading.Event()

    def prepare(self, index):
        self.asked.append(index)
        self.gate.wait(20)
        return index

    def is_ready(self, row):
        return True


def test_rows_are_read_ahead_in_their_order_and_no_further():
    slow = Slow(3 * AHEAD, workers=2)
    sampler = LengthSampler(slow, [1] * len(slow.data), 4, seed=0)
    order = sampler.order()
    coming = iter(sampler)
    assert next(coming) == order[0]
    slow.gate.set()
    assert [slow[order[0]], *(slow[i] for i in coming)] == order
    assert sorted(slow.asked) == list(slow.data)
    slow.close()


def test_rows_that_a_resumed_run_skips_do_not_stand_in_the_way():
    slow = Slow(6 * AHEAD, workers=1)
    order = list(LengthSampler(slow, [1] * len(slow.data), 4, seed=0))  # nothing is taken
    slow.gate.set()
    assert slow[order[-1]] == order[-1]
    slow.close()
    assert len(slow.asked) <= 3 * AHEAD
