"""Known shapes, against the sizes that the models' cards give and against bytes really held."""

import pytest
import torch

import vlkit
from vlkit.models.memory import build_config, count_memory

CARD = {  # billions of parameters in the hubs' safetensors metadata
    "Qwen/Qwen2-VL-2B-Instruct": 2.21,
    "Qwen/Qwen2-VL-7B-Instruct": 8.29,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.75,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.29,
    "Qwen/Qwen3-VL-2B-Instruct": 2.13,
    "Qwen/Qwen3-VL-4B-Instruct": 4.44,
    "Qwen/Qwen3-VL-8B-Instruct": 8.77,
}


@pytest.mark.parametrize("name", CARD)
def test_parameters_as_published(name):
    assert count_memory(name).parameters / 1e9 == pytest.approx(CARD[name], abs=0.006)


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
    assert set(CARD) <= set(table.index)
    assert (table["bfloat16, GB"] > table['"4bit", GB']).all()
