"""Where a hosted model is, which family it is, and how it is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vlkit.errors import RemoteError
from vlkit.models.families import SizeRules
from vlkit.remote.services import Service


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A model behind an address; it never shows its key.

    Attributes:
        name: what it was called when it was loaded.
        model: what the service calls it.
        base_url: the endpoint.
        family: a key of ``FAMILIES``.
        rules: how large its pictures are sent.
        context_length: the most tokens that prompt and answer may have together.
        service: the kind of service.
        rules_told: whether the service itself told the rules.
        prices: per million input and output tokens, or None.
        timeout, retries, concurrency, extra_body: see :class:`HostedOptions`.
        load_options: what it was loaded with, without the key.
        served: names of the models that the endpoint serves, as far as it tells.
        client: the openai package's client.
        chosen_by: the settings file or variable that named the model, or None.
    """

    name: str
    model: str
    base_url: str
    family: str
    rules: SizeRules
    context_length: int
    service: Service
    rules_told: bool
    prices: Mapping[str, float] | None
    timeout: float
    retries: int
    concurrency: int
    extra_body: Mapping[str, Any]
    load_options: Mapping[str, Any]
    served: tuple[str, ...]
    client: Any = field(repr=False)
    chosen_by: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What an answer depends on beside the question, without the key; values for JSON."""
        return {
            "model": self.model,
            "base_url": self.base_url,
            "family": self.family,
            "rules": asdict(self.rules),
            "extra_body": dict(self.extra_body),
        }

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no file may hold."""
        key = getattr(self.client, "api_key", None)
        return (key,) if key else ()

    def cost(self, prompt_tokens: int, new_tokens: int) -> float | None:
        """What so many tokens cost by ``prices``, in their currency; None without prices."""
        if self.prices is None:
            return None
        return (prompt_tokens * self.prices["input"] + new_tokens * self.prices["output"]) / 1e6

    def __reduce__(self) -> Any:
        raise RemoteError(f"{self.name} holds a key and cannot be saved; load it where it is used")

    def __repr__(self) -> str:
        extra = f", chosen by {self.chosen_by}" if self.chosen_by else ""
        where = f"base_url={self.base_url!r}"
        return f"{type(self).__name__}({self.name!r}, family={self.family!r}, {where}{extra})"
