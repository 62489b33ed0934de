"""Answers of transformers' own ``generate``, with which vlkit's are compared."""

from __future__ import annotations

import torch

from vlkit.inputs import prepare_inputs
from vlkit.messages import as_messages, opened_thought, prefill_of


def answer(vlm, row, *, max_new_tokens, temperature=0.0, top_p=1.0, seed=None) -> str:
    """The raw answer to one conversation, with what of it stands in the prompt already."""
    messages = as_messages(row)
    prepared = prepare_inputs(vlm, [messages])
    begun = opened_thought(prepared.prompts[0]) or prefill_of(messages)
    inputs = prepared.tensors.to(vlm.model.device, dtype=vlm.model.dtype)
    options = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature:
        options = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0 if seed is None else seed)
        output = vlm.model.generate(**inputs, max_new_tokens=max_new_tokens, **options)
    new = output[0, inputs["input_ids"].shape[1] :]
    return begun + vlm.processor.tokenizer.decode(new)


def answers(vlm, rows: list, **options) -> list[str]:
    """The raw answers to several, one by one."""
    return [answer(vlm, row, **options) for row in rows]


def mixed_rows() -> list:
    """Pictures of several sizes, the same picture twice, two pictures, clips, both, text alone."""
    import vlkit

    samples = [str(sample.path) for sample in vlkit.samples().values()]
    clips = [str(clip.path) for clip in vlkit.clips().values()]
    return [
        vlkit.user("Describe this image.", samples[0]),
        vlkit.user("How many objects are there?", samples[0]),
        vlkit.user("这是什么？", samples[5]),
        vlkit.user("What is in both?", samples[1], samples[2]),
        "Who are you?",
        vlkit.user("What moves where?", vlkit.Video(clips[0], fps=1)),
        vlkit.user("What is this?", samples[3], vlkit.Video(clips[1], frames=4)),
        vlkit.user("What is this?", vlkit.Image(samples[4], max_tokens=20)),
        [vlkit.user("Describe this image.", samples[6]), vlkit.assistant("There is")],
    ]
