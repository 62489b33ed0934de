"""Runs of the bundled model: everything is recorded, and everything comes out again."""

import json
import time
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from lora_talks import noise, talk

import vlkit
from vlkit.errors import VlkitError
from vlkit.records import Run, compare, read_run, replay

OPTIONS = {"max_new_tokens": 12}


def kinds(run):
    return [line["kind"] for line in read_run(run).answers]


def ask_everything(vlm):
    """An answer of each kind; the stream is closed after its first piece."""
    circle, hello = vlkit.sample("red_circle"), vlkit.sample("hello")
    vlkit.generate(vlm, vlkit.user("Describe this image.", vlkit.Image(circle, max_tokens=36)))
    for _ in vlkit.stream(vlm, vlkit.user("Describe this image.", circle)):
        break
    chat = vlkit.Chat(vlm, **OPTIONS)
    chat.ask("这是什么？", hello)
    list(chat.stream("What is it?"))
    vlkit.generate(vlm, vlkit.user("What moves?", vlkit.sample("moves_right")), **OPTIONS)


def test_every_way_of_asking_is_recorded_and_replayed(vlm, tmp_path):
    with Run("all", directory=tmp_path) as run:
        ask_everything(vlm)
        rows = [vlkit.user("?", vlkit.sample("taxi")), vlkit.user("?", "nope.png"), "Hello!"]
        vlkit.generate_batch(vlm, rows, progress=False, temperature=1.0, seed=5, **OPTIONS)
    assert kinds(run) == ["generate", "stream", "chat", "chat", "generate"] + ["batch"] * 3
    record = read_run(run)
    assert record.answers[1]["finish_reason"] == "cancelled"
    assert record.answers[0]["media"][0]["options"] == {"max_tokens": 36}
    assert [m["role"] for m in record.answers[3]["messages"]] == ["user", "assistant", "user"]
    assert sum("error" in line for line in record.answers if line["kind"] == "batch") == 1
    (model,) = record.models.values()
    assert model["name"] == "tiny" and model["hub"] == "bundled" and model["weights"]["sha256"]
    again = replay(run.path, vlm)
    assert again.identical and sorted(again.rows["status"]) == ["cannot"] + ["same"] * 7
    assert again.rows["reason"][again.rows["status"] == "cannot"].item() == "there was no answer"


def test_answers_of_a_service_are_replayed_there_and_here(vlm, tmp_path):
    with vlkit.serving.start(vlm) as server:
        hosted = vlkit.load("openai:tiny", base_url=server.url)
        with Run("hosted", directory=tmp_path) as run:
            ask_everything(hosted)
            chinese = vlkit.stream(hosted, vlkit.user("这是什么？", vlkit.sample("taxi")))
            for number, _ in enumerate(chinese):
                if number == 3:
                    break
            vlkit.generate_batch(hosted, ["Hello!", "What?"], progress=False, **OPTIONS)
        there, here = replay(run.path, hosted), replay(run.path, vlm)
    assert [replayed.rows["status"].tolist() for replayed in (there, here)] == [["same"] * 8] * 2
    assert "openai:tiny: hosted" in list(here.environment["what"])


def test_a_stopped_answer_of_which_no_tokens_were_counted_is_asked_far_enough(vlm, tmp_path):
    with Run("r", directory=tmp_path) as run:
        reply = vlkit.generate(vlm, vlkit.user("这是什么？", vlkit.sample("taxi")))

    def change(line):
        if line["record"] == "answer":
            usage = line["usage"] | {"new_tokens": 1}  # a service that sends much at a time
            line |= {"finish_reason": "cancelled", "tokens": None, "usage": usage}
            line["raw"] = line["raw"].removesuffix("<|im_end|>")

    rewrite(run, change)
    assert len(reply.text) > 8 and replay(run.path, vlm).identical


def test_a_service_that_is_gone_is_given_up_once(vlm, tmp_path, monkeypatch):
    from vlkit.remote import client

    with vlkit.serving.start(vlm) as server:
        hosted = vlkit.load("openai:tiny", base_url=server.url)
        with Run("hosted", directory=tmp_path) as run:
            for number in range(4):
                vlkit.generate(hosted, f"Hello, number {number}.", **OPTIONS)
    tried, once = [], client._try
    monkeypatch.setattr(client, "_try", lambda *given: tried.append(1) or once(*given))
    monkeypatch.setattr(client, "PATIENCE", 0.0)
    monkeypatch.setattr(client.ask, "__defaults__", (None, 0.0, 0))
    again = replay(run.path, hosted)
    assert again.rows["reason"].str.contains("no connection").all() and len(tried) == 1


@pytest.mark.parametrize("wrong", ["tiny", 3, ["tiny"]])
def test_what_is_no_model_is_refused_before_anything_is_asked(vlm, tmp_path, wrong):
    with Run("r", directory=tmp_path) as run:
        vlkit.generate(vlm, "Hello!", **OPTIONS)
    with pytest.raises(vlkit.errors.VlkitError, match="is not a loaded model"):
        replay(run.path, wrong)
    with Run("c", directory=tmp_path) as compared:
        for models in ([vlm, wrong], {"a": vlm, "b": wrong}, {"a": vlm, "b": (wrong, {})}):
            with pytest.raises(vlkit.errors.VlkitError, match="is not a loaded model"):
                compare(models, ["Hello!"], **OPTIONS)
        with pytest.raises(vlkit.errors.VlkitError, match="conversations is a str"):
            compare([vlm], "Hello!", **OPTIONS)
    assert read_run(compared).answers == []


def test_the_model_is_loaded_as_it_was(tmp_path):
    with Run("own", directory=tmp_path) as run:
        small = vlkit.load(dtype="float64", max_image_tokens=40)
        vlkit.generate(small, vlkit.user("?", vlkit.sample("taxi")), **OPTIONS)
    again = replay(run.path)
    assert again.identical and len(again.environment.query("what.str.startswith('tiny')")) == 0


def rewrite(run, change):
    """Change the recorded answers, as if the run had been another."""
    path = run.path / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_replay_says_what_differs_where_and_why_not(vlm, tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(vlkit.sample("taxi").read_bytes())
    with Run("r", directory=tmp_path / "runs", keep_media=False) as run:
        vlkit.generate(vlm, vlkit.user("Describe this image.", picture), max_new_tokens=8)
        vlkit.generate(vlm, "Hello!", temperature=1.0, max_new_tokens=2)
        vlkit.generate(vlm, vlkit.user("?", vlkit.load_image(picture).rotate(90)), **OPTIONS)
        vlkit.generate(vlm, "Hello!", **OPTIONS)

    def change(line):
        if line["record"] == "answer" and line["options"]["max_new_tokens"] == 8:
            line["tokens"][3] += 1
        if line["record"] == "model":
            line["weights"]["sha256"] = "0" * 64

    rewrite(run, change)
    again = replay(run.path, vlm)
    assert not again.identical
    assert list(again.rows["status"]) == ["differs", "cannot", "cannot", "same"]
    assert again.rows["at"][0] == 3
    assert "without a seed" in again.rows["reason"][1] and "keep_media" in again.rows["reason"][2]
    assert "tiny: weights" in list(again.environment["what"])
    assert "<table" in again._repr_html_() and "1 differs" in str(again)


@pytest.mark.parametrize("options", [{}, {"keep_media": True}])
def test_media_given_as_objects_are_kept_once(vlm, tmp_path, options):
    turned = vlkit.load_image(vlkit.sample("taxi")).rotate(90)
    frames = [vlkit.load_image(vlkit.sample("taxi"))] * 2
    stored = vlkit.sample("taxi").read_bytes()
    with Run("r", directory=tmp_path, **options) as run:
        for source in (turned, turned, np.asarray(turned), stored, vlkit.Video(frames)):
            vlkit.generate(vlm, vlkit.user("Describe this image.", source), **OPTIONS)
        vlkit.generate(vlm, vlkit.user("Describe this image.", vlkit.sample("taxi")), **OPTIONS)
    again = replay(run.path, vlm)
    assert again.identical and len(again.rows) == 6
    kept = list((run.path / "media").iterdir())
    assert len(kept) == 3 + bool(options)  # the picture, the bytes, the clip; and the file itself


def test_a_limit_of_kept_media_is_said(vlm, tmp_path):
    noisy = [PIL.Image.effect_noise((600, 600), 99 + i).convert("RGB") for i in range(3)]
    with Run("r", directory=tmp_path, keep_media=1) as run:
        vlkit.generate(vlm, vlkit.user("?", noisy[0]), **OPTIONS)
        with pytest.warns(UserWarning, match="has kept 1 MB .* raise keep_media="):
            vlkit.generate(vlm, vlkit.user("?", noisy[1]), **OPTIONS)
        vlkit.generate(vlm, vlkit.user("?", noisy[2]), **OPTIONS)
        vlkit.generate(vlm, vlkit.user("?", noisy[0]), **OPTIONS)
    assert list(replay(run.path, vlm).rows["status"]) == ["same", "cannot", "cannot", "same"]
    with pytest.raises(VlkitError, match="keep_media=-1"):
        Run("r", directory=tmp_path, keep_media=-1)


def test_rows_that_are_resumed_are_recorded_too(vlm, tmp_path):
    rows = [vlkit.user("?", vlkit.sample("taxi")), "Hello!"]
    options = {"progress": False, "out": tmp_path / "out.jsonl", **OPTIONS}
    vlkit.generate_batch(vlm, rows, rows=[0], **options)
    with Run("r", directory=tmp_path) as run:
        results = vlkit.generate_batch(vlm, rows, **options)
    answers = sorted(read_run(run).answers, key=lambda line: line["index"])
    assert results.report.resumed == 1 and [a["raw"] for a in answers] == [r.raw for r in results]
    assert answers[0]["tokens"] is None and answers[1]["tokens"]
    assert replay(run.path, vlm).identical


def test_a_training_is_recorded(vlm, tmp_path):
    data = [talk(("What is this?", noise(60, 90)), "A cat."), talk("Hello", "Hi there.")]
    with Run("r", directory=tmp_path) as run:
        result = vlkit.lora.train(vlm, data, output_dir=tmp_path / "out", batch_size=2, seed=3)
    begun, ended = read_run(run).of("training")
    assert (begun["state"], ended["state"]) == ("begun", "ended")
    assert ended["arguments"]["seed"] == 3 and ended["steps"] == result.steps
    assert [tuple(each) for each in ended["losses"]] == list(result.losses)
    assert len(ended["adapter"]["sha256"]) == 64
    page = vlkit.records.report(run, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Loss by step" in page and "trainings are not repeated" in page
    assert str(replay(run.path, vlm)).startswith("r: 0 answers; 1 training not repeated")


def test_panels_record_without_being_told(vlm, tmp_path):
    with Run("r", directory=tmp_path) as run:
        ask = vlkit.widgets.AskPanel(vlm)
        ask.max_new_tokens.value = 4
        ask.ask()
        assert ask.wait(120)
        batch = vlkit.widgets.BatchPanel(vlm, vlkit.sample("cat").parent)
        batch.start()
        time.sleep(0.5)
        batch.stop()
        assert batch.wait(120)
    found = kinds(run)
    assert found[0] == "chat" and found.count("batch") == sum(
        isinstance(each, vlkit.Reply) for each in batch.results
    )


KILLED = """
import sys, vlkit
vlm = vlkit.load()
rows = [vlkit.user(f"Question {i}?", vlkit.sample("taxi")) for i in range(500)]
with vlkit.records.Run("killed", directory=sys.argv[1]) as run:
    print(run.path, flush=True)
    vlkit.generate_batch(vlm, rows, progress=False, max_new_tokens=2, batch_size=4)
"""


def test_a_killed_run_keeps_every_answer_that_was_there(vlm, warm, tmp_path):
    process = warm.start("-c", KILLED, tmp_path)
    try:
        while sum(file.stat().st_size for file in tmp_path.glob("*/records.jsonl")) < 20_000:
            assert process.poll() is None, process.stderr()
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    path = process.stdout().strip()
    record = read_run(path)
    assert record.status == "unfinished" and len(record.answers) >= 5 and record.torn <= 1
    assert vlkit.records.runs(tmp_path)["answers"].item() == len(record.answers)
    (record.path / "records.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in record.lines[:6]), encoding="utf-8"
    )
    assert replay(path, vlm).identical


# --- same seed, same machine, same answers --------------------------------------------------------

SAMPLED = {"max_new_tokens": 16, "temperature": 5.0}


def sampled_questions():
    names = ("taxi", "red_circle", "three_shapes", "hello")
    return [vlkit.user("Describe this image.", vlkit.sample(name)) for name in names]


def test_a_seed_repeats_a_sampled_answer_whatever_was_drawn_before(vlm):
    import torch

    question = sampled_questions()[0]
    first = vlkit.generate(vlm, question, seed=7, **SAMPLED)
    torch.rand(100)
    second = vlkit.generate(vlm, question, seed=7, **SAMPLED)
    other = vlkit.generate(vlm, question, seed=8, **SAMPLED)
    streamed = vlkit.stream(vlm, question, seed=7, **SAMPLED)
    list(streamed)
    assert first.tokens == second.tokens == streamed.reply.tokens != other.tokens


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_seed_repeats_a_sampled_batch_of_any_size(vlm, size):
    rows = sampled_questions()
    batch = vlkit.generate_batch(vlm, rows, seed=7, batch_size=size, progress=False, **SAMPLED)
    alone = [vlkit.generate(vlm, row, seed=7 + i, **SAMPLED) for i, row in enumerate(rows)]
    assert [reply.tokens for reply in batch] == [reply.tokens for reply in alone]


def test_seed_everything_repeats_what_has_no_seed(vlm, tmp_path):
    import random

    import numpy

    def draw():
        vlkit.seed_everything(11)
        single = vlkit.generate(vlm, sampled_questions()[0], **SAMPLED).tokens
        return single, random.random(), float(numpy.random.rand())

    with Run("r", directory=tmp_path) as run:
        first = draw()
    assert first == draw() and read_run(run).values == {"seed_everything": 11}


# --- several models over the same rows ------------------------------------------------------------


def test_compare_settings_against_the_truth(vlm):
    samples = [vlkit.samples()[name] for name in ("three_shapes", "street")]
    rows = [vlkit.user(f"Locate the {s.boxes[0].label}.", s.path) for s in samples]
    truth = [[s.boxes[0]] for s in samples]
    small = replace(vlm, max_image_tokens=16)
    settings = {"full": vlm, "16 tokens": (vlm, {"max_image_tokens": 16})}
    found = compare(settings, rows, truth=truth, match_labels=False, bootstrap=20)
    assert list(found.summary.index) == ["full", "16 tokens"]
    assert found.summary.loc["full", "accuracy@0.5"] == 1
    assert found.summary.loc["16 tokens", "image_tokens"] <= 16
    alone = [vlkit.generate(small, row).text for row in rows]
    assert list(found.frame["16 tokens"]) == alone
    page = found._repr_html_()
    assert page.count("<img") == 4 and "16 tokens" in page


def test_compare_names_models_and_keeps_failures(vlm):
    found = compare([vlm, vlm], [vlkit.user("?", "nope.png"), "Hello!"], **OPTIONS)
    assert list(found.answers) == ["tiny", "tiny (2)"]
    assert found.summary["failures"].tolist() == [1, 1] and "nope.png" in found._repr_html_()
    with pytest.raises(vlkit.errors.VlkitError, match="no model to compare"):
        compare([], ["Hello!"])
    with pytest.raises(vlkit.errors.VlkitError, match="1 lists of true boxes for 2"):
        compare([vlm], ["a", "b"], truth=[[]])
