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

from vlkit.errors import RemoteError, VlkitError, check_whole, is_number
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

LATER_PATIENCE = 120.0  # seconds for which a connection that has worked before is tried again
_TICK = 0.1  # seconds between two checks of whether to stop

Row = tuple[int, Reply | Failure]


def answer_rows_remotely(
    remote: Endpoint,
    conversations: Sequence[Any],
    indices: Sequence[int],
    settings: Settings,
    tally: Tally,
) -> Generator[Row, None, None]:
    """(index, result) of each row as it finishes; closing it closes all connections.

    Once the key, the model's name or the network has failed, the remaining rows fail with the same
    error and are not sent.
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
    """The common state of a batch's workers, which all run on the event loop."""

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
                future.result()  # raises the error that ended the workers


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
    facts = state.conversations[index], settings.options, settings.seed_of(index)
    try:
        request = await asyncio.to_thread(make_request, state.remote, *facts)
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
    """Options of :func:`vlkit.load` only for ``"openai:…"`` and ``"dashscope:…"``.

    Attributes:
        base_url: the endpoint, such as ``"http://127.0.0.1:8000/v1"``; by default
            ``OPENAI_BASE_URL``, or OpenAI's.
        api_key: by default from ``OPENAI_API_KEY`` or ``DASHSCOPE_API_KEY``.
        region: of DashScope: ``"beijing"``, ``"singapore"``, ``"virginia"`` or ``"hongkong"``.
        family: a key of ``FAMILIES`` or ``"qwen_vl"``, where the name does not show it; it
            decides how boxes are read.
        prices: ``{"input": …, "output": …}`` for a million tokens; replies then have a ``cost``.
        timeout: seconds for an answer, or for the next piece of a streamed one.
        retries: how often a batch's request is repeated after a temporary refusal (429, 5xx); a
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
    """A hosted or served model, which vlkit's functions accept like a :class:`vlkit.VLM`.

    It never shows its key. Weights, attention and log-probabilities are not available. Its fields
    are those of :class:`vlkit.remote.services.Endpoint`; its common interface with a model on this
    machine is :class:`vlkit.models.load.Model`.
    """

    adapter = revision = None
    processor = None  # its tokenizer is not on this machine

    @property
    def max_image_tokens(self) -> int | None:
        """Limit for every picture without one of its own, or None."""
        return self.rules.max_image_tokens

    @property
    def scores_tokens(self) -> bool:
        """Whether log-probabilities and attention can be computed."""
        return False

    def require_weights(self) -> None:
        """Raises VlkitError: the weights are not on this machine."""
        raise VlkitError(
            f"{self.name} runs elsewhere; this needs a model whose weights are on this machine, "
            "such as vlkit.load()"
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
        """An answer as it stays in a conversation, without its thinking."""
        return raw.rpartition("</think>")[2].lstrip("\n")


_DEFAULTS: HostedOptions = {
    "base_url": None, "api_key": None, "region": None, "family": None, "prices": None,
    "timeout": 120.0, "retries": 8, "concurrency": 8, "extra_body": None,
}  # fmt: skip


def load_remote(name: str, *, max_image_tokens: int | None = None, **options: Any) -> RemoteVLM:
    """:func:`vlkit.load` for ``"openai:MODEL"`` and ``"dashscope:MODEL"``.

    The user's own endpoint is asked at once for its list of models, so that a wrong address or key
    is an error here.

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
    is_own = service.name == "compatible"
    models = list_models(client, base_url, service, model) if is_own else {}
    entry = models.get(model, {})
    try:
        family, rules = family_and_rules(model, settings["family"], service, entry)
    except RemoteError as error:
        raise RemoteError(f"{error}{_hint(model, base_url, models) if is_own else ''}") from None
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
        has_server_rules=server_rules(entry) is not None,
        prices=settings["prices"],
        timeout=settings["timeout"],
        retries=settings["retries"],
        concurrency=settings["concurrency"],
        extra_body=dict(settings["extra_body"] or {}),
        load_options=shown,
        served=tuple(models),
        client=client,
    )


def _hint(model: str, base_url: str, models: Mapping[str, Any]) -> str:
    """Why the user's endpoint may not know a name: it serves others, or the address is wrong."""
    if model in models:
        return ""
    if models:
        return f"; {base_url} serves {', '.join(list(models)[:4])}"
    return f"; {base_url} lists no models: check base_url, most end in /v1"


def _check_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    if unknown := sorted(options.keys() - _DEFAULTS.keys()):
        raise RemoteError(f"hosted models have no option {unknown[0]}=; known: {list(_DEFAULTS)}")
    settings: dict[str, Any] = {**_DEFAULTS, **options}
    if not name.partition(":")[2].strip():
        raise RemoteError(f'{name!r} lacks the model\'s name; write "{name}qwen-vl-max", say')
    timeout, prices = settings["timeout"], settings["prices"]
    if not is_number(timeout) or not 0.1 <= timeout <= 10_000:
        raise RemoteError(f"timeout={timeout!r} must be a number from 0.1 to 10,000")
    for key, least in (("retries", 0), ("concurrency", 1)):
        check_whole(key, settings[key], least, 10_000, kind=RemoteError)
    if prices is not None and not _are_prices(prices):
        raise RemoteError(
            f'prices={prices!r:.80} must be {{"input": …, "output": …}} for a million tokens each'
        )
    if not isinstance(settings["extra_body"] or {}, Mapping):
        raise RemoteError(f"extra_body={settings['extra_body']!r:.80} must be a dict of fields")
    return settings


def _are_prices(prices: Any) -> bool:
    if not isinstance(prices, Mapping) or prices.keys() != {"input", "output"}:
        return False
    return all(isinstance(value, int | float) and value >= 0 for value in prices.values())


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
        raise RemoteError("the API key contains non-ASCII characters or line breaks; copy it again")
    key = key.strip()
    if not key and service.needs_key:
        raise RemoteError(
            f"no key: set the environment variable {service.key_name}, or pass api_key="
        )
    return key
