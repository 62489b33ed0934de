"""What vlkit raises: one line that says what was wrong, the value, and what to do."""

from __future__ import annotations


class VlkitError(Exception):
    """Base of every error that vlkit raises for what a user passed in."""

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else " " for c in message))


class MediaError(VlkitError):
    """A picture or video that cannot be read; names the file and the remedy."""


class ModelError(VlkitError):
    """A model that cannot be found, loaded or run as asked."""


class GroundingParseError(VlkitError):
    """An answer that holds boxes or points, but not in the family's format.

    Attributes:
        text: the raw answer, whole.
    """

    def __init__(self, message: str, text: str = ""):
        super().__init__(message)
        self.text = text


class RemoteError(VlkitError):
    """A hosted or served model that could not be reached or refused the request.

    Attributes:
        fatal: whether other requests would fail as well (key, model, quota, network).
    """

    def __init__(self, message: str, *, fatal: bool = False):
        super().__init__(message)
        self.fatal = fatal


def counted(number: int, noun: str) -> str:
    """``"1 row"``, ``"2,000 rows"``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def one_line(error: Exception) -> str:
    """What an error of another library says, cut to a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or isinstance(error, KeyError):
        return f"{type(error).__name__} {lines[0] if lines else ''}".strip()
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text if len(text) <= 200 else text.split(". ")[0][:200]
