"""What vlkit exports, read by vLLM's and ms-swift's own code; each where that program is installed.

    python scripts/read_exports.py vllm      # an adapter
    python scripts/read_exports.py ms-swift  # training data with boxes, and an adapter's arguments

Neither needs a GPU. Fails where a program refuses something or reads anything else than was meant.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import PeftModel

import vlkit
from vlkit.lora.batches import label_example

BASE = "Qwen/Qwen2-VL-2B-Instruct"
PROJECTIONS = {"self_attn": "qkvo", "mlp": ("gate", "up", "down")}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = vlkit.lora.load_conversations(boxed_rows())
        run = vlkit.lora.train(vlkit.load(), data, output_dir=Path(folder, "run"))
        adapter = vlkit.lora.export_adapter(run.output_dir, Path(folder, "adapter"), model=BASE)
        {"vllm": read_by_vllm, "ms-swift": read_by_swift}[sys.argv[1]](data, adapter)


def boxed_rows() -> list:
    """A question to each sample picture with boxes; the answer has them as Qwen2-VL writes them."""
    rows = []
    for name, sample in vlkit.samples().items():
        if sample.boxes and sample.path.suffix == ".png":
            size = vlkit.Image(sample.path).load().size
            answer = vlkit.format_grounding(sample.boxes, family="qwen2_vl", image_size=size)
            rows.append(
                [vlkit.user(f"Detect all in {name}.", sample.path), vlkit.assistant(answer)]
            )
    return rows


def read_by_vllm(_, adapter: Path) -> None:
    """Every layer under vLLM's name for it, with the change of its weights that PEFT gives it."""
    from vllm.lora import lora_model
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration

    lora_model.PIN_MEMORY = torch.cuda.is_available()
    helper = PEFTHelper.from_local_dir(str(adapter), None)
    helper.validate_legal(SimpleNamespace(max_lora_rank=8))
    expected = {f"{name}_proj" for names in PROJECTIONS.values() for name in names}
    mapper = Qwen2VLForConditionalGeneration.hf_to_vllm_mapper.get_rename_mapper()
    read = lora_model.LoRAModel.from_local_checkpoint(
        str(adapter), expected, helper, lora_model_id=1, device="cpu", weights_mapper=mapper
    )
    network = PeftModel.from_pretrained(vlkit.load().model, adapter)
    layers = network.base_model.model.model.language_model.layers
    meant = {
        f"language_model.model.layers.{number}.{part}.{name}_proj": layer.get_submodule(
            f"{part}.{name}_proj"
        )
        for number, layer in enumerate(layers)
        for part, names in PROJECTIONS.items()
        for name in names
    }
    check(read.loras.keys() == meant.keys(), sorted(read.loras.keys() ^ meant.keys()))
    for name, layer in meant.items():
        found = read.loras[name]
        change = found.lora_b @ found.lora_a * found.scaling
        check(torch.allclose(change, layer.get_delta_weight("default"), atol=1e-6), name)
    print(f"vLLM reads all {len(meant)} layers of the adapter as PEFT does")


def read_by_swift(data, adapter: Path) -> None:
    """The tokens and those of them that are learnt from, as vlkit's own training has them."""
    from swift import get_processor, get_template
    from swift.arguments import InferArguments
    from swift.dataset import load_dataset

    vlm = vlkit.load()
    file = vlkit.lora.export(data, adapter.with_name("data"), format="ms-swift")
    os.environ["ROOT_IMAGE_DIR"] = str(file.parent)
    rows, _ = load_dataset(str(file), load_from_cache_file=False, strict=True)
    check(len(rows) == len(data), f"{len(rows)} of {len(data)} rows")
    processor = get_processor(str(vlm.folder.path), model_type="qwen2_vl")
    template = get_template(processor, template_type="qwen2_vl")
    template.set_mode("train")
    for row, example in zip(rows, data, strict=True):
        read, meant = template.encode(row), label_example(vlm, example)
        tokens = spell(vlm, meant.tensors["input_ids"][0].tolist())
        check(tokens == spell(vlm, read["input_ids"]), row)
        learnt = spell(vlm, meant.labels[0].tolist())
        check(learnt == spell(vlm, read["labels"]).removesuffix("\n"), row)  # which it adds
    print(f"ms-swift reads all {len(rows)} rows, tokens and labels as vlkit trains on them")
    arguments = InferArguments.from_pretrained(str(adapter))
    found = (arguments.model, arguments.model_type, arguments.template, arguments.tuner_type)
    check(found == (BASE, "qwen2_vl", "qwen2_vl", "lora"), found)
    print("ms-swift takes the adapter's model, its type and template from args.json")


def spell(vlm: vlkit.VLM, ids: list[int]) -> str:
    """Tokens as text, without those that are not learnt from.

    A picture counts as one token: ms-swift looks for Qwen's number of it, the bundled model has its
    own.
    """
    text = vlm.processor.tokenizer.decode([token for token in ids if token >= 0])
    return re.sub(r"(<\|image_pad\|>)+", r"\1", text)


def check(right: bool, told: object) -> None:
    if not right:
        raise SystemExit(f"not as it was meant: {told}")


if __name__ == "__main__":
    main()
