"""Questions and answers: ``generate``, ``stream``, ``Chat``, ``Reply``."""

from vlkit.generation.generate import Chat, Stream
from vlkit.generation.reply import Failure, Reply, Usage

__all__ = ["Chat", "Failure", "Reply", "Stream", "Usage"]
