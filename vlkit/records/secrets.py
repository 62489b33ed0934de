"""Keep API keys, tokens and passwords out of everything that a run writes."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

LEFT_OUT = "[left out]"
SHORTEST = 8  # characters; a shorter value is part of too many harmless words
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
    """A copy of plain data with ``[left out]`` in place of secrets.

    Secrets are the values of environment variables that are named like keys, tokens or passwords;
    the ``known`` ones; text in the format of a well-known service's keys; and, in URLs, passwords
    and the values of parameters with such names.
    """
    return _clean(value, sorted({*_environment(), *known}, key=len, reverse=True))


def clean_url(url: str) -> str:
    """A URL without user name, password and parameters."""
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
        return {_clean(key, secrets): _clean(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if all(isinstance(item, int | float) for item in value):  # such as hundreds of token ids
            return list(value)
        return [_clean(item, secrets) for item in value]
    return value


def _clean_text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, LEFT_OUT)
    if "://" in text:
        text = _URL.sub(lambda match: _clean_url_in_text(match[0]), text)
    return _SHAPES.sub(LEFT_OUT, text)


def _clean_url_in_text(url: str) -> str:
    """The URL, changed only if it contains a secret."""
    try:
        parts = urlsplit(url)
        names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    except ValueError:  # not a valid URL
        return url.partition("?")[0] if "@" not in url else LEFT_OUT
    if "@" in parts.netloc or any(map(_SECRET_NAME.search, names)) or "token" in parts.fragment:
        return clean_url(url)
    return url
