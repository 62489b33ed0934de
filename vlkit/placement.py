"""Where and how a network is loaded: device, dtype, attention, quantization."""

from __future__ import annotations

import re
from typing import Any

from vlkit.errors import ModelError
from vlkit.hubs import ModelFolder

DTYPES = ("bfloat16", "float16", "float32", "float64")
_ROOM = 1.4  # memory over the weights': cache and activations
_QUANTIZED = {"4bit": 0.4, "8bit": 0.6}  # weights over the stored ones, embeddings kept whole
ATTENTIONS = ("auto", "sdpa", "eager", "flash_attention_2")


def network_options(
    folder: ModelFolder, device: str, dtype: str, attn: str, quantize: str | None
) -> dict[str, Any]:
    """Options for ``from_pretrained``; see :func:`vlkit.load`. Raises ModelError."""
    device = _choose_device(device)
    chosen = choose_dtype(dtype, device, folder.config)
    options = {
        "dtype": chosen,
        "attn_implementation": choose_attention(attn, device, chosen),
        "device_map": _choose_map(folder, chosen, quantize) if device == "cuda" else device,
    }
    if quantize:
        options["quantization_config"] = _quantization(quantize, chosen)
    return options


def _choose_map(folder: ModelFolder, dtype: Any, quantize: str | None) -> str:
    """The GPU with the most free memory if it holds the weights and room to work, else all."""
    import torch

    free = [torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]
    stored = choose_dtype("auto", "cuda", folder.config)
    share = _QUANTIZED[quantize] if quantize else dtype.itemsize / stored.itemsize
    files = [*folder.path.glob("*.safetensors"), *folder.path.glob("*.bin")]
    need = _ROOM * share * sum(file.stat().st_size for file in files)
    return f"cuda:{free.index(max(free))}" if len(free) > 1 and need < max(free) else "auto"


def _choose_device(device: str) -> str:
    import torch

    mps = torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    match = re.fullmatch(r"cpu|mps|cuda(:(\d+))?", str(device))
    if not match:
        raise ModelError(f'device={device!r} is unknown; choose "auto", "cpu", "cuda:0" or "mps"')
    gpus = torch.cuda.device_count()
    if (device == "mps" and not mps) or (device.startswith("cuda") and int(match[2] or 0) >= gpus):
        raise ModelError(f'device={device!r}, but torch sees {gpus} GPUs; use device="auto"')
    return device


def choose_dtype(dtype: str, device: str, config: dict):
    """A torch dtype; "auto" on a GPU is the one in which the weights are stored."""
    import torch

    name = str(dtype).removeprefix("torch.")
    if name == "auto" and device == "cpu":
        return torch.float32
    if name == "auto":
        parts = (config, config.get("text_config") or {})
        stored = [part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)]
        name = str(stored[0]).removeprefix("torch.") if stored else "bfloat16"
    if name not in DTYPES:
        raise ModelError(f"dtype={dtype!r} is unknown; choose 'auto' or one of {list(DTYPES)}")
    return getattr(torch, name)


def choose_attention(attn: str, device: str, dtype: Any) -> str:
    """The attention's name in transformers; "auto" takes the fastest that is there."""
    import torch
    from transformers.utils.import_utils import is_flash_attn_2_available

    if attn not in ATTENTIONS:
        raise ModelError(f"attn={attn!r} is unknown; choose one of {list(ATTENTIONS)}")
    fits = device.startswith("cuda") and dtype in (torch.bfloat16, torch.float16)
    if attn == "auto":
        return "flash_attention_2" if fits and is_flash_attn_2_available() else "sdpa"
    if attn == "flash_attention_2" and not (fits and is_flash_attn_2_available()):
        raise ModelError(
            'attn="flash_attention_2" needs a CUDA GPU, dtype="bfloat16" or "float16", and '
            '`pip install flash-attn`; attn="auto" takes it where it can be used'
        )
    return attn


def _quantization(quantize: str, dtype: Any):
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f'quantize="{quantize}" needs bitsandbytes: pip install "vlkit[quant]"'
        ) from error
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
