"""Known shapes, against the sizes that the models' cards give and against bytes really held."""

import pytest
import torch

import vlkit
from vlkit.models.memory import build_config, count_memory

CARD = {  # billions of parameters: in the hubs' safetensors metadata; Qwen-VL's in its paper
    "Qwen/Qwen-VL-Chat": 9.657,
    "Qwen/Qwen2-VL-2B-Instruct": 2.21,
    "Qwen/Qwen2-VL-7B-Instruct": 8.29,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.75,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.29,
    "Qwen/Qwen3-VL-2B-Instruct": 2.13,
    "Qwen/Qwen3-VL-4B-Instruct": 4.44,
    "Qwen/Qwen3-VL-8B-Instruct": 8.77,
}
# from Qwen3.5 on, the parameters in the hubs' metadata (huggingface.co/api/models/…, "total") are
# those of SHAPES and of one layer more, which predicts a second token (mtp_num_hidden_layers=1)
# and which transformers does not load
CARD_WITH_MTP = {
    "Qwen/Qwen3.5-0.8B": 873_438_784,
    "Qwen/Qwen3.5-2B": 2_274_069_824,
    "Qwen/Qwen3.5-4B": 4_659_865_088,
    "Qwen/Qwen3.5-9B": 9_653_104_368,
    "Qwen/Qwen3.6-27B": 27_781_427_952,
    "Qwen/Qwen3.6-35B-A3B": 35_951_822_704,
    "Qwen/Qwen3.8-27B": 27_781_427_952,
}


@pytest.mark.parametrize("name", CARD)
def test_parameters_as_published(name):
    assert count_memory(name).parameters / 1e9 == pytest.approx(CARD[name], abs=0.006)


def mtp_parameters(text):
    """A layer with full attention, two norms and a projection before it, and one after it."""
    width, head = text.hidden_size, text.head_dim
    queries = 2 * text.num_attention_heads * head  # each with its gate
    values = 2 * text.num_key_value_heads * head
    attention = width * (queries + values + queries // 2) + 2 * head
    if experts := getattr(text, "num_experts", 0):
        expert = 3 * width * text.moe_intermediate_size
        mlp = experts * (expert + width) + expert + width  # routed, shared, and their gates
    else:
        mlp = 3 * width * text.intermediate_size
    return attention + mlp + 2 * width + 2 * width**2 + 3 * width


@pytest.mark.parametrize("name", CARD_WITH_MTP)
def test_parameters_as_published_with_the_layer_that_is_not_loaded(name):
    extra = mtp_parameters(build_config(name).get_text_config())
    assert count_memory(name).parameters + extra == CARD_WITH_MTP[name]


@pytest.mark.parametrize(
    ("name", "billions"), [("Qwen/Qwen3.5-122B-A10B", 122), ("Qwen/Qwen3.5-397B-A17B", 397)]
)
def test_the_largest_have_the_size_in_their_names(name, billions):
    assert count_memory(name).parameters / 1e9 == pytest.approx(billions, abs=0.6)


def test_the_cache_really_takes_that_much():
    from transformers import AutoModelForImageTextToText

    name = "Qwen/Qwen2.5-VL-3B-Instruct"
    config = build_config(name)
    config.text_config.num_hidden_layers = 1
    config.text_config.layer_types = ["full_attention"]
    config.text_config.vocab_size = 200
    config.vision_config.depth = 1
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        cache = model(input_ids=torch.arange(10)[None], use_cache=True).past_key_values
    layer = cache.layers[0]
    held = layer.keys.nbytes + layer.values.nbytes
    assert held * 36 == count_memory(name).cache_per_token * 10


def test_the_table_has_every_model():
    table = vlkit.memory_table()
    assert set(CARD) | set(CARD_WITH_MTP) <= set(table.index)
    assert (table["bfloat16, GB"] > table['"4bit", GB']).all()
