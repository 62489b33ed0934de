"""``RemoteVLM``, a hosted model: its options; one question or many; Replies."""

from __future__ import annotations

import asyncio
import queue
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypedDict

from vlkit.errors import RemoteError, VlkitError, check_whole, is_number
from vlkit.generation.reply import SPECIAL, Failure, Reply, TextPieces, Usage, split_thinking
from vlkit.inputs import defer_media, estimate_text
from vlkit.models.load import Settings, Tally
from vlkit.remote import client, services
from vlkit.remote.client import RawAnswer
from vlkit.remote.request import Request, make_request
from vlkit.remote.services import Endpoint

LATER_PATIENCE = 120.0  # seconds for which a connection that has worked before is tried again
_TICK = 0.1  # seconds between two checks of whether to stop


async def _answer(
    remote: Endpoint, conversation: Any, settings: Settings, index: int, patience: float
) -> Reply | Exception:
    """A row's Reply, or whatever it raised: one row must never end the batch."""
    answer, start = RawAnswer(), time.perf_counter()
    facts = conversation, settings.options, settings.seed_of(index)
    try:
        request = await asyncio.to_thread(make_request, remote, *facts)
        await client.ask(remote, request.body, answer, patience=patience, retries=remote.retries)
        return make_reply(remote, request, answer, start, keep=False)
    except Exception as error:
        return error


class HostedOptions(TypedDict, total=False):
    """Options of :func:`vlkit.load` only for ``"openai:…"`` and ``"dashscope:…"``.

    Attributes:
        base_url: the endpoint, such as ``"http://127.0.0.1:8000/v1"``; by default
            ``OPENAI_BASE_URL``, or OpenAI's.
        api_key: by default from ``OPENAI_API_KEY`` or ``DASHSCOPE_API_KEY``.
        region: of DashScope: ``"beijing"``, ``"singapore"``, ``"virginia"`` or ``"hongkong"``.
        family: a key of ``FAMILIES``, where the name does not show it; it
            decides how boxes are read.
        prices: ``{"input": …, "output": …}`` for a million tokens; replies then have a ``cost``.
        timeout: seconds for an answer, or for the next piece of a streamed one.
        retries: how often a batch's request is repeated after a temporary refusal (429, 5xx); a
            single question at most 4 times.
        concurrency: the most requests of a batch at a time.
        extra_body: more fields for each request, such as ``{"repetition_penalty": 1.05}``; None as
            a value leaves a field out that vlkit would send.
        thinking: of a model that can think before it answers: True or False, or the most tokens
            that it may think; by default what the service does.
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
    thinking: bool | int | None


def make_reply(
    remote: Endpoint, request: Request, answer: RawAnswer, start: float, *, keep: bool = True
) -> Reply:
    """The Reply of an answer.

    Args:
        remote: the model.
        request: the question.
        answer: the service's response.
        start: the time of the question, by ``time.perf_counter``.
        keep: whether the Reply keeps its pictures, or reads them again when they are used.
    """
    raw = request.prefill + "".join(answer.parts)
    raw = raw.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half characters
    usage, reason = _usage(remote, request, answer), answer.finish_reason
    media = (request.images, request.clips) if keep else defer_media(request)
    return Reply(
        text=SPECIAL.sub("", split_thinking(raw)[1]),
        raw=raw,
        usage=usage,
        seconds=time.perf_counter() - start,
        family=remote.family,
        images=media[0],
        input_sizes=request.input_sizes,
        clips=media[1],
        finish_reason=reason if reason in ("length", "cancelled") else "stop",
        cost=remote.cost(usage.prompt_tokens, usage.new_tokens),
    )


def _usage(remote: Endpoint, request: Request, answer: RawAnswer) -> Usage:
    """The service's counts; estimates where it gives none, as for a stopped answer."""
    image = sum(w * h // remote.rules.side**2 for w, h in request.input_sizes)
    frames = [(clip.frame_size, (len(clip.indices) + 1) // 2) for clip in request.clips]
    video = sum(w * h // remote.rules.side**2 * steps for (w, h), steps in frames)
    text = estimate_text(request.messages, remote.family, [()] * len(request.clips))
    new = max(len(answer.parts), sum(map(len, answer.parts)) // 4)
    prompt_count = _count_in(answer.usage, "prompt_tokens")
    new_count = _count_in(answer.usage, "completion_tokens")
    details = answer.usage.get("prompt_tokens_details") if prompt_count else None
    image_count = _count_in(details, "image_tokens")
    _compare(remote, image_count, image, len(request.images))
    return Usage(
        image_count or image,
        _count_in(details, "video_tokens") or video,
        prompt_count or text + image + video,
        new_count or new,
        estimated=not prompt_count or (new > 0 and not new_count),
    )


def _count_in(usage: Any, name: str) -> int:
    """A count of tokens; 0 where the service sends none, or anything else."""
    count: Any = usage.get(name) if isinstance(usage, Mapping) else None
    return int(count) if is_number(count) and count > 0 else 0


def _compare(remote: Endpoint, counted: int, sent: int, pictures: int) -> None:
    """Warn where the service saw pictures of another size: boxes in pixels would be off."""
    if counted and pictures and abs(counted - sent) > max(2 * pictures, 0.02 * sent):
        warnings.warn(
            f"{remote.name} counts {counted:,} image tokens, vlkit sent {sent:,}: it resizes "
            "pictures by other rules, so boxes in pixels may be off; give family=",
            stacklevel=2,
        )


class RemoteVLM(Endpoint):
    """A hosted or served model, which vlkit's functions accept like a :class:`vlkit.VLM`.

    It never shows its key. Weights, attention and log-probabilities are not available. Its fields
    are those of :class:`vlkit.remote.services.Endpoint`; it has the methods of a model on this
    machine.
    """

    adapter = revision = None
    processor = None  # its tokenizer is not on this machine
    scores_tokens = False  # log-probabilities and attention cannot be computed
    cache = None  # the service keeps what it keeps

    @property
    def max_image_tokens(self) -> int | None:
        """Limit for every picture without one of its own, or None."""
        return self.rules.max_image_tokens

    def require_weights(self) -> None:
        """Raises VlkitError: the weights are not on this machine."""
        raise VlkitError(
            f"{self.name} runs elsewhere; this needs a model whose weights are on this machine, "
            "such as vlkit.load()"
        )

    def with_limit(self, max_image_tokens: int | None) -> RemoteVLM:
        """The same model with another limit for its pictures."""
        return replace(self, rules=replace(self.rules, max_image_tokens=max_image_tokens))

    def with_thinking(self, thinking: bool | int) -> RemoteVLM:
        """The same model with thinking switched on or off, or with a limit for it."""
        fields = self.service.thinking_fields(thinking)
        options = {**self.load_options, "thinking": thinking}
        return replace(self, extra_body={**self.extra_body, **fields}, load_options=options)

    def memory_cost(self) -> None:
        """None: the memory is the service's."""

    def answer(
        self, messages: list[dict], options: dict, seed: int | None, put=None, stopped=None
    ) -> Reply:
        """The Reply to one conversation; see :meth:`vlkit.VLM.answer`.

        If ``stopped`` is set, the connection is closed, and the Reply has the text up to there.

        Raises:
            RemoteError: the service refuses, or cannot be reached.
            MediaError, VlkitError: as with a model on this machine.
        """
        start, answer = time.perf_counter(), RawAnswer()
        request = make_request(self, messages, options, seed)
        pieces = TextPieces(put, thinks="thinking" in self.model.lower()) if put else None
        retries = min(self.retries, client.TRIES_AGAIN)
        client.run(client.ask(self, request.body, answer, pieces, retries=retries), stopped)
        if pieces:
            pieces.end()
        return make_reply(self, request, answer, start)

    def answer_path(self) -> tuple[str, str]:
        """How rows of a batch are answered: ``"remote"``, without a note."""
        return "remote", ""

    def answer_rows(
        self, conversations: Sequence[Any], indices: Sequence[int], settings: Settings, tally: Tally
    ) -> Generator[tuple[int, Reply | Failure], None, None]:
        """(index, result) of each row as it finishes; closing it closes all connections.

        Once the key, the model's name or the network has failed, the remaining rows fail with the
        same error and are not sent.
        """
        tally.batch_size = min(settings.batch_size or self.concurrency, len(indices))
        waiting, finished = iter(indices), queue.SimpleQueue[tuple[int, Reply | Failure]]()
        patience, fatal = client.PATIENCE, None

        async def work() -> None:
            nonlocal patience, fatal
            for index in waiting:
                conversation = conversations[index]
                result = fatal or await _answer(self, conversation, settings, index, patience)
                if isinstance(result, RemoteError) and result.fatal:
                    fatal = result
                if isinstance(result, Exception):
                    finished.put((index, Failure.of(result)))
                else:
                    patience = LATER_PATIENCE
                    finished.put((index, result))

        async def work_all() -> None:
            await asyncio.gather(*(work() for _ in range(tally.batch_size)))

        future = asyncio.run_coroutine_threadsafe(work_all(), client.event_loop())
        try:
            for _ in indices:
                result = None
                while result is None:
                    settings.check_stopped()
                    if future.done() and finished.empty():
                        future.result()  # raises the error that ended the work
                    with suppress(queue.Empty):
                        index, result = finished.get(timeout=_TICK)
                if isinstance(result, Reply):
                    tally.new_tokens += result.usage.new_tokens
                    if result.cost is not None:
                        tally.cost = (tally.cost or 0.0) + result.cost
                yield index, result
        finally:
            future.cancel()


_DEFAULTS: HostedOptions = {
    "base_url": None, "api_key": None, "region": None, "family": None, "prices": None,
    "timeout": 120.0, "retries": 8, "concurrency": 8, "extra_body": None, "thinking": None,
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
    base_url = services.find_url(prefix.lower(), settings["base_url"], settings["region"])
    service = services.service_at(base_url)
    key = services.find_key(service, settings["api_key"])
    is_own = service is services.COMPATIBLE
    openai_client = client.open_client(base_url, key, settings["timeout"])
    where: dict[str, Any] = {"model": model, "base_url": base_url, "client": openai_client}
    address = services.Address(**where, service=service, timeout=client.LIST_SECONDS)
    models = client.list_models(address) if is_own else {}
    entry = models.get(model, {})
    service = services.OWNERS.get(str(entry.get("owned_by")), service)
    extra_body = service.thinking_fields(settings["thinking"]) | dict(settings["extra_body"] or {})
    try:
        family, rules = services.family_and_rules(model, settings["family"], service, entry)
    except RemoteError as error:
        raise RemoteError(f"{error}{_hint(model, base_url, models) if is_own else ''}") from None
    if extra_body.get("vl_high_resolution_images"):  # DashScope's default maximum is then lifted
        low, high = services.picture_bounds(rules).values()
        rules = replace(rules, image_pixels=(low, high))
    if max_image_tokens is not None:
        rules = replace(rules, max_image_tokens=max_image_tokens)
    length = entry.get("max_model_len")
    return RemoteVLM(
        **where,
        name=name,
        family=family,
        rules=rules,
        context_length=length if isinstance(length, int) else services.CONTEXTS[family],
        service=service,
        has_server_rules=services.server_rules(entry) is not None,
        **{name: settings[name] for name in ("prices", "timeout", "retries", "concurrency")},
        extra_body=extra_body,
        load_options={k: v for k, v in settings.items() if k in options and k != "api_key"},
        served=tuple(models),
    )


def _hint(model: str, base_url: str, models: Mapping[str, Any]) -> str:
    """Why the user's endpoint may not know a name: it serves others, or the address is wrong."""
    if models:
        return "" if model in models else f"; {base_url} serves {', '.join(list(models)[:4])}"
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
    has_both = isinstance(prices, Mapping) and prices.keys() == {"input", "output"}
    valid = has_both and all(isinstance(n, int | float) and n >= 0 for n in prices.values())
    if prices is not None and not valid:
        raise RemoteError(
            f'prices={prices!r:.80} must be {{"input": …, "output": …}} for a million tokens each'
        )
    if not isinstance(settings["extra_body"] or {}, Mapping):
        raise RemoteError(f"extra_body={settings['extra_body']!r:.80} must be a dict of fields")
    if not isinstance(settings["thinking"], bool):
        check_whole("thinking", settings["thinking"], 1, optional=True, kind=RemoteError)
    return settings
