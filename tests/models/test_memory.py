"""Known shapes, against the sizes that the models' cards give and against bytes really held."""

import pytest
import torch

import vlkit
from vlkit.models.memory import build_config, count_memory

# Qwen3.5's without its layer for predicting two tokens (mtp_num_hidden_layers=1), which
# transformers does not load: 0.87, 4.66, 9.65, 27.78 and 35.95 with it
CARD = {  # billions of parameters in the hubs' safetensors metadata
    "Qwen/Qwen2-VL-2B-Instruct": 2.21,
    "Qwen/Qwen2-VL-7B-Instruct": 8.29,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.75,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.29,
    "Qwen/Qwen3-VL-2B-Instruct": 2.13,
    "Qwen/Qwen3-VL-4B-Instruct": 4.44,
    "Qwen/Qwen3-VL-8B-Instruct": 8.77,
    "Qwen/Qwen3.5-0.8B": 0.853,
    "Qwen/Qwen3.5-4B": 4.54,
    "Qwen/Qwen3.5-9B": 9.41,
    "Qwen/Qwen3.5-27B": 27.36,
    "Qwen/Qwen3.5-35B-A3B": 35.11,
    "Qwen/Qwen3.5-397B-A17B": 396.8,
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
