"""What a request may cost and name; apart from the server, so that ``--help`` needs no FastAPI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlkit.errors import VlkitError


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes:
        body_bytes: of one request.
        held_bytes: of all requests' bodies together, and of the media that wait for the model.
        pictures: pictures and clips of one request.
        pixels: of all pictures of one request together, and of one frame of a clip.
        frames: frames of a clip that the model sees; more are thinned out.
        new_tokens: the longest answer, and that of a request which names no limit.
        context: prompt and answer together; None for the model's own.
        waiting: requests beyond those that are being answered.
        body_seconds: for a body to arrive.
        local: requests may name files in this folder; None for no files.
        urls: requests may name http(s) URLs.
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
        counts = ("body_bytes", "pictures", "pixels", "frames", "new_tokens", "waiting")
        for name in counts:
            if getattr(self, name) < 1:
                raise VlkitError(f"{name}={getattr(self, name)} must be 1 or more")
        if self.context is not None and self.context < 2:
            raise VlkitError(f"context={self.context} must be 2 or more")
        if self.local is not None and not self.local.is_dir():
            raise VlkitError(f"local={self.local} is no folder; name one that requests may read")
