"""How many rows are answered: by the engine, or by transformers' own generate."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any

from vlkit.engine.decoder import can_decode
from vlkit.engine.scheduler import (
    MOST_ROWS,
    PREFILL_TOKENS,
    Feed,
    Settings,
    Tally,
    Waiting,
    answer_fast,
    choose_group,
    feeding,
)
from vlkit.engine.slots import describe_row, split_rows
from vlkit.generation.generate import run_rows
from vlkit.generation.reply import Failure, Reply, attempt, make_reply
from vlkit.inputs import make_inputs
from vlkit.messages import as_messages
from vlkit.models.load import VLM, base_model

_HANDLED = {  # settings of generation that the engine knows, or that say nothing about the answer
    "bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k",
    "repetition_penalty", "max_new_tokens", "max_length", "transformers_version", "use_cache",
    "output_attentions", "output_hidden_states", "output_scores", "return_dict_in_generate",
    "_from_model_config",
}  # fmt: skip


def choose_path(vlm: VLM) -> tuple[str, str]:
    """``"fast"`` for the engine, or ``"library"`` for transformers' own generate, and why."""
    reason = can_decode(base_model(vlm)) or _unknown_setting(vlm.model.generation_config)
    if not reason:
        return "fast", ""
    return "library", f"transformers' own generate is used: {reason}"


def _unknown_setting(config: Any) -> str:
    given = config.to_diff_dict()
    unknown = sorted(name for name in given if name not in _HANDLED and given[name] is not None)
    return f"the model's generation config sets {', '.join(unknown)}" if unknown else ""


def answer_rows_here(
    vlm: VLM,
    conversations: Sequence[Any],
    indices: Sequence[int],
    settings: Settings,
    tally: Tally,
) -> Generator[tuple[int, Reply | Failure], None, None]:
    """(index, result) of each row as it finishes."""
    if not indices:
        return
    way = answer_fast if settings.path == "fast" else _answer_slowly
    kind = "cuda" if vlm.model.device.type == "cuda" else "cpu"
    capacity = min(settings.batch_size or MOST_ROWS[kind], len(indices))
    with feeding(vlm, conversations, indices, ahead=2 * capacity) as feed:
        yield from way(vlm, feed, capacity, settings, tally)


def _answer_slowly(vlm: VLM, feed: Feed, capacity: int, settings: Settings, tally: Tally):
    """Groups padded on the left through ``model.generate``; sampled rows one by one."""
    if settings.options["do_sample"]:
        capacity = 1
    tally.batch_size = capacity
    waiting: list[Waiting] = []
    while not feed.exhausted or waiting:
        settings.check_stopped()
        for row in feed.take(waiting, block=len(waiting) < capacity and not feed.exhausted):
            if isinstance(row.loaded, Failure):
                yield row.index, row.loaded
            else:
                waiting.append(row)
        if waiting and (feed.exhausted or len(waiting) >= capacity):
            group = choose_group(waiting, capacity, PREFILL_TOKENS["cuda"])
            yield from _generate_group(vlm, group, settings, tally)


def _generate_group(vlm: VLM, group: list[Waiting], settings: Settings, tally: Tally):
    """The answers of a group; one that fails, as out of memory, is halved down to one row."""
    start, limit = time.perf_counter(), settings.options["max_new_tokens"]
    seed = None if settings.seed is None else settings.seed + group[0].index
    try:
        inputs = make_inputs(vlm, [row.loaded for row in group])
        answers = run_rows(vlm, inputs, settings.options, seed)
    except Exception as error:  # processors and models raise what they like
        if len(group) == 1:
            yield group[0].index, Failure.of(error)
            return
        half = len(group) // 2
        yield from _generate_group(vlm, group[:half], settings, tally)
        yield from _generate_group(vlm, group[half:], settings, tally)
        return
    tally.count_group([int(mask.sum()) for mask in inputs.tensors["attention_mask"]])
    parts = zip(group, split_rows(inputs), inputs.input_sizes, answers, strict=True)
    for row, tensors, sizes, tokens in parts:
        tally.new_tokens += len(tokens)
        described = describe_row(row.loaded, tensors, sizes)
        messages = as_messages(row.messages)
        yield row.index, attempt(make_reply, vlm, messages, described, tokens, limit, start)
