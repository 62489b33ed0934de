"""Whatever one row makes a shared step raise, it fails alone: the others' answers are unchanged."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from served import ask, connect, health, send, text_of, user, wait_until

import vlkit
from vlkit import serving
from vlkit.engine import sampling
from vlkit.engine.decoder import Decoder
from vlkit.engine.slots import Engine
from vlkit.engine.vision import Encoder
from vlkit.generation import rows as rows_module
from vlkit.generation.generate import generation_options
from vlkit.generation.reply import Failure
from vlkit.serving import worker

TINY = [6.76e-38, 1e-300, 5e-324, 9.9e-6]  # temperatures
PICTURE = str(vlkit.sample("circles"))
ROWS = ["Hi", vlkit.user("What is this?", PICTURE), "long " * 120, "Who?", "Go on", "Why not?"]
GUILTY = 2  # of them
OPTIONS = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}


def is_guilty(row):
    return row.length > 110 and not row.media  # a request's media are let go


def raises(error=RuntimeError):
    raise error("guilty")


def nan_logits(choose, when):
    """An ``Engine._choose`` in which the guilty row's logits are NaN from its token ``when`` on."""

    def choose_of_nan(self, logits, rows, place):
        logits = logits.clone()
        for number, row in enumerate(rows):
            if is_guilty(row) and len(row.tokens) >= when:
                logits[number] = float("nan")
        return choose(self, logits, rows, place)

    return choose_of_nan


def raising(function, when=0, *, first=False):
    """A method of the engine that raises where the guilty row is among its rows."""

    def fail(self, *arguments):
        rows = arguments[1] if len(arguments) > 1 else self.rows
        broken = any(is_guilty(row) and len(row.tokens) >= when for row in rows)
        if broken and not first:
            raises()
        result = function(self, *arguments)
        return raises() if broken else result

    return fail


# what is broken, how; the last two raise behind the step, when random numbers are drawn already
BREAKS = {
    "NaN at once": (Engine, "_choose", lambda f: nan_logits(f, 0)),
    "NaN later": (Engine, "_choose", lambda f: nan_logits(f, 4)),
    "choosing": (Engine, "_choose", lambda f: raising(f)),
    "choosing later": (Engine, "_choose", lambda f: raising(f, 4)),
    "a step": (Engine, "_run", lambda f: raising_step(f)),
    "all of a step": (Engine, "advance", lambda f: raising(f, 3)),
    "choosing, at its end": (Engine, "_choose", lambda f: raising(f, 4, first=True)),
    "a sampler": (sampling, "_share", lambda f: raising_share(f)),
}


def raising_step(run):
    def fail(self, rows, span):
        return raises() if any(map(is_guilty, self.rows)) else run(self, rows, span)

    return fail


def raising_share(share):
    """transformers' warpers take all rows of a temperature together."""

    def fail(temperature, top_p, logits):
        return raises() if top_p == 0.5 else share(temperature, top_p, logits)

    return fail


# --- temperatures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TINY)
def test_a_tiny_temperature_is_greedy(vlm, temperature):
    greedy = [vlkit.generate(vlm, row, max_new_tokens=12).raw for row in ROWS]
    for batch_size in (1, 4):
        results = vlkit.generate_batch(
            vlm, ROWS, max_new_tokens=12, temperature=temperature, batch_size=batch_size
        )
        assert [reply.raw for reply in results] == greedy
    alone = vlkit.generate(vlm, ROWS[0], max_new_tokens=12, temperature=temperature, seed=1)
    assert alone.raw == greedy[0]
    assert not generation_options(1, temperature, 1.0, None)["do_sample"]


ALLOWED = [
    {"temperature": 1.1e-5},
    {"temperature": 2},
    {"temperature": 10, "top_p": 1},
    {"top_p": 1e-300},
    {"seed": 2**63 - 1},
]


@pytest.mark.parametrize("options", ALLOWED, ids=str)
def test_odd_options_that_are_allowed_give_answers(tiny_vlm, options):
    vlm, options = tiny_vlm("qwen2_vl"), OPTIONS | options
    results = vlkit.generate_batch(vlm, ROWS, progress=False, **options)
    assert results.report.failures == 0
    seed = options.pop("seed")
    if seed < 2**62:
        alone = [vlkit.generate(vlm, row, seed=seed + i, **options) for i, row in enumerate(ROWS)]
        assert [reply.raw for reply in results] == [reply.raw for reply in alone]


# --- a batch --------------------------------------------------------------------------------------


def in_batch(vlm, rows=ROWS, **options):
    return vlkit.generate_batch(vlm, rows, progress=False, **OPTIONS | options)


@pytest.mark.parametrize(("kind", "batch_size"), [("qwen2_vl", 2), ("qwen2_vl", 6), ("qwen3_5", 6)])
@pytest.mark.parametrize("name", [name for name in BREAKS if name != "a sampler"])
def test_a_row_of_a_batch_fails_alone(tiny_vlm, monkeypatch, tmp_path, name, kind, batch_size):
    vlm, (owner, attribute, breaking) = tiny_vlm(kind), BREAKS[name]
    expected = [reply.raw for reply in in_batch(vlm)]
    monkeypatch.setattr(owner, attribute, breaking(getattr(owner, attribute)))
    for resumed in (0, 5):
        results = in_batch(vlm, batch_size=batch_size, out=tmp_path / "a.jsonl")
        assert isinstance(results[GUILTY], Failure), results
        assert ("NaN" if "NaN" in name else "guilty") in results[GUILTY].error
        answers = [each.raw for each in results if not isinstance(each, Failure)]
        assert answers == expected[:GUILTY] + expected[GUILTY + 1 :]
        assert results.report.resumed == resumed and results.report.path == "fast"


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_5"])
@pytest.mark.parametrize("sampled", [True, False])
def test_a_step_that_fails_only_together_costs_nobody_an_answer(
    tiny_vlm, monkeypatch, sampled, kind
):
    vlm, step = tiny_vlm(kind), Decoder.step
    options = {} if sampled else {"temperature": 0.0}
    expected = [reply.raw for reply in in_batch(vlm, **options)]

    def crowded(self, tokens, *rest):
        return raises() if len(tokens) > 1 else step(self, tokens, *rest)

    monkeypatch.setattr(Decoder, "step", crowded)
    assert [each.raw for each in in_batch(vlm, batch_size=6, **options)] == expected


def test_a_penalty_counts_the_same_after_a_step_that_failed(tiny_vlm, monkeypatch):
    vlm = tiny_vlm("qwen2_vl")
    monkeypatch.setattr(vlm.model.generation_config, "repetition_penalty", 1.4)
    expected = [reply.raw for reply in in_batch(vlm)]
    monkeypatch.setattr(Engine, "_choose", raising(Engine._choose, 4, first=True))
    results = in_batch(vlm, batch_size=6)
    assert [str(each) for each in results if isinstance(each, Failure)] == ["RuntimeError: guilty"]
    answers = [each.raw for each in results if not isinstance(each, Failure)]
    assert answers == expected[:GUILTY] + expected[GUILTY + 1 :]


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_5"])
def test_an_answer_that_cannot_be_decoded_fails_alone(tiny_vlm, monkeypatch, kind):
    vlm, rows = tiny_vlm(kind), ROWS if kind == "qwen2_vl" else ROWS[2:5]
    make_reply, guilty = rows_module.make_reply, rows.index(ROWS[GUILTY])

    def fail(vlm, messages, *rest):
        return (
            raises(OverflowError) if "long" in str(messages) else make_reply(vlm, messages, *rest)
        )

    expected = [reply.raw for reply in in_batch(vlm, rows, temperature=0.0)]
    monkeypatch.setattr(rows_module, "make_reply", fail)
    results = in_batch(vlm, rows, temperature=0.0)
    assert str(results[guilty]) == "OverflowError: guilty"
    assert [r.raw for i, r in enumerate(results) if i != guilty] == [
        raw for i, raw in enumerate(expected) if i != guilty
    ]


@pytest.mark.parametrize(
    ("kind", "temperature"), [("qwen2_vl", 0), ("qwen2_vl", 1), ("qwen3_5", 1)]
)
def test_numbers_that_are_nan_stay_in_their_row(tiny_vlm, monkeypatch, temperature, kind):
    """Also where another row comes into the slot, and where one moves out of it."""
    vlm, encode = tiny_vlm(kind), Encoder.encode
    bad = vlkit.user("What is this?", str(vlkit.sample("six_shapes")))
    rows = [bad, "Hi", *ROWS[1:], bad, vlkit.user("Why?", PICTURE), "Go " * 60, bad, "And now?"]
    options = {"temperature": temperature, "batch_size": 2}
    expected = [reply.raw for reply in in_batch(vlm, rows, **options)]
    sizes = {result.usage.image_tokens for result in in_batch(vlm, [bad])}

    def overflow(self, media):
        features = encode(self, media)
        return [
            tuple(torch.full_like(layer, float("nan")) if len(layer) in sizes else layer
                  for layer in layers) for layers in features
        ]  # fmt: skip

    monkeypatch.setattr(Encoder, "encode", overflow)
    results = in_batch(vlm, rows, **options)
    failed = [i for i, each in enumerate(results) if isinstance(each, Failure)]
    assert failed == [i for i, row in enumerate(rows) if row is bad]
    assert "NaN for this row; load it in another dtype" in results[failed[0]].error
    good = [each.raw for each in results if not isinstance(each, Failure)]
    assert good == [raw for i, raw in enumerate(expected) if i not in failed]


def test_infinity_that_a_row_left_is_cleaned_from_its_slot(tiny_vlm):
    model = tiny_vlm("qwen2_vl").model
    decoder = Decoder(model, 2, 64)
    layers = list(decoder.cache.values())
    for layer in layers:
        layer[:, :8] = 1
    decoder.clean(0, 8)
    assert all((layer[:, :8] == 1).all() for layer in layers)
    layers[-1][0, 3, 0, 0] = float("inf")
    decoder.clean(0, 8)
    assert all(not layer[0].any() and (layer[1, :8] == 1).all() for layer in layers)


# --- a server -------------------------------------------------------------------------------------


@pytest.fixture
def server(tiny_vlm, monkeypatch):
    """A random model that hardly ever stops by itself."""
    vlm = tiny_vlm("qwen2_vl")
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", None)
    with serving.start(vlm, new_tokens=4000) as server:
        yield server


VICTIMS = [
    {"messages": [user("Hi")]},
    {"messages": [user("What is this?", vlkit.sample("circles"))]},
    {"messages": [user("Why?")], "temperature": 1.0, "seed": 5},
    {"messages": [user("Go on")], "temperature": 0.7, "top_p": 0.9, "seed": 6},
    {"messages": [user("Who are you?")], "temperature": 1.0, "seed": 7},
]
BAD = {"messages": [user("long " * 120)], "temperature": 1.0, "seed": 8}


def body(server, options, tokens=60):
    return {"model": server.name, "max_tokens": tokens, **options}


def answer_all(server, guilty, tokens=60):
    """(status, answer) of the victims, while a request that is guilty is under way among them."""
    both = [*VICTIMS[:3], guilty, *VICTIMS[3:]]
    with ThreadPoolExecutor(len(both)) as pool:
        found = list(pool.map(lambda each: send(server, body(server, each, tokens)), both))
    status, _, answer = found.pop(3)
    return (status, answer), [(status, answer) for status, _, answer in found]


def assert_unharmed(server, found, expected):
    assert [status for status, _ in found] == [200] * len(VICTIMS), found
    assert [text_of(answer) for _, answer in found] == expected
    assert wait_until(lambda: health(server)["running"] == health(server)["waiting"] == 0)


def alone(server):
    return [text_of(ask(server, max_tokens=60, **each)) for each in VICTIMS]


@pytest.fixture(scope="module")
def expected(tiny_vlm):
    """What a server of its own answers, one after the other."""
    vlm = tiny_vlm("qwen2_vl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vlm.model.generation_config, "eos_token_id", None)
        with serving.start(vlm, new_tokens=4000) as server:
            return alone(server)


@pytest.fixture(scope="module")
def of_bundled(vlm):
    """The same of the bundled model, and its greedy answer to the guilty question."""
    with serving.start(vlm) as server:
        return alone(server), text_of(ask(server, user("How are you?"), max_tokens=60))


@pytest.mark.parametrize("temperature", TINY)
def test_a_tiny_temperature_hurts_nobody_and_is_greedy(vlm, of_bundled, temperature):
    """Of the bundled model: logits of random weights are too small to overflow."""
    guilty = {"messages": [user("How are you?")], "temperature": temperature, "seed": 1}
    expected, greedy = of_bundled
    with serving.start(vlm) as server:
        (status, answer), found = answer_all(server, guilty)
        assert status == 200 and text_of(answer) == greedy
        assert_unharmed(server, found, expected)


@pytest.mark.parametrize("name", [*BREAKS, "all of the server's step"])
def test_a_request_fails_alone(server, expected, monkeypatch, name):
    breaks = BREAKS | {"all of the server's step": (Engine, "advance", lambda f: raising(f, 3))}
    owner, attribute, breaking = breaks[name]
    monkeypatch.setattr(owner, attribute, breaking(getattr(owner, attribute)))
    guilty = BAD | ({"top_p": 0.5} if name == "a sampler" else {})
    (status, answer), found = answer_all(server, guilty)
    assert status == 500, answer
    assert ("NaN" if "NaN" in name else "guilty") in answer["error"]["message"]
    assert_unharmed(server, found, expected)


@pytest.mark.parametrize("method", ["push", "finish"])
@pytest.mark.parametrize("stream", [False, True])
def test_tokens_that_cannot_be_decoded_fail_their_own_request(
    server, expected, monkeypatch, method, stream
):
    decode = getattr(worker.AnswerText, method)

    def fail(self, *arguments):
        return raises(OverflowError) if not self._skip_special else decode(self, *arguments)

    monkeypatch.setattr(worker.AnswerText, method, fail)
    guilty = BAD | {"skip_special_tokens": False}
    if not stream:
        (status, answer), found = answer_all(server, guilty)
        assert status == 500 and "OverflowError: guilty" in answer["error"]["message"]
        assert_unharmed(server, found, expected)
        return
    streams = threading.Thread(target=lambda: events.append(read_stream(server, guilty)))
    events: list[str] = []
    streams.start()
    _, found = answer_all(server, VICTIMS[0])
    streams.join(60)
    assert_unharmed(server, found, expected)
    assert "OverflowError: guilty" in events[0] and "[DONE]" not in events[0]


def read_stream(server, options):
    connection = connect(server)
    data = json.dumps(body(server, options) | {"stream": True}).encode()
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", data, headers)
    return connection.getresponse().read().decode()


def test_a_request_for_which_there_is_no_memory_fails_alone(server, expected, monkeypatch):
    allocate = Decoder._allocate

    def scarce(self, slots, length):
        if length > 512:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return allocate(self, slots, length)

    monkeypatch.setattr(Decoder, "_allocate", scarce)
    status, _, answer = send(server, body(server, BAD, 3000))  # grows beyond it as it is written
    assert status == 503, answer
    long = {"messages": [user("long " * 430)], "max_tokens": 200}
    (status, answer), found = answer_all(server, long)
    assert status == 503 and "out of GPU memory" in answer["error"]["message"]
    assert_unharmed(server, found, expected)


ODD = [
    b'"temperature": NaN', b'"temperature": Infinity', b'"temperature": -Infinity',
    b'"temperature": 1e400', b'"temperature": -0.0', b'"temperature": 1e-5', b'"temperature": 10',
    b'"temperature": 1e-400', b'"top_p": 1e-300', b'"top_p": 5e-324, "temperature": 1',
    b'"top_p": NaN', b'"top_p": 1e-45, "temperature": 1e-5', b'"top_p": 1.0000001',
    b'"seed": 9223372036854775807, "temperature": 1', b'"seed": 9223372036854775808',
    b'"seed": -1', b'"seed": 1e300', b'"seed": ' + b"9" * 5000, b'"seed": NaN',
    b'"top_k": 1e400', b'"top_k": -9223372036854775809', b'"repetition_penalty": NaN',
    b'"repetition_penalty": 1e-300', b'"presence_penalty": Infinity', b'"frequency_penalty": 1e308',
    b'"logit_bias": {"0": NaN}', b'"min_p": NaN', b'"n": NaN', b'"max_tokens": 1e308',
    b'"max_tokens": NaN', b'"max_tokens": ' + b"9" * 400, b'"stop": "\\ud800"',
    b'"stop": ["\\u0000", "\\ufffd"]', b'"metadata": {"a": NaN}', b'"user": Infinity',
]  # fmt: skip


def test_odd_values_are_answered_or_refused_and_hurt_nobody(server, expected):
    begin = b'{"model": "%s", "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}], '
    bodies = [begin % server.name.encode() + odd + b"}" for odd in ODD]
    with ThreadPoolExecutor(len(VICTIMS) + len(ODD)) as pool:
        victims = [pool.submit(send, server, body(server, each)) for each in VICTIMS]
        found = list(pool.map(lambda each: send(server, each), bodies))
    for odd, (status, _, answer) in zip(ODD, found, strict=True):
        assert status in (200, 400, 422), (odd[:60], status, answer)
        assert status == 200 or answer["error"]["message"].strip()
    answers = [(status, answer) for status, _, answer in (each.result() for each in victims)]
    assert_unharmed(server, answers, expected)
