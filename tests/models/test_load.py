"""`load`: every generation as a bare script loads it, and one clear line where it cannot."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import sys
import weakref
from pathlib import Path

import bare
import PIL.Image
import PIL.ImageDraw
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import KINDS, build_model
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlkit
from vlkit.errors import ModelError
from vlkit.messages import opened_thought
from vlkit.models.hub import ModelFolder
from vlkit.models.load import choose_attention, choose_dtype, network_options, weights_state

SHARD = "model.safetensors"


@pytest.fixture(scope="module")
def picture() -> PIL.Image.Image:
    image = PIL.Image.new("RGB", (150, 110), "white")
    PIL.ImageDraw.Draw(image).ellipse((30, 20, 90, 80), fill="red")
    return image


def refusal(*args, **options) -> str:
    """The one line with which `load` refuses; pytest -s shows it."""
    with pytest.raises(ModelError) as caught:
        vlkit.load(*args, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    print(message)
    return message


def edit_json(path: Path, **changes) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def edit_weights(folder: Path, change) -> None:
    tensors = load_file(folder / SHARD)
    change(tensors)
    save_file(tensors, folder / SHARD, metadata={"format": "pt"})


# --- every generation ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_answers_with_the_tokens_of_a_bare_script(tiny_folder, tiny_vlm, kind, picture):
    folder, question = tiny_folder(kind), "What is this? 这是什么？"
    processor = AutoProcessor.from_pretrained(folder)
    network = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = network.generate(**inputs, max_new_tokens=8, do_sample=False)
    prompt = processor.decode(inputs["input_ids"][0])  # some end with the beginning of a thought
    expected = opened_thought(prompt) + processor.decode(tokens[0, inputs["input_ids"].shape[1] :])

    vlm = tiny_vlm(kind)
    reply = vlkit.generate(vlm, vlkit.user(question, picture), max_new_tokens=8)
    assert reply.raw == expected
    assert reply.usage.prompt_tokens == inputs["input_ids"].shape[1]
    assert vlm.family == reply.family == KINDS[kind][0]
    assert vlm.folder.hub == "local" and vlm.folder.path == folder
    assert not vlm.model.training and vlm.model.dtype == torch.float32
    assert vlm.model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert vlm.processor.tokenizer.padding_side == "left"
    assert vlm.context_length == 4096
    assert repr(str(folder)) in repr(vlm)


def test_shards_load_as_one_file_does(tiny_folder, tmp_path, picture):
    folder = build_model("qwen3_vl", tmp_path / "sharded", max_shard_size="300KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    ours = vlkit.load(folder).model.state_dict()
    whole = vlkit.load(tiny_folder("qwen3_vl")).model.state_dict()
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", torch.bfloat16])
def test_dtype_as_asked(tiny_folder, dtype):
    network = vlkit.load(tiny_folder("qwen2_vl"), dtype=dtype, device="cpu").model
    assert str(network.dtype).removeprefix("torch.") == str(dtype).removeprefix("torch.")
    assert network.device.type == "cpu"


def test_auto_dtype_is_float32_on_a_cpu_and_the_stored_one_elsewhere():
    flat, nested, silent = {"torch_dtype": "float16"}, {"text_config": {"dtype": "bfloat16"}}, {}
    assert choose_dtype("auto", "cpu", flat) == torch.float32
    assert choose_dtype("auto", "cuda", flat) == torch.float16
    assert choose_dtype("auto", "cuda:1", nested) == torch.bfloat16
    assert choose_dtype("auto", "mps", silent) == torch.bfloat16
    assert choose_dtype("float32", "cuda", nested) == torch.float32


@pytest.mark.parametrize("attn", ["auto", "sdpa", "eager"])
def test_attention_as_asked(tiny_folder, attn):
    config = vlkit.load(tiny_folder("qwen2_vl"), attn=attn, device="cpu").model.config
    expected = "sdpa" if attn == "auto" else attn
    assert config._attn_implementation == expected
    assert config.vision_config._attn_implementation == expected


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", torch.bfloat16, "flash_attention_2"),
        ("cuda:1", torch.float16, "flash_attention_2"),
        ("cuda", torch.float32, "sdpa"),
        ("cpu", torch.bfloat16, "sdpa"),
        ("mps", torch.float16, "sdpa"),
    ],
)
def test_auto_takes_flash_attention_where_it_is_installed_and_fits(
    monkeypatch, device, dtype, expected
):
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: True)
    assert choose_attention("auto", device, dtype) == expected
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: False)
    assert choose_attention("auto", device, dtype) == "sdpa"


@pytest.mark.parametrize(
    ("free", "options", "expected"),
    [
        ([80, 80], {}, "cuda:0"),  # one is enough: spread over two, batches go the slow way
        ([20, 80], {}, "cuda:1"),
        ([14, 13], {}, "auto"),
        ([14, 13], {"dtype": "float32"}, "auto"),
        ([14, 15], {"dtype": "float32"}, "auto"),
        ([30, 13], {"dtype": "float32"}, "cuda:0"),
        ([13, 12], {"quantize": "4bit"}, "cuda:0"),
        ([80], {}, "auto"),
    ],
)
def test_a_model_that_fits_one_gpu_is_not_spread(monkeypatch, tmp_path, free, options, expected):
    """Of 10 GB in bfloat16, by the free memory of the GPUs in GB."""
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(10 * 10**9)  # sparse
    folder = ModelFolder(tmp_path, "m", "local", None, {"dtype": "bfloat16"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (free[gpu] * 10**9, 80 * 10**9))
    asked = {"dtype": "auto", "attn": "sdpa", "quantize": None, **options}
    assert network_options(folder, "auto", **asked)["device_map"] == expected


def test_max_image_tokens_counts_in_the_answer(tiny_folder, picture):
    vlm = vlkit.load(tiny_folder("qwen2_5_vl"), max_image_tokens=6)
    reply = vlkit.generate(vlm, vlkit.user("What?", picture), max_new_tokens=1)
    assert 1 <= reply.usage.image_tokens <= 6


def test_relative_and_home_paths(tiny_folder, monkeypatch):
    folder = tiny_folder("qwen2_vl")
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    for name in (folder.name, f"./{folder.name}", Path(folder.name), f"~/{folder.name}"):
        assert vlkit.load(name).family == "qwen2_vl"


def test_a_second_load_does_not_keep_the_first(tiny_folder):
    vlm = vlkit.load(tiny_folder("qwen2_vl"))
    vlkit.generate(vlm, "Hello", max_new_tokens=2)
    gone = weakref.ref(vlm.model)
    vlm = vlkit.load(tiny_folder("qwen2_vl"))
    gc.collect()
    assert gone() is None


def test_a_small_model_loads_in_silence(tiny_folder, capfd, caplog):
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.is_progress_bar_enabled()
    with caplog.at_level(logging.WARNING):
        vlkit.load(tiny_folder("qwen2_vl"))
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.is_progress_bar_enabled() == before


def test_refused_weights_are_told_in_one_line_alone(broken_folder, capfd):
    edit_weights(broken_folder, lambda t: t.pop("model.layers.1.mlp.down_proj.weight"))
    with pytest.raises(ModelError):
        vlkit.load(broken_folder)
    assert capfd.readouterr() == ("", "")


def test_a_large_model_shows_its_progress(tiny_folder, capfd, monkeypatch):
    monkeypatch.setattr("vlkit.models.load.QUIET_BYTES", 0)
    vlkit.load(tiny_folder("qwen2_vl"))
    assert "Loading weights" in capfd.readouterr().err


# --- folders that are not whole ------------------------------------------------------------------


def test_missing_folder(tmp_path, blocked_network):
    for name in (tmp_path / "nowhere", f"{tmp_path}/nowhere", "./nowhere"):
        assert "neither a folder" in refusal(name)
    assert not blocked_network


def test_file_instead_of_a_folder(broken_folder):
    message = refusal(broken_folder / SHARD)
    assert "is a file" in message and str(broken_folder) in message


def test_revision_of_a_folder(tiny_folder):
    assert "revision='main'" in refusal(tiny_folder("qwen2_vl"), revision="main")


def test_folder_without_config(tmp_path):
    assert "no config.json" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["{", "", "[1]", "\x00", '"config"'])
def test_broken_config(broken_folder, text):
    (broken_folder / "config.json").write_text(text)
    assert "config.json" in refusal(broken_folder)


def test_config_with_absurd_values(broken_folder):
    edit_json(broken_folder / "config.json", text_config={"hidden_size": "large"})
    assert "'hidden_size'" in refusal(broken_folder)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    return build_model("qwen2_vl", folder, max_shard_size="300KB")


def damage_missing_shard(folder, shard):
    shard.unlink()


def damage_truncated_shard(folder, shard):
    shard.write_bytes(shard.read_bytes()[:-1000])


def damage_shard_with_a_tail(folder, shard):
    shard.write_bytes(shard.read_bytes() + b"0")


def damage_empty_shard(folder, shard):
    shard.write_bytes(b"")


def damage_zeroed_shard(folder, shard):
    shard.write_bytes(bytes(shard.stat().st_size))


def damage_lfs_pointer(folder, shard):
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def damage_missing_index(folder, shard):
    (folder / "model.safetensors.index.json").unlink()


def damage_broken_index(folder, shard):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {')


def damage_empty_index(folder, shard):
    (folder / "model.safetensors.index.json").write_text("{}")


DAMAGES = {name[7:]: damage for name, damage in globals().items() if name.startswith("damage_")}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shards(sharded, tmp_path, damage):
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    DAMAGES[damage](folder, shard)
    message = refusal(folder)
    assert shard.name in message or "index.json" in message
    assert "download" in message


@pytest.mark.parametrize(
    "unfinished",
    [
        "model.safetensors.incomplete",  # modelscope
        ".cache/huggingface/download/xyz.abc.incomplete",  # huggingface_hub with local_dir
    ],
)
def test_half_finished_download(broken_folder, unfinished):
    path = broken_folder / unfinished
    path.parent.mkdir(parents=True, exist_ok=True)
    (broken_folder / SHARD).rename(path)
    assert "unfinished" in refusal(broken_folder)


def test_half_finished_download_in_the_hub_cache(broken_folder, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    (tmp_path / "models--a--b" / "blobs").mkdir(parents=True)
    shutil.move(broken_folder, snapshot)
    (snapshot / SHARD).rename(tmp_path / "models--a--b" / "blobs" / "xyz.incomplete")
    assert "unfinished" in refusal(snapshot)


def test_pickled_weights_are_not_taken(broken_folder):
    torch.save(load_file(broken_folder / SHARD), broken_folder / "pytorch_model.bin")
    (broken_folder / SHARD).unlink()
    message = refusal(broken_folder)
    assert "pytorch_model.bin" in message and "save_pretrained" in message


def test_no_weights_at_all(broken_folder):
    (broken_folder / SHARD).unlink()
    assert "no safetensors weights" in refusal(broken_folder)


def test_missing_weights_are_not_made_up(broken_folder):
    edit_weights(broken_folder, lambda t: t.pop("model.layers.1.mlp.down_proj.weight"))
    message = refusal(broken_folder)
    assert "1 weights are missing" in message and "layers.1.mlp.down_proj" in message


def test_weights_of_another_shape_are_not_made_up(broken_folder):
    def halve(tensors):
        name = "visual.blocks.0.mlp.fc1.weight"
        tensors[name] = tensors[name][:10].clone()

    edit_weights(broken_folder, halve)
    message = refusal(broken_folder)
    assert "1 weights are missing or have other shapes" in message and "blocks.0.mlp.fc1" in message


def set_layers(folder: Path, count: int) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    text |= {"num_hidden_layers": count, "layer_types": ["full_attention"] * count}
    edit_json(folder / "config.json", text_config=text)


def test_a_config_with_more_layers_than_weights(broken_folder):
    set_layers(broken_folder, 3)
    assert "layers.2" in refusal(broken_folder)


def test_a_config_with_fewer_layers_than_weights(broken_folder):
    set_layers(broken_folder, 1)
    with pytest.warns(UserWarning, match=r"12 weights do not belong .*layers\.1"):
        vlkit.load(broken_folder)


def test_a_tied_output_layer_need_not_be_stored(tiny_folder):
    assert not any("lm_head" in name for name in load_file(tiny_folder("qwen2_vl") / SHARD))
    network = vlkit.load(tiny_folder("qwen2_vl")).model
    assert network.lm_head.weight is network.get_input_embeddings().weight


def test_an_output_layer_of_its_own_must_be_stored(tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder("qwen3_vl"), tmp_path / "model"))
    edit_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    assert "lm_head.weight" in refusal(folder)


# --- models that are not of the family -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["llava", "qwen2", "qwen3_5_text", "", None])
def test_other_architectures(broken_folder, kind):
    edit_json(broken_folder / "config.json", model_type=kind)
    message = refusal(broken_folder)
    assert str(broken_folder) in message and "qwen2_5_vl" in message
    assert repr(kind) in message


@pytest.mark.parametrize("name", ["UI-TARS-7B", "my-qwen2-vl-awq", "Cosmos-Reason1-7B"])
def test_the_family_is_that_of_the_config_not_of_the_name(tiny_folder, tmp_path, name):
    folder = shutil.copytree(tiny_folder("qwen3_vl"), tmp_path / name)
    assert vlkit.load(folder).family == vlkit.preflight(folder, "Hi").family == "qwen3_vl"


def test_a_newer_generation_has_the_newest_rules(tiny_folder, tmp_path):
    class NewerConfig(transformers.Qwen3_5Config):
        model_type = "qwen9_vl"

    class NewerModel(transformers.Qwen3_5ForConditionalGeneration):
        config_class = NewerConfig

    folder = Path(shutil.copytree(tiny_folder("qwen3_5"), tmp_path / "model"))
    edit_json(folder / "config.json", model_type="qwen9_vl")
    with pytest.raises(ModelError, match="'qwen9_vl', which is not a vision model"):
        vlkit.load(folder)
    transformers.AutoConfig.register("qwen9_vl", NewerConfig)
    transformers.AutoModelForImageTextToText.register(NewerConfig, NewerModel)
    with pytest.warns(UserWarning, match="'qwen9_vl', which vlkit does not know.* of qwen3_5"):
        newer = vlkit.load(folder)
    assert newer.family == "qwen3_5" and newer.model.config.model_type == "qwen9_vl"
    ask = {"max_new_tokens": 4}
    assert vlkit.generate(newer, "Hi", **ask).raw == bare.answer(newer, "Hi", **ask)


@pytest.mark.parametrize(
    ("method", "needs"),
    [
        ("gptq", "GPTQ weights, which need optimum and gptqmodel: pip install optimum gptqmodel"),
        ("awq", "AWQ weights, which need gptqmodel: pip install gptqmodel"),
    ],
)
def test_a_quantized_copy_is_what_its_model_is_and_names_what_it_needs(
    broken_folder, method, needs, monkeypatch
):
    edit_json(broken_folder / "config.json", quantization_config={"quant_method": method})
    message = refusal(broken_folder)
    assert needs in message and 'load the original model with quantize="4bit"' in message
    flight = vlkit.preflight(broken_folder, "Hi")
    assert flight.family == "qwen2_vl"  # by its config, whatever its folder's name
    monkeypatch.setattr("vlkit.models.load.find_spec", lambda name: True)
    options = network_options(ModelFolder(broken_folder, "x", "local", None, flight_config(method)))
    assert "quantization_config" not in options  # its own is read by transformers


def flight_config(method: str) -> dict:
    return {"model_type": "qwen2_vl", "quantization_config": {"quant_method": method}}


def test_adapter_instead_of_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter=" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_missing_processor_files(broken_folder, name):
    (broken_folder / name).unlink()
    assert "processor" in refusal(broken_folder)


TEXT_TEMPLATES = {
    "joined": "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}",
    "written out": "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}",
}


@pytest.mark.parametrize("name", TEXT_TEMPLATES)
def test_a_text_models_template_is_reported(broken_folder, picture, name):
    (broken_folder / "chat_template.jinja").write_text(TEXT_TEMPLATES[name])
    with pytest.warns(UserWarning, match=r"without pictures; copy chat_template\.jinja"):
        vlm = vlkit.load(broken_folder)
    for question in (vlkit.user("What is it?", picture), vlkit.user("Hello")):
        with pytest.raises(vlkit.errors.VlkitError, match="chat template"):
            vlkit.generate(vlm, question, max_new_tokens=2)


def test_a_template_without_end_is_stopped(broken_folder, monkeypatch):
    monkeypatch.setattr("vlkit.models.load.TEMPLATE_SECONDS", 0.5)
    loops = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + "{% endfor %}" * 3
    (broken_folder / "chat_template.jinja").write_text(loops)
    assert "chat template did not end within 0.5 s" in refusal(broken_folder)


def test_fp8_weights_on_a_cpu(tmp_path):
    """In blocks of 64, as the repositories called -FP8 have them (theirs are of 128)."""
    folder, size = build_model("qwen3_vl", tmp_path / "fp8"), 64
    weights = {}
    for name, value in load_file(folder / SHARD).items():
        weights[name] = value.to(torch.bfloat16)
        if "language_model.layers" in name and name.endswith("proj.weight"):
            rows, columns = (-(-side // size) for side in value.shape)
            scale = torch.full((rows, columns), float(value.abs().max()) / 448)
            weights[name] = (value / scale[0, 0]).to(torch.float8_e4m3fn)
            weights[f"{name}_scale_inv"] = scale
    save_file(weights, folder / SHARD, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [size, size],
        "modules_to_not_convert": ["lm_head", "model.visual", "model.language_model.embed_tokens"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    vlm = vlkit.load(folder, device="cpu")
    assert vlm.model.dtype == torch.bfloat16
    assert vlkit.generate(vlm, vlkit.user("hi"), max_new_tokens=3).usage.new_tokens == 3
    with pytest.raises(ModelError, match=r'FP8 weights.* only with dtype="bfloat16"'):
        vlkit.load(folder, device="cpu", dtype="float32")


def test_missing_chat_template(broken_folder):
    (broken_folder / "chat_template.jinja").unlink()
    assert "chat_template.jinja" in refusal(broken_folder)


@pytest.mark.parametrize("own_type", [True, False])
def test_code_in_a_folder_is_never_run(broken_folder, tmp_path, monkeypatch, own_type):
    def ask(*args):
        raise AssertionError("the user was asked whether to run code")

    monkeypatch.setattr("builtins.input", ask)
    marker = tmp_path / "executed"
    code = f"open({str(marker)!r}, 'w').close()\nfrom transformers import *\n"
    (broken_folder / "evil.py").write_text(code)
    classes = {name: f"evil.{name}" for name in ("AutoConfig", "AutoModel", "AutoProcessor")}
    classes |= {f"Auto{n}": f"evil.{n}" for n in ("ModelForImageTextToText", "ImageProcessor")}
    classes["AutoTokenizer"] = ["evil.Slow", "evil.Fast"]
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        edit_json(broken_folder / name, auto_map=classes)
    (broken_folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": classes}))
    if own_type:  # the generation's own classes are taken
        assert vlkit.load(broken_folder).family == "qwen2_vl"
    else:
        edit_json(broken_folder / "config.json", model_type="evil")
        assert "evil" in refusal(broken_folder)
    assert not marker.exists()


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dtype": "float99"}, "bfloat16"),
        ({"dtype": "int8"}, "bfloat16"),
        ({"dtype": None}, "bfloat16"),
        ({"device": "gpu"}, "cuda:0"),
        ({"device": "cuda:x"}, "cuda:0"),
        ({"attn": "fast"}, "sdpa"),
        ({"attn": "flash_attention_2", "device": "cpu"}, "flash-attn"),
        ({"quantize": "2bit"}, "4bit"),
        ({"hub": "github"}, "modelscope"),
        ({"max_image_tokens": 0}, "max_image_tokens=0"),
        ({"max_image_tokens": 2.5}, "max_image_tokens=2.5"),
    ],
)
def test_unknown_options_name_the_known_ones(options, expected):
    message = refusal(**options)
    name, value = next(iter(options.items()))
    assert f"{name}=" in message and str(value) in message and expected in message


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", "mps"])
def test_devices_that_are_not_there(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert 'device="auto"' in refusal(device=device)


def test_a_gpu_beyond_the_last(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "2 GPUs" in refusal(device="cuda:2")


def test_bitsandbytes_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert 'pip install "vlkit[quant]"' in refusal(quantize="4bit")


def test_peft_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert 'pip install "vlkit[lora]"' in refusal(adapter=tmp_path)


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantized(tiny_folder, quantize, picture):
    folder = tiny_folder("qwen2_vl")
    vlm = vlkit.load(folder, quantize=quantize, device="cpu")
    layer = vlm.model.model.language_model.layers[0].mlp.down_proj
    if quantize == "4bit":
        assert layer.weight.dtype == torch.uint8
    else:  # see test_int8.py
        assert type(layer).__name__ == "Int8Linear"
    reply = vlkit.generate(vlm, vlkit.user("What?", picture), max_new_tokens=4)
    assert reply.usage.new_tokens == 4


def test_bundled_model_from_any_directory_without_a_network(tmp_path, monkeypatch, blocked_network):
    monkeypatch.chdir(tmp_path)
    os.mkdir("tiny")  # is not mistaken for the model
    vlm = vlkit.load("tiny")
    assert (vlm.name, vlm.family, vlm.folder.hub) == ("tiny", "qwen2_vl", "bundled")
    assert not blocked_network


def test_the_state_of_weights_names_adapters_alone(vlm):
    """Read at every question: the text of a whole network would take longer than a token."""
    weights, adapters = weights_state(vlm.model)
    assert weights_state(vlm.model) == [weights, adapters] and adapters == []
    with torch.no_grad():
        next(vlm.model.parameters()).mul_(1)
    assert weights_state(vlm.model)[0] != weights


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_a_step_of_any_optimizer_is_a_new_state(vlm, options):
    """Fused ones leave the version of a weight as it was."""
    before, weight = weights_state(vlm.model), next(vlm.model.parameters())
    asked = weight.requires_grad
    weight.requires_grad_(True).grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.0, **options).step()
    weight.requires_grad_(asked).grad = None
    assert weights_state(vlm.model) != before
