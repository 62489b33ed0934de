"""Asking: generate, stream and chat."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any

from vlkit import recording
from vlkit.errors import ModelError, VlkitError
from vlkit.inputs import ModelInputs, prepare_inputs
from vlkit.messages import as_messages
from vlkit.models import VLM
from vlkit.options import generation_options
from vlkit.remote.answering import answer_remotely
from vlkit.remote.models import RemoteVLM
from vlkit.replies import Reply, Usage


@recording.answered
def generate(
    vlm: VLM | RemoteVLM,
    messages: str | Mapping | list,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Reply:
    """Ask once.

    Args:
        vlm: from :func:`vlkit.load`.
        messages: text, one message or a list of messages. If the last is the assistant's, the
            model goes on from it.
        max_new_tokens: the longest answer.
        temperature: 0 is greedy, so repeatable; above 0 samples from the whole vocabulary
            (neither the model's own top_k nor top_p apply).
        top_p: sample among the likeliest tokens that hold this share of probability.
        seed: makes a sampled answer repeatable; the global random state is left as it was.

    Raises:
        MediaError: a picture that cannot be read.
        ModelError: prompt and answer do not fit the context or the GPU's memory.
        RemoteError: a hosted model that cannot be reached, or refuses.
        VlkitError: malformed messages or options.
    """
    options = generation_options(max_new_tokens, temperature, top_p, seed)
    return _answer(vlm, as_messages(messages), options, seed)


def stream(
    vlm: VLM | RemoteVLM,
    messages: str | Mapping | list,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Stream:
    """Ask once and read the answer piece by piece; options as for :func:`generate`.

    Iterate over the result for pieces of ``text``. Leaving the loop, or calling ``stop()`` from
    another thread, ends the model's work within a token. Errors are raised where it is read.
    Afterwards ``.reply`` holds the whole Reply, also of a stopped one.
    """
    options = generation_options(max_new_tokens, temperature, top_p, seed)
    return Stream(vlm, as_messages(messages), options, seed)


class Stream:
    """An answer under way; an iterator over pieces of text. Made by :func:`stream`."""

    def __init__(self, vlm: VLM | RemoteVLM, messages: list[dict], options: dict, seed: int | None):
        self._vlm, self._messages, self._options, self._seed = vlm, messages, options, seed
        self._pieces: queue.SimpleQueue = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._note = recording.begin("stream", vlm, messages, {**options, "seed": seed})
        self._reply: Reply | None = None
        work = partial(copy_context().run, self._work)
        self._thread = threading.Thread(target=work, name="vlkit-stream", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[str]:
        try:
            while isinstance(piece := self._pieces.get(), str):
                yield piece
            self._pieces.put(piece)  # the end is there for the next reader, too
            if piece is not None:
                raise piece
        finally:
            self.stop()

    def stop(self) -> None:
        """End the answer within a token and wait until the model is free; what is written stays."""
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
            self._reply = _answer(
                self._vlm, self._messages, self._options, self._seed, self._put, self._stopped
            )
            self._note(self._reply)
            self._pieces.put(None)
        except BaseException as error:  # raised again where the stream is read
            self._note(error)
            self._pieces.put(error)

    def _put(self, text: str) -> None:
        if text:
            self._pieces.put(text)


# --- the model's run -----------------------------------------------------------------------------


def _answer(
    vlm: VLM | RemoteVLM, messages: list[dict], options: dict, seed, put=None, stopped=None
) -> Reply:
    """The one place where models on this machine and others part."""
    if isinstance(vlm, RemoteVLM):
        return answer_remotely(vlm, messages, options, seed, put, stopped)
    start = time.perf_counter()
    inputs = prepare_inputs(vlm, [messages])
    tokens = run_row(vlm, inputs, options, seed, put, stopped)
    return make_reply(vlm, messages, inputs, tokens, options["max_new_tokens"], start)


def run_row(
    vlm: VLM, inputs: ModelInputs, options: dict, seed, put=None, stopped=None
) -> list[int]:
    """The new tokens of the first row."""
    return run_rows(vlm, inputs, options, seed, put, stopped)[0]


def run_rows(
    vlm: VLM, inputs: ModelInputs, options: dict, seed, put=None, stopped=None
) -> list[list[int]]:
    """The new tokens of each row, up to the one that ends it."""
    import torch

    length = inputs.tensors["input_ids"].shape[1]
    check_context(vlm, length, options["max_new_tokens"])
    options = {**options, **_streaming(vlm, put, stopped)}
    tensors = inputs.tensors.to(vlm.model.device, dtype=vlm.model.dtype)
    try:
        with torch.inference_mode(), seeded(seed, options["do_sample"]):
            output = vlm.model.generate(**tensors, **options)
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError(
            f"out of GPU memory at {length:,} prompt tokens; lower max_image_tokens or "
            'max_new_tokens, or load with quantize="4bit"'
        ) from error
    endings = ending_tokens(vlm)
    return [_cut(tokens, endings) for tokens in output[:, length:].tolist()]


def _cut(tokens: list[int], endings: set[int]) -> list[int]:
    """Without the padding behind the end."""
    end = next((place for place, token in enumerate(tokens) if token in endings), len(tokens))
    return tokens[: end + 1]


def check_context(vlm: VLM, prompt_tokens: int, max_new_tokens: int) -> None:
    """Raises ModelError where prompt and answer do not fit the context."""
    if prompt_tokens + max_new_tokens > vlm.context_length:
        raise ModelError(
            f"{prompt_tokens:,} prompt tokens and max_new_tokens={max_new_tokens:,} exceed "
            f"{vlm.name}'s context of {vlm.context_length:,}; use fewer or smaller pictures "
            "(vlkit.Image(…, max_tokens=…)), less text or a smaller max_new_tokens"
        )


_random_state = threading.Lock()  # torch's is one for the process


@contextmanager
def seeded(seed: int | None, sampling: bool):
    """Sampling within is repeatable; the global random state is left as it was."""
    import torch

    if seed is None or not sampling:
        yield
        return
    with _random_state, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _streaming(vlm: VLM, put, stopped: threading.Event | None) -> dict:
    if put is None or stopped is None:
        return {}
    from transformers import StoppingCriteriaList, TextStreamer

    class Pieces(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False):
            put(text)

    tokenizer = vlm.processor.tokenizer
    streamer = Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)
    criteria = StoppingCriteriaList([lambda ids, scores, **_: all_rows(ids, stopped.is_set())])
    return {"streamer": streamer, "stopping_criteria": criteria}


def all_rows(input_ids, value: bool):
    """A stopping criterion's answer that is the same for every row."""
    import torch

    return torch.full((input_ids.shape[0],), value, dtype=torch.bool, device=input_ids.device)


def make_reply(vlm, messages, inputs: ModelInputs, tokens: list[int], limit: int, start) -> Reply:
    """The Reply of one row's new tokens; ``start`` is when it was asked, by perf_counter."""
    tokenizer = vlm.processor.tokenizer
    ended = bool(tokens) and tokens[-1] in ending_tokens(vlm)
    prefill = messages[-1]["content"] if messages[-1]["role"] == "assistant" else []
    begun = "".join(item["text"] for item in prefill if item["type"] == "text")
    return Reply(
        text=_strip_special(tokenizer, begun) + tokenizer.decode(tokens, skip_special_tokens=True),
        raw=begun + tokenizer.decode(tokens, skip_special_tokens=False),
        usage=count_usage(vlm, inputs, len(tokens)),
        seconds=time.perf_counter() - start,
        family=vlm.family,
        images=_as_sequence(inputs.images[0]),
        input_sizes=tuple(inputs.input_sizes[0]),
        clips=_as_sequence(inputs.clips[0]),
        tokens=tuple(tokens),
        finish_reason="stop" if ended else "length" if len(tokens) >= limit else "cancelled",
    )


def _as_sequence(media: Any) -> Any:
    """A tuple; media that are read later stay so."""
    return tuple(media) if isinstance(media, list) else media


def _strip_special(tokenizer, text: str) -> str:
    if not text:
        return ""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids, skip_special_tokens=True)


def ending_tokens(vlm: VLM) -> set[int]:
    """The ids that end an answer."""
    ending = vlm.model.generation_config.eos_token_id
    return {ending} if isinstance(ending, int) else set(ending or ())


def count_usage(vlm: VLM, inputs: ModelInputs, new_tokens: int) -> Usage:
    """The tokens of the first row."""
    ids = inputs.tensors["input_ids"][0]
    config = vlm.model.config
    image_tokens = int((ids == config.image_token_id).sum())
    video_tokens = int((ids == config.video_token_id).sum())
    return Usage(image_tokens, video_tokens, len(ids), new_tokens)
