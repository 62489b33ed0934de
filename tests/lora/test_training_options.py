"""Whole layers, quantized bases, batches that fit, answers on the way, and what a run proves."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from lora_talks import StopAt, noise, talk
from transformers import AutoModelForImageTextToText, TrainerCallback
from transformers.integrations import integration_utils

import vlkit
from vlkit.errors import ModelError, VlkitError
from vlkit.evaluation.metrics import evaluate_grounding
from vlkit.grounding.boxes import Box
from vlkit.inputs import prepare_inputs
from vlkit.lora import label_example, load_conversations, train, training
from vlkit.lora.batches import Collator
from vlkit.lora.evaluating import Scores, score_answers

ROWS = [
    talk(("What is this?", noise(120, 90)), "A red square."),
    talk(("And this?", noise(60, 90, 1)), "A cat."),
    talk(("Same?", noise(90, 84), noise(56, 84, 1)), "No."),
    talk("Hello", "Hi there."),
]
BY_HEART = {"epochs": 30, "learning_rate": 3e-2, "batch_size": 4, "target": "all"}


@pytest.fixture(scope="module")
def small(tiny_folder):
    return vlkit.load(tiny_folder("qwen2_vl"))


def losses(run):
    return [loss for _, loss in run.losses]


def logits(vlm):
    tensors = prepare_inputs(vlm, [ROWS[0][:1]]).tensors
    with torch.inference_mode():
        return vlm.model(**tensors).logits


@pytest.mark.parametrize(("kind", "target"), [("qwen2_vl", "all"), ("qwen3_vl", "language")])
def test_layers_themselves_are_trained_and_put_back(tiny_folder, tmp_path, kind, target):
    vlm = vlkit.load(tiny_folder(kind))
    before = {name: weight.clone() for name, weight in vlm.model.state_dict().items()}
    run = train(
        vlm, ROWS, output_dir=tmp_path / "run", rank=None, target=target, epochs=6,
        learning_rate=3e-3, batch_size=4,
    )  # fmt: skip
    assert losses(run)[-1] < 0.8 * losses(run)[0] and run.effect > 0 and run.checks.passed
    after = vlm.model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    tuned = vlkit.load(run.output_dir)
    assert not hasattr(tuned.model, "peft_config") and tuned.family == vlm.family
    changed = {n for n, w in tuned.model.state_dict().items() if not torch.equal(w, before[n])}
    assert any("mlp" in name for name in changed) and not any("embed_tokens" in n for n in changed)
    assert any("visual" in name for name in changed) == (target == "all")
    moved = (logits(tuned) - logits(vlm)).abs().max().item()
    assert moved > 1e-2 and AutoModelForImageTextToText.from_pretrained(run.output_dir)


def test_whole_layers_stopped_and_resumed(small, tmp_path):
    options = {"rank": None, "epochs": 4, "learning_rate": 1e-3, "batch_size": 2}
    whole = train(small, ROWS, output_dir=tmp_path / "whole", **options)
    train(small, ROWS, output_dir=tmp_path / "half", callbacks=[StopAt(3)], **options)
    rest = train(small, ROWS, output_dir=tmp_path / "half", resume=True, **options)
    assert losses(rest) == losses(whole)
    with pytest.raises(VlkitError, match="started with rank=None, not 8"):
        train(small, ROWS, output_dir=tmp_path / "half", resume=True, **options | {"rank": 8})


class Spoils(TrainerCallback):
    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == 6:
            for parameter in model.parameters():
                parameter.data.mul_(-9 if parameter.requires_grad else 1)


def test_of_whole_layers_too_the_best_are_kept(small, tmp_path):
    """Something spoils the weights after the last step."""
    run = train(
        small, ROWS[:1], eval_data=ROWS[1:2], output_dir=tmp_path / "run", rank=None, epochs=6,
        learning_rate=1e-2, metric=None, samples=0, callbacks=[Spoils()],
    )  # fmt: skip
    found = [loss for _, loss in run.evaluations[1:]]
    assert min(found) == found[-2] < found[-1]
    tuned = vlkit.load(run.output_dir)
    with torch.inference_mode():
        batch = Collator(0)([label_example(tuned, ROWS[1])])
        assert tuned.model(**batch).loss.item() == pytest.approx(min(found), rel=1e-3)


def test_no_memory_for_a_batch_divides_it(small, tmp_path, monkeypatch):
    """A device with room for three rows: auto's eight become two at a time, four for an update."""
    options = {"epochs": 3, "learning_rate": 1e-2}
    plenty = train(small, ROWS * 2, output_dir=tmp_path / "plenty", **options)
    compute = training.VisionTrainer.compute_loss
    sizes = []

    def compute_little(self, model, inputs, *some, **more):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return compute(self, model, inputs, *some, **more)

    monkeypatch.setattr(training.VisionTrainer, "compute_loss", compute_little)
    little = train(small, ROWS * 2, output_dir=tmp_path / "little", **options)
    assert sizes[:2] == [8, 4] and set(sizes[2:]) == {2} and little.steps == plenty.steps == 3
    assert losses(little) == pytest.approx(losses(plenty), rel=1e-3)
    with pytest.raises(ModelError, match="more than the GPU's memory; pass a smaller batch_size"):
        train(small, ROWS, output_dir=tmp_path / "four", batch_size=4, **options)
    assert not any(hasattr(m, "lora_A") for m in small.model.modules())


def test_a_run_that_learns_by_heart_shows_it(small, tmp_path):
    data = load_conversations(ROWS)
    run = train(small, data, eval_data=data, samples=2, output_dir=tmp_path / "run", **BY_HEART)
    assert run.metrics[0] == (0, 0.0) and run.metrics[-1] == (30, 1.0)
    assert [step for step, _ in run.metrics] == [step for step, _ in run.evaluations]
    (first, before), (last, after) = run.samples[0], run.samples[-1]
    assert (first, last) == (0, 30) and len(before) == len(after) == 2
    assert [told[:2] for told in before] == [told[:2] for told in after]
    assert all(truth == answer for _, truth, answer in after)
    checks = run.checks
    assert (checks.before, checks.after) == (0.0, 1.0) and checks.passed
    assert (
        checks.table["truth"].tolist() == checks.table["after"].tolist() == ["A red square.", "No."]
    )
    assert checks.table["before"].tolist() == [answer for *_, answer in before]
    assert checks.merged_difference < 1e-3 < checks.change
    assert run.seconds > 0
    shown = run._repr_html_()
    assert "A red square." in shown and "100%" in shown
    again = train(
        small, data, eval_data=data, samples=2, output_dir=tmp_path / "run", resume=True, **BY_HEART
    )
    assert again.samples[:-1] == run.samples[:-1] and again.metrics == run.metrics


def test_nothing_is_asked_where_nothing_is_wanted(small, tmp_path):
    options = {"metric": None, "samples": 0, "batch_size": 4}
    run = train(small, ROWS, eval_data=ROWS[:1], output_dir=tmp_path / "run", **options)
    assert run.metrics == run.samples == () and len(run.evaluations) == 2
    assert run.checks.before is None and run.checks.table.empty and run.checks.passed


def test_answers_are_shown_as_data(small, tmp_path):
    rows = [talk("<b>bold</b>", "<script>")]
    run = train(small, rows, eval_data=rows, output_dir=tmp_path / "run", samples=1)
    assert "&lt;script&gt;" in run._repr_html_() and "<script>" not in run._repr_html_()


@pytest.mark.parametrize(
    ("metric", "expected"), [("auto", 3 / 6), ("exact", 1 / 3), ("iou", 2 / 3), (None, None)]
)
def test_metric_counts_texts_and_boxes(metric, expected):
    """Three answers in words, one of them right; three boxes, of which two were found."""
    import pandas

    truth = [[Box("a", 0, 0, 9, 9), Box("b", 20, 20, 40, 40)], [Box("c", 5, 5, 10, 10)]]
    found = [[Box("a", 0, 0, 9, 8), Box("b", 20, 20, 40, 41)], [Box("c", 8, 8, 30, 30)]]
    table = pandas.DataFrame({"boxes": [0, 0, 0, 2, 1]})
    scores = Scores(table, 1 / 3, evaluate_grounding(found, truth, coco=False))
    assert score_answers(scores, metric) == (
        expected if expected is None else pytest.approx(expected)
    )
    texts = Scores(pandas.DataFrame({"boxes": [0]}), 1.0, None)
    assert score_answers(texts, "iou") is None and score_answers(texts, "auto") == 1.0


@pytest.mark.parametrize(("bits", "near"), [("8bit", 0.02), ("4bit", 0.1)])
def test_few_bits_learn_as_the_whole_model(small, tmp_path, bits, near):
    options = {"epochs": 4, "batch_size": 4}
    whole = train(small, ROWS, output_dir=tmp_path / "whole", **options)
    packed = train(small, ROWS, output_dir=tmp_path / "packed", quantize=bits, **options)
    assert losses(packed) == pytest.approx(losses(whole), rel=near)
    assert packed.checks.passed and packed.checks.merged_difference is None
    assert not getattr(small.model, "is_quantized", False)


def test_a_model_of_four_bits_that_has_answered_learns_too(small, tmp_path):
    loaded = vlkit.load(small.folder.path, quantize="4bit")
    before = vlkit.generate(loaded, "Hi", max_new_tokens=8).tokens
    run = train(loaded, ROWS, output_dir=tmp_path / "run", epochs=4, batch_size=4)
    again = train(
        small, ROWS, output_dir=tmp_path / "again", epochs=4, batch_size=4, quantize="4bit"
    )
    assert losses(run) == losses(again) and run.checks.passed
    assert vlkit.generate(loaded, "Hi", max_new_tokens=8).tokens == before
    tuned = vlkit.load(small.folder.path, quantize="4bit", adapter=tmp_path / "run")
    assert vlkit.generate(tuned, "Hi", max_new_tokens=8).tokens


class Tracker(TrainerCallback):
    """Keeps what it is told, as trackers do."""

    told: ClassVar[list[dict]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.told.append(dict(logs))


@pytest.mark.parametrize("report_to", ["tensorboard", ["tensorboard"]])
def test_a_tracker_is_told_losses_and_metrics(small, tmp_path, monkeypatch, report_to):
    """As the Trainer makes it of its name."""
    monkeypatch.setattr(Tracker, "told", [])
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    monkeypatch.setattr(
        integration_utils, "get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    run = train(
        small, ROWS, eval_data=ROWS, output_dir=tmp_path / "run", batch_size=4, report_to=report_to
    )
    told = {
        name: [each[name] for each in Tracker.told if name in each]
        for name in ("loss", "eval_loss", "eval_accuracy")
    }
    assert told["loss"] == losses(run)
    assert told["eval_loss"] == [loss for _, loss in run.evaluations]
    assert told["eval_accuracy"] == [share for _, share in run.metrics]


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ({"report_to": "paper"}, VlkitError, "report_to='paper' is not a tracker; choose one of"),
        ({"report_to": ["wandb"]}, VlkitError, "'wandb' needs its package: pip install"),
        ({"metric": "f1"}, VlkitError, "metric='f1' is unknown; choose one of"),
        ({"samples": -1}, VlkitError, "samples=-1 must be"),
        ({"batch_size": "large"}, VlkitError, "batch_size='large' must be"),
        ({"quantize": "8bit", "rank": None}, VlkitError, "rank=None trains the model's own"),
    ],
)
def test_wrong_arguments(small, tmp_path, argument, error, message):
    with pytest.raises(error, match=message):
        train(small, ROWS, output_dir=tmp_path / "run", **argument)
    assert not (tmp_path / "run").exists()
