"""Adapters put on a loaded model and taken off: answers are those of load(adapter=…)."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from lora_talks import noise
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import vlkit
from vlkit.errors import ModelError, VlkitError
from vlkit.inputs import prepare_inputs
from vlkit.lora import compare, export_adapter, inspect, merge, train, use_adapter
from vlkit.models.adapters import check_base

PICTURE = noise(120, 90)
QUESTION = vlkit.user("What is this?", PICTURE)
ROWS = [[QUESTION, vlkit.assistant("x")]]
NORM = "model.language_model.norm.weight"


def save(folder, base, seed, target="language"):
    """An adapter whose both halves are random, so that it changes every answer."""
    run = train(base, ROWS, output_dir=folder, rank=4, target=target)
    path = run.output_dir / "adapter_model.safetensors"
    torch.manual_seed(seed)
    weights = {name: 0.3 * torch.randn_like(value) for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    return run.output_dir


@pytest.fixture(scope="module")
def base(tiny_folder):
    return vlkit.load(tiny_folder("qwen2_vl"))


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return {"a": save(folder / "a", base, 1), "b": save(folder / "b", base, 2, "all")}


def logits(vlm):
    with torch.inference_mode():
        return vlm.model(**prepare_inputs(vlm, [QUESTION]).tensors).logits


def expected(base, adapter):
    return logits(vlkit.load(base.folder.path, adapter=adapter))


def test_as_if_loaded_with_it(base, adapters):
    before = logits(base)
    for adapter in adapters.values():
        with use_adapter(base, adapter) as tuned:
            assert torch.equal(logits(tuned), expected(base, adapter))
            assert tuned.adapter == str(adapter) and not tuned.model.training
    assert torch.equal(logits(base), before)
    assert inspect(base, ROWS).trained  # it has no adapter left


def test_in_place_of_the_adapter_that_it_was_loaded_with(base, adapters):
    vlm = vlkit.load(base.folder.path, adapter=adapters["a"])
    with use_adapter(vlm, adapters["b"]) as other:
        assert torch.equal(logits(other), expected(base, adapters["b"]))
    with use_adapter(vlm, None) as bare:
        assert torch.equal(logits(bare), logits(base)) and bare.adapter is None
    assert torch.equal(logits(vlm), expected(base, adapters["a"]))


@pytest.mark.parametrize("damage", ["another family", "other shapes", "other layers"])
def test_wrong_ones_leave_the_model_as_it_was(base, adapters, tmp_path, damage):
    before, wrong = logits(base), tmp_path / "wrong"
    shutil.copytree(adapters["a"], wrong)
    weights = load_file(wrong / "adapter_model.safetensors")
    if damage == "another family":
        config = json.loads((wrong / "adapter_config.json").read_text())
        config |= {"auto_mapping": None, "base_model_name_or_path": "Qwen/Qwen3-VL-8B-Instruct"}
        (wrong / "adapter_config.json").write_text(json.dumps(config))
    elif damage == "other shapes":
        weights = {k: torch.cat([v, v], 1).contiguous() for k, v in weights.items()}
    else:
        weights = {k.replace("layers.1.", "layers.9."): v for k, v in weights.items()}
    save_file(weights, wrong / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="load the model that it was made for"):
        compare(base, ROWS, [adapters["b"], wrong], progress=False)
    assert torch.equal(logits(base), before)
    assert not hasattr(base.model, "peft_config")


# --- bases of the same shape ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(base, tmp_path_factory):
    """The base with noise of 1 % on every weight."""
    vlm = vlkit.load(base.folder.path)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in vlm.model.parameters():
            weight.mul_(1 + 0.01 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("other")
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return vlkit.load(folder)


@pytest.mark.parametrize(
    "use",
    {
        "load": lambda vlm, adapter, out: vlkit.load(vlm.folder.path, adapter=adapter),
        "load in 4 bits": lambda vlm, adapter, out: vlkit.load(
            vlm.folder.path, adapter=adapter, quantize="4bit", device="cpu"
        ),
        "load a checkpoint": lambda vlm, adapter, out: vlkit.load(
            vlm.folder.path, adapter=next(adapter.glob("checkpoint-*"))
        ),
        "load what was handed on": lambda vlm, adapter, out: vlkit.load(
            vlm.folder.path,
            adapter=export_adapter(adapter, out / "x", model="Qwen/Qwen2-VL-2B-Instruct"),
        ),
        "merge": lambda vlm, adapter, out: merge(adapter, out / "merged", model=vlm.folder.path),
        "use_adapter": lambda vlm, adapter, out: use_adapter(vlm, adapter).__enter__(),
        "compare": lambda vlm, adapter, out: compare(vlm, ROWS, [adapter], progress=False),
    }.values(),
)
def test_other_weights_refuse_the_adapter(other, adapters, tmp_path, use):
    with pytest.raises(ModelError, match=r"made for .*, whose weights were not those of .*; load"):
        use(other, adapters["a"], tmp_path)
    assert not (tmp_path / "merged").exists()
    assert not hasattr(other.model, "peft_config")


@pytest.mark.parametrize(
    "options",
    [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"quantize": "4bit"}, {"quantize": "8bit"}],
)
def test_the_base_in_another_type_takes_it(base, adapters, options):
    vlm = vlkit.load(base.folder.path, adapter=adapters["b"], device="cpu", **options)
    with use_adapter(vlm, adapters["a"]):  # beneath an adapter weights have other names
        pass


def test_other_weights_of_the_same_name_do_not_go_on_with_a_run(base, other, adapters):
    changed = replace(other, folder=base.folder)
    with pytest.raises(ModelError, match="whose weights were not those of"):
        train(changed, ROWS, output_dir=adapters["a"], rank=4, resume=True)
    with use_adapter(base, adapters["a"]):
        pass


def test_marks_know_the_base_from_a_model_of_the_same_shape(base, adapters, tmp_path):
    check_base(adapters["a"], base.model, base.folder)
    larger = copy.deepcopy(base.model)
    with torch.no_grad():
        larger.get_parameter(NORM).mul_(1.1)
        larger.get_input_embeddings().weight.mul_(1.1)
    with pytest.raises(ModelError, match=r"was made for .*, whose weights were not those of"):
        check_base(adapters["a"], larger, base.folder)
    copied = shutil.copytree(adapters["a"], tmp_path / "copy")
    (copied / "adapter_base.json").write_text('{"model.language_model.norm.weight": [3, 4]}')
    with pytest.raises(ModelError, match="was made for"):
        check_base(copied, base.model, base.folder)
    (copied / "adapter_base.json").unlink()
    check_base(copied, larger, base.folder)
    assert vlkit.load(base.folder.path, adapter=copied)  # made by others


@pytest.mark.parametrize(
    "text", ["{", "[]", *(f'{{"{NORM}": {x}}}' for x in ("5", '["a"]', "[1]"))]
)
def test_broken_marks(base, adapters, tmp_path, text):
    copied = shutil.copytree(adapters["a"], tmp_path / "copy")
    (copied / "adapter_base.json").write_text(text)
    with pytest.raises(ModelError, match=r"adapter_base\.json is "):
        use_adapter(base, copied).__enter__()


def test_answers_side_by_side(base, adapters):
    rows = [[QUESTION, vlkit.assistant("x")], [vlkit.user("Who?"), vlkit.assistant("Me.")]]
    found = compare(base, rows, adapters, max_new_tokens=4, progress=False)
    assert list(found.table) == ["row", "question", "truth", "base", "a", "b"]
    for name, adapter in {"base": None, **adapters}.items():
        vlm = vlkit.load(base.folder.path, adapter=adapter)
        texts = [vlkit.generate(vlm, talk[:-1], max_new_tokens=4).text for talk in rows]
        assert found.table[name].tolist() == texts
    assert list(found.summary.index) == ["base", "a", "b"]
    assert list(found.summary) == ["accuracy"] and len(found.changed) == 2
    assert "What is this?" in found._repr_html_()


@pytest.mark.parametrize("adapters", [["x/a", "y/a"], {"base": "x"}, {"truth": "x"}])
def test_two_columns_of_one_name(base, adapters):
    with pytest.raises(VlkitError, match="two columns would be called"):
        compare(base, ROWS, adapters)


# --- handed on to other programs -----------------------------------------------------------------


def test_peft_reads_what_is_handed_on(base, adapters, tmp_path):
    model = base.folder.path
    folder = export_adapter(adapters["b"], tmp_path / "mine", model=model)
    network = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    reference = PeftModel.from_pretrained(network, folder).eval()
    with torch.inference_mode():
        theirs = reference(**prepare_inputs(base, [QUESTION]).tensors).logits
    assert torch.equal(theirs, expected(base, adapters["b"]))
    files = ["adapter_base.json", "adapter_config.json", "adapter_model.safetensors", "args.json"]
    assert sorted(path.name for path in folder.iterdir()) == files


def test_what_vllm_and_swift_need(base, adapters, tmp_path):
    """The rules of vLLM's loader: names of weights, ranks; ms-swift's names of models."""
    hub = "Qwen/Qwen2-VL-2B-Instruct"
    folder = export_adapter(adapters["a"], tmp_path / "mine", model=hub)
    names = load_file(folder / "adapter_model.safetensors")
    start = "base_model.model.model.language_model.layers."
    assert all(name.startswith(start) for name in names)
    assert {name.split(".")[-2:][0] for name in names} == {"lora_A", "lora_B"}
    arguments = json.loads((folder / "args.json").read_text())
    assert (arguments["model"], arguments["model_type"]) == (hub, "qwen2_vl")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == hub and config["r"] == 4


def test_adapters_that_cannot_be_handed_on(base, adapters, tmp_path):
    with pytest.raises(ModelError, match="has no adapter"):
        export_adapter(tmp_path, tmp_path / "out")
    config = adapters["a"] / "adapter_config.json"
    copied = shutil.copytree(adapters["a"], tmp_path / "copy")
    tells = json.loads(config.read_text()) | {"base_model_name_or_path": "tiny"}
    (copied / "adapter_config.json").write_text(json.dumps(tells))
    with pytest.raises(ModelError, match="pass model="):
        export_adapter(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (5, "model=5 must name"),
        ("", "model='' must name"),
        ("Qwen/Qwen3-VL-8B-Instruct", r"\(qwen2_vl\), not for 'Qwen/Qwen3-VL-8B-Instruct'"),
    ],
)
def test_models_that_an_adapter_cannot_be_for(adapters, tmp_path, model, message):
    with pytest.raises(ModelError, match=message):
        export_adapter(adapters["a"], tmp_path / "out", model=model)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [("[]", "is not a JSON object"), ("{}", "r is None"), ('{"r": 8}', "lora_alpha is None")],
)
def test_broken_adapters_are_not_handed_on(base, adapters, tmp_path, config, message):
    copied = shutil.copytree(adapters["a"], tmp_path / "copy")
    (copied / "adapter_config.json").write_text(config)
    with pytest.raises(ModelError, match=message):
        export_adapter(copied, tmp_path / "out", model=base.folder.path)
    (copied / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        export_adapter(copied, tmp_path / "out", model=base.folder.path)
    assert not (tmp_path / "out").exists()


# --- arguments of a wrong type -------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, 5, ""])
@pytest.mark.parametrize(
    "call",
    [
        lambda vlm, name: merge(name, "merged"),
        lambda vlm, name: merge("adapter", name),
        lambda vlm, name: merge("adapter", "merged", model=name),
        lambda vlm, name: export_adapter(name, "exported"),
        lambda vlm, name: export_adapter("adapter", name),
        lambda vlm, name: compare(vlm, ROWS, [name]),
        lambda vlm, name: compare(vlm, ROWS, {"a": name}),
        lambda vlm, name: use_adapter(vlm, 0 if name is None else name).__enter__(),
        lambda vlm, name: vlkit.load(adapter=0 if name is None else name),
    ],
)
def test_names_of_a_wrong_type(base, call, name):
    with pytest.raises(ModelError, match="must name a folder or a model"):
        call(base, name)


@pytest.mark.parametrize("adapters", [None, 5])
def test_adapters_that_are_no_list(base, adapters):
    with pytest.raises(VlkitError, match="must be a list or dict"):
        compare(base, ROWS, adapters)
