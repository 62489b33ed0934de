"""Which LoRA runs fit a card of 24 GB: peak memory, time, and what `lora.inspect` says before.

    python benchmarks/lora_memory.py --shapes 7b --limit-gb 22.5

Published shapes, random weights. The process may take --limit-gb of the card; CUDA itself takes the
rest of 24. Rows ask about a picture of noise of 256, 1,024 or 1,280 image tokens; their answers
have some 40 tokens. Rank 8 on the language model's layers, gradient checkpointing, updates of eight
rows in as many batches as fit (batch_size="auto"); weights in bfloat16, then in 4 bits where
bitsandbytes is installed. Times are those of the first epoch: each picture is encoded in it.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import transformers
from batch_inference import SHAPES, build_random
from lora_training import ANSWER, Clock
from reporting import report

import vlkit
from vlkit.errors import VlkitError

GRIDS = {256: (16, 16), 1024: (32, 32), 1280: (40, 32)}  # tokens: along width and height
ROWS, UPDATE, WARM = 40, 8, 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["2b", "3-4b", "7b", "3-8b"])
    parser.add_argument("--weights", nargs="+", default=["bfloat16", "4bit"])
    parser.add_argument("--tokens", nargs="+", type=int, default=list(GRIDS), choices=GRIDS)
    parser.add_argument("--limit-gb", type=float, default=22.5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if importlib.util.find_spec("bitsandbytes") is None:
        arguments.weights = ["bfloat16"]
    total = torch.cuda.get_device_properties(0).total_memory
    runs = []
    for shape in arguments.shapes:
        torch.cuda.set_per_process_memory_fraction(1.0)  # to build and to pack them
        vlm = build_random(shape, "cuda:0")
        for weights in arguments.weights:
            vlm = packed(vlm) if weights == "4bit" else vlm
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(arguments.limit_gb * 1e9 / total)
            for tokens in arguments.tokens:
                runs.append({"shape": SHAPES[shape], "weights": weights} | run(vlm, tokens))
                print(runs[-1], flush=True)
        del vlm
        gc.collect()
    found = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "transformers": transformers.__version__, "limit_gb": arguments.limit_gb, "runs": runs,
    }  # fmt: skip
    report(found, arguments.output)


def packed(vlm):
    """The same weights in 4 bits, loaded from a folder as anybody's are."""
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        vlm.model.save_pretrained(folder)
        vlm.processor.save_pretrained(folder)
        vlm.model.to("meta")
        torch.cuda.empty_cache()
        return vlkit.load(folder, quantize="4bit", device="cuda:0", dtype="bfloat16")


def run(vlm, tokens: int) -> dict:
    side = vlm.processor.image_processor.patch_size * vlm.processor.image_processor.merge_size
    data = vlkit.lora.load_conversations(picture_rows(tokens, side))
    options = {"gradient_checkpointing": True, "metric": None}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seen = Seen(vlm)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trained = vlkit.lora.train(
                vlm, data, output_dir=Path(folder) / "run", callbacks=[seen], **options
            )
    except VlkitError as error:
        return {"image_tokens": tokens, "fits": False, "error": str(error)}
    peak = torch.cuda.max_memory_allocated() / 1e9
    reserved = torch.cuda.max_memory_reserved() / 1e9
    torch.cuda.empty_cache()
    told = vlkit.lora.inspect(vlm, data, batch_size=seen.batch, **options)
    seconds = statistics.fmean(seen.seconds[WARM:]) / UPDATE
    assert trained.effect > 0
    return {
        "image_tokens": tokens,
        "fits": True,
        "rows_at_a_time": seen.batch,
        "peak_gb": round(peak, 2),
        "reserved_gb": round(reserved, 2),
        "inspected_gb": round(told.memory.total / 1e9, 2),
        "inspected_over_peak": round(told.memory.total / 1e9 / peak, 3),
        "minutes_for_1000_rows": round(1000 * seconds / 60, 2),
    }


class Seen(Clock):
    """The seconds of each update, and the batch size at last."""

    def on_train_begin(self, args, *others, **kwargs):
        self.batch, self.seconds = args.per_device_train_batch_size, []
        super().on_train_begin()


def picture_rows(tokens: int, side: int) -> list:
    random, rows = np.random.default_rng(0), []
    width, height = (count * side for count in GRIDS[tokens])
    for index in range(ROWS):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        question = vlkit.user(f"Question {index}?", PIL.Image.fromarray(pixels))
        rows.append([question, vlkit.assistant((ANSWER * 2).strip())])
    return rows


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s")
