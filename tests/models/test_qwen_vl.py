"""Qwen-VL, the first generation: its numbers, its prompts, and every way to ask it."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import serve
from tiny_models import FIRST_CONFIG

import vlkit
from vlkit.errors import ModelError
from vlkit.inputs import load_messages
from vlkit.models import hub as hubs

STREET = vlkit.sample("city_street")
THREE = vlkit.sample("three_shapes")
WHAT, WHERE = "这是什么？", "框出图中公交车的位置"
BUS = "<ref>公交车</ref><box>(178,280),(803,894)</box>"
START, END, PAD = 470, 471, 472  # of a picture, in the tiny tokenizer


@pytest.fixture
def vlm(tiny_vlm):
    return tiny_vlm("qwen_vl")


@pytest.fixture
def copied(tiny_folder, tmp_path):
    """A folder of one's own, to change."""
    return Path(shutil.copytree(tiny_folder("qwen_vl"), tmp_path / "model"))


@pytest.fixture
def writes(vlm, monkeypatch):
    """``writes(*texts)``: the model's next answers, whatever it is asked."""

    def install(*texts):
        answers = iter(texts)

        def generate(input_ids, stopping_criteria=(), **_):
            text = next(answers) + "<|im_end|>"
            tokens = vlm.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            for count in range(1, len(tokens) + 1):
                ids = torch.cat([input_ids, torch.tensor([tokens[:count]])], dim=1)
                for look in stopping_criteria:
                    look(ids, None)
            return ids

        monkeypatch.setattr(vlm.model, "generate", generate)

    return install


def refusal(ask, *args, **options) -> str:
    with pytest.raises(ModelError) as caught:
        ask(*args, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


# --- numbers -------------------------------------------------------------------------------------

# recorded from the published code (modeling_qwen.py, visual.py) with tiny_models.first_weights(0),
# in float32: a prompt's logits at some places, the next token, and the logits after it. Beyond
# 2,048 tokens queries are scaled by log n, and the base of the rotary embedding is another.
VISION = ([-0.529, 2.4116, -1.2231, 1.1315], [1.7367, 1.5599, 1.5364])
LOGITS = {
    300: ([-0.8126, 1.2989, 1.0198, -0.6225, -0.243], 248, [0.3744, 2.8417, -0.1324]),
    2100: ([-0.8126, 0.7843, 3.157, 1.8358, 0.5956], 31, [2.7506, 1.8831, 0.7332]),
    4200: ([-0.8126, 0.7137, 2.3078, 1.0936, 1.6462], 351, [0.1384, -1.0588, -0.5385]),
}


def patches() -> torch.Tensor:
    """A picture of noise as its processor cuts it: (1024, 3 × 14 × 14), row by row."""
    noise = torch.from_numpy(np.random.RandomState(1).standard_normal((3, 448, 448))).float()
    cut = noise.unfold(1, 14, 14).unfold(2, 14, 14)  # (3, 32, 32, 14, 14)
    return cut.permute(1, 2, 0, 3, 4).reshape(1024, -1)


def close(values: torch.Tensor, expected: list[float]) -> bool:
    return torch.allclose(values, torch.tensor(expected), atol=1e-4)


@torch.inference_mode()
def test_the_vision_encoder_computes_what_the_published_code_does(vlm):
    grid = torch.tensor([[1, 32, 32]])
    tokens = vlm.model.model.visual(patches(), grid_thw=grid).pooler_output
    assert tokens.shape == (256, 256)
    assert close(tokens[[0, 1, 17, 255], [0, 100, 200, 255]], VISION[0])
    assert close(tokens.std(-1)[[0, 128, 255]], VISION[1])


@torch.inference_mode()
@pytest.mark.parametrize("length", LOGITS)
def test_logits_are_those_of_the_published_code(vlm, length):
    some, following, after = LOGITS[length]
    rest = np.random.RandomState(length).randint(0, 256, length - 260).tolist()
    ids = torch.tensor([[10, START, *[PAD] * 256, END, 11, *rest]])
    given = {"pixel_values": patches(), "image_grid_thw": torch.tensor([[1, 32, 32]])}
    output = vlm.model(ids, attention_mask=torch.ones_like(ids), use_cache=True, **given)
    places = [0, 258, 260, length // 2, length - 1]
    assert close(output.logits[0, places, [0, 50, 100, 200, 479]], some)
    assert int(output.logits[0, -1].argmax()) == following
    token, mask = torch.tensor([[following]]), torch.ones(1, length + 1)
    again = vlm.model(token, attention_mask=mask, past_key_values=output.past_key_values)
    assert close(again.logits[0, -1, [0, 100, 300]], after)


@torch.inference_mode()
def test_a_padded_row_has_the_logits_that_it_has_alone(vlm):
    random = np.random.RandomState(0)
    short, long = (torch.from_numpy(random.randint(0, 256, (1, n))) for n in (30, 2500))
    padded = torch.cat([torch.full((1, 2470), 256), short], 1)
    mask = torch.ones(2, 2500, dtype=torch.long)
    mask[0, :2470] = 0
    together = vlm.model(torch.cat([padded, long]), attention_mask=mask).logits
    for ids, row in ((short, together[0, 2470:]), (long, together[1])):
        alone = vlm.model(ids, attention_mask=torch.ones_like(ids)).logits[0]
        assert torch.allclose(alone, row, atol=1e-4)


def test_pictures_of_every_shape_are_squares_of_448_pixels(vlm):
    import PIL.Image

    gray = PIL.Image.new("RGB", (31, 700), (0, 0, 0))
    gray.paste((255, 255, 255), (0, 350, 31, 700))
    made = vlm.processor(text="<|image_pad|>", images=gray, return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, 32, 32]]
    assert (made["input_ids"] == PAD).sum() == 256
    rows = made["pixel_values"].view(32, 32, 3, -1).mean(-1)  # of patches: black, then white
    black, white = ((v - 0.48145466) / 0.26862954 for v in (0.0, 1.0))
    assert rows[0, :, 0].allclose(torch.tensor(black), atol=1e-3)
    assert rows[31, :, 0].allclose(torch.tensor(white), atol=1e-3)


def test_digits_are_single_tokens_and_texts_are_composed(copied):
    tokens = [*(bytes([i]) for i in range(256)), b"12", b"ab", "é".encode()]
    lines = [f"{base64.b64encode(t).decode()} {i}" for i, t in enumerate(tokens)]
    (copied / "qwen.tiktoken").write_text("\n".join(lines))
    tokenizer = vlkit.models.load.load_processor(
        hubs.ModelFolder(copied, "x", "local", None, FIRST_CONFIG)
    ).tokenizer
    assert tokenizer("ab12e\u0301")["input_ids"] == [257, ord("1"), ord("2"), 258]  # NFC
    assert tokenizer.decode([257, 258, 259]) == "abé<|endoftext|>"


# --- prompts -------------------------------------------------------------------------------------


def test_a_chat_is_chatml_and_pictures_have_numbers(vlm):
    talk = [
        vlkit.user(WHAT, STREET),
        vlkit.assistant("公交车"),
        vlkit.user("And <img>x</img>?", THREE),
    ]
    assert load_messages(vlm, talk).prompt == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\nPicture 1: <img><|image_pad|></img>\n{WHAT}<|im_end|>\n"
        "<|im_start|>assistant\n公交车<|im_end|>\n"
        "<|im_start|>user\nPicture 2: <img><|image_pad|></img>\nAnd < img>x< /img>?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = vlkit.inputs.prepare_inputs(vlm, [talk]).tensors["input_ids"][0]
    assert [int((ids == token).sum()) for token in (START, PAD, END)] == [2, 512, 2]


def test_the_base_model_continues_text_after_the_picture(tiny_vlm):
    prompt = "Generate the caption in English with grounding:"
    base = tiny_vlm("qwen_vl_base")
    assert load_messages(base, vlkit.user(prompt, STREET)).prompt == (
        f"<img><|image_pad|></img>{prompt}"
    )
    assert vlkit.generate(base, vlkit.user(prompt, STREET), max_new_tokens=4).usage.new_tokens == 4


def test_answers_end_at_the_turns_end(vlm):
    tokenizer = vlm.processor.tokenizer
    assert vlkit.inputs.ending_tokens(vlm) == set(
        tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
    )


# --- every way to ask ----------------------------------------------------------------------------


def test_generate_stream_and_a_batch_write_the_same(vlm):
    questions = [vlkit.user(WHAT, STREET), vlkit.user("Hi"), vlkit.user("Which?", STREET, THREE)]
    alone = [vlkit.generate(vlm, question, max_new_tokens=8) for question in questions]
    rows = vlkit.generate_batch(vlm, questions, max_new_tokens=8, progress=False)
    assert [row.raw for row in rows] == [reply.raw for reply in alone]
    assert "transformers' own generate is used: qwen has layers" in rows.report.note
    pieces = vlkit.stream(vlm, questions[0], max_new_tokens=8)
    assert "".join(pieces) == pieces.reply.text == alone[0].text
    assert [reply.usage.image_tokens for reply in alone] == [256, 0, 512]
    assert alone[0].input_sizes == ((448, 448),) and vlm.context_length == 8192


def test_two_turns_about_a_picture(vlm, writes):
    """The two-turn example of PaddleMIX: https://github.com/PaddlePaddle/PaddleMIX, qwen_vl."""
    writes("这是一辆红色城市公交车。", BUS)
    chat = vlkit.Chat(vlm)
    first = chat.ask(WHAT, STREET)
    second = chat.ask(vlkit.locate_prompt("公交车", family=vlm.family, language="zh"))
    assert (first.boxes, second.text) == ([], "公交车(178,280),(803,894)")
    assert chat.messages[2] == vlkit.user(WHERE)
    assert second.usage.image_tokens == 256 and second.raw == f"{BUS}<|im_end|>"
    (box,) = second.boxes
    width, height = second.images[0].size
    right = (178 * width, 280 * height, 803 * width, 894 * height)
    assert box.label == "公交车" and box.xyxy == pytest.approx([v / 1000 for v in right])
    drawn, before = np.asarray(second.plot()), np.asarray(second.images[0])
    assert drawn.shape == before.shape and (drawn != before).any()


def test_preflight_before_and_after_loading(vlm, tiny_folder):
    question = vlkit.user(WHAT, STREET)
    plans = [vlkit.preflight(model, question) for model in (vlm, tiny_folder("qwen_vl"))]
    usage = vlkit.generate(vlm, question, max_new_tokens=1).usage
    for plan in plans:
        assert plan.usage.prompt_tokens == usage.prompt_tokens and plan.prompt_tokens_exact
        assert plan.pictures[0].input_size == (448, 448) and plan.family == "qwen_vl"
    assert plans[0].memory.weights == plans[1].memory.weights
    for name in ("Qwen/Qwen-VL", "Qwen/Qwen-VL-Chat", "me/Qwen-VL-Chat-tuned"):
        far = vlkit.preflight(name, question)
        assert (far.family, far.usage.image_tokens) == ("qwen_vl", 256)


def test_attention_is_a_grid_of_the_256_tokens(vlm):
    found = vlkit.attention_map(vlm, vlkit.user(WHAT, STREET), token=0, max_new_tokens=2)
    assert found.values.shape == (16, 16)


LIMITED = vlkit.Image(STREET, max_tokens=64)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda vlm: vlkit.generate(vlm, vlkit.user("?", LIMITED)), "448 × 448 pixels, 256 tokens"),
        (lambda vlm: vlkit.preflight(vlm, vlkit.user("?", LIMITED)), "448 × 448 pixels"),
        (
            lambda vlm: vlkit.generate(vlm.with_limit(64), vlkit.user("?", STREET)),
            "cannot keep another limit",
        ),
        (
            lambda vlm: vlkit.generate(vlm, vlkit.user("?", vlkit.sample("moves_up"))),
            "reads pictures, but no clips",
        ),
        (lambda vlm: vlkit.preflight(vlm, vlkit.user("?", vlkit.sample("moves_up"))), "no clips"),
        (lambda vlm: vlkit.generate(vlm, "Hi", thinking=True), "no switch for thinking"),
    ],
)
def test_what_it_cannot_do_is_one_line(vlm, ask, message):
    assert message in refusal(ask, vlm)


def test_limits_that_change_nothing_are_kept(vlm):
    roomy = vlkit.user(WHAT, vlkit.Image(STREET, max_tokens=256, min_tokens=16))
    plain = vlkit.user(WHAT, STREET)
    asked = [vlkit.generate(vlm, message, max_new_tokens=4).raw for message in (roomy, plain)]
    assert asked[0] == asked[1]


# --- files ---------------------------------------------------------------------------------------


def test_a_picture_file_of_another_size_is_refused_by_the_encoder(vlm):
    with pytest.raises(ValueError, match="448 × 448"):
        vlm.model.model.visual(patches()[:64], grid_thw=torch.tensor([[1, 8, 8]]))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


@pytest.mark.parametrize("as_zip", [True, False])
def test_weights_are_tensors_and_nothing_else(copied, as_zip, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shard = copied / "pytorch_model-00001-of-00002.bin"
    weights = torch.load(shard, weights_only=True) | {"x": Evil()}
    torch.save(weights, shard) if as_zip else shard.write_bytes(pickle.dumps(Evil()))
    message = refusal(vlkit.load, copied)
    assert not Path("was-run").exists()
    assert str(copied) in message


def test_a_shard_that_is_cut_off_or_missing(copied):
    shard = copied / "pytorch_model-00002-of-00002.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    assert f"{shard} is cut off" in refusal(vlkit.load, copied)
    shard.unlink()
    assert f"{shard.name} is missing (1 of 2" in refusal(vlkit.load, copied)


@pytest.mark.parametrize("name", ["qwen.tiktoken", "config.json"])
def test_a_file_that_is_missing(copied, name):
    (copied / name).unlink()
    message = refusal(vlkit.load, copied)
    assert "no usable processor" in message or "no config.json" in message


def test_a_quantized_copy_names_the_model_to_load(copied):
    config = FIRST_CONFIG | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (copied / "config.json").write_text(json.dumps(config))
    assert 'load Qwen/Qwen-VL-Chat with quantize="4bit"' in refusal(vlkit.load, copied)


def test_a_text_model_of_its_type_is_not_this_family(copied):
    config = {key: value for key, value in FIRST_CONFIG.items() if key != "visual"}
    (copied / "config.json").write_text(json.dumps(config))
    assert "not a vision model of this family" in refusal(vlkit.load, copied)


def test_only_this_generations_pickles_are_downloaded(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with serve(tiny_folder("qwen_vl"), "me/first") as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        loaded = vlkit.load("me/first", hub="huggingface")
    assert loaded.family == "qwen_vl" and loaded.folder.hub == "huggingface"
    assert len(list(loaded.folder.path.glob("*.bin"))) == 2
    assert "me/first" in hubs.available_models()


def test_an_adapter_and_what_it_is_merged_to(vlm, tiny_folder, tmp_path):
    where = vlkit.user(WHERE, STREET)
    data = vlkit.lora.load_conversations([{"messages": [where, vlkit.assistant(BUS)]}])
    run = vlkit.lora.train(
        vlm, data, epochs=2, learning_rate=1e-2, target="all", output_dir=tmp_path / "run"
    )
    assert run.checks.passed and run.losses[-1][1] < run.losses[0][1]
    base, ask = tiny_folder("qwen_vl"), {"max_new_tokens": 8}
    tuned = vlkit.generate(vlkit.load(base, adapter=run.output_dir), where, **ask)
    merged = vlkit.load(vlkit.lora.merge(run.output_dir, tmp_path / "merged", model=base))
    assert vlkit.generate(merged, where, **ask).raw == tuned.raw
    assert tuned.raw != vlkit.generate(vlm, where, **ask).raw
    names = {file.name for file in merged.folder.path.iterdir()}
    assert "model.safetensors" in names and not any(name.endswith(".bin") for name in names)
