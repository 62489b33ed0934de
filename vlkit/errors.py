"""The errors that vlkit raises; checks and wording that they share."""

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any


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


def shorten(text: str) -> str:
    """A name for messages and reports: one line, at most 200 characters, never a data URL."""
    if text[:5].lower() == "data:":
        return f"data URL of {len(text):,} characters"
    if not text or not text.isprintable():
        text = ascii(text)  # quoted, with control characters spelt out
    return text if len(text) <= 200 else text[:120] + "…" + text[-60:]


def warn_user(message: str) -> None:
    """Warn in the line outside of vlkit that led here, however many calls lie between."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "vlkit":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


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


def check_choice(
    name: str, value: Any, choices: Iterable, *, kind: type[VlkitError] = VlkitError
) -> None:
    """Raises ``kind`` for a value that is not one of the choices, type included."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise kind(f"{name}={value!r:.60} is unknown; choose one of {list(choices)}")


def check_whole(
    name: str,
    value: Any,
    least: int = 0,
    most: int | None = None,
    *,
    optional: bool = False,
    kind: type[VlkitError] = VlkitError,
) -> None:
    """Raises ``kind`` where an argument is not a whole number in its range.

    Args:
        name: of the argument.
        value: what was passed; True and False are not numbers.
        least: the smallest that is allowed.
        most: the largest, or None.
        optional: None is allowed.
        kind: what is raised.
    """
    if optional and value is None:
        return
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and least <= value and (most is None or value <= most):
        return
    span = f", {least:,} or more" if most is None else f" from {least:,} to {most:,}"
    end = ", or None" if optional else ""
    raise kind(f"{name}={value!r:.60} must be a whole number{span}{end}")


def is_number(value: Any) -> bool:
    """Whether it is an int or a finite float; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


@contextmanager
def needs_package(why: str, extra: str, *, kind: type[VlkitError] = VlkitError) -> Iterator[None]:
    """Raises ``kind`` with the pip command where an import in the block fails.

    Args:
        why: such as ``"training needs peft"``.
        extra: of vlkit, which brings the package.
        kind: what is raised.
    """
    try:
        yield
    except ImportError as error:
        raise kind(f'{why}: pip install "vlkit[{extra}]"') from error


def failure_line(error: BaseException) -> str:
    """``"MediaError: cat.jpg is empty"``: an error's kind and its first line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
