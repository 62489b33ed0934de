"""Unsloth's own recipe (FastVisionModel, SFTTrainer), in a process of its own.

Unsloth rewrites transformers while it is imported, so that no other recipe could run beside it;
`lora_training.py --unsloth` starts this script where Unsloth is installed, and reads the figures
that it leaves. Rows are shuffled; prompts are masked as in the other recipes.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
import unsloth  # noqa: I001  # before transformers
import torch
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer
from unsloth.trainer import UnslothVisionDataCollator


def main() -> None:
    """Train as the job file says, and write seconds of each update, losses and peak memory."""
    job = pickle.loads(Path(sys.argv[1]).read_bytes())
    checkpointing = "unsloth" if job["checkpoint"] else False
    model, processor = unsloth.FastVisionModel.from_pretrained(
        job["folder"], load_in_4bit=job["quantize"] == "4bit", dtype=torch.bfloat16,
        use_gradient_checkpointing=checkpointing, max_seq_length=2048,
    )  # fmt: skip
    model = unsloth.FastVisionModel.get_peft_model(
        model, finetune_vision_layers=False, finetune_language_layers=True, r=8, lora_alpha=16,
        lora_dropout=0, bias="none", use_gradient_checkpointing=checkpointing,
    )  # fmt: skip
    unsloth.FastVisionModel.for_training(model, use_gradient_checkpointing=bool(checkpointing))
    collator = UnslothVisionDataCollator(
        model, processor, resize=job["resize"], train_on_responses_only=True,
        instruction_part="<|im_start|>user\n", response_part="<|im_start|>assistant\n",
    )  # fmt: skip
    clock = Clock()
    options = SFTConfig(
        **job["options"], bf16=True, remove_unused_columns=False, dataset_text_field="",
        dataset_kwargs={"skip_prepare_dataset": True}, max_length=2048,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model, train_dataset=[{"messages": row} for row in job["rows"]], args=options,
        processing_class=getattr(processor, "tokenizer", processor), data_collator=collator,
        callbacks=[clock],
    )  # fmt: skip
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = {
        "seconds": clock.seconds,
        "losses": losses,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "unsloth": unsloth.__version__,
    }
    Path(sys.argv[2]).write_text(json.dumps(found))


class Clock(TrainerCallback):
    """Seconds from the end of one update to that of the next."""

    def __init__(self):
        self.seconds: list[float] = []
        self.start = 0.0

    def on_train_begin(self, *args, **kwargs):
        torch.cuda.synchronize()
        self.start = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self.start)
        self.start = now


if __name__ == "__main__":
    main()
