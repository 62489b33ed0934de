"""Conversations to train on, with pictures and a clip of noise."""

import numpy as np
import PIL.Image
from transformers import TrainerCallback

import vlkit

KINDS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def talk(*turns):
    """Questions (texts, or a text with media) and answers in turn."""
    messages = []
    for i, turn in enumerate(turns):
        said = turn if isinstance(turn, tuple) else (turn,)
        messages.append(vlkit.assistant(turn) if i % 2 else vlkit.user(*said))
    return messages


CLIP = vlkit.Video([noise(64, 64, i) for i in range(4)], frames=4)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
