"""Training on a CUDA GPU: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

import importlib.util

import PIL.Image
import pytest
import torch

import vlkit
from vlkit.lora import load_conversations, merge, train
from vlkit.lora.costs import AUTO

pytestmark = pytest.mark.gpu
COLORS = ("red", "green", "blue", "black", "teal", "brown")
OPTIONS = {"epochs": 3, "learning_rate": 1e-3, "batch_size": 4}


def rows() -> list:
    """Pictures of two sizes, several questions to each; texts of several lengths."""
    told = []
    for index, color in enumerate(COLORS):
        picture = PIL.Image.new("RGB", (112 + 56 * (index % 2), 112), color)
        told.append([vlkit.user("Which colour is it?", picture), vlkit.assistant(f"Only {color}.")])
        told.append([vlkit.user("A picture?", picture), vlkit.assistant("Yes, one " * (index + 1))])
    return told


def losses(folder, device="cuda:0", dtype="float32", **options) -> list[float]:
    vlm = vlkit.load(device=device, dtype=dtype)
    run = train(vlm, load_conversations(rows()), output_dir=folder, **OPTIONS | options)
    assert run.checks.passed, run.checks
    return [loss for _, loss in run.losses]


def test_losses_are_the_cpus(tmp_path):
    expected = losses(tmp_path / "cpu", device="cpu", epochs=5)
    assert losses(tmp_path / "gpu", epochs=5) == pytest.approx(expected, rel=1e-3)
    assert expected[-1] < expected[0] / 2


def test_bfloat16_is_near_float32(tmp_path):
    exact = losses(tmp_path / "float32")
    assert losses(tmp_path / "bfloat16", dtype="bfloat16") == pytest.approx(exact, rel=0.1, abs=0.1)


@pytest.mark.parametrize(
    "more",
    [
        {"gradient_checkpointing": True},
        {"batch_size": 1, "gradient_accumulation": 4},
        {"target": "all", "gradient_checkpointing": True},
    ],
)
def test_checkpointing_and_accumulation_change_no_loss(tmp_path, more):
    plain = {"target": more["target"]} if "target" in more else {}
    expected = losses(tmp_path / "plain", **plain)
    assert losses(tmp_path / "other", **more) == pytest.approx(expected, rel=1e-3)


def test_no_memory_for_a_batch_halves_it(tmp_path, monkeypatch):
    """With room for six rows of eight: auto takes four at a time, and learns the same."""
    from vlkit.lora import training

    plenty = losses(tmp_path / "plenty", batch_size="auto")
    compute = training.VisionTrainer.compute_loss
    sizes = []

    def compute_little(self, model, inputs, *some, **more):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 6:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        return compute(self, model, inputs, *some, **more)

    monkeypatch.setattr(training.VisionTrainer, "compute_loss", compute_little)
    assert losses(tmp_path / "little", batch_size="auto") == pytest.approx(plenty, rel=1e-3)
    assert sizes[0] == AUTO and max(sizes[1:]) == AUTO // 2


def test_evaluation_on_the_way_and_a_merged_model(tmp_path):
    vlm, questions = vlkit.load(device="cuda:0", dtype="bfloat16"), rows()[::2]
    options = OPTIONS | {"epochs": 10, "learning_rate": 3e-3}
    run = train(vlm, rows(), eval_data=questions, output_dir=tmp_path / "run", **options)
    assert run.metrics[0] == (0, 0.0) and len(run.metrics) == len(run.evaluations)
    assert run.checks.passed and run.checks.after > run.checks.before == 0
    folder = merge(run.output_dir, tmp_path / "merged", device="cuda:0")
    merged = vlkit.load(folder, device="cuda:0", dtype="bfloat16")
    tuned = vlkit.load(device="cuda:0", dtype="bfloat16", adapter=run.output_dir)
    answers = [str(vlkit.generate(each, questions[0][0])) for each in (merged, tuned)]
    assert answers[0] == answers[1] and answers[0].startswith("Only ")


if importlib.util.find_spec("bitsandbytes"):

    @pytest.mark.parametrize("quantize", ["4bit", "8bit"])
    def test_quantized_base_learns_as_the_whole_one(tmp_path, quantize):
        whole = losses(tmp_path / "whole", dtype="bfloat16")
        packed = losses(tmp_path / "packed", dtype="bfloat16", quantize=quantize)
        assert packed == pytest.approx(whole, rel=0.25, abs=0.25)
