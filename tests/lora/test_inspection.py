"""The X-ray tells beforehand what training will do: lengths, layers, parameters, memory."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from lora_talks import CLIP, KINDS, noise, talk

import vlkit
from vlkit.errors import VlkitError
from vlkit.lora import costs, inspect, label_example, load_conversations
from vlkit.lora.batches import measure_length, truncate
from vlkit.lora.costs import estimate_training
from vlkit.lora.networks import (
    PARTS,
    LeanLayer,
    find_modules,
    lean_layers,
    part_of,
    plan_parts,
    quantized,
)

ODD = vlkit.Video([noise(96, 64, i) for i in range(9)], frames=6, source_fps=3)
ROWS = [
    talk(("What is this?", noise(120, 90)), "A red square."),
    talk("Hello", "Hi there."),
    talk(("What?", noise(60, 90)), "A cat.", "Which colour?", "It is grey."),
    talk("Hi", "Hello.", ("And this?", noise(90, 60)), "A dog."),
    talk(("Same?", noise(300, 84), noise(56, 184, 1)), "No."),
    talk(("What moves?", CLIP), "Nothing."),
    talk(("First this, then that", noise(99, 99), ODD, CLIP), "Yes. 一个红色的方块。🎈"),
    [vlkit.system("Be terse."), *talk("What?<|im_end|>", "That.")],
]


@pytest.fixture(params=KINDS)
def model(request, tiny_vlm):
    return tiny_vlm(request.param)


@pytest.fixture(scope="module")
def data():
    return load_conversations(ROWS)


# --- lengths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", range(len(ROWS)))
def test_lengths_are_those_of_the_tensors(model, data, i):
    length, labelled = measure_length(model, data[i]), label_example(model, data[i])
    ids, config = labelled.tensors["input_ids"][0], model.model.config
    media = (ids == config.image_token_id) | (ids == config.video_token_id)
    learnt = (labelled.labels[0] != -100).nonzero()[:, 0].tolist()
    assert (length.total, length.media) == (labelled.length, int(media.sum()))
    assert [n for start, end in length.answers for n in range(start, end)] == learnt
    ends = (ids == config.vision_end_token_id).nonzero()
    assert length.media_end == (int(ends[-1]) + 1 if media.any() else 0)


@pytest.mark.parametrize("i", range(len(ROWS)))
def test_lost_tokens_are_those_that_the_cut_takes(model, data, i):
    length, labelled = measure_length(model, data[i]), label_example(model, data[i])
    assert length.lost(None) == length.lost(length.total) == 0
    for most in range(1, length.total):
        try:
            assert length.lost(most) == truncate(model, labelled, most).lost
        except VlkitError as error:
            with pytest.raises(
                VlkitError, match=re.escape(str(error).removeprefix(f"row {i + 1}: "))
            ):
                truncate(model, labelled, most)
            with pytest.raises(VlkitError, match=f"row {i + 1}: "):
                length.lost(most)


# --- layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["language", "vision", "all", r".*\.layers\.1\..*v_proj"])
def test_parameters_are_those_that_peft_makes(model, target):
    from peft import LoraConfig, get_peft_model

    parts = plan_parts(model, target, 4)
    own = vlkit.load(model.folder.path)
    names = list(find_modules(own.model, target))
    adapted = get_peft_model(own.model, LoraConfig(r=4, target_modules=names))
    counted = dict.fromkeys(PARTS, 0)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            counted[part_of(name)] += parameter.numel()
    assert {part.name: part.trained for part in parts} == counted
    assert sum(counted.values()) > 0


def test_targets_name_the_parts(model):
    got = {
        target: {part.name for part in plan_parts(model, target, 4) if part.modules}
        for target in ("language", "vision", "all")
    }
    assert got == {
        "language": {"language model"},
        "vision": {"vision tower", "merger"},
        "all": set(PARTS),
    }
    names = [name for part in plan_parts(model, "all", 4) for name in part.modules]
    assert "lm_head" not in names and len(set(names)) == len(names)


def test_parts_hold_all_parameters(model):
    parts = plan_parts(model, "all", None)
    assert sum(part.parameters for part in parts) == model.model.num_parameters()
    weights = {
        name: sum(p.numel() for p in layer.parameters())
        for name, layer in model.model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    assert sum(p.trained for p in parts) == sum(n for m, n in weights.items() if m != "lm_head")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("nothing", 4), "target='nothing' matches no linear layer"),
        (("(", 4), "nor a regular expression"),
        (("all", 0), "rank=0 must be a whole number"),
        (("all", True), "rank=True must be"),
    ],
)
def test_wrong_targets(vlm, arguments, problem):
    with pytest.raises(VlkitError, match=problem):
        plan_parts(vlm, *arguments)


# --- memory and time -----------------------------------------------------------------------------


def bytes_kept_for_backward(model, labelled, monkeypatch):
    """What autograd and lean layers really hold between forward and backward, parameters apart."""
    own = [*model.parameters(), *model.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    forward = LeanLayer.forward

    def keep_all(lean, *inputs, **options):
        found = forward(lean, *inputs, **options)
        graphs = [g for g in [*vars(found).values(), *(found.heads or ())] if hasattr(g, "inputs")]
        held = [*vars(found).values(), *(t for g in graphs for t in (*g.inputs, g.output))]
        for tensor in filter(torch.is_tensor, held):
            keep(tensor)
        return found

    monkeypatch.setattr(LeanLayer, "forward", keep_all)
    tensors = {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in labelled.tensors.items()
    }
    with (
        lean_layers(model.get_base_model()),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model(**tensors, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", ["language", "vision", "all"])
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_activations_are_those_that_autograd_keeps(tiny_folder, kind, target, dtype, monkeypatch):
    from peft import LoraConfig, get_peft_model

    vlm = vlkit.load(tiny_folder(kind), dtype=dtype)
    messages = talk(("word " * 300, noise(256, 256)), "Yes.")
    labelled = label_example(vlm, messages)
    parts = plan_parts(vlm, target, 4)
    patches = len(labelled.tensors["pixel_values"])
    guess = estimate_training(
        vlm, parts, rank=4, tokens=labelled.length, learnt=labelled.trained, patches=patches
    )
    names = list(find_modules(vlm.model, target))
    adapted = get_peft_model(vlm.model, LoraConfig(r=4, target_modules=names)).train()
    kept = bytes_kept_for_backward(adapted, labelled, monkeypatch)
    copied = 0 if dtype == "float32" else norms_on_a_cpu(vlm.model.config.get_text_config(), kind)
    assert guess.activations + copied * labelled.length == pytest.approx(kept, rel=0.2)


def norms_on_a_cpu(text, kind):
    """Bytes of a token: a CPU's norm (not a GPU's) copies its bfloat16 input to float32."""
    heads = (text.num_attention_heads + text.num_key_value_heads) * (kind == "qwen3_vl")
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 4 * text.num_hidden_layers * (2 * text.hidden_size + heads * head)


@pytest.mark.parametrize(
    ("rows", "checkpointing", "bits"),
    [
        (2, False, None), (4, False, None), (8, False, None), (8, True, None),
        (2, False, "4bit"), (8, False, "4bit"), (8, True, "4bit"),
    ],
)  # fmt: skip
def test_estimate_is_what_an_h100_was_seen_to_take(rows, checkpointing, bits):
    """The benchmark's longest batch: 638 tokens of a picture and 75 of text in each row."""
    file = f"lora_training_h100_7b{'_4bit' if bits else ''}.json"
    path = Path(__file__).parents[2] / "benchmarks/results" / file
    name = f"vlkit, {rows} at a time" + (", checkpointed" if checkpointing else "")
    measured = json.loads(path.read_text())["recipes"][name]["peak_gb"] * 1e9
    vlm = shape_of("Qwen/Qwen2-VL-7B-Instruct")
    sizes = {"tokens": 713 * rows, "learnt": 50 * rows, "patches": 4 * 638 * rows, "rank": 8}
    parts = plan_parts(vlm, "language", 8)
    more = {"gradient_checkpointing": checkpointing, "quantize": bits}
    guess = estimate_training(vlm, parts, **more, **sizes)
    assert guess.total == pytest.approx(measured, rel=0.1)


def shape_of(name):
    from types import SimpleNamespace

    from transformers import AutoModelForImageTextToText

    from vlkit.models.families import family_of_name
    from vlkit.models.load import VLM
    from vlkit.models.memory import build_config

    with torch.device("meta"):
        network = AutoModelForImageTextToText.from_config(build_config(name), dtype=torch.bfloat16)
    return VLM(network, None, family_of_name(name), SimpleNamespace(name=name))


def test_estimates_are_what_an_h200_took_for_a_24_gb_card(monkeypatch):
    """Rows of a picture, some 35 tokens of a question and 40 of an answer, checkpointed."""
    monkeypatch.setattr(costs, "available_memory", lambda: (22 * 10**9, "GPU"))
    path = Path(__file__).parents[2] / "benchmarks/results/lora_memory_h200.json"
    runs = json.loads(path.read_text())["runs"]
    shapes = {name: shape_of(name) for name in {run["shape"] for run in runs}}
    assert len(runs) >= 10 and len(shapes) > 1
    for run in runs:
        vlm, rows = shapes[run["shape"]], run["rows_at_a_time"]
        bits = None if run["weights"] == "bfloat16" else run["weights"]
        guess = estimate_training(
            vlm, plan_parts(vlm, "language", 8), rank=8, tokens=rows * (run["image_tokens"] + 75),
            learnt=40 * rows, patches=4 * rows * run["image_tokens"],
            gradient_checkpointing=True, quantize=bits,
        )  # fmt: skip
        assert guess.total / 1e9 == pytest.approx(run["peak_gb"], rel=0.1), run
        assert abs(run["inspected_over_peak"] - 1) <= 0.1


@pytest.mark.parametrize(
    ("free", "remedy"),
    [
        (80, None),
        (25, "about 19.1 GB with gradient_checkpointing=True$"),
        (18, "with batch_size=1, gradient_accumulation=8, gradient_checkpointing=True$"),
        (15, r"with gradient_checkpointing=True, a model from load\(…, quantize='4bit'\)$"),
        (8, "with batch_size=1, gradient_accumulation=8, .*True, a model from load.*4bit"),
        (3, "no setting fits it"),
    ],
)
def test_a_run_that_will_not_fit_is_told_what_would(free, remedy, monkeypatch):
    """Eight rows of 1,355 tokens for the 7B shape, which takes a part of the card already."""
    vlm = shape_of("Qwen/Qwen2-VL-7B-Instruct")
    weights = vlm.model.get_memory_footprint()
    monkeypatch.setattr(costs, "available_memory", lambda: (int(free * 1e9) - weights, "GPU"))
    parts, row = plan_parts(vlm, "language", 8), (1355, 40, 5120)
    options = {"rank": 8, "gradient_checkpointing": False, "quantize": None}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        memory = costs.estimate_batch(vlm, parts, costs.BatchSize(8, 1), row, **options)
    told = [str(w.message) for w in seen if "needs about" in str(w.message)]
    assert memory.fits is (remedy is None) and len(told) == (remedy is not None)
    if remedy:
        assert re.search(remedy, told[0]), told


def test_checkpointing_keeps_less_and_longer_rows_keep_more(model):
    parts = plan_parts(model, "all", 4)
    sizes = {"rank": 4, "tokens": 500, "learnt": 20, "patches": 256}

    def guess(**more):
        return estimate_training(model, parts, **sizes | more)

    assert guess(gradient_checkpointing=True).activations < guess().activations
    assert guess(tokens=1000).activations > guess().activations
    assert guess(learnt=40).logits == 2 * guess(tokens=1000).logits == 2 * guess().logits
    assert guess().weights == sum(p.nbytes for p in model.model.parameters()) + sum(
        b.nbytes for b in model.model.buffers()
    )
    assert guess().state == 16 * sum(part.trained for part in parts)


def test_steps_are_counted_as_the_trainer_counts_them(vlm, data):
    for batch, accumulated, epochs, steps in (
        (1, 1, 1, 8),
        (3, 1, 1, 3),
        (2, 2, 3, 6),
        (8, 1, 2, 2),
    ):
        xray = inspect(
            vlm, data, batch_size=batch, gradient_accumulation=accumulated, epochs=epochs
        )
        assert xray.steps == steps
    assert 0 < xray.seconds < 600


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantized_weights_are_counted_as_they_are_loaded(vlm, data, bits, monkeypatch):
    """And beside the model that is there; blocks' scales are a ninth of 4-bit weights."""
    loaded = quantized(vlm, bits, 8).model.get_memory_footprint()
    xray = inspect(vlm, data, quantize=bits)
    assert loaded <= xray.memory.weights <= loaded * 1.1
    monkeypatch.setattr(costs, "available_memory", lambda: (10**9, "RAM"))
    whole, packed = (inspect(vlm, data, quantize=each).memory for each in (None, bits))
    assert (packed.available, whole.available) == (10**9, 10**9 + whole.weights)


def test_looks_at_held_out_rows_take_time_and_few_rows_no_more_than_their_memory(
    vlm, data, monkeypatch
):
    monkeypatch.setattr(costs, "time_forward", lambda vlm, labelled: (1.0, 0.2))
    plain = inspect(vlm, data[:2], batch_size=1)
    watched = inspect(vlm, data[:2], eval_data=data, batch_size=1)
    unasked = inspect(vlm, data[:2], eval_data=data, batch_size=1, metric=None, samples=0)
    assert plain.seconds < unasked.seconds < watched.seconds
    assert inspect(vlm, data[:1]).memory.activations == (
        inspect(vlm, data[:1], batch_size=1).memory.activations
    )


# --- the X-ray -----------------------------------------------------------------------------------


@pytest.mark.parametrize("i", range(len(ROWS)))
def test_runs_spell_the_example(model, data, i):
    xray = inspect(model, data, example=i)
    ids, config = xray.example.tensors["input_ids"][0].tolist(), model.model.config
    media = (config.image_token_id, config.video_token_id)
    assert sum(run.count for run in xray.runs) == len(ids)
    text = "".join(run.text for run in xray.runs if run.kind in ("prompt", "learnt"))
    assert text == model.processor.tokenizer.decode([token for token in ids if token not in media])
    for kind, token in zip(("image", "video"), media, strict=True):
        assert sum(run.count for run in xray.runs if run.kind == kind) == ids.count(token)
    learnt = sum(run.count for run in xray.runs if run.kind == "learnt")
    assert learnt == xray.example.trained == xray.lengths[i].trained


def test_inspecting_changes_nothing(model, data):
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    inspect(model, data, target="all")
    after = model.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not model.model.training
    assert all(p.requires_grad and p.grad is None for p in model.model.parameters())


def test_max_length_reports_what_it_cuts_and_refuses_pictures(vlm, data):
    whole = inspect(vlm, data)
    totals = {length.row: length.total for length in whole.lengths}
    most = max(totals.values()) - 1
    xray = inspect(vlm, data, max_length=most)
    (row,) = [row for row, total in totals.items() if total > most]
    assert xray.cut == [(row, 0)]  # the newline after the answer
    assert (
        f"max_length={most:,} cuts <b>1 rows</b>".replace("1 rows", "1 row") in xray._repr_html_()
    )
    with pytest.raises(
        VlkitError, match=r"conversations: \d rows have problems: row 1: max_length=20 would"
    ):
        inspect(vlm, data, max_length=20)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"gradient_accumulation": 1.5}, "gradient_accumulation=1.5"),
        ({"max_length": True}, "max_length=True"),
        ({"example": 8}, "example=8 does not exist; the data has 8 rows"),
        ({"target": "x"}, "matches no linear layer"),
    ],
)
def test_wrong_arguments(vlm, data, arguments, problem):
    with pytest.raises(VlkitError, match=problem):
        inspect(vlm, data, **arguments)


def test_plain_messages_are_data_too(vlm):
    assert inspect(vlm, ROWS[:2]).rows == 2


def test_html_escapes_what_users_wrote(vlm):
    hostile = "<script>alert(1)</script>"
    xray = inspect(vlm, [talk((hostile, noise(56, 56)), hostile)])
    page = xray._repr_html_()
    assert "<script" not in page
    written = re.sub(r"<[^>]*>", "", page)
    assert written.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    seen = int(xray.example.tensors["image_grid_thw"].prod()) // 4
    for said in (
        f"picture, {seen} tokens",
        "learnt: answers and their end token",
        "vision tower",
        "1 step,",
        "tiny: 1 row of conversations",
    ):
        assert said in written


def test_a_model_with_an_adapter_is_refused(tiny_folder, data):
    from dataclasses import replace

    from peft import LoraConfig, get_peft_model

    vlm = vlkit.load(tiny_folder("qwen2_vl"))
    adapted = get_peft_model(vlm.model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(VlkitError, match="already has an adapter; load it without adapter="):
        inspect(replace(vlm, model=adapted), data)
