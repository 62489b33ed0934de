"""``RemoteVLM``, a hosted model: options, keys, prices; many rows."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import queue
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from vlkit.errors import RemoteError, VlkitError
from vlkit.generation.reply import Failure, Reply
from vlkit.generation.rows import Settings, Tally
from vlkit.remote.answer import answer_remotely, make_reply
from vlkit.remote.client import PATIENCE, RawAnswer, ask, event_loop, list_models, open_client
from vlkit.remote.request import make_request
from vlkit.remote.services import (
    CONTEXTS,
    OPENAI_URL,
    Endpoint,
    Service,
    check_url,
    family_and_rules,
    region_url,
    server_rules,
    service_at,
)

LATER_PATIENCE = 120.0  # seconds for which a connection is tried that has worked before


_TICK = 0.1  # seconds between two looks at whether to stop


Row = tuple[int, Reply | Failure]


def answer_rows_remotely(
    remote: Endpoint,
    conversations: Sequence[Any],
    indices: Sequence[int],
    settings: Settings,
    tally: Tally,
) -> Generator[Row, None, None]:
    """(index, result) of each row as it finishes; closing it closes all connections.

    Once the key, the model's name or the network is known to be wrong, the rows that are left
    fail with the same line and are not sent.
    """
    capacity = min(settings.batch_size or remote.concurrency, len(indices))
    tally.batch_size = capacity
    state = _State(remote, conversations, iter(indices), settings)
    future = asyncio.run_coroutine_threadsafe(_answer_all(state, capacity), event_loop())
    try:
        for _ in indices:
            index, result = _next_row(state, future, settings)
            _count(result, tally)
            yield index, result
    finally:
        future.cancel()


@dataclass
class _State:
    """What the workers of a batch share; they all run on the event loop."""

    remote: Endpoint
    conversations: Sequence[Any]
    waiting: Iterator[int]
    settings: Settings
    finished: queue.SimpleQueue[Row] = field(default_factory=queue.SimpleQueue)
    answered: int = 0
    fatal: Failure | None = None


def _next_row(state: _State, future: concurrent.futures.Future, settings: Settings) -> Row:
    while True:
        settings.check_stopped()
        try:
            return state.finished.get(timeout=_TICK)
        except queue.Empty:
            if future.done() and state.finished.empty():
                future.result()  # raises what ended the workers


def _count(result: Reply | Failure, tally: Tally) -> None:
    if isinstance(result, Failure):
        return
    tally.new_tokens += result.usage.new_tokens
    if result.cost is not None:
        tally.cost = (tally.cost or 0.0) + result.cost


async def _answer_all(state: _State, count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(_work(state))


async def _work(state: _State) -> None:
    for index in state.waiting:
        result = state.fatal or await _answer(state, index)
        state.finished.put((index, result))


async def _answer(state: _State, index: int) -> Reply | Failure:
    settings, answer, start = state.settings, RawAnswer(), time.perf_counter()
    seed = None if settings.seed is None else settings.seed + index
    try:
        request = await asyncio.to_thread(
            make_request, state.remote, state.conversations[index], settings.options, seed
        )
        patience = LATER_PATIENCE if state.answered else PATIENCE
        await ask(
            state.remote, request.body, answer, patience=patience, retries=state.remote.retries
        )
        state.answered += 1
        return make_reply(state.remote, request, answer, start, keep=False)
    except Exception as error:  # one row must never end the batch
        failure = Failure.of(error)
        if isinstance(error, RemoteError) and error.fatal:
            state.fatal = failure
        return failure


class HostedOptions(TypedDict, total=False):
    """What :func:`vlkit.load` takes for ``"openai:…"`` and ``"dashscope:…"`` alone.

    Attributes:
        base_url: the endpoint, such as ``"http://127.0.0.1:8000/v1"``; by default OpenAI's own or
            what ``OPENAI_BASE_URL`` says.
        api_key: by default from ``OPENAI_API_KEY`` or ``DASHSCOPE_API_KEY``.
        region: of DashScope: ``"beijing"``, ``"singapore"``, ``"virginia"`` or ``"hongkong"``.
        family: a key of ``FAMILIES`` or ``"qwen_vl"``, where the name does not tell it; it says
            how boxes are read.
        prices: ``{"input": …, "output": …}`` for a million tokens; replies then have a ``cost``.
        timeout: seconds for an answer, and when it streams for its next piece.
        retries: how often a batch's request is sent again that was refused for now (429, 5xx); a
            single question at most 4 times.
        concurrency: the most requests of a batch at a time.
        extra_body: more fields for each request, such as ``{"enable_thinking": False}``.
    """

    base_url: str | None
    api_key: str | None
    region: str | None
    family: str | None
    prices: Mapping[str, float] | None
    timeout: float
    retries: int
    concurrency: int
    extra_body: Mapping[str, Any] | None


class RemoteVLM(Endpoint):
    """A hosted or served model, which vlkit's functions take as they take a :class:`vlkit.VLM`.

    It never shows its key. Weights, attention and log-probabilities are out of reach. Its fields
    are those of :class:`vlkit.remote.services.Endpoint`; what it shares with a model on this
    machine is :class:`vlkit.models.load.Model`.
    """

    adapter = None
    revision = None

    @property
    def max_image_tokens(self) -> int | None:
        """Limit for every picture without one of its own, or None."""
        return self.rules.max_image_tokens

    processor = None  # its tokenizer is not at hand

    @property
    def scores_tokens(self) -> bool:
        """Whether log-probabilities and attention can be computed."""
        return False

    def require_weights(self) -> None:
        """Raises VlkitError: the weights are not on this machine."""
        raise VlkitError(
            f"{self.name} runs elsewhere; this needs a model's weights on this machine, as of "
            "vlkit.load()"
        )

    def with_limit(self, max_image_tokens: int | None) -> RemoteVLM:
        """The same model with another limit for its pictures."""
        return replace(self, rules=replace(self.rules, max_image_tokens=max_image_tokens))

    def memory_cost(self) -> None:
        """None: the memory is the service's."""

    def answer(self, messages: list[dict], options: dict, seed: int | None, put=None, stopped=None):
        """Answer one conversation; see :func:`vlkit.remote.answer.answer_remotely`."""
        return answer_remotely(self, messages, options, seed, put, stopped)

    def answer_path(self) -> tuple[str, str]:
        """How rows of a batch are answered: ``"remote"``, without a note."""
        return "remote", ""

    def answer_rows(self, conversations: Sequence[Any], indices: Sequence[int], settings, tally):
        """Answer many; see :func:`vlkit.remote.model.answer_rows_remotely`."""
        return answer_rows_remotely(self, conversations, indices, settings, tally)

    def spoken(self, raw: str) -> str:
        """An answer as it is remembered in a conversation, without what was thought before."""
        return raw.rpartition("</think>")[2].lstrip("\n")


_DEFAULTS: HostedOptions = {
    "base_url": None, "api_key": None, "region": None, "family": None, "prices": None,
    "timeout": 120.0, "retries": 8, "concurrency": 8, "extra_body": None,
}  # fmt: skip


def load_remote(name: str, *, max_image_tokens: int | None = None, **options: Any) -> RemoteVLM:
    """What :func:`vlkit.load` does for ``"openai:MODEL"`` and ``"dashscope:MODEL"``.

    An endpoint of one's own is asked at once for the models that it serves, so that a wrong
    address or key is told here.

    Args:
        name: prefix and model.
        max_image_tokens: shrink every picture to at most this many tokens.
        **options: see :class:`HostedOptions`.

    Raises:
        RemoteError: what is wrong and what to do, in one line.
    """
    settings = _check_options(name, options)
    prefix, _, model = name.partition(":")
    base_url = _find_url(prefix.lower(), settings)
    service = service_at(base_url)
    client = open_client(base_url, _find_key(service, settings["api_key"]), settings["timeout"])
    told = {} if service.name != "compatible" else list_models(client, base_url, service, model)
    entry = told.get(model, {})
    try:
        family, rules = family_and_rules(model, settings["family"], service, entry)
    except RemoteError as error:
        raise RemoteError(f"{error}{_hint(model, base_url, service, told)}") from None
    if max_image_tokens is not None:
        rules = replace(rules, max_image_tokens=max_image_tokens)
    length = entry.get("max_model_len")
    shown = {k: v for k, v in settings.items() if k in options and k != "api_key"}
    return RemoteVLM(
        name=name,
        model=model,
        base_url=base_url,
        family=family,
        rules=rules,
        context_length=length if isinstance(length, int) else CONTEXTS[family],
        service=service,
        rules_told=server_rules(entry) is not None,
        prices=settings["prices"],
        timeout=settings["timeout"],
        retries=settings["retries"],
        concurrency=settings["concurrency"],
        extra_body=dict(settings["extra_body"] or {}),
        load_options=shown,
        served=tuple(told),
        client=client,
    )


def _hint(model: str, base_url: str, service: Service, told: Mapping[str, Any]) -> str:
    """Why an endpoint of one's own may not know a name: it serves others, or the address is off."""
    if service.name != "compatible" or model in told:
        return ""
    if told:
        return f"; {base_url} serves {', '.join(list(told)[:4])}"
    return f"; {base_url} lists no models: it should be the address that mostly ends in /v1"


def _check_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    if unknown := sorted(options.keys() - _DEFAULTS.keys()):
        raise RemoteError(f"{unknown[0]}= is no option of a hosted model; {list(_DEFAULTS)} are")
    settings: dict[str, Any] = {**_DEFAULTS, **options}
    if not name.partition(":")[2].strip():
        raise RemoteError(f'{name!r} lacks the model\'s name; write "{name}qwen-vl-max", say')
    for key, least in (("timeout", 0.1), ("retries", 0), ("concurrency", 1)):
        value, whole = settings[key], key != "timeout"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            value = None
        if value is None or not least <= value <= 10_000:
            raise RemoteError(f"{key}={settings[key]!r} must be a number from {least} to 10,000")
    _check_prices(settings["prices"])
    if not isinstance(settings["extra_body"] or {}, Mapping):
        raise RemoteError(f"extra_body={settings['extra_body']!r:.80} must be a dict of fields")
    return settings


def _check_prices(prices: Any) -> None:
    if prices is None:
        return
    wanted = {"input", "output"}
    if (
        not isinstance(prices, Mapping)
        or prices.keys() != wanted
        or not all(isinstance(value, int | float) and value >= 0 for value in prices.values())
    ):
        raise RemoteError(
            f'prices={prices!r:.80} must be {{"input": …, "output": …}} for a million tokens each'
        )


def _find_url(prefix: str, settings: dict[str, Any]) -> str:
    if settings["base_url"] is not None and settings["region"] is not None:
        raise RemoteError("region= and base_url= both say where the service is; pass one of them")
    if settings["base_url"] is not None:
        return check_url(settings["base_url"])
    if prefix == "dashscope":
        return region_url(settings["region"])
    if settings["region"] is not None:
        raise RemoteError('region= belongs to "dashscope:…"; pass base_url= for "openai:…"')
    return check_url(os.environ.get("OPENAI_BASE_URL") or OPENAI_URL)


def _find_key(service: Service, given: str | None) -> str:
    key = given if given is not None else os.environ.get(service.key_name, "")
    if not isinstance(key, str) or not key.isascii() or (key and not key.strip().isprintable()):
        raise RemoteError("the key is no line of plain letters; copy it again")
    key = key.strip()
    if not key and service.needs_key:
        raise RemoteError(
            f"no key: set the environment variable {service.key_name}, or pass api_key="
        )
    return key
