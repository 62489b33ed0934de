"""A batch that is killed, stopped or interrupted goes on with the same call."""

import json
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest
from killed_batch import BAD, OPTIONS, ROWS, conversations

import vlkit

KILLS = 20


@pytest.fixture
def ask(tiny_vlm):
    """``ask(out, …)``: the same call every time."""

    def call(out, **changes):
        return vlkit.generate_batch(
            tiny_vlm("qwen2_vl"), conversations(), out=out, **OPTIONS | changes
        )

    return call


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def answers(path):
    return {record["index"]: record["raw"] for record in lines(path) if "raw" in record}


@pytest.mark.slow
def test_killed_twenty_times_no_row_is_lost_doubled_or_torn(ask, warm, tiny_folder, tmp_path):
    out, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    script = Path(__file__).parents[1] / "helpers" / "killed_batch.py"
    done = warm.run(script, tiny_folder("qwen2_vl"), out, KILLS, timeout=300)
    assert done.returncode == 0, done.stderr
    grown = [int(line) for line in done.stdout.split()]
    assert len(grown) == KILLS and grown == sorted(grown) and 0 < grown[-1]
    ask(whole)
    answered = Counter(record["index"] for record in lines(out) if "raw" in record)
    assert answered == Counter(index for index in range(ROWS) if index != BAD)
    assert answers(out) == answers(whole)
    results = ask(out)
    assert results.report.resumed == ROWS - 1
    assert isinstance(results[BAD], vlkit.Failure) and "nope.png" in str(results[BAD])
    assert [each.raw for i, each in enumerate(results) if i != BAD] == [
        raw for _, raw in sorted(answers(whole).items())
    ]


def test_a_resumed_reply_is_as_good_as_a_new_one(ask, tmp_path):
    first, again = ask(tmp_path / "run.jsonl"), ask(tmp_path / "run.jsonl")
    assert again.report.resumed == ROWS - 1 and again.report.new_tokens == 0
    for old, new in zip(first, again, strict=True):
        assert str(old) == str(new)
        if isinstance(old, vlkit.Reply):
            for name in ("raw", "usage", "input_sizes", "image_sizes", "finish_reason"):
                assert getattr(old, name) == getattr(new, name), name
            assert [p.tobytes() for p in old.images] == [p.tobytes() for p in new.images]


@pytest.mark.parametrize(
    "changes", [{"max_new_tokens": 7}, {"temperature": 0.5}, {"temperature": 0.5, "seed": 3}]
)
def test_other_options_are_computed_anew(ask, tmp_path, changes):
    out = tmp_path / "run.jsonl"
    ask(out)
    assert ask(out, **changes).report.resumed == 0
    assert ask(out, **changes).report.resumed == ROWS - 1
    assert ask(out).report.resumed == ROWS - 1


def test_another_model_is_computed_anew(ask, tiny_vlm, tmp_path):
    out = tmp_path / "run.jsonl"
    ask(out)
    other = vlkit.generate_batch(tiny_vlm("qwen2_5_vl"), conversations(), out=out, **OPTIONS)
    assert other.report.resumed == 0


def test_rows_that_were_moved_are_found(ask, tiny_vlm, tmp_path):
    out = tmp_path / "run.jsonl"
    before = ask(out)
    turned = vlkit.generate_batch(tiny_vlm("qwen2_vl"), conversations()[::-1], out=out, **OPTIONS)
    assert turned.report.resumed == ROWS - 1
    assert list(map(str, turned)) == list(map(str, before[::-1]))


@pytest.mark.parametrize("how", ["interrupt", "stopped"])
def test_stopped_it_ends_with_what_is_done(ask, tmp_path, how):
    out, stopped = tmp_path / "run.jsonl", threading.Event()

    done: list[int] = []

    def stop(index, result):
        done.append(index)
        if len(done) == 10:
            stopped.set() if how == "stopped" else signal.raise_signal(signal.SIGINT)

    results = ask(out, on_result=stop, stopped=stopped)
    assert results.report.stopped and len(results) == ROWS
    kinds = Counter(getattr(result, "kind", "answer") for result in results)
    assert kinds["answer"] + kinds["MediaError"] == len(lines(out)) and kinds["Stopped"] > 0
    assert 10 <= len(lines(out)) < ROWS
    rest = ask(out)
    assert not rest.report.stopped and rest.report.resumed == kinds["answer"]
    assert answers(out).keys() == set(range(ROWS)) - {BAD}
