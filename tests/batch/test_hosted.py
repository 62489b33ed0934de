"""Batches asked of a service: in order, so many at a time, resumable, stopped at once."""

import json
import os
import pkgutil
import re
import signal
import threading
import time

import pytest
from openai_server import USAGE, Said, serve

import vlkit
from vlkit.batch.journal import row_keys
from vlkit.errors import VlkitError
from vlkit.generation import reply

MODEL = "Qwen/Qwen2-VL-2B-Instruct"


@pytest.fixture
def server():
    with serve() as server:
        yield server


@pytest.fixture
def load(server):
    return lambda **options: vlkit.load(f"openai:{MODEL}", **{"base_url": server.url, **options})


def number_of(body):
    content = body["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    return int(text.split()[-1])


def ask(vlm, count=20, **options):
    return vlkit.generate_batch(
        vlm, [f"number {i}" for i in range(count)], progress=False, **options
    )


def test_rows_are_in_order_however_they_finish(server, load):
    server.script = lambda body: Said(str(number_of(body)), wait=0.01 * (7 * number_of(body) % 5))
    seen = []
    results = ask(load(), 30, on_result=lambda index, result: seen.append(index))
    assert [reply.text for reply in results] == [str(i) for i in range(30)]
    assert sorted(seen) == list(range(30)) and seen != sorted(seen)
    assert results.report.path == "remote" and results.report.new_tokens == 30 * 7


@pytest.mark.parametrize("options, most", [({}, 3), ({"batch_size": 5}, 5)])
def test_concurrency_is_bounded(server, load, options, most):
    server.script = [Said(wait=0.05)]
    results = ask(load(concurrency=3), 15, **options)
    assert server.most_running == most == results.report.batch_size


def test_a_bad_row_fails_alone(server, load, tmp_path):
    rows = [vlkit.user("number 0"), vlkit.user("number 1", tmp_path / "none.png"), 7]
    server.script = lambda body: Said(str(number_of(body)))
    results = vlkit.generate_batch(load(), [*rows, "number 3"], progress=False)
    kinds = [getattr(result, "kind", "Reply") for result in results]
    assert kinds == ["Reply", "MediaError", "VlkitError", "Reply"]
    assert results.report.failures == 2


SET = "Objects: {'cat', 'dog'}\n[{'bbox_2d': [28, 28, 56, 56], 'label': 'cat'}]"


def pictures(count):
    return [vlkit.user(f"number {i}", vlkit.sample("circles")) for i in range(count)]


def test_an_answer_with_a_python_set_ends_no_batch_and_no_resume(server, load, tmp_path):
    out, vlm = tmp_path / "a.jsonl", load(family="qwen2_5_vl")
    server.script = lambda body: Said(SET if number_of(body) == 3 else "nothing there")
    for resumed in (0, 8):
        results = vlkit.generate_batch(vlm, pictures(8), out=out, progress=False)
        assert results.report.failures == 0 and results.report.resumed == resumed
        assert [box.label for box in results[3].boxes] == ["cat"]
        assert len(vlkit.to_frame(results)["boxes"][3]) == 1 and "<img" in results[3]._repr_html_()


@pytest.mark.parametrize("error", [AttributeError("keys"), RecursionError("deep"), KeyError("x")])
def test_what_a_reader_raises_about_a_row_is_that_rows_note(
    server, load, tmp_path, monkeypatch, error
):
    read = reply.locate_grounding

    def broken(text, *rest, **options):
        if text == "3":
            raise error
        return read(text, *rest, **options)

    monkeypatch.setattr(reply, "locate_grounding", broken)
    server.script = lambda body: Said(str(number_of(body)))
    for resumed in (0, 8):
        out = tmp_path / "a.jsonl"
        results = vlkit.generate_batch(load(), pictures(8), out=out, progress=False)
        assert [str(each) for each in results] == list("01234567")
        assert results.report.resumed == resumed
    notes = [json.loads(line).get("grounding_note") for line in out.read_text().splitlines()]
    assert [note for note in notes if note] == [str(error)]


@pytest.mark.parametrize("where", ["vlkit.batch.journal.record_of", "vlkit.batch.answering._names"])
def test_what_a_recorder_raises_about_a_row_ends_no_batch(
    server, load, tmp_path, monkeypatch, where
):
    works = pkgutil.resolve_name(where.rpartition(".")[0])
    name = where.rpartition(".")[2]
    function, calls = getattr(works, name), []

    def broken(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("broken")
        return function(*arguments)

    monkeypatch.setattr(where, broken)
    results = ask(load(), 8, out=tmp_path / "a.jsonl")
    failed = [each for each in results if isinstance(each, vlkit.Failure)]
    assert [str(each) for each in failed] == ["RuntimeError: broken"] * (name == "record_of")
    again = ask(load(), 8, out=tmp_path / "a.jsonl").report
    assert again.failures == 0 and again.resumed == 8 - len(failed)


def test_what_on_result_raises_is_a_warning(server, load):
    seen = []

    def view(index, result):
        seen.append(index)
        if index == 3:
            raise ValueError("no such widget")

    with pytest.warns(UserWarning, match="row 3: on_result failed .*no such widget") as caught:
        results = ask(load(), 8, on_result=view)
    assert results.report.failures == 0 and sorted(seen) == list(range(8))
    assert caught[0].filename == __file__


def test_a_row_of_the_file_that_cannot_be_read_back_is_asked_again(server, load, tmp_path):
    out = tmp_path / "a.jsonl"
    ask(load(), 5, out=out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    rows[1].pop("usage")
    rows[2]["family"] = "gpt"
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match="cannot be read back .* asked again") as caught:
        results = ask(load(), 5, out=out)
    assert results.report.resumed == 3 and results.report.failures == 0 and len(caught) == 2
    assert ask(load(), 5, out=out).report.resumed == 5


class Odd:
    """What no code is ready for."""

    ndim = 3

    def __repr__(self):
        raise ZeroDivisionError

    def __getattr__(self, name):
        raise OSError(name)


def test_a_conversation_that_breaks_its_own_key_fails_alone(server, load, tmp_path):
    picture = {"role": "user", "content": [{"type": "image", "image": Odd()}]}
    rows = ["number 0", Odd(), [Odd()], picture, "number 4"]
    for resumed in (0, 2):
        results = vlkit.generate_batch(load(), rows, out=tmp_path / "a.jsonl", progress=False)
        kinds = [isinstance(each, vlkit.Failure) for each in results]
        assert kinds == [False, True, True, True, False] and results.report.resumed == resumed


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": "9", "completion_tokens": "7"},
        {"prompt_tokens": 9},
        dict(USAGE, prompt_tokens_details={"image_tokens": "9", "video_tokens": {}}),
    ],
    ids=str,
)
def test_odd_counts_of_one_row_end_no_batch(server, load, tmp_path, usage):
    server.script = lambda body: Said("3", usage=usage if number_of(body) == 3 else dict(USAGE))
    results = ask(load(), 6, out=tmp_path / "a.jsonl")
    assert results.report.failures == 0 and "new" in results[3]._repr_html_()
    assert ask(load(), 6, out=tmp_path / "a.jsonl").report.resumed == 6


def test_busy_rows_are_asked_again_and_refused_ones_are_not(server, load):
    tried = []

    def script(body):
        number = number_of(body)
        tried.append(number)
        if number == 3:
            return Said(status=400, message="not this one")
        return Said(status=429) if tried.count(number) < 2 else Said(str(number))

    server.script = script
    results = ask(load(), 8)
    assert [str(each) for each in results if not isinstance(each, vlkit.Failure)] == list("0124567")
    assert "not this one" in results[3].error and results[3].kind == "RemoteError"
    assert tried.count(3) == 1 and tried.count(4) == 2


@pytest.mark.parametrize(
    "said, told",
    [
        (
            Said(status=401, code="invalid_api_key", message="wrong"),
            "a key is needed",
        ),
        (Said(status=404, message="The model does not exist"), "no such model"),
        (Said(status=400, code="Arrearage"), "quota or balance"),
    ],
)
def test_what_fails_every_row_is_asked_only_once_a_worker(server, load, said, told):
    server.script = [said]
    vlm = load(concurrency=4)
    results = ask(vlm, 500)
    assert len(server.requests) <= 4 and results.report.failures == 500
    for failure in results:
        assert failure.kind == "RemoteError" and re.search(told, failure.error)


def test_a_journal_goes_on_where_it_was(server, load, tmp_path):
    out = tmp_path / "run.jsonl"
    server.script = lambda body: (
        Said(str(number_of(body))) if number_of(body) % 2 else Said(status=400)
    )
    picture = vlkit.sample("three_shapes")
    rows = [vlkit.user(f"number {i}", picture) for i in range(6)]
    first = vlkit.generate_batch(load(prices=PRICES), rows, out=out, progress=False)
    assert first.report.failures == 3 and first.report.cost == pytest.approx(3 * COST)
    server.script, before = (lambda body: Said(str(number_of(body)))), len(server.requests)
    second = vlkit.generate_batch(load(prices=PRICES), rows, out=out, progress=False)
    assert second.report.resumed == 3 and len(server.requests) - before == 3
    assert [reply.text for reply in second] == [str(i) for i in range(6)]
    assert second[1].cost == pytest.approx(COST) and second[1].input_sizes == ((392, 308),)
    assert second[1].images[0].size == (400, 300)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["index"] for line in lines} == set(range(6))


PRICES = {"input": 3.0, "output": 6.0}
COST = (USAGE["prompt_tokens"] * 3.0 + USAGE["completion_tokens"] * 6.0) / 1e6


def test_keys_change_with_what_an_answer_depends_on(server, load):
    def key(**options):
        return row_keys(load(**options), ["?"], {"max_new_tokens": 9})[0]

    assert key() == key(api_key="sk-another", timeout=7, retries=1, prices=PRICES)
    changed = [key(extra_body={"top_k": 1}), key(max_image_tokens=64), key(family="qwen3_vl"),
               key(base_url=server.url.replace("127.0.0.1", "localhost"))]  # fmt: skip
    assert len({key(), *changed}) == 5


def test_costs_add_up(server, load):
    report = ask(load(prices=PRICES), 10).report
    assert report.cost == pytest.approx(10 * COST)
    assert f"cost {report.cost:.4g}" in str(report) and "padding" not in str(report)
    assert ask(load(), 3).report.cost is None


def test_agreement_asks_again_alone(server, load):
    server.script = lambda body: Said(str(number_of(body)))
    assert ask(load(), 8, agreement=4).report.agreement == 1
    lock, asked = threading.Lock(), []

    def forgetful(body):
        with lock:
            asked.append(number_of(body))
            return Said(f"{number_of(body)}, {asked.count(number_of(body))}")

    server.script = forgetful
    report = ask(load(), 8, agreement=4).report
    assert report.agreement == 0 and len(report.disagreeing) == 4


def test_each_row_is_sampled_with_a_seed_of_its_own(server, load):
    ask(load(), 5, temperature=0.5, seed=40)
    seeds = {number_of(body): body["seed"] for body in server.requests}
    assert seeds == {i: 40 + i for i in range(5)}


def test_stopping_closes_all_connections(server, load, tmp_path):
    server.script = lambda body: Said("done") if number_of(body) < 3 else Said(wait=60)
    stopped = threading.Event()
    start = time.monotonic()

    def note(index, result):
        if index == 2:
            threading.Timer(0.3, stopped.set).start()

    vlm = load(concurrency=4)
    results = ask(vlm, 12, stopped=stopped, out=tmp_path / "a.jsonl", on_result=note)
    assert time.monotonic() - start < 30  # a row would answer after 60
    assert results.report.stopped and [str(r) for r in results[:3]] == ["done"] * 3
    assert {result.kind for result in results[3:]} == {"Stopped"}
    assert wait_for(lambda: not server.running and server.gone == 4)
    server.script = [Said("again")]
    assert ask(vlm, 12, out=tmp_path / "a.jsonl").report.resumed == 3


def test_ctrl_c_ends_a_batch_cleanly(server, load):
    server.script = lambda body: Said("done") if number_of(body) < 3 else Said(wait=60)
    vlm = load()
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    results = ask(vlm, 12)
    assert results.report.stopped and [str(r) for r in results[:3]] == ["done"] * 3
    assert wait_for(lambda: not server.running)


def compared(vlm, path):
    return vlkit.records.compare([vlm, vlm], [f"number {i}" for i in range(12)])


def evaluated(vlm, path):
    from vlkit.evaluation.asking import Question, ask_grounding

    picture, box = vlkit.sample("taxi"), vlkit.Box("taxi", 1, 2, 30, 40)
    return ask_grounding(vlm, [Question(picture, f"number {i}", (box,)) for i in range(12)])


def replayed(vlm, path):
    return vlkit.records.replay(path, vlm)


@pytest.mark.parametrize("count_all", [compared, evaluated, replayed])
def test_ctrl_c_ends_what_counts_all_answers(server, load, tmp_path, count_all):
    vlm = load()
    server.script = lambda body: Said("done")
    with vlkit.records.Run("r", directory=tmp_path) as run:
        ask(vlm, 12)
    asked = len(server.requests)
    server.script = lambda body: Said("done") if number_of(body) < 3 else Said(wait=60)
    threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        count_all(vlm, run.path)
    assert 3 <= len(server.requests) - asked < 12  # and nobody else was asked after it
    assert wait_for(lambda: not server.running)


def test_wrong_options_are_refused_before_anything_is_sent(server, load):
    for options in ({"batch_size": 0}, {"temperature": -1}, {"agreement": -1}):
        with pytest.raises(VlkitError):
            ask(load(), 2, **options)
    assert server.requests == []


def test_many_rows_with_pictures_stay_small(server, load):
    picture = vlkit.sample("large")
    results = vlkit.generate_batch(load(), [vlkit.user("?", picture)] * 12, progress=False)
    assert [reply.image_sizes for reply in results] == [((1600, 1200),)] * 12
    assert not any(isinstance(reply.images, tuple) for reply in results)  # read when looked at


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()
