"""Models found, checked and loaded; the rules of each generation."""

from vlkit.models.families import published_rules
from vlkit.models.load import VLM, load_processor

__all__ = ["VLM", "load_processor", "published_rules"]
