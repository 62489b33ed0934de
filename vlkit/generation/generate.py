"""``generate``, ``stream``, ``Chat``: options checked, one answer made."""

from __future__ import annotations

import json
import queue
import re
import threading
from collections.abc import Iterator, Mapping
from contextvars import copy_context
from functools import partial
from typing import Any

from vlkit import hooks
from vlkit.errors import VlkitError, check_whole, is_number, warn_user
from vlkit.generation.reply import Reply, conversation_html, split_thinking
from vlkit.inputs import check_model
from vlkit.media.image import load_image, remember_hash
from vlkit.media.video import ClipStore
from vlkit.messages import CheckedMessages, as_messages, assistant, iterate_media, user
from vlkit.messages import system as _system
from vlkit.models.load import Model
from vlkit.settings import MAX_NEW_TOKENS

_END = re.compile(r"<\|(im_end|endoftext)\|>$")
GREEDY_BELOW = 1e-5  # as in vLLM; logits over a temperature near 0 overflow float32


def generation_options(
    max_new_tokens: int, temperature: float, top_p: float, seed: Any, **schema: str
) -> dict:
    """Options for ``model.generate``; see :func:`vlkit.generate` for what they mean.

    Raises:
        VlkitError: one is out of its range.
    """
    check_whole("max_new_tokens", max_new_tokens, 1)
    if not is_number(temperature) or not 0 <= temperature <= 10:
        raise VlkitError(f"temperature={temperature!r} must lie between 0 (greedy) and 10")
    if not is_number(top_p) or not 0 < top_p <= 1:
        raise VlkitError(f"top_p={top_p!r} must lie above 0 and be at most 1")
    check_whole("seed", seed, 0, 2**63 - 1, optional=True)
    temperature = sampling_temperature(temperature)
    options = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0, **schema}
    if temperature == 0:  # None: the model's sampling defaults do not apply, and do not warn
        return options | {"temperature": None, "top_p": None, "top_k": None}
    return options | {"temperature": temperature, "top_p": top_p, "top_k": 0}


def sampling_temperature(temperature: float) -> float:
    """The temperature as it is applied: 0, so greedy, below ``GREEDY_BELOW``.

    Greedy is the limit of transformers' sampling: ``softmax(logits / temperature)`` then gives all
    probability to the likeliest token. Computed that way it is NaN.
    """
    return 0.0 if temperature < GREEDY_BELOW else float(temperature)


def schema_option(schema: Mapping | str | None) -> dict[str, Any]:
    """The schema as JSON, as records keep it; nothing where there is none."""
    if schema is None or isinstance(schema, str):
        return {} if schema is None else {"schema": schema}
    try:
        return {"schema": json.dumps(schema, ensure_ascii=False)}
    except (TypeError, ValueError) as error:
        raise VlkitError(f"schema={schema!r:.60} is not JSON: {error}; pass a dict") from error


def generate(
    vlm: Model,
    messages: str | Mapping | list,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    schema: Mapping | str | None = None,
    thinking: bool | int | None = None,
) -> Reply:
    """Ask once.

    What was computed of a picture or clip serves later questions about it, too (``vlm.cache``).

    Args:
        vlm: from :func:`vlkit.load`.
        messages: text, one message or a list of messages. If the last is the assistant's, the
            model continues it.
        max_new_tokens: the longest answer.
        temperature: 0 is greedy, so repeatable, and so is anything below 0.00001; above, answers
            are sampled from the whole vocabulary (the model's default top_k and top_p do not
            apply).
        top_p: sample among the likeliest tokens that have this share of probability.
        seed: makes a sampled answer repeatable; the global random state does not change.
        schema: a JSON schema (a dict, or its JSON) that the answer follows, token by token, on one
            line: ``json.loads(reply.text)``. pydantic's ``Model.model_json_schema()`` makes one.
            Objects have no other properties than the named ones unless it says
            ``"additionalProperties": true``. An answer with ``finish_reason="length"`` is cut off,
            so not valid JSON. Needs ``vlkit[schema]``, whose llguidance says what is supported.
        thinking: False or True where the model's chat template has the switch, or as the hosted
            service takes it; None is the template's default. It is in ``reply.thinking``, apart
            from ``reply.text``, and boxes in it do not count.

    Raises:
        MediaError: a picture that cannot be read.
        ModelError: prompt and answer do not fit the context or the GPU's memory.
        RemoteError: a hosted model that cannot be reached, or refuses.
        VlkitError: malformed messages or options; a schema that is not supported.
    """
    vlm = with_thinking(vlm, thinking, schema)
    given: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed,
        **schema_option(schema),
    }  # fmt: skip
    with hooks.recording("generate", vlm, messages, given) as record:
        reply = vlm.answer(as_messages(messages), generation_options(**given), seed)
        record(reply)
    return reply


def with_thinking(vlm: Model, thinking: bool | int | None, schema: Any = None) -> Any:
    """The model with thinking switched as asked, by default off for an answer with a schema.

    Raises VlkitError for what is not a model.
    """
    check_model(vlm)
    template = getattr(vlm.processor, "chat_template", None)
    if schema is not None and thinking is None and "enable_thinking" in str(template):
        thinking = False
    return vlm if thinking is None else vlm.with_thinking(thinking)


def stream(
    vlm: Model,
    messages: str | Mapping | list,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    schema: Mapping | str | None = None,
    thinking: bool | int | None = None,
) -> Stream:
    """Ask once and read the answer piece by piece; options as for :func:`generate`.

    Iterate over the result for pieces of ``text``. Leaving the loop, or calling ``stop()`` from
    another thread, ends the model's work within a token. Errors are raised where it is read.
    Afterwards ``.reply`` is the whole Reply, also after a stop.
    """
    options = generation_options(max_new_tokens, temperature, top_p, seed, **schema_option(schema))
    return Stream(with_thinking(vlm, thinking, schema), as_messages(messages), options, seed)


class Stream:
    """A running answer; an iterator over pieces of text. Made by :func:`stream`."""

    def __init__(self, vlm: Model, messages: CheckedMessages, options: dict, seed: int | None):
        self._vlm, self._messages, self._options, self._seed = vlm, messages, options, seed
        self._pieces: queue.SimpleQueue = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._record = hooks.answer_recorder("stream", vlm, messages, {**options, "seed": seed})
        self._reply: Reply | None = None
        work = partial(copy_context().run, self._work)
        self._thread = threading.Thread(target=work, name="vlkit-stream", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[str]:
        try:
            while isinstance(piece := self._pieces.get(), str):
                yield piece
            self._pieces.put(piece)  # another reader finds the end, too
            if piece is not None:
                raise piece
        finally:
            self.stop()

    def stop(self) -> None:
        """End the answer within a token and wait until the model is free; its beginning stays."""
        self._stopped.set()
        self._thread.join()

    @property
    def reply(self) -> Reply:
        """The Reply, once the pieces are read or the stream is stopped."""
        if self._reply is None:
            raise VlkitError("the answer is not finished; read the stream to its end, or stop() it")
        return self._reply

    def _work(self) -> None:
        try:
            self._reply = self._vlm.answer(
                self._messages, self._options, self._seed, self._put, self._stopped
            )
            self._record(self._reply)
            self._pieces.put(None)
        except BaseException as error:  # raised again where the stream is read
            self._record(error)
            self._pieces.put(error)

    def _put(self, text: str) -> None:
        if text:
            self._pieces.put(text)


class Chat:
    """A conversation with memory; pictures and clips of earlier turns stay in view.

    They are read once, so a file that changes later makes no difference. Of clips up to half a
    gigabyte of frames is kept as long as the Chat; beyond that they are sampled again. A model on
    this machine also remembers the keys and values of the turns (in ``vlm.cache``), so a question
    costs as much as its own words; turns that you change in ``messages`` are computed again. A
    warning says how much is left when the context has room for about three more turns.

    Args:
        vlm: from :func:`vlkit.load`.
        system: a system message's text, or None for the model's default.
        **options: defaults for every turn, as for :func:`generate`.

    Attributes:
        messages: the conversation so far; it may be changed.
        replies: the Reply of each answered turn.
    """

    def __init__(self, vlm: Model, system: str | None = None, **options: Any):
        self.vlm, self.options = vlm, options
        self.messages = [_system(system)] if system is not None else []
        self.replies: list[Reply] = []
        self._clips = ClipStore()
        self._running: Stream | None = None

    def ask(self, text: str, *media: Any, **options: Any) -> Reply:
        """Ask the next question; after an error the conversation is unchanged."""
        turn = self._turn(text, media)
        with hooks.as_kind("chat"):
            reply = generate(self.vlm, self._with(turn), **{**self.options, **options})
        self._remember(turn, reply)
        return reply

    def stream(self, text: str, *media: Any, **options: Any) -> Iterator[str]:
        """Like :meth:`ask`, piece by piece; of a stopped answer the beginning is remembered."""
        turn = self._turn(text, media)
        with hooks.as_kind("chat"):
            pieces = stream(self.vlm, self._with(turn), **{**self.options, **options})
        self._running = pieces
        try:
            yield from pieces
        finally:
            pieces.stop()
            if pieces._reply is not None:
                self._remember(turn, pieces.reply)

    def stop(self) -> None:
        """End the answer of :meth:`stream` within a token; call it from another thread."""
        if self._running is not None:
            self._running.stop()

    def _turn(self, text: str, media: tuple) -> dict:
        """The user's message with its pictures read now: a later turn sees what this one saw."""
        turn = as_messages(user(text, *media))[0]
        for item in iterate_media([turn]):
            if item["type"] == "video":
                continue  # its frames are kept in a cache; the conversation names the file
            picture = load_image(item["image"], strict=item.pop("strict", True))
            item["image"] = remember_hash(picture)
        return turn

    def _with(self, turn: dict) -> CheckedMessages:
        messages = as_messages([*self.messages, turn])
        messages.clips = self._clips
        return messages

    def _remember(self, turn: dict, reply: Reply) -> None:
        self.messages += [turn, assistant(_END.sub("", split_thinking(reply.raw)[1]))]
        self.replies.append(reply)
        used = [0, *(r.usage.prompt_tokens + r.usage.new_tokens for r in self.replies[-2:])]
        length, last = self.vlm.context_length, used[-1] - used[-2]
        if length - used[-1] < 3 * last + self.options.get("max_new_tokens", MAX_NEW_TOKENS):
            warn_user(
                f"{length - used[-1]:,} of {length:,} tokens of the context are left in this chat; "
                f"the last turn took {last:,}; begin a new Chat, or delete turns of its messages"
            )

    def _repr_html_(self) -> str:
        return conversation_html(self.messages, self.replies)
