"""Models found, checked and loaded; the rules of each generation."""

from vlkit.models.families import FAMILIES, SizeRules, published_rules
from vlkit.models.hub import ModelFolder, available_models
from vlkit.models.load import VLM, load_processor
from vlkit.models.memory import memory_table

__all__ = [
    "FAMILIES",
    "VLM",
    "ModelFolder",
    "SizeRules",
    "available_models",
    "load_processor",
    "memory_table",
    "published_rules",
]
