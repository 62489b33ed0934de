"""What went wrong at a service, in one line without the key, and whether to ask again."""

from __future__ import annotations

import email.utils
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vlkit.errors import RemoteError
from vlkit.remote.services import Service

NO_KEY = "none"  # what is sent where there is no key
MOST_WAIT = 60.0  # seconds that a service may ask to wait before it is told to the user instead
_QUOTA = re.compile(
    r"insufficient_quota|insufficient balance|arrearage|freetier|billing|overdue|good standing",
    re.I,
)
_CONTENT = re.compile(
    r"data_?inspection|content_?(policy|filter)|inappropriate content|moderation", re.I
)
_MODEL = re.compile(r"model_?not_?found|model.{0,80}(does ?n.t|not) (exist|found)", re.I)
_SECRET = re.compile(r"\b(sk|Bearer)[-_ ](?=[\w\-.]*[\d*])[\w\-*.]{6,}", re.I)


@dataclass(frozen=True)
class Problem:
    """A failed request.

    Attributes:
        error: what to tell.
        again: whether another try may go well.
        wait: the seconds that the service asks to wait, or None.
        unreached: whether nothing came back at all.
        keyless: whether the key is wrong, or lacking.
    """

    error: RemoteError
    again: bool = False
    wait: float | None = None
    unreached: bool = False
    keyless: bool = False


@dataclass(frozen=True)
class Place:
    """Who was asked, for messages.

    Attributes:
        model: what the service calls it.
        base_url: the endpoint.
        service: the kind of service.
        timeout: seconds that an answer may take.
        key: never told.
        served: names of the models that it serves, as far as known.
    """

    model: str
    base_url: str
    service: Service
    timeout: float
    key: str = field(repr=False)
    served: Sequence[str] = ()

    def tell(self, text: str, *, fatal: bool = False) -> RemoteError:
        """The error that says so."""
        return RemoteError(f"{self.model} at {self.base_url}: {self.clean(text)}", fatal=fatal)

    def clean(self, text: str) -> str:
        """Text in which neither the key nor anything like one stands."""
        if self.key != NO_KEY:
            text = text.replace(self.key, "…")
        return _SECRET.sub("…", text)


def describe_problem(error: Exception, place: Place) -> Problem:
    """What an exception of the openai package, or of what lies below it, means."""
    import openai

    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return _timeout(error, place)
    if isinstance(error, openai.APIConnectionError):
        return _unreached(error, place)
    if isinstance(error, openai.APIStatusError):
        return _refused(error, place)
    if isinstance(error, RemoteError):
        return Problem(error)
    if isinstance(error, openai.APIError) and isinstance(error.body, dict):  # within a stream
        return Problem(_broken(error, place))
    return Problem(
        place.tell(
            f"what came is no chat completion ({_first_line(error)}); check that base_url is an "
            "OpenAI-compatible endpoint, which mostly ends in /v1"
        )
    )


def _timeout(error: Exception, place: Place) -> Problem:
    if "Connect" in type(error.__cause__).__name__:
        return _unreached(error, place)
    return Problem(
        place.tell(
            f"no answer within {place.timeout:g} s; load with a longer timeout=, or lower "
            "max_new_tokens"
        ),
        unreached=True,
    )


def _unreached(error: Exception, place: Place) -> Problem:
    cause: Any = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__
    number = getattr(cause, "errno", None)
    reason = os.strerror(number) if number and number > 0 else _first_line(cause)
    text = f"no connection ({reason}); check the network and base_url, and that the server runs"
    return Problem(place.tell(text, fatal=True), again=True, unreached=True)


def _refused(error: Any, place: Place) -> Problem:
    status, said, tell = error.status_code, _said(error), place.tell
    code = " ".join(str(part) for part in (error.code, error.type, said) if part)
    throttled = status == 429 and place.service.name == "dashscope"  # its quota is one a minute
    if _QUOTA.search(code) and not throttled:
        text = f"the account's quota or balance is used up ({said}); look into its console"
        return Problem(tell(text, fatal=True))
    if _CONTENT.search(code):
        return Problem(tell(f"the content was refused ({said}); change the question or picture"))
    if status == 401 or "api_key" in code.lower() or "apikey" in code.lower():
        return Problem(tell(_wrong_key(place, said), fatal=True), keyless=True)
    if status == 404 or _MODEL.search(code):
        text = f"no such model or address ({said}); check the model's name and base_url"
        text += f"; it serves {', '.join(place.served[:4])}" if place.served else ""
        return Problem(tell(text, fatal=True))
    if status == 403:
        return Problem(tell(f"the key may not use this model ({said}); ask for access", fatal=True))
    if status in (408, 409, 429) or status >= 500:
        return _busy(error, status, said, place)
    return Problem(tell(f"the request was refused (HTTP {status}: {said})"))


def _wrong_key(place: Place, said: str) -> str:
    name = place.service.key_name
    if place.key == NO_KEY:
        return f"it asks for a key ({said}); set the environment variable {name} or pass api_key="
    where = "; keys differ by region" if place.service.name == "dashscope" else ""
    return f"the key is refused ({said}); check {name} or api_key={where}"


def _broken(error: Any, place: Place) -> RemoteError:
    said = _said(error)
    if _CONTENT.search(f"{error.code} {said}"):
        return place.tell(f"the content was refused ({said}); change the question or picture")
    return place.tell(f"the service broke the answer off ({said}); ask again")


def _busy(error: Any, status: int, said: str, place: Place) -> Problem:
    wait = retry_after(error.response.headers)
    if status == 429:
        text = f"too many requests ({said}); wait, or lower concurrency="
    else:
        text = f"the service fails (HTTP {status}: {said}); try again later"
    if wait is not None and wait > MOST_WAIT:
        return Problem(place.tell(f"{text}; it asks to wait {wait:,.0f} s"))
    return Problem(place.tell(text), again=True, wait=wait)


def retry_after(headers: Any) -> float | None:
    """The seconds that a ``Retry-After`` header asks to wait, as a number or as a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _said(error: Any) -> str:
    """The service's own words, short."""
    body = error.body if isinstance(error.body, dict) else {}
    text = body.get("message") or body.get("detail") or body.get("msg")
    if not text:
        text = error.code or f"HTTP {getattr(error, 'status_code', '')}"
    return _shorten(str(text))


def _first_line(error: BaseException) -> str:
    lines = (str(error) or type(error).__name__).splitlines()
    return _shorten(lines[0]) if lines else type(error).__name__


def _shorten(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= 240 else text[:240] + "…"
