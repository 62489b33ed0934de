"""One `load` for the whole family."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from vlkit.adapters import attach_adapter
from vlkit.errors import ModelError
from vlkit.families import family_of
from vlkit.hubs import Hub, ModelFolder, find_model, first_line


@dataclass(frozen=True, eq=False)
class VLM:
    """A loaded model with its processor.

    Attributes:
        model: the transformers model, in evaluation mode.
        processor: its transformers processor, padding on the left.
        family: a key of ``FAMILIES``.
        folder: where the weights came from.
        adapter: the adapter's folder, or None.
        max_image_tokens: limit for every picture without one of its own, or None.
    """

    model: Any
    processor: Any
    family: str
    folder: ModelFolder
    adapter: str | None = None
    max_image_tokens: int | None = None

    @property
    def name(self) -> str:
        """What the model was called when it was loaded."""
        return self.folder.name

    @property
    def context_length(self) -> int:
        """The most tokens that prompt and answer may have together."""
        return self.model.config.get_text_config().max_position_embeddings

    def __repr__(self) -> str:
        extra = f", adapter={self.adapter!r}" if self.adapter else ""
        return (
            f"VLM({self.name!r}, family={self.family!r}, "
            f"{self.model.num_parameters():,} parameters, "
            f"{str(self.model.dtype).removeprefix('torch.')} on {self.model.device}{extra})"
        )


def load(
    model: str | os.PathLike = "tiny",
    *,
    hub: Hub = "auto",
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attn: str = "auto",
    quantize: Literal["4bit", "8bit"] | None = None,
    adapter: str | os.PathLike | None = None,
    max_image_tokens: int | None = None,
) -> VLM:
    """Load a model of the Qwen-VL family.

    Args:
        model: ``"tiny"`` (bundled), a folder, or a hub id such as ``Qwen/Qwen2-VL-7B-Instruct``.
        hub: ``"auto"``: local, then cached, then whichever hub answers; ``"modelscope"`` or
            ``"huggingface"`` for one of them alone.
        revision: commit, branch or tag; pin it for results that others can repeat.
        device: ``"auto"`` takes all GPUs, else Apple's, else the CPU.
        dtype: ``"auto"`` is the checkpoint's own on a GPU and float32 on a CPU; or ``"bfloat16"`` …
        attn: ``"auto"`` is flash attention where it is installed and fits, else sdpa.
        quantize: ``"4bit"`` or ``"8bit"`` through bitsandbytes (``pip install "vlkit[quant]"``).
        adapter: folder or hub id of a PEFT adapter made for this model.
        max_image_tokens: shrink every picture to at most this many tokens.

    Raises:
        ModelError: what is wrong and what to do. Weights are safetensors only, and no code from a
            model folder is ever run.
    """
    if quantize not in (None, "4bit", "8bit"):
        raise ModelError(f'quantize={quantize!r} is unknown; choose "4bit", "8bit" or None')
    if max_image_tokens is not None and max_image_tokens < 1:
        raise ModelError(f"max_image_tokens={max_image_tokens!r} must be 1 or more")
    folder = find_model(model, hub=hub, revision=revision)
    family = family_of(folder.config, folder.name)
    network = _load_network(folder, device, dtype, attn, quantize)
    if adapter is not None:
        network = attach_adapter(network, adapter, folder, family)
    processor = _load_processor(folder)
    return VLM(
        network.eval(),
        processor,
        family,
        folder,
        os.fspath(adapter) if adapter else None,
        max_image_tokens,
    )


def _load_network(folder: ModelFolder, device: str, dtype: str, attn: str, quantize: str | None):
    import torch
    from transformers import AutoModelForImageTextToText

    device = _choose_device(device)
    options: dict[str, Any] = {
        "dtype": _choose_dtype(dtype, device),
        "attn_implementation": _choose_attention(attn, device, dtype),
        "device_map": "auto" if device == "cuda" else device,
    }
    if quantize:
        options["quantization_config"] = _quantization(quantize, options["dtype"])
    try:
        network, info = AutoModelForImageTextToText.from_pretrained(
            folder.path,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError(
            f'{folder.name} does not fit into the GPU\'s memory; try quantize="4bit", a smaller '
            "model or more GPUs"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as error:
        raise ModelError(f"{folder.name} could not be loaded: {first_line(error)}") from error
    wrong = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    if wrong:
        raise ModelError(
            f"{folder.path} lacks or mismatches {len(wrong)} weights ({sorted(wrong)[0]} …); they "
            "would be random, so download the model again"
        )
    if {"cpu", "disk"} & set(map(str, getattr(network, "hf_device_map", {}).values())) and (
        device == "cuda"
    ):
        warnings.warn(
            f"{folder.name} does not fit into the GPU's memory; part of it runs on the CPU, slowly",
            stacklevel=3,
        )
    return network


def _choose_device(device: str) -> str:
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise ModelError(f'device={device!r} is unknown; choose "auto", "cpu", "cuda:0" or "mps"')
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f'device={device!r}, but torch sees no GPU; use device="auto"')
    return device


def _choose_dtype(dtype: str, device: str):
    import torch

    if dtype == "auto":
        return torch.float32 if device == "cpu" else "auto"
    chosen = getattr(torch, dtype, None)
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ModelError(f'dtype={dtype!r} is unknown; choose "auto", "bfloat16", "float16" …')
    return chosen


def _choose_attention(attn: str, device: str, dtype: str) -> str:
    from transformers.utils import is_flash_attn_2_available

    if attn == "auto":
        fits = device.startswith("cuda") and dtype in ("auto", "bfloat16", "float16")
        return "flash_attention_2" if fits and is_flash_attn_2_available() else "sdpa"
    if attn == "flash_attention_2" and not is_flash_attn_2_available():
        raise ModelError('attn="flash_attention_2" needs `pip install flash-attn` and a CUDA GPU')
    return attn


def _quantization(quantize: str, dtype: Any):
    import torch
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f'quantize="{quantize}" needs bitsandbytes: pip install "vlkit[quant]"'
        ) from error
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
    )


def _load_processor(folder: ModelFolder):
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(
            folder.path, trust_remote_code=False, local_files_only=True, padding_side="left"
        )
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder.path} has no usable processor ({first_line(error)}); it needs the "
            "tokenizer and preprocessor files of the original model beside the weights"
        ) from error
    if not getattr(processor, "chat_template", None):
        raise ModelError(f"{folder.path} has no chat template; copy chat_template.jinja into it")
    return processor
