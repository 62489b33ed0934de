"""``Limits``: the most that a request may cost, and what it may read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.errors import VlkitError, check_whole


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes:
        body_bytes: of one request.
        held_bytes: of all requests' bodies together, and of the media that wait for the model.
        pictures: pictures and clips of one request.
        pixels: of all pictures of one request together, and of one frame of a clip.
        frames: frames of a clip that the model sees; of a longer clip, fewer frames are sampled.
        new_tokens: tokens of an answer, also if the request names no limit.
        context: tokens of prompt and answer together; None for the model's own limit.
        waiting: requests in the queue, beyond those that are being answered.
        body_seconds: time for a body to arrive.
        local: a folder whose files requests may name; None for no files.
        urls: whether requests may name http(s) URLs.
    """

    body_bytes: int = 32 * 2**20
    held_bytes: int = 2**30
    pictures: int = 16
    pixels: int = 50_000_000
    frames: int = 128
    new_tokens: int = 1024
    context: int | None = None
    waiting: int = 256
    body_seconds: float = 60.0
    local: Path | None = None
    urls: bool = False

    def __post_init__(self):
        for name in ("body_bytes", "pictures", "pixels", "frames", "new_tokens", "waiting"):
            check_whole(name, getattr(self, name), 1)
        check_whole("context", self.context, 2, optional=True)
        if self.local is not None and not self.local.is_dir():
            raise VlkitError(f"local={self.local} is not a folder; name one that requests may read")
