"""What is known of a model before its weights are loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vlkit.bundled import bundled_path
from vlkit.errors import ModelError
from vlkit.inputs import estimate_text, render_prompt
from vlkit.models import memory
from vlkit.models.families import (
    FAMILIES,
    SizeRules,
    family_of,
    family_of_name,
    published_rules,
    rules_of_processor,
)
from vlkit.models.hub import HUB_ID, HUBS, ModelFolder, cached_folder, read_config, read_model_file
from vlkit.models.load import Model, load_processor
from vlkit.models.memory import Cost, count_cost

_PADS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}


@dataclass(frozen=True, eq=False)
class Target:
    """A model as a preflight knows it.

    Attributes:
        name: what the user called it.
        family: a key of ``FAMILIES``.
        rules: its size rules.
        context_length: the most tokens of prompt and answer together.
        processor: its transformers processor, or None where its tokenizer is not at hand.
        model: the loaded model, or None.
        folder: of a model that is not loaded, or None where only the name is known.
    """

    name: str
    family: str
    rules: SizeRules
    context_length: int
    processor: Any = None
    model: Model | None = None
    folder: Path | None = None

    @cached_property
    def cost(self) -> Cost | None:
        """What it needs of memory, or None where its shape is not known."""
        if self.model is not None:
            return self.model.memory_cost()
        if self.folder is not None and (weights := _weight_bytes(self.folder)):
            from transformers import AutoConfig

            return count_cost(AutoConfig.from_pretrained(self.folder), weights)
        if self.name in memory.SHAPES:
            weights = memory.count_memory(self.name).bfloat16
            return count_cost(memory.build_config(self.name), weights)
        return None

    def count_text(self, messages: list[dict], clip_times: Sequence[Sequence[float]]) -> int:
        """Tokens of a prompt without those of its pictures and clips.

        Args:
            messages: checked.
            clip_times: of each clip, the seconds that stand before each of its steps.
        """
        if self.processor is None:
            return estimate_text(messages, self.family, clip_times)
        prompt = render_prompt(self.processor, messages)
        pads = prompt.count(_PADS["image"])
        pieces = prompt.split(_PADS["video"])
        text = pieces[0]
        for times, piece in zip(clip_times, pieces[1:], strict=True):
            text += self.clip_text(times) + piece
            pads += len(times) if self._writes_times else 1
        return len(self.processor.tokenizer(text)["input_ids"]) - pads

    @property
    def _writes_times(self) -> bool:
        return self.rules.patch_size == 16  # from Qwen3-VL on

    def clip_text(self, times: Sequence[float]) -> str:
        """As the family's processor writes a clip, with one placeholder for each step."""
        if not self._writes_times:
            return _PADS["video"]
        step = f"<|vision_start|>{_PADS['video']}<|vision_end|>"
        return "".join(f"<{time:.1f} seconds>{step}" for time in times)


def find_target(model: Model | str | os.PathLike) -> Target:
    """A loaded model, ``"tiny"``, a folder, or an id, cached or not; no weight is read.

    Raises:
        ModelError: nothing is known of it.
    """
    if not isinstance(model, str | os.PathLike):
        if hasattr(model, "answer_rows"):
            facts = model.name, model.family, model.rules, model.context_length
            return Target(*facts, model.processor, model)
        raise ModelError(f"expected a VLM, a folder or an id, not {type(model).__name__}")
    name = os.fspath(model)
    for folder in _folders(name):
        if folder.is_dir() and (folder / "config.json").is_file():
            return _folder_target(name, folder)
    if Path(name).expanduser().is_dir():
        read_config(Path(name).expanduser())  # says what is missing there
    family = family_of_name(name)
    return Target(name, family, published_rules(family), FAMILIES[family].context_length)


def _folders(name: str) -> list[Path]:
    if name == "tiny":
        return [bundled_path("tiny-qwen2-vl")]
    cached = [cached_folder(name, hub) for hub in HUBS] if HUB_ID.fullmatch(name) else []
    return [Path(name).expanduser(), *(folder for folder in cached if folder)]


def _folder_target(name: str, folder: Path) -> Target:
    config = read_config(folder)
    family = family_of(config, name)
    text = config.get("text_config") or config
    context = text.get("max_position_embeddings") or FAMILIES[family].context_length
    processor = _own_processor(name, folder, config)
    if processor is None:
        file = folder / "preprocessor_config.json"
        rules = published_rules(family, read_model_file(file) if file.is_file() else None)
    else:
        rules = rules_of_processor(processor, family, None)
    return Target(name, family, rules, context, processor, folder=folder)


def _weight_bytes(folder: Path) -> int:
    index = folder / "model.safetensors.index.json"  # knows of shards that are not there yet
    total = index.is_file() and read_model_file(index).get("metadata", {}).get("total_size")
    return total or sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _own_processor(name: str, folder: Path, config: dict) -> Any:
    """None without a tokenizer, as in a folder of a few JSON files."""
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        return None  # transformers would make an empty one
    try:
        return load_processor(ModelFolder(folder, name, "local", None, config))
    except ModelError:
        return None
