"""The text of an answer as its tokens come: nothing lost, nothing given too early."""

import asyncio
import functools
import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from vlkit.bundled import bundled_path
from vlkit.generation.reply import Thinking
from vlkit.serving.service import ByteBudget
from vlkit.serving.worker import AnswerText


@functools.cache
def tokenizer():
    return tokenizers.Tokenizer.from_file(str(bundled_path("tiny-qwen2-vl") / "tokenizer.json"))


END = 3717


def pieces_of(tokens, stops=(), skip=True, groups=1):
    """What is given for each group of tokens, and at the end."""
    text = AnswerText(tokenizer(), frozenset([END]), stops, skip)
    starts = range(0, len(tokens), groups)
    given = [text.push(tokens[start : start + groups]) for start in starts]
    return [*given, text.finish()], text


def test_the_end_token_is_the_models():
    config = json.loads((bundled_path("tiny-qwen2-vl") / "config.json").read_text())
    assert config["eos_token_id"] == END


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 3728).filter(lambda t: t != END), max_size=40), st.booleans())
def test_the_pieces_together_are_the_whole_text(tokens, skip):
    """Any tokens, so also halves of letters and special ones."""
    given, text = pieces_of(tokens, skip=skip)
    assert "".join(given) == tokenizer().decode(tokens, skip_special_tokens=skip)
    assert not text.ended and not text.stopped


@settings(max_examples=200, deadline=None)
@given(
    st.text("ab 红色.", min_size=1, max_size=30),
    st.lists(st.text("ab 红色.", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(1, 5),
)
def test_an_answer_ends_before_the_stop_text_that_is_complete_first(whole, stops, groups):
    tokens = tokenizer().encode(whole, add_special_tokens=False).ids
    whole = tokenizer().decode(tokens)
    ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    given, text = pieces_of(tokens, stops, groups=groups)
    assert "".join(given) == whole[: min(ends, default=(0, len(whole)))[1]]
    assert text.stopped == text.ended == bool(ends)


def test_what_may_become_a_stop_text_is_held_back_and_nothing_else():
    text = AnswerText(tokenizer(), frozenset([END]), ["STOP"], True)
    tokens = [tokenizer().encode(part).ids for part in ("abc ", "ST", "x ", "S", "TOP more")]
    assert [text.push(each) for each in tokens] == ["abc ", "", "STx ", "", ""]
    assert text.finish() == "" and text.stopped


@pytest.mark.parametrize(
    "begun, text, expected",
    [
        ("", "A cat.", ("", "A cat.")),
        ("", "<think>hm</think>\n\nA cat.", ("hm", "A cat.")),
        ("", " <think>hm</th</think>\nA\n", ("hm</th", "A\n")),
        ("", "<thin ice", ("", "<thin ice")),
        ("", "<th", ("", "<th")),
        ("", "A <think> is not one.</think>", ("", "A <think> is not one.</think>")),
        ("<think>\n", "hm < 3</think>\n\nA cat.", ("hm < 3", "A cat.")),
        ("<think>\n", "hm, cut off</thi", ("hm, cut off</thi", "")),
        ("<think>\n", "hm</think>", ("hm", "")),
    ],
)
def test_thinking_is_split_from_the_answer_wherever_pieces_are_cut(begun, text, expected):
    for size in (1, 2, 3, 5, 100):
        thinking = Thinking(begun)
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        parts = [thinking.split(piece, last=False) for piece in pieces]
        parts.append(thinking.split("", last=True))
        assert tuple(map("".join, zip(*parts, strict=True))) == expected
        assert thinking.split("", last=True) == ("", "")


def test_the_end_token_is_no_text_even_where_special_tokens_are():
    tokens = [*tokenizer().encode("red").ids, END, *tokenizer().encode("never").ids]
    given, text = pieces_of(tokens, skip=False)
    assert "".join(given) == "red" and text.ended and not text.stopped


def test_bytes_that_wait_are_shared_in_the_order_of_asking():
    async def run():
        share, order = ByteBudget(100), []

        async def take(name, size):
            give_back = await share.take(size)
            order.append(name)
            return give_back

        first = await take("first", 90)
        others = [asyncio.ensure_future(take(*each)) for each in (("large", 500), ("small", 5))]
        await asyncio.sleep(0.01)
        assert order == ["first"]  # the small one would fit, but waits behind the large one
        first()
        first()  # counts once
        large = await others[0]
        await asyncio.sleep(0.01)
        assert order == ["first", "large"]
        large()
        (await others[1])()
        return order

    assert asyncio.run(run()) == ["first", "large", "small"]


@pytest.mark.parametrize("stops", [(), ("x",)])
def test_only_stop_texts_have_to_be_watched_for(stops):
    assert AnswerText(tokenizer(), frozenset(), stops, True).has_stops == bool(stops)
