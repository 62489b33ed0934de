"""What must never be written down: keys, tokens, passwords."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

LEFT_OUT = "[left out]"
SHORTEST = 8  # letters; a shorter value stands in too many innocent words
_SECRET_NAME = re.compile(
    r"(?:^|[_.-])(?:api[_-]?key|access[_-]?key(?:[_-]?id)?|key|tokens?|secret|pass(?:word|wd|phrase)?"
    r"|pwd|credentials?|auth(?:orization)?|signature|sig|security|session|cookie|code)(?:$|[_.-])"
    r"|(?:key|token|secret|password|signature|credential|keyid)$",
    re.IGNORECASE,
)
_NOT_SECRET = ("PWD", "OLDPWD")  # folders
_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s\"'<>`\\]+", re.IGNORECASE)
_SHAPES = re.compile(
    r"\bsk-[\w-]{16,}|\bhf_\w{20,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\b(?:AKIA|ASIA|LTAI)[0-9A-Za-z]{12,}|\bAIza[\w-]{30,}|\bxox[abprs]-[\w-]{10,}"
    r"|\beyJ[\w-]{5,}\.[\w-]{8,}\.[\w-]{4,}|(?<=[Bb]earer )[\w.~+/-]{12,}=*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.DOTALL,
)


def without_secrets(value: Any, known: Collection[str] = ()) -> Any:
    """A copy of plain data in which ``[left out]`` stands where a secret stood.

    Left out are the values of environment variables whose names speak of keys, tokens or
    passwords, the ``known`` ones, what has the shape of a well-known service's key, and of URLs
    the password and the values of such parameters.
    """
    return _clean(value, sorted({*_environment(), *known}, key=len, reverse=True))


def clean_url(url: str) -> str:
    """A URL without user, password and the values of its parameters."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", "")) + ("?…" if parts.query else "")


def _environment() -> set[str]:
    return {
        value
        for name, value in os.environ.items()
        if len(value) >= SHORTEST and name not in _NOT_SECRET and _SECRET_NAME.search(name)
    }


def _clean(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        return _clean_text(value, secrets)
    if isinstance(value, dict):
        return {_clean(key, secrets): _clean(each, secrets) for key, each in value.items()}
    if isinstance(value, list | tuple):
        numbers = all(isinstance(each, int | float) for each in value)  # as hundreds of token ids
        return list(value) if numbers else [_clean(each, secrets) for each in value]
    return value


def _clean_text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, LEFT_OUT)
    if "://" in text:
        text = _URL.sub(lambda found: _clean_found(found[0]), text)
    return _SHAPES.sub(LEFT_OUT, text)


def _clean_found(url: str) -> str:
    """A URL in a text, changed only where it holds a secret."""
    try:
        parts = urlsplit(url)
        names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    except ValueError:  # no URL after all, or one that hides something
        return url.partition("?")[0] if "@" not in url else LEFT_OUT
    if "@" in parts.netloc or any(map(_SECRET_NAME.search, names)) or "token" in parts.fragment:
        return clean_url(url)
    return url
