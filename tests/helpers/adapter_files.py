"""Adapters with random weights, as peft saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

LANGUAGE_LAYERS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|up_proj|down_proj)"


def save_adapter(base: Path, folder: Path, *, seed: int = 0, **options) -> Path:
    """An adapter whose both halves are random, so that it changes every answer."""
    network = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(**{"r": 4, "target_modules": LANGUAGE_LAYERS, **options})
        adapted = get_peft_model(network, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return folder
