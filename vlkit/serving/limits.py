"""What a request may cost and name, and how a request is refused."""

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


class RequestError(VlkitError):
    """A request that is refused; becomes OpenAI's error object.

    Attributes:
        status: of HTTP.
        param: the field that is wrong, as ``messages.0.content``, or None.
        code: OpenAI's short code, or None.
        headers: for the response.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    @property
    def body(self) -> dict:
        """The JSON that OpenAI's clients read."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kinds.get(self.status, kind)}
        return {"error": error | {"param": self.param, "code": self.code}}
