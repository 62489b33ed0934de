"""Training learns, leaves the model alone, resumes exactly, and merges."""

from __future__ import annotations

import json
import math
import os
import resource

import numpy as np
import pytest
import torch
from lora_talks import CLIP, KINDS, StopAt, noise, talk
from transformers import AutoModelForImageTextToText, TrainerCallback

import vlkit
from vlkit.errors import ModelError, VlkitError
from vlkit.inputs import prepare_inputs
from vlkit.lora import label_example, load_conversations, merge, train
from vlkit.lora.batches import Collator
from vlkit.lora.run_folder import last_checkpoint, only_writer

ROWS = [
    talk(("What is this?", noise(120, 90)), "A red square."),
    talk("Hello", "Hi there, and a longer answer than the others have."),
    talk(("What?", noise(60, 90)), "A cat.", "Which colour?", "It is grey."),
    talk(("What moves?", CLIP), "Nothing."),
    talk(("Same?", noise(90, 84), noise(56, 84, 1)), "No."),
]


@pytest.fixture(params=KINDS)
def model(request, tiny_vlm):
    return tiny_vlm(request.param)


def loss_of(network, batch):
    with torch.inference_mode():
        return network(**batch).loss.item()


def test_batch_has_the_mean_loss_of_its_rows(model):
    """Padding, the pictures of several rows, and logits kept only at labels change nothing."""
    labelled = [label_example(model, row) for row in ROWS]
    batch = Collator(model.processor.tokenizer.pad_token_id)(labelled)
    alone = [loss_of(model.model, {**each.tensors, "labels": each.labels}) for each in labelled]
    counts = [each.trained for each in labelled]
    expected = np.average(alone, weights=counts)
    assert loss_of(model.model, batch) == pytest.approx(expected, rel=1e-4)
    assert batch["shift_labels"].shape[1] < batch["labels"].shape[1]
    assert int((batch["shift_labels"] != -100).sum()) == sum(counts)


def logits(vlm, messages):
    tensors = prepare_inputs(vlm, [messages]).tensors
    with torch.inference_mode():
        return vlm.model(**tensors).logits


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_and_leaves_the_model_alone(tiny_folder, tmp_path, kind):
    vlm = vlkit.load(tiny_folder(kind))
    question = ROWS[0][:1]
    before, weights = (
        logits(vlm, question),
        {n: w.clone() for n, w in vlm.model.state_dict().items()},
    )
    run = train(
        vlm, ROWS[:2], output_dir=tmp_path / "run", epochs=10, learning_rate=1e-2, batch_size=2
    )
    assert run.steps == len(run.losses) == 10 and run.finished and run.effect > 0
    assert run.losses[-1][1] < run.losses[0][1] / 2
    assert torch.equal(logits(vlm, question), before)
    assert {n: True for n in weights} == {
        n: torch.equal(w, weights[n]) for n, w in vlm.model.state_dict().items()
    }
    assert all(p.requires_grad for p in vlm.model.parameters()) and not vlm.model.training
    tuned = vlkit.load(tiny_folder(kind), adapter=run.output_dir)
    with torch.inference_mode():
        batch = Collator(0)([label_example(tuned, row) for row in ROWS[:2]])
        assert tuned.model(**batch).loss.item() < run.losses[0][1] / 2
    folder = merge(run.output_dir, tmp_path / "merged", model=tiny_folder(kind))
    merged = vlkit.load(folder)
    assert torch.allclose(logits(merged, question), logits(tuned, question), atol=1e-3)
    assert not torch.allclose(logits(merged, question), before, atol=1e-1)
    assert not hasattr(AutoModelForImageTextToText.from_pretrained(folder), "peft_config")


@pytest.fixture(scope="module")
def small(tiny_folder):
    return vlkit.load(tiny_folder("qwen2_vl"))


OPTIONS = {"batch_size": 1, "epochs": 4, "learning_rate": 1e-3, "seed": 3}


@pytest.mark.parametrize("step", [7, 10])
def test_stopped_and_resumed_is_as_if_never_stopped(small, tmp_path, step):
    """In the middle of an epoch, behind the last checkpoint, and at the end of one."""
    whole = train(small, ROWS, output_dir=tmp_path / "whole", **OPTIONS)
    half = train(small, ROWS, output_dir=tmp_path / "half", callbacks=[StopAt(step)], **OPTIONS)
    assert not half.finished and half.steps == step
    (tmp_path / "half" / "checkpoint-99").mkdir()  # as a run that was killed while it wrote
    with pytest.raises(VlkitError, match=r"half was started with seed=3, not 4"):
        train(small, ROWS, output_dir=tmp_path / "half", resume=True, **(OPTIONS | {"seed": 4}))
    with pytest.raises(VlkitError, match=r"half was started with rows=5, not 4"):
        train(small, ROWS[1:], output_dir=tmp_path / "half", resume=True, **OPTIONS)
    rest = train(small, ROWS, output_dir=tmp_path / "half", resume=True, **OPTIONS)
    assert rest.losses == whole.losses and rest.steps == 20
    adapters = [
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "half")
    ]
    assert adapters[0] == adapters[1]


def test_evaluation_keeps_the_best(small, tmp_path):
    """Rows that only evaluation sees get worse while others are learnt by heart."""
    run = train(
        small, ROWS[:1], eval_data=ROWS[1:2], output_dir=tmp_path / "run", epochs=6,
        learning_rate=3e-2,
    )  # fmt: skip
    assert [step for step, _ in run.evaluations] == [0, 1, 2, 3, 4, 5, 6]
    best = min(loss for _, loss in run.evaluations[1:])
    tuned = vlkit.load(small.folder.path, adapter=run.output_dir)
    batch = Collator(0)([label_example(tuned, ROWS[1])])
    assert loss_of(tuned.model, batch) == pytest.approx(best, rel=1e-3)


class NotesCheckpointing(TrainerCallback):
    def __init__(self):
        self.seen = set()

    def on_step_begin(self, args, state, control, model, **kwargs):
        layers = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
        self.seen.add(any(layer.gradient_checkpointing for layer in layers))


@pytest.mark.parametrize(
    "more", [{"gradient_checkpointing": True}, {"gradient_accumulation": 2, "batch_size": 1}]
)
def test_checkpointing_and_accumulation_give_the_same_losses(small, tmp_path, more):
    noted, options = NotesCheckpointing(), {"batch_size": 2, "epochs": 3}
    plain = train(small, ROWS[:2], output_dir=tmp_path / "a", **options)
    other = train(small, ROWS[:2], output_dir=tmp_path / "b", callbacks=[noted], **(options | more))
    assert [loss for _, loss in other.losses] == pytest.approx(
        [loss for _, loss in plain.losses], rel=1e-3
    )
    assert noted.seen == {"gradient_checkpointing" in more}
    assert not any(getattr(m, "gradient_checkpointing", False) for m in small.model.modules())


def test_adapter_names_its_base_and_is_refused_by_others(small, tiny_folder, tmp_path):
    run = train(small, ROWS[:1], output_dir=tmp_path / "run", target="all", rank=2)
    config = json.loads((run.output_dir / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == small.name
    assert (config["r"], config["lora_alpha"]) == (2, 4)
    with pytest.raises(ModelError, match="was made for"):
        vlkit.load(tiny_folder("qwen3_vl"), adapter=run.output_dir)


@pytest.mark.parametrize(
    "argument",
    [
        {"epochs": 0},
        {"epochs": float("nan")},
        {"learning_rate": 0},
        {"learning_rate": 2},
        {"batch_size": 0},
        {"gradient_accumulation": 1.5},
        {"rank": 0},
        {"epochs": True},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"alpha": "x"},
        {"seed": -1},
        {"seed": 1.5},
        {"quantize": "2bit"},
        {"target": ["q_proj"]},
        {"gradient_checkpointing": "yes"},
        {"resume": "yes"},
        {"callbacks": [5]},
        {"callbacks": None},
        {"report_to": 5},
        {"output_dir": None},
        {"output_dir": "a\0b"},
        {"output_dir": __file__},
    ],
)
def test_wrong_arguments(small, tmp_path, argument):
    (name,) = argument
    with pytest.raises(VlkitError, match=f"{name}="):
        train(small, ROWS, **{"output_dir": tmp_path / "run"} | argument)
    assert not (tmp_path / "run").exists()


def test_no_rows_and_no_model(small, tmp_path):
    data = load_conversations(ROWS[:1])
    with pytest.raises(VlkitError, match=r"^data has no rows"):
        train(small, data[:0], output_dir=tmp_path / "run")
    with pytest.raises(VlkitError, match="eval_data has no rows"):
        train(small, data, eval_data=data[:0], output_dir=tmp_path / "run")
    with pytest.raises(VlkitError, match="vlm='tiny' is not a loaded model"):
        train("tiny", data, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Breaks(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise ZeroDivisionError


def test_a_run_that_died_before_its_first_checkpoint_starts_again(small, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        train(small, ROWS, output_dir=run, callbacks=[Breaks()], **OPTIONS)
    (run / "checkpoint-1").mkdir()  # that was being written
    with pytest.raises(VlkitError, match="has no checkpoint to resume from; pass resume=False"):
        train(small, ROWS, output_dir=run, resume=True, **OPTIONS)
    assert train(small, ROWS[:1], output_dir=run, **OPTIONS | {"epochs": 1}).finished


class Damages(TrainerCallback):
    """Writes a value into a trained weight after a step."""

    def __init__(self, step, value):
        self.step, self.value = step, value

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == self.step:
            next(p for p in model.parameters() if p.requires_grad).data[0, 0] = self.value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(small, tmp_path, value):
    run, options = tmp_path / "run", {"batch_size": 1, "learning_rate": 1e-2}
    with pytest.raises(
        ModelError, match=r"^the loss of step 6 is nan, so training stopped"
    ) as error:
        train(small, ROWS * 8, output_dir=run, callbacks=[Damages(5, value)], **options)
    assert "learning_rate=0.01 is too high (lower it)" in str(error.value)
    assert last_checkpoint(run, True) == run / "checkpoint-4"
    assert not any(hasattr(module, "lora_A") for module in small.model.modules())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_not_written(small, tmp_path, value):
    """A checkpoint follows each step; resumed from it, every loss would be nan."""
    run, callback = tmp_path / "run", Damages(2, value)
    with pytest.raises(ModelError, match=r"^a trained weight after step 2 is (nan|inf)"):
        train(small, ROWS, output_dir=run, batch_size=1, callbacks=[callback])
    assert last_checkpoint(run, True) == run / "checkpoint-1"


@pytest.mark.parametrize(
    ("more", "what"),
    [({}, "loss of step 1"), ({"eval_data": ROWS}, "loss on eval_data after step 0")],
)
def test_a_model_with_a_broken_weight_is_named(tiny_folder, tmp_path, more, what):
    vlm = vlkit.load(tiny_folder("qwen2_vl"))
    vlm.model.model.language_model.norm.weight.data[3] = math.nan
    with pytest.raises(ModelError, match=f"^the {what} is nan") as error:
        train(vlm, ROWS, output_dir=tmp_path / "run", **more)
    assert "the model's weight" in str(error.value) and "norm.weight" in str(error.value)
    assert "learning_rate" not in str(error.value)


class FillsDisk(TrainerCallback):
    """From a step on, no file can grow beyond a size, as on a full disk."""

    def __init__(self, step, size):
        self.step, self.size = step, size

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.pt"])
def test_a_full_disk_is_one_line_and_the_run_is_resumed(small, tmp_path, file):
    whole, run = train(small, ROWS, output_dir=tmp_path / "whole", **OPTIONS), tmp_path / "run"
    size = (whole.output_dir / "checkpoint-20" / file).stat().st_size - 100
    try:
        with pytest.raises(VlkitError, match=r"^a checkpoint cannot be written to .*free") as error:
            train(small, ROWS, output_dir=run, callbacks=[FillsDisk(6, size)], **OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert "\n" not in str(error.value) and "resume=True" in str(error.value)
    assert last_checkpoint(run, True) == run / "checkpoint-4"
    assert train(small, ROWS, output_dir=run, resume=True, **OPTIONS).losses == whole.losses


@pytest.mark.parametrize(
    "file", ["trainer_state.json", "adapter_model.safetensors", "rng_state.pth"]
)
def test_a_checkpoint_that_was_cut_off_is_passed_over(small, tmp_path, file):
    whole = train(small, ROWS, output_dir=tmp_path / "whole", **OPTIONS)
    half = tmp_path / "half"
    train(small, ROWS, output_dir=half, callbacks=[StopAt(6)], **OPTIONS)
    assert last_checkpoint(half, True) == half / "checkpoint-6"
    cut = half / "checkpoint-6" / file
    os.truncate(cut, cut.stat().st_size // 2)
    assert last_checkpoint(half, True) == half / "checkpoint-4"
    rest = train(small, ROWS, output_dir=half, resume=True, **OPTIONS)
    assert rest.losses == whole.losses


def test_stopped_and_resumed_the_best_of_all_is_kept(small, tmp_path):
    options = OPTIONS | {"eval_data": ROWS[1:2], "learning_rate": 3e-2}
    whole = train(small, ROWS[:1], output_dir=tmp_path / "whole", **options)
    train(small, ROWS[:1], output_dir=tmp_path / "half", callbacks=[StopAt(2)], **options)
    with pytest.raises(VlkitError, match="was started with other eval_data; resume with the same"):
        other = options | {"eval_data": ROWS[2:3]}
        train(small, ROWS[:1], output_dir=tmp_path / "half", resume=True, **other)
    rest = train(small, ROWS[:1], output_dir=tmp_path / "half", resume=True, **options)
    assert (rest.losses, rest.evaluations) == (whole.losses, whole.evaluations)
    adapters = [tmp_path / name / "adapter_model.safetensors" for name in ("whole", "half")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_a_run_is_not_resumed_on_other_data(small, tmp_path):
    run = tmp_path / "run"
    train(small, ROWS, output_dir=run, callbacks=[StopAt(2)], **OPTIONS)
    other = [[*ROWS[0][:-1], vlkit.assistant("A blue square.")], *ROWS[1:]]
    drawn = [talk(("What is this?", noise(120, 90, 7)), "A red square."), *ROWS[1:]]
    for rows in (other, drawn):
        with pytest.raises(VlkitError, match="was started with other data; resume with the same"):
            train(small, rows, output_dir=run, resume=True, **OPTIONS)
    (run / "training.json").write_text("[]")
    with pytest.raises(VlkitError, match=r"training\.json is missing or broken"):
        train(small, ROWS, output_dir=run, resume=True, **OPTIONS)


def test_two_processes_do_not_train_into_one_folder(small, tmp_path):
    with only_writer(tmp_path), pytest.raises(VlkitError, match="another process is training into"):
        train(small, ROWS[:1], output_dir=tmp_path, epochs=1)
    assert train(small, ROWS[:1], output_dir=tmp_path, epochs=1).finished


def test_a_picture_that_is_gone_is_named_with_its_row(small, tmp_path):
    noise(60, 60).save(tmp_path / "a.png")
    data = load_conversations([ROWS[1], talk(("What?", str(tmp_path / "a.png")), "Noise.")])
    (tmp_path / "a.png").unlink()
    with pytest.raises(VlkitError, match=r"row 2: .*a\.png"):
        train(small, data, output_dir=tmp_path / "run")
    with pytest.raises(VlkitError, match=r"row 2: .*a\.png"):
        label_example(small, data[1])


def test_wrong_folders(small, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(VlkitError, match="is not empty; pass resume=True"):
        train(small, ROWS, output_dir=tmp_path)
    with pytest.raises(VlkitError, match="has no checkpoint to resume from"):
        train(small, ROWS, output_dir=tmp_path, resume=True)


def test_data_that_cannot_be_cut_so_is_refused_before_training(small, tmp_path):
    with pytest.raises(VlkitError, match="row 1: max_length=8 would"):
        train(small, load_conversations(ROWS), output_dir=tmp_path / "run", max_length=8)
    assert not (tmp_path / "run").exists()
