"""What weights are: which ones are in memory, as a hash that changes with any of them."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from weakref import WeakKeyDictionary

_CHUNK = 1 << 24  # weights summed at a time
# settings that change no answer
_WITHOUT_EFFECT = (
    "transformers_version", "peft_version", "base_model_name_or_path", "revision",
)  # fmt: skip
_known: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()


def model_identity(vlm: Any) -> list[Any]:
    """What answers of a loaded model depend on besides the question; values for JSON.

    Settings are read each time; the weights are summed again only after one of them was written
    to.
    """
    limits = [_settings(vlm.processor.image_processor), _settings(_video_processor(vlm))]
    template = getattr(vlm.processor, "chat_template", None)
    names = [vlm.family, vlm.folder.revision, vlm.folder.config]
    return [names, vlm.max_image_tokens, template, limits, _network_key(vlm.model)]


def digest(content: Any) -> str:
    """The sha256 in hex of values for JSON; sets count in any order, other values by their repr."""
    text = json.dumps(content, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    return sorted(value, key=repr) if isinstance(value, set | frozenset) else repr(value)


def _video_processor(vlm: Any) -> Any:
    return getattr(vlm.processor, "video_processor", None)


def _settings(part: Any) -> dict:
    settings = part.to_dict() if hasattr(part, "to_dict") else {}
    return {key: settings[key] for key in settings if key not in _WITHOUT_EFFECT}


def _network_key(network: Any) -> str:
    parameters = list(network.named_parameters())
    state = [(p.data_ptr(), 0 if p.is_inference() else p._version) for _, p in parameters]
    known, key = _known.get(network, (None, ""))
    if known != state:
        shapes = [(name, str(p.dtype), list(p.shape)) for name, p in parameters]
        key = digest([shapes, _checksums([p for _, p in parameters])])
        _known[network] = (state, key)
    adapters = map(_settings, getattr(network, "peft_config", {}).values())  # how they are scaled
    return digest([key, _settings(getattr(network, "generation_config", None)), *adapters])


def _checksums(parameters: list) -> list[int]:
    """Exact sums of the weights' bits, which no device or number of threads can change."""
    import torch

    sums = []
    for parameter in parameters:
        if parameter.device.type == "meta":  # offloaded to disk
            continue
        bits = parameter.detach().contiguous().view(-1).view(torch.uint8)
        whole = 4 if bits.numel() % 4 == 0 and bits.storage_offset() % 4 == 0 else 1
        bits = bits.view(torch.int32) if whole == 4 else bits
        chunks = [chunk.sum(dtype=torch.int64) for chunk in bits.split(_CHUNK)]
        sums += [int(value) for value in torch.stack(chunks).tolist()] if chunks else []
    return sums
