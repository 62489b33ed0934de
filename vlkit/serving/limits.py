"""``Limits``: the most that a request may cost, and what it may read."""

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
        new_tokens: tokens of an answer; a request that asks for more gets this many, with a note.
        context: tokens of prompt and answer together; None for the model's own limit.
        waiting: requests in the queue, beyond those that are being answered.
        header_seconds: time for a request's header to arrive.
        body_seconds: time for its body to arrive.
        connections: open connections; one other machine may have two thirds of them.
        local: a folder whose files requests may name; None for no files.
        urls: whether requests may name http(s) URLs on the public internet.
        hosts: hosts in internal networks that such URLs may name as well.
        origins: web pages that may call the server (CORS), as ``https://example.org``.
    """

    body_bytes: int = 32 * 2**20
    held_bytes: int = 2**30
    pictures: int = 64
    pixels: int = 50_000_000
    frames: int = 128
    new_tokens: int = 1024
    context: int | None = None
    waiting: int = 256
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    connections: int = 900
    local: Path | None = None
    urls: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def __post_init__(self):
        for name in "body_bytes pictures pixels frames new_tokens waiting connections".split():
            check_whole(name, getattr(self, name), 1)
        check_whole("context", self.context, 2, optional=True)
        if self.local is not None and not self.local.is_dir():
            raise VlkitError(f"local={self.local} is not a folder; name one that requests may read")
