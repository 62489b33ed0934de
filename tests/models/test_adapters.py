"""Adapters: peft's own answers on the model they were made for, a clear line on any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import PIL.Image
import pytest
import torch
from adapter_files import save_adapter
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import vlkit
from vlkit.errors import ModelError
from vlkit.inputs import prepare_inputs
from vlkit.models.families import family_named

PICTURE = PIL.Image.new("RGB", (120, 90), "orange")
QUESTION = vlkit.user("What is this?", PICTURE)


@pytest.fixture(scope="session")
def adapter(tiny_folder, tmp_path_factory):
    return save_adapter(tiny_folder("qwen2_vl"), tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def changed(adapter, tmp_path):
    """The adapter's copy, to damage."""
    return Path(shutil.copytree(adapter, tmp_path / "changed"))


def edit_config(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(*args, **options) -> str:
    with pytest.raises(ModelError) as caught:
        vlkit.load(*args, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    print(message)  # to be read with pytest -s
    return message


def test_answers_as_peft_does_and_not_as_the_base(tiny_folder, tiny_vlm, adapter):
    vlm = vlkit.load(tiny_folder("qwen2_vl"), adapter=adapter)
    network = AutoModelForImageTextToText.from_pretrained(
        tiny_folder("qwen2_vl"), dtype=torch.float32
    )
    reference = PeftModel.from_pretrained(network, adapter).eval()
    tensors = prepare_inputs(vlm, [QUESTION]).tensors
    with torch.inference_mode():
        ours, theirs = vlm.model(**tensors).logits, reference(**tensors).logits
        base = tiny_vlm("qwen2_vl").model(**tensors).logits
    assert torch.equal(ours, theirs)
    assert (ours - base).abs().max() > 0.1
    reply = vlkit.generate(vlm, QUESTION, max_new_tokens=8)
    assert reply.raw != vlkit.generate(tiny_vlm("qwen2_vl"), QUESTION, max_new_tokens=8).raw
    assert vlm.adapter == str(adapter) and repr(str(adapter)) in repr(vlm)
    assert not vlm.model.training


def test_quantized_base_with_an_adapter(tiny_folder, adapter):
    vlm = vlkit.load(tiny_folder("qwen2_vl"), adapter=adapter, quantize="4bit", device="cpu")
    assert vlkit.generate(vlm, QUESTION, max_new_tokens=3).usage.new_tokens == 3


def test_adapter_on_the_picture_side(tiny_folder, tiny_vlm, tmp_path):
    folder = save_adapter(tiny_folder("qwen3_vl"), tmp_path, target_modules=r".*visual.*\.qkv")
    vlm = vlkit.load(tiny_folder("qwen3_vl"), adapter=folder)
    tensors = prepare_inputs(vlm, [QUESTION]).tensors
    with torch.inference_mode():
        change = vlm.model(**tensors).logits - tiny_vlm("qwen3_vl").model(**tensors).logits
    assert change.abs().max() > 1e-3


@pytest.mark.parametrize("trained", [{"modules_to_save": ["merger"]}, {"use_dora": True}])
def test_other_kinds_of_adapters(tiny_folder, tmp_path, trained):
    folder = save_adapter(tiny_folder("qwen2_vl"), tmp_path, **trained)
    vlm = vlkit.load(tiny_folder("qwen2_vl"), adapter=folder)
    assert vlkit.generate(vlm, QUESTION, max_new_tokens=2).usage.new_tokens == 2


def test_adapter_in_a_hub_cache_needs_no_network(
    tiny_folder, adapter, tmp_path, monkeypatch, blocked_network
):
    repo = tmp_path / "models--me--mine"
    shutil.copytree(adapter, repo / "snapshots" / "abc")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    vlm = vlkit.load(tiny_folder("qwen2_vl"), adapter="me/mine")
    assert vlm.adapter == "me/mine"
    assert not blocked_network


def test_adapter_nowhere(tiny_folder, tmp_path, monkeypatch, blocked_network):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    base = tiny_folder("qwen2_vl")
    assert "neither a folder" in refusal(base, adapter=tmp_path / "none")
    assert "neither a folder" in refusal(base, adapter="none")
    assert "me/mine" in refusal(base, adapter="me/mine")


# --- adapters of other tools and times -----------------------------------------------------------


def logits(vlm):
    with torch.inference_mode():
        return vlm.model(**prepare_inputs(vlm, [QUESTION]).tensors).logits


def rename(folder: Path, old: str, new: str) -> None:
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    renamed = {name.replace(old, new): weight.clone() for name, weight in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, file, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(
    "old",
    [
        "model.model.layers",  # before transformers 4.52; a text model of the same weights
        "model.language_model.model.layers",
        "model.language_model.layers",
        "model.layers",  # the language model alone
    ],
)
def test_names_of_other_times_are_todays(tiny_folder, tmp_path, kind, old):
    folder = save_adapter(tiny_folder(kind), tmp_path / "a")
    expected = logits(vlkit.load(tiny_folder(kind), adapter=folder))
    rename(folder, "base_model.model.model.language_model.layers", f"base_model.{old}")
    assert torch.equal(logits(vlkit.load(tiny_folder(kind), adapter=folder)), expected)


def test_names_of_the_vision_encoder_before_4_52(tiny_folder, tmp_path):
    base = tiny_folder("qwen2_5_vl")
    folder = save_adapter(base, tmp_path / "a", target_modules=r".*visual.*\.qkv")
    expected = logits(vlkit.load(base, adapter=folder))
    rename(folder, "model.model.visual", "model.visual")
    assert torch.equal(logits(vlkit.load(base, adapter=folder)), expected)


def test_a_folder_of_another_generation_around_the_base_means_nothing(
    tiny_folder, changed, recwarn
):
    edit_config(
        changed, auto_mapping=None,
        base_model_name_or_path="/home/u/Qwen3-VL/finetune/models/Qwen2-VL-2B-Instruct",
    )  # fmt: skip
    vlkit.load(tiny_folder("qwen2_vl"), adapter=changed)
    assert not [w for w in recwarn if w.category is UserWarning]
    edit_config(changed, base_model_name_or_path="/home/u/Qwen3-VL-2B-renamed")
    with pytest.warns(UserWarning, match="by its folder's name; its weights fit"):
        vlkit.load(tiny_folder("qwen2_vl"), adapter=changed)


def test_weights_beside_an_adapter_are_loaded_or_named(tiny_folder, tmp_path):
    base = tiny_folder("qwen2_5_vl")
    folder = save_adapter(base, tmp_path / "a")
    name = "model.visual.merger.mlp.0.weight"
    before = vlkit.load(base, adapter=folder).model.get_base_model().get_parameter(name)
    wanted = torch.full_like(before, 0.5)
    for spelt in (name, f"base_model.model.{name}", "base_model.model.visual.merger.mlp.0.weight"):
        save_file({spelt: wanted}, folder / "vit.safetensors")
        loaded = vlkit.load(base, adapter=folder).model.get_base_model().get_parameter(name)
        assert torch.equal(loaded, wanted) and not torch.equal(before, wanted)
    for wrong in ({"model.visual.merger.mlp.9.weight": wanted}, {name: wanted[:2]}):
        save_file({key: value.clone() for key, value in wrong.items()}, folder / "vit.safetensors")
        assert "is not a weight of" in refusal(base, adapter=folder)
    (folder / "vit.safetensors").unlink()
    torch.save({name: wanted}, folder / "non_lora_state_dict.bin")
    (folder / "optimizer.pt").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"non_lora_state_dict\.bin may contain") as warned:
        vlkit.load(base, adapter=folder)
    assert "optimizer" not in str(warned[0].message)


# --- adapters of other models --------------------------------------------------------------------


def test_adapter_of_another_generation_by_its_base_folder(tiny_folder, adapter):
    message = refusal(tiny_folder("qwen2_5_vl"), adapter=adapter)
    assert "made for" in message and "(qwen2_vl)" in message and "(qwen2_5_vl)" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct"},
        {"base_model_name_or_path": None, "auto_mapping": {"base_model_class": "Qwen3VLModel"}},
    ],
)
def test_adapter_of_another_generation_by_its_own_word(tiny_folder, changed, changes):
    edit_config(changed, **{"auto_mapping": None, **changes})
    assert "made for" in refusal(tiny_folder("qwen2_vl"), adapter=changed)


def test_adapter_of_another_generation_that_tells_nothing(tiny_folder, changed):
    """Both language towers have the same names; shapes or biases tell them apart, or nothing."""
    edit_config(changed, base_model_name_or_path=None, auto_mapping=None)
    weights = load_file(changed / "adapter_model.safetensors")
    assert {value.shape[0] for value in weights.values()} >= {4}
    assert "does not fit" in refusal(tiny_folder("qwen3_5"), adapter=changed)


def test_adapter_of_other_shapes(tiny_folder, changed):
    path = changed / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({k: torch.cat([v, v], 1).contiguous() for k, v in weights.items()}, path)
    message = refusal(tiny_folder("qwen2_vl"), adapter=changed)
    assert "does not fit" in message and "size mismatch" in message


def test_adapter_whose_layers_do_not_exist(tiny_folder, changed):
    path = changed / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({k.replace("layers.1.", "layers.9."): v for k, v in weights.items()}, path)
    message = refusal(tiny_folder("qwen2_vl"), adapter=changed)
    assert "other layers" in message and "layers." in message


def test_adapter_of_a_deeper_model(tiny_folder, changed):
    """Its own layers are all there, and more: the extra ones would be dropped silently."""
    path = changed / "adapter_model.safetensors"
    weights = load_file(path)
    deeper = {k.replace("layers.1.", "layers.2."): v.clone() for k, v in weights.items()}
    save_file(weights | deeper, path)
    message = refusal(tiny_folder("qwen2_vl"), adapter=changed)
    assert "other layers" in message and "layers.2" in message


def test_adapter_of_no_layer_at_all(tiny_folder, changed):
    edit_config(changed, target_modules=["nothing"])
    assert "does not fit" in refusal(tiny_folder("qwen2_vl"), adapter=changed)


# --- folders that are not whole ------------------------------------------------------------------


def test_adapter_without_weights(tiny_folder, changed):
    (changed / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in refusal(tiny_folder("qwen2_vl"), adapter=changed)


def test_adapter_with_cut_off_weights(tiny_folder, changed):
    path = changed / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "download it again" in refusal(tiny_folder("qwen2_vl"), adapter=changed)


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"peft_type": "MAGIC"}', "{}", '{"auto_mapping": [1]}']
)
def test_adapter_with_a_broken_config(tiny_folder, changed, text):
    path = changed / "adapter_config.json"
    path.unlink() if text is None else path.write_text(text)
    assert str(changed) in refusal(tiny_folder("qwen2_vl"), adapter=changed)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", "qwen2_vl"),
        ("Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "qwen2_5_vl"),
        ("qwen2_5_vl_local", "qwen2_5_vl"),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3_vl"),
        ("Qwen3VLMoeForConditionalGeneration", "qwen3_vl"),
        ("Qwen/Qwen3.5-9B", "qwen3_5"),
        ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl"),
        ("Qwen/Qwen2-7B-Instruct", None),
        ("Qwen/Qwen3-8B", None),
        ("llava-hf/llava-1.5-7b-hf", None),
        ("/data/qwen/sft/Qwen2.5-VL-7B", "qwen2_5_vl"),
        ("", None),
    ],
)
def test_family_named(name, family):
    assert family_named(name) == family
