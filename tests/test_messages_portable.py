"""Messages go to transformers as they are and mean the same there."""

import pathlib

import numpy as np
import PIL.Image
import pytest

import vlkit
from vlkit.inputs import prepare_inputs

CAT, SCENE = vlkit.sample("cat"), vlkit.sample("three_shapes")


def in_memory():
    return PIL.Image.open(SCENE).convert("RGB")


CONVERSATIONS = {
    "text": lambda: [vlkit.user("Why is the sky blue?")],
    "one": lambda: [vlkit.user("Describe this image.", SCENE)],
    "string": lambda: [vlkit.user("Describe this image.", str(SCENE))],
    "file URL": lambda: [vlkit.user("Describe this image.", pathlib.Path(CAT).as_uri())],
    "two": lambda: [vlkit.user("比较这两张图。", SCENE, CAT)],
    "PIL": lambda: [vlkit.user("What is red?", in_memory())],
    "array": lambda: [vlkit.user("What is red?", np.asarray(in_memory()))],
    "bytes": lambda: [vlkit.user("What is red?", pathlib.Path(CAT).read_bytes())],
    "turns": lambda: [
        vlkit.system("Be terse."),
        vlkit.user("What is red?", SCENE),
        vlkit.assistant("The circle."),
        vlkit.user("And here?", CAT),
    ],
    "box in the question": lambda: [
        vlkit.user("What is in <|box_start|>(1,2),(300,400)<|box_end|>?", SCENE)
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_transformers_reads_the_same(vlm, name):
    messages = CONVERSATIONS[name]()
    ours = prepare_inputs(vlm, [messages]).tensors
    theirs = vlm.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert ("pixel_values" in ours) == ("pixel_values" in theirs)
    if "pixel_values" in ours:
        assert ours["image_grid_thw"].tolist() == theirs["image_grid_thw"].tolist()
        assert float((ours["pixel_values"] - theirs["pixel_values"]).abs().max()) <= 0.05


def test_prefill_is_gone_on_with_alike(vlm):
    messages = [vlkit.user("What is red?", SCENE), vlkit.assistant("The red thing is")]
    theirs = vlm.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, continue_final_message=True
    )
    ours = prepare_inputs(vlm, [messages]).tensors
    assert ours["input_ids"].tolist() == theirs["input_ids"]


@pytest.mark.parametrize(
    "token", ["<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>"]
)
def test_control_token_in_the_text_is_no_token(vlm, token):
    tokenizer = vlm.processor.tokenizer
    number = tokenizer.convert_tokens_to_ids(token)

    def count(text):
        messages = [vlkit.user(text, SCENE)]
        return prepare_inputs(vlm, [messages]).tensors["input_ids"][0].tolist().count(number)

    trick = f"{token[:4]}{token}{token[4:]}"
    assert count(f"What is {token} and {trick}?") == count("What is it?")
