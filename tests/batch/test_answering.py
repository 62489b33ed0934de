"""generate_batch: the answers of one by one, whatever happens to the other rows."""

from __future__ import annotations

import json
import re
import threading
from functools import partial

import bare
import pytest
import torch

import vlkit
from vlkit.engine import scheduler
from vlkit.engine.slots import Engine
from vlkit.errors import VlkitError
from vlkit.generation.reply import Failure

FAST = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")


def batch(vlm, rows: list, /, **options):
    return vlkit.generate_batch(vlm, rows, progress=False, **options)


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_answers_of_the_bundled_model_are_those_of_one_by_one(vlm, batch_size):
    results = batch(vlm, bare.mixed_rows(), max_new_tokens=40, batch_size=batch_size)
    assert [reply.raw for reply in results] == bare.answers(
        vlm, bare.mixed_rows(), max_new_tokens=40
    )
    assert results.report.path == "fast" and results.report.padding < 0.1
    assert results.report.new_tokens == sum(reply.usage.new_tokens for reply in results)


@pytest.mark.parametrize("kind", FAST)
def test_answers_of_each_generation_are_those_of_one_by_one(tiny_vlm, kind):
    vlm = tiny_vlm(kind)
    results = batch(vlm, bare.mixed_rows(), max_new_tokens=12, batch_size=4)
    assert [reply.raw for reply in results] == bare.answers(
        vlm, bare.mixed_rows(), max_new_tokens=12
    )
    assert results.report.path == "fast"
    assert not results.report.note


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_5"])
def test_sampled_rows_are_those_of_one_by_one(tiny_vlm, kind):
    vlm, rows = tiny_vlm(kind), bare.mixed_rows()
    options = {"max_new_tokens": 10, "temperature": 1.0, "top_p": 0.9}
    results = batch(vlm, rows, batch_size=3, seed=5, **options)
    one_by_one = [
        bare.answer(vlm, row, seed=5 + index, **options) for index, row in enumerate(rows)
    ]
    assert [reply.raw for reply in results] == one_by_one


def test_a_repetition_penalty_counts(tiny_vlm, monkeypatch):
    vlm = tiny_vlm("qwen2_vl")
    plain = bare.answers(vlm, bare.mixed_rows(), max_new_tokens=12)
    monkeypatch.setattr(vlm.model.generation_config, "repetition_penalty", 1.5)
    results = batch(vlm, bare.mixed_rows(), max_new_tokens=12, batch_size=4)
    penalized = bare.answers(vlm, bare.mixed_rows(), max_new_tokens=12)
    assert [reply.raw for reply in results] == penalized != plain


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_5"])
def test_steps_that_cannot_be_captured_are_launched(tiny_vlm, monkeypatch, kind):
    def capture(self, rows, span):
        self._rehearse(rows, span)
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(Engine, "_captures", property(lambda self: self.graphs is not None))
    monkeypatch.setattr(Engine, "_capture", capture)
    vlm = tiny_vlm(kind)
    with pytest.warns(UserWarning, match="slower: operation not permitted"):
        results = batch(vlm, bare.mixed_rows()[:5], max_new_tokens=12)
    expected = bare.answers(vlm, bare.mixed_rows()[:5], max_new_tokens=12)
    assert [reply.raw for reply in results] == expected


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_5"])
def test_the_step_before_a_capture_leaves_no_trace(tiny_vlm, monkeypatch, kind):
    vlm, step, rehearsed = tiny_vlm(kind), Engine._step, []
    monkeypatch.setattr(vlm.model.generation_config, "repetition_penalty", 1.5)

    def with_rehearsal(self, index, steps):  # as on a GPU, before a graph is captured
        self._rehearse(len(self.rows), self.decoder.length)
        rehearsed.append(index)
        step(self, index, steps)

    monkeypatch.setattr(Engine, "_step", with_rehearsal)
    results = batch(vlm, bare.mixed_rows()[:3], max_new_tokens=12)
    assert rehearsed
    assert [reply.raw for reply in results] == bare.answers(
        vlm, bare.mixed_rows()[:3], max_new_tokens=12
    )


def test_settings_that_the_engine_does_not_know_go_to_the_library(tiny_vlm, monkeypatch):
    vlm = tiny_vlm("qwen2_vl")
    monkeypatch.setattr(vlm.model.generation_config, "no_repeat_ngram_size", 2)
    results = batch(vlm, bare.mixed_rows()[:3], max_new_tokens=8)
    assert results.report.path == "library" and "no_repeat_ngram_size" in results.report.note
    assert [reply.raw for reply in results] == bare.answers(
        vlm, bare.mixed_rows()[:3], max_new_tokens=8
    )


def test_boxes_and_pictures_are_those_of_one_by_one(vlm):
    row = vlkit.user("Detect all objects.", str(vlkit.sample("six_shapes")))
    single, many = vlkit.generate(vlm, row), batch(vlm, [row])[0]
    assert many.boxes == single.boxes and many.boxes
    assert many.usage == single.usage and many.image_sizes == single.image_sizes
    assert many.plot().tobytes() == single.plot().tobytes()
    assert many.finish_reason == single.finish_reason == "stop"


def test_a_clip_of_a_batch_is_sampled_again_when_it_is_looked_at(vlm):
    path = next(iter(vlkit.clips().values())).path
    row = vlkit.user("What moves where?", vlkit.Video(str(path), fps=1))
    single, many = vlkit.generate(vlm, row), batch(vlm, [row])[0]
    assert (many.clips[0].frames == single.clips[0].frames).all()
    assert many.clip_sizes == single.clip_sizes


def test_bad_rows_fail_and_the_others_go_on(vlm, tmp_path):
    whole = vlkit.sample("six_shapes").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    good = vlkit.user("How many objects are there?", whole)
    rows = [
        good,
        vlkit.user("?", str(tmp_path / "missing.png")),
        vlkit.user("?", str(tmp_path / "half.png")),
        vlkit.user("word " * 9000),
        {"role": "nobody", "content": "?"},
        7,
        good,
    ]
    results = batch(vlm, rows, max_new_tokens=20)
    assert results[0].raw == results[6].raw == bare.answers(vlm, [good], max_new_tokens=20)[0]
    failures = results[1:6]
    assert all(isinstance(each, Failure) for each in failures)
    words = ("missing.png", "truncated", "context", "nobody", "7")
    assert all(word in each.error for word, each in zip(words, failures, strict=True)), failures
    assert all("\n" not in each.error for each in failures)
    assert results.report.failures == 5


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_5"])  # the engine, and transformers' generate
@pytest.mark.parametrize("room", [1, 3_000_000])
def test_rows_that_fill_the_memory_for_waiting_ones_are_answered(tiny_vlm, monkeypatch, kind, room):
    """What waits is admitted when no more can be read, though there would be slots for more."""
    monkeypatch.setattr(scheduler, "HELD_BYTES", room)
    rows = [vlkit.user(f"What is this, {i}?", str(vlkit.sample("circles"))) for i in range(9)]
    results = batch(tiny_vlm(kind), rows, max_new_tokens=3, batch_size=8)
    assert results.report.failures == 0
    assert [reply.raw for reply in results] == bare.answers(tiny_vlm(kind), rows, max_new_tokens=3)


@pytest.mark.parametrize("fits", [1, 3])
def test_out_of_memory_halves_the_batch(tiny_vlm, monkeypatch, fits):
    vlm, prefill = tiny_vlm("qwen2_vl"), Engine._prefill
    sizes = []

    def cramped(self, rows, *rest):
        sizes.append(len(rows))
        if len(rows) > fits:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return prefill(self, rows, *rest)

    rows = [vlkit.user("What is this?", str(vlkit.sample("six_shapes")))] * 9
    expected = bare.answers(vlm, rows[:1], max_new_tokens=6)[0]
    monkeypatch.setattr(Engine, "_prefill", cramped)
    results = batch(vlm, rows, max_new_tokens=6, batch_size=8)
    assert [reply.raw for reply in results] == [expected] * 9
    assert max(sizes) > fits >= sizes[-1] and "out of memory" in results.report.note


def test_a_row_that_does_not_fit_alone_fails_and_the_others_go_on(tiny_vlm, monkeypatch):
    vlm, prefill = tiny_vlm("qwen2_vl"), Engine._prefill

    def cramped(self, rows, *rest):
        if any(row.length > 200 for row in rows):
            raise torch.cuda.OutOfMemoryError("out of memory")
        return prefill(self, rows, *rest)

    monkeypatch.setattr(Engine, "_prefill", cramped)
    results = batch(vlm, ["short"] * 3 + ["long " * 300], max_new_tokens=6, batch_size=4)
    assert [isinstance(each, Failure) for each in results] == [False, False, False, True]
    assert "out of memory" in results[3].error


def test_a_row_that_the_model_cannot_take_fails_alone(tiny_vlm, monkeypatch):
    vlm, prefill = tiny_vlm("qwen2_vl"), Engine._prefill

    def picky(self, rows, *rest):
        if any(row.length > 200 for row in rows):
            raise RuntimeError("shapes do not match")
        return prefill(self, rows, *rest)

    monkeypatch.setattr(Engine, "_prefill", picky)
    rows = ["short", "long " * 300, "short", "long " * 310, "short"]
    results = batch(vlm, rows, max_new_tokens=4, batch_size=5)
    assert [isinstance(each, Failure) for each in results] == [False, True, False, True, False]
    assert results[1].error == "shapes do not match"


def test_agreement_asks_rows_again_alone(vlm, monkeypatch):
    assert batch(vlm, bare.mixed_rows(), max_new_tokens=8, agreement=4).report.agreement == 1
    choose = Engine._choose

    def wrong(self, logits, rows, place):  # the second likeliest token, in the batch alone
        if self.slots == 1:
            return choose(self, logits, rows, place)
        logits = logits.scatter(1, choose(self, logits, rows, place)[:, None], float("-inf"))
        return choose(self, logits, rows, place)

    monkeypatch.setattr(Engine, "_choose", wrong)
    report = batch(vlm, bare.mixed_rows(), max_new_tokens=8, agreement=4).report
    assert report.agreement == 0 and len(report.disagreeing) == 4


@pytest.mark.parametrize("by", ["event", "interrupt"])
def test_a_stopped_batch_returns_what_is_done_and_goes_on_later(vlm, tmp_path, by):
    stopped, out, rows = threading.Event(), tmp_path / "run.jsonl", bare.mixed_rows()

    def after_three(index, result, seen=[]):  # noqa: B006
        seen.append(index)
        if len(seen) == 3 and by == "interrupt":
            raise KeyboardInterrupt
        if len(seen) == 3:
            stopped.set()

    options = {"max_new_tokens": 30, "batch_size": 2, "out": out}
    first = batch(vlm, rows, on_result=after_three, stopped=stopped, **options)
    done = [index for index, each in enumerate(first) if not isinstance(each, Failure)]
    assert first.report.stopped and len(done) == 3
    assert {each.kind for each in first if isinstance(each, Failure)} == {"Stopped"}
    again = batch(vlm, rows, **options)
    assert again.report.resumed == 3 and not again.report.stopped
    assert [reply.raw for reply in again] == bare.answers(vlm, rows, max_new_tokens=30)


def test_models_are_left_as_they_were(tiny_vlm):
    vlm = tiny_vlm("qwen2_5_vl")
    before = vlm.model.model.visual.config._attn_implementation
    batch(vlm, bare.mixed_rows()[:3], max_new_tokens=3)
    assert vlm.model.model.visual.config._attn_implementation == before == "sdpa"
    assert "forward" not in vars(vlm.model.model.visual.patch_embed)


def test_longer_rows_that_come_later_find_room(tiny_vlm):
    vlm = tiny_vlm("qwen3_vl")
    rows = ["short", "longer " * 150, "short again", "longest " * 400]
    results = batch(vlm, rows, max_new_tokens=5, batch_size=1)
    assert [reply.raw for reply in results] == bare.answers(vlm, rows, max_new_tokens=5)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ("a text", {}, "pass a list"),
        ({"role": "user"}, {}, "pass a list"),
        (["a"], {"batch_size": 0}, "batch_size=0"),
        (["a"], {"batch_size": "many"}, "batch_size='many'"),
        (["a"], {"max_new_tokens": 0}, "max_new_tokens=0"),
        (["a"], {"agreement": -1}, "agreement=-1 must be a whole number"),
        (["a"], {"rows": [1]}, "rows: no conversation has index 1; there are 1"),
        (["a"], {"out": "run.csv"}, "must be a .jsonl file"),
    ],
)
def test_wrong_options_are_named(vlm, rows, options, words):
    with pytest.raises(VlkitError, match=words):
        batch(vlm, rows, **options)


def test_nothing_to_do(vlm, capsys):
    results = vlkit.generate_batch(vlm, [])
    assert results == [] and results.report.rows == 0 and capsys.readouterr().err == ""
    assert re.fullmatch(r"0 rows, 0 failed, [0-9.]+ s", str(results.report))


@pytest.mark.parametrize(
    "ask", [vlkit.generate, vlkit.token_logprobs, partial(vlkit.attention_map, token=0), batch]
)
def test_a_name_for_a_model_is_told(ask):
    with pytest.raises(
        VlkitError, match=r"vlm='tiny' is not a loaded model; pass what vlkit\.load"
    ):
        ask("tiny", [vlkit.user("a")])


SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green", "blue"]}, "count": {"enum": [1, 2, 3]}},
    "required": ["colour", "count"],
}


def test_rows_follow_a_schema_as_one_by_one_and_are_repeated(vlm, tmp_path):
    rows = [vlkit.user("What is this?", vlkit.sample(name)) for name in ("red_circle", "circles")]
    out, options = tmp_path / "out.jsonl", {"schema": SCHEMA, "temperature": 1.0, "seed": 3}
    with vlkit.records.Run("schema", directory=tmp_path) as run:
        answers = batch(vlm, rows, out=out, agreement=2, **options)
    for index, reply in enumerate(answers):
        content = json.loads(reply.text)
        assert content["colour"] in ("red", "green", "blue") and content["count"] in (1, 2, 3)
        alone = vlkit.generate(vlm, rows[index], **{**options, "seed": 3 + index})
        assert (reply.tokens, reply.finish_reason) == (alone.tokens, "stop")
    assert answers.report.agreement == 1
    assert batch(vlm, rows, out=out, **options).report.resumed == 2
    assert batch(vlm, rows, out=out, temperature=1.0, seed=3).report.resumed == 0
    assert vlkit.records.replay(run.path, vlm).identical


def test_a_schema_that_is_not_supported_ends_the_batch_at_once(vlm):
    with pytest.raises(VlkitError, match="schema is not supported: Unimplemented keys"):
        batch(vlm, ["hi"], schema={"not": {}})


def test_a_row_is_announced_before_its_result(vlm):
    events = []
    questions = [vlkit.user(f"Count to {i}.") for i in range(5)] + [[{"role": "nobody"}]]
    vlkit.generate_batch(
        vlm, questions, max_new_tokens=2, batch_size=2, progress=False,
        on_start=lambda index: events.append(("start", index)),
        on_result=lambda index, result: events.append(("result", index)),
    )  # fmt: skip
    for index in range(6):
        assert events.index(("start", index)) < events.index(("result", index))
    assert len(events) == 12
