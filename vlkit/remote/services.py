"""The services: addresses, families, size rules, limits, costs."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from vlkit.errors import RemoteError
from vlkit.models.families import FAMILIES, SizeRules, family_named, published_rules
from vlkit.models.load import hosted_prefix

OPENAI_URL = "https://api.openai.com/v1"
REGIONS = {
    "beijing": "https://dashscope.aliyuncs.com/compatible-mode/v1",
    "singapore": "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    "virginia": "https://dashscope-us.aliyuncs.com/compatible-mode/v1",
    "hongkong": "https://cn-hongkong.dashscope.aliyuncs.com/compatible-mode/v1",
}


CONTEXTS = {name: family.context_length for name, family in FAMILIES.items()}
_FIRST_RULES = SizeRules(14, *((4 * 28**2, 1280 * 28**2),) * 2)  # the service resizes to 448×448
_MOST_TOKENS = 16_384  # of a picture, on every service and in every generation


@dataclass(frozen=True)
class Service:
    """The properties of a kind of service.

    Attributes:
        name: ``"dashscope"``, ``"openai"`` (OpenAI's own), ``"openrouter"``, ``"ollama"``,
            or ``"compatible"`` (`vlkit serve`, vLLM and others with the same protocol).
        key_name: the environment variable with the key.
        needs_key: whether every request needs a key.
        most_temperature: the highest that it accepts.
        most_seed: the highest seed that it accepts.
        any_token: the ``top_k`` that means the whole vocabulary, or None if there is no such
            field.
        streams: whether every answer is streamed, since a long one would be cut off otherwise.
        clips: whether it takes a clip as the frames that vlkit has sampled.
        vllm_fields: whether it may know vLLM's own fields; one that it refuses is left out.
        switch, budget: make the fields that switch thinking on or off, and that limit its tokens;
            ``{None: …}`` where there are none.
    """

    name: str
    key_name: str = "OPENAI_API_KEY"
    needs_key: bool = False
    most_temperature: float = 10.0
    most_seed: int = 2**63 - 1
    any_token: int | None = -1
    streams: bool = False
    clips: bool = False
    vllm_fields: bool = False
    switch: Callable[[bool], dict[Any, Any]] = lambda on: {None: on}
    budget: Callable[[int], dict[Any, Any]] = lambda most: {None: most}

    def token_field(self, family: str) -> str:
        """The field that limits the answer's tokens."""
        newer = self.name == "openai" or (self.name == "dashscope" and family == "qwen3_5")
        return "max_completion_tokens" if newer else "max_tokens"

    def thinking_fields(self, thinking: bool | int | None) -> dict[str, Any]:
        """The fields of a request that ask for thinking, for none, or for at most so many tokens.

        Raises:
            RemoteError: the service has no such field.
        """
        if thinking is None:
            return {}
        fields = self.switch(thinking is not False)
        if not isinstance(thinking, bool):
            fields |= self.budget(thinking)
        if None in fields:
            raise RemoteError(
                f"thinking={thinking!r}: vlkit knows no field of this service for it; pass the "
                "service's own field in extra_body="
            )
        return fields


def _in_template(on: bool) -> dict[str, Any]:
    return {"chat_template_kwargs": {"enable_thinking": on}}


DASHSCOPE = Service(
    "dashscope", "DASHSCOPE_API_KEY", True, 1.99, 2**31 - 1, 101, streams=True, clips=True,
    switch=lambda on: {"enable_thinking": on}, budget=lambda most: {"thinking_budget": most},
)  # fmt: skip
OPENAI = Service("openai", needs_key=True, most_temperature=2.0, any_token=None)
OPENROUTER = Service(
    "openrouter", needs_key=True, most_temperature=2.0, any_token=0,
    switch=lambda on: {"reasoning": {"enabled": on}},
    budget=lambda most: {"reasoning": {"max_tokens": most}},
)  # fmt: skip
COMPATIBLE = Service("compatible", clips=True, vllm_fields=True, switch=_in_template)
VLLM = replace(COMPATIBLE, budget=lambda most: {"thinking_token_budget": most})
SGLANG = replace(COMPATIBLE, clips=False)  # it reads video files alone
LLAMA_CPP = Service(
    "llama.cpp", switch=_in_template, budget=lambda most: {"thinking_budget_tokens": most}
)
OLLAMA = Service(
    "ollama", any_token=None, switch=lambda on: {"reasoning_effort": "medium" if on else "none"}
)
_HOSTS = {"aliyuncs.com": DASHSCOPE, "api.openai.com": OPENAI, "openrouter.ai": OPENROUTER}
# by ``owned_by`` in a server's list of models
OWNERS = {"vllm": VLLM, "sglang": SGLANG, "llamacpp": LLAMA_CPP, "library": OLLAMA}


# name, family, patch size. Since the middle of 2025, qwen-vl-max and qwen-vl-plus write boxes like
# Qwen2.5-VL, and have patches of 16 pixels like Qwen3-VL.
_HOSTED = (
    (r"qwen-vl-(max|plus)(-latest|-0710|-081[35]|-2025-(0[89]|1\d)-\d\d|-2025-07-\d\d)?$",
     "qwen2_5_vl", 16),
    (r"qwen-vl-(max|plus)-2025-0[1-6]-\d\d$", "qwen2_5_vl", 14),
)  # fmt: skip


def is_remote_name(model: Any) -> bool:
    """Whether a name is that of a hosted model: ``"openai:…"`` or ``"dashscope:…"``."""
    return hosted_prefix(model) is not None


def service_at(base_url: str) -> Service:
    """The kind of service behind an address."""
    host = urlsplit(base_url).hostname or ""
    return next((_HOSTS[end] for end in _HOSTS if host.endswith(end)), COMPATIBLE)


def check_url(base_url: str) -> str:
    """The address without a slash at its end. Raises RemoteError for an invalid one."""
    try:
        parts = urlsplit(base_url if isinstance(base_url, str) else "")
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # wrong brackets, or an invalid port
        parts, good = urlsplit(""), False
    if parts.username or parts.password or parts.query:
        raise RemoteError(
            "base_url contains a user name, a password or a query, which every message would "
            "show; pass the address alone, and the key as api_key= or in the environment"
        )
    if not good or not base_url.isprintable() or " " in base_url:
        raise RemoteError(
            f'base_url={base_url!r:.200} is not a URL; expected for example "http://127.0.0.1:8000/v1"'
        )
    return base_url.rstrip("/")


def find_url(prefix: str, base_url: str | None, region: str | None) -> str:
    """The address of ``"openai:…"`` or ``"dashscope:…"``.

    Raises:
        RemoteError: it is not an address, or the region is unknown.
    """
    if base_url is not None and region is not None:
        raise RemoteError("region= and base_url= both say where the service is; pass one of them")
    if base_url is not None:
        return check_url(base_url)
    if prefix != "dashscope":
        if region is not None:
            raise RemoteError('region= belongs to "dashscope:…"; pass base_url= for "openai:…"')
        return check_url(os.environ.get("OPENAI_BASE_URL") or OPENAI_URL)
    if (url := REGIONS.get(region or "beijing")) is None:
        raise RemoteError(
            f"region={region!r} is unknown; choose one of {list(REGIONS)}, or pass base_url= with "
            "the address that Model Studio's console shows for your workspace"
        )
    return url


def find_key(service: Service, given: str | None) -> str:
    """The key that is given, or in the environment; ``""`` for none.

    Raises:
        RemoteError: it cannot be a key, or the service needs one.
    """
    key = given if given is not None else os.environ.get(service.key_name, "")
    if not isinstance(key, str) or not key.isascii() or (key and not key.strip().isprintable()):
        raise RemoteError("the API key contains non-ASCII characters or line breaks; copy it again")
    key = key.strip()
    if not key and service.needs_key:
        text = f"no key: set the environment variable {service.key_name}, or pass api_key="
        raise RemoteError(text)
    return key


def family_and_rules(
    name: str, family: str | None, service: Service, entry: dict
) -> tuple[str, SizeRules]:
    """The family and size rules of a served model.

    Args:
        name: of the model at the service.
        family: the user's choice, or None.
        service: the kind of service.
        entry: the model's entry in the service's list; `vlkit serve` gives all sizes there, vLLM
            a ``root``.

    Raises:
        RemoteError: the name does not show the family.
    """
    if family is not None and family not in CONTEXTS:
        raise RemoteError(f"family={family!r} is unknown; choose one of {list(CONTEXTS)}")
    if rules := server_rules(entry):
        return family or entry["vlkit"]["family"], rules
    for pattern, hosted_family, patch_size in _HOSTED:
        if re.match(pattern, name.lower().rpartition("/")[2]):
            family = family or hosted_family
            return family, _service_rules(service, family, patch_size)
    family = family or family_named(name) or family_named(str(entry.get("root") or ""))
    if family is None:
        raise RemoteError(
            "cannot tell the model family, which says how boxes are written, from the name "
            f"{name!r}; pass family= as one of {list(CONTEXTS)}"
        )
    if family == "qwen_vl":
        return family, _FIRST_RULES
    return family, _service_rules(service, family, FAMILIES[family].patch_size)


def server_rules(entry: dict) -> SizeRules | None:
    """The size rules in `vlkit serve`'s entry of a model, if they are valid."""
    rules: Any = entry.get("vlkit")
    try:
        known = rules["family"] in FAMILIES and rules["patch_size"] in (14, 16)
        (low, high), (least, most) = rules["image_pixels"], rules["video_pixels"]
        limit = rules.get("max_image_tokens")
        sizes = (low, high, least, most, 1 if limit is None else limit)
        whole = all(isinstance(size, int) and 0 < size < 2**31 for size in sizes)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    if not (known and whole and low <= high and least <= most):
        return None
    square = FAMILIES[rules["family"]].square
    return SizeRules(rules["patch_size"], (low, high), (least, most), limit, square)


def _service_rules(service: Service, family: str, patch_size: int) -> SizeRules:
    """The family's rules; on DashScope with its default maximum, as every token costs money."""
    rules, token = published_rules(family), (2 * patch_size) ** 2
    if patch_size != rules.patch_size:
        pixels = (4 * token, _MOST_TOKENS * token)
        rules = SizeRules(patch_size, pixels, pixels)
    if service is not DASHSCOPE:
        return rules
    most = 2560 if family in ("qwen3_vl", "qwen3_5") else 1280
    return replace(rules, image_pixels=(rules.image_pixels[0], most * token))


def picture_bounds(rules: SizeRules) -> dict[str, int]:
    """DashScope's fields of a picture that keep it from resizing the picture again."""
    return {"min_pixels": rules.image_pixels[0], "max_pixels": _MOST_TOKENS * rules.side**2}


@dataclass(frozen=True, eq=False, kw_only=True)
class Address:
    """Where a model is asked for.

    Attributes:
        model: its name at the service.
        base_url: the endpoint.
        service: the kind of service.
        timeout: seconds that an answer may take.
        client: the openai package's client.
        served: names of the models that the endpoint lists, as far as known.
    """

    model: str
    base_url: str
    service: Service
    timeout: float
    client: Any = field(repr=False)
    served: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Endpoint(Address):
    """A model behind an address; it never shows its key.

    Attributes:
        name: the model's name in ``load``.
        family: a key of ``FAMILIES``.
        rules: how large its pictures are sent.
        context_length: the most tokens that prompt and answer may have together.
        has_server_rules: whether the rules come from the service's list of models.
        prices: per million input and output tokens, or None.
        retries, concurrency, extra_body: see :class:`HostedOptions`.
        load_options: what it was loaded with, without the key.
        unsupported: fields that the service has refused, and that are no longer sent.
        chosen_by: the settings file or variable that named the model, or None.
    """

    name: str
    family: str
    rules: SizeRules
    context_length: int
    has_server_rules: bool
    prices: Mapping[str, float] | None
    retries: int
    concurrency: int
    extra_body: Mapping[str, Any]
    load_options: Mapping[str, Any]
    chosen_by: str | None = None
    unsupported: set[str] = field(default_factory=set, repr=False)

    @property
    def identity(self) -> dict[str, Any]:
        """What an answer depends on besides the question, without the key; values for JSON."""
        return {
            "model": self.model,
            "base_url": self.base_url,
            "family": self.family,
            "rules": asdict(self.rules),
            "extra_body": dict(self.extra_body),
        }

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that no file may contain: the key."""
        key = getattr(self.client, "api_key", None)
        return (key,) if key else ()

    def cost(self, prompt_tokens: int, new_tokens: int) -> float | None:
        """The price of these tokens by ``prices``, in their currency; None without prices."""
        if self.prices is None:
            return None
        return (prompt_tokens * self.prices["input"] + new_tokens * self.prices["output"]) / 1e6

    def __reduce__(self) -> Any:
        raise RemoteError(f"{self.name} contains a key and cannot be saved; load it again instead")

    def __repr__(self) -> str:
        extra = f", chosen by {self.chosen_by}" if self.chosen_by else ""
        where = f"base_url={self.base_url!r}"
        return f"{type(self).__name__}({self.name!r}, family={self.family!r}, {where}{extra})"
