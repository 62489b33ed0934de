"""`vlkit serve` under bad requests, too many of them, clients that leave, and Ctrl-C."""

import base64
import gc
import gzip
import http.client
import importlib
import io
import json
import logging
import os
import queue
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import PIL.Image
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import ask, connect, data_url, health, send, text_of, user, wait_until
from typer.testing import CliRunner

import vlkit
from vlkit import serving
from vlkit.cli.app import app
from vlkit.engine.slots import Engine
from vlkit.models.memory import return_freed_memory
from vlkit.serving import worker
from vlkit.serving.app import RateLimit
from vlkit.serving.request import MediaReader

SAMPLES = {name: sample.path for name, sample in vlkit.samples().items()}
CIRCLES = user("Describe this image.", SAMPLES["circles"])
KEY = "a-key-for-tests-only"


@pytest.fixture(scope="module")
def server(vlm):
    with serving.start(vlm, body_bytes=400_000, new_tokens=64, held_bytes=2_000_000) as server:
        yield server


@pytest.fixture
def endless_vlm(tiny_vlm, monkeypatch):
    """A random model that hardly ever stops by itself, with one slot."""
    monkeypatch.setitem(worker.SLOTS, "cpu", 1)
    vlm = tiny_vlm("qwen2_vl")
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", None)
    return vlm


@pytest.fixture
def endless(endless_vlm):
    """Its server, with a queue of one."""
    with serving.start(endless_vlm, new_tokens=4000, waiting=1) as server:
        yield server


def begin(server, message="Go on", **options):
    """A connection whose answer has begun to stream."""
    connection = connect(server)
    options = {"max_tokens": 3500, "stream": True, **options}
    body = {"model": server.name, "messages": [{"role": "user", "content": message}], **options}
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), JSON)
    response = connection.getresponse()
    assert response.status == 200 and response.read(5) == b"data:"
    return connection, response


JSON = {"Content-Type": "application/json"}


# --- bad requests --------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(["user", "text", "image_url", "video", "data:,", "data:image/png;base64,AAAA"]),
)  # fmt: skip
keys = st.sampled_from(
    ["type", "text", "image_url", "video_url", "video", "url", "role", "content", "fps", "detail"]
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from(
    ["model", "messages", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "n",
     "stream_options", "tools", "media_io_kwargs", "skip_special_tokens", "logit_bias", "x"]
)  # fmt: skip
GOOD = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}


def is_told(status, answer):
    """An answer, or a refusal with a reason."""
    if status == 200:
        return "choices" in answer
    error = answer["error"]
    return 400 <= status < 500 and error["message"].strip() and "Traceback" not in error["message"]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.dictionaries(fields, values, min_size=1, max_size=3))
def test_whatever_the_fields_hold_there_is_an_answer_or_a_reason(server, changes):
    body = json.dumps(GOOD | changes | {"stream": changes.get("stream") or None})
    status, _, answer = stream_or_send(server, body.encode())
    assert is_told(status, answer), (status, answer)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=values | st.lists(st.dictionaries(keys, values, max_size=4), max_size=3))
def test_whatever_the_content_is_there_is_an_answer_or_a_reason(server, content):
    body = GOOD | {"messages": [{"role": "user", "content": content}]}
    status, _, answer = send(server, json.dumps(body).encode())
    assert is_told(status, answer), (status, answer)


def stream_or_send(server, data):
    """Where `stream` was true, the events count as an answer."""
    connection = connect(server)
    connection.request("POST", "/v1/chat/completions", data, JSON)
    response = connection.getresponse()
    content = response.read()
    if response.getheader("Content-Type", "").startswith("text/event-stream"):
        return response.status, {}, {"choices": content.endswith(b"data: [DONE]\n\n")}
    return response.status, {}, json.loads(content)


BODIES = {
    "empty": b"",
    "cut": b'{"model": "tiny", "messages": [{"role"',
    "no JSON": b"hello",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "null": b"null",
    "list": b"[1, 2]",
    "deep": b"[" * 100_000,
    "deep content": b'{"model": "tiny", "messages": ' + b'{"a":' * 20_000,
    "large number": b'{"model": "tiny", "max_tokens": ' + b"9" * 6000 + b"}",
    "half a letter": b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}',
    "half a name": b'{"model":"\\ud800","messages":[{"role":"user","content":"a"}]}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bytes_that_are_no_request(server, body):
    status, _, answer = send(server, body)
    assert status != 200 and is_told(status, answer)


def test_other_paths_methods_and_types_are_refused_in_the_same_words(server):
    for path, method, expected in (
        ("/", "GET", 404),
        ("/docs", "GET", 404),
        ("/v1/models/nope", "GET", 404),
        ("/v1/embeddings", "POST", 404),
        ("/v1/chat/completions", "GET", 405),
        ("/v1/models", "DELETE", 405),
    ):
        status, _, answer = send(server, None, path=path, method=method)
        assert status == expected and answer["error"]["message"]
        if path != "/v1/models/nope":
            assert "POST /v1/chat/completions" in answer["error"]["message"]
    plain = {"Content-Type": "text/plain"}  # what a web page may send without asking first
    status, _, answer = send(server, json.dumps(GOOD).encode(), headers=plain)
    assert status == 400 and "JSON object" in answer["error"]["message"]


def test_no_file_is_read_and_whether_it_is_there_is_not_told(server, tmp_path):
    answers = set()
    for path in (SAMPLES["circles"], tmp_path / "missing.png"):
        for url in (str(path), path.as_uri()):
            parts = [{"type": kind, kind: {"url": url}} for kind in ("image_url", "video_url")]
            for part in parts:
                body = GOOD | {"messages": [{"role": "user", "content": [part]}]}
                status, _, answer = send(server, body)
                answers.add((status, answer["error"]["message"]))
    assert len(answers) == 1 and answers.pop()[0] == 400


def test_limits_of_body_tokens_and_context(server, vlm):
    status, _, answer = send(server, b" " * 4_000_000)
    assert status == 413 and "400,000 bytes" in answer["error"]["message"]
    status, headers, answer = send(server, GOOD | {"max_tokens": 65})
    assert status == 200 and headers["x-vlkit-note"] == "max_tokens=65 lowered to 64"
    assert answer["usage"]["completion_tokens"] <= 64
    packed = {"Content-Encoding": "gzip"}
    status, _, answer = send(server, gzip.compress(json.dumps(GOOD).encode()), headers=packed)
    assert status == 415 and "compressed" in answer["error"]["message"]
    for letters in (30_000, 300_000):  # tokenized and found too long; not even tokenized
        long = GOOD | {"messages": [{"role": "user", "content": "a b " * (letters // 4)}]}
        status, _, answer = send(server, long)
        assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
        assert f"{vlm.context_length:,}" in answer["error"]["message"]


def test_a_body_without_a_length_is_limited_too(server):
    connection = connect(server)
    chunks = (b" " * 100_000 for _ in range(9))
    connection.request("POST", "/v1/chat/completions", chunks, JSON, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_a_body_that_does_not_come_is_not_waited_for(vlm):
    with serving.start(vlm, body_seconds=0.3) as server:
        connection = connect(server)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"{")
        response = connection.getresponse()
        assert response.status == 408 and b"within 0.3 s" in response.read()


def half(server, count, data):
    """Connections that have sent a part of a request."""
    opened = []
    for _ in range(count):
        connection = connect(server)
        connection.connect()
        connection.sock.sendall(data)
        opened.append(connection)
    return opened


def test_half_a_header_is_not_waited_for(vlm):
    with serving.start(vlm, header_seconds=1) as server:
        kept = connect(server)  # a header after the first one, too
        kept.request("GET", "/health")
        kept.getresponse().read()
        kept.sock.sendall(b"GET /health HTTP/1.1\r\n")
        for connection in [kept, *half(server, 3, b"POST /v1/chat"), *half(server, 1, b"")]:
            connection.sock.settimeout(60)
            try:
                assert connection.sock.recv(1) == b""
            except ConnectionResetError:
                pass
        assert health(server)["status"] == "ok"


def test_a_slow_answer_is_not_cut_off_by_the_time_for_headers(vlm, monkeypatch):
    read = MediaReader.read
    monkeypatch.setattr(MediaReader, "read", lambda self: time.sleep(1.5) or read(self))
    with serving.start(vlm, header_seconds=1) as server:
        answer = ask(server, CIRCLES)
        assert answer["choices"][0]["finish_reason"] == "stop"


BODY = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"


@pytest.mark.parametrize(
    "sent", [b"", b"GET", BODY], ids=["nothing", "half a header", "half a body"]
)
def test_connections_that_wait_for_their_client_hold_up_no_other(vlm, sent):
    """Beyond the limit, the oldest one is closed."""
    with serving.start(vlm, connections=4) as server:
        held = half(server, 4, sent)
        assert answers(server) and send(server, GOOD)[0] == 200
        held[0].sock.settimeout(60)
        with suppress(ConnectionResetError):
            assert held[0].sock.recv(1) == b""
        held[3].sock.settimeout(0.2)
        with pytest.raises(TimeoutError):  # a younger one is open
            held[3].sock.recv(1)
        for connection in held:  # or the server would wait for their bodies at its end
            connection.close()


def test_answers_under_way_are_not_closed_for_new_connections(endless_vlm):
    with serving.start(endless_vlm, new_tokens=4000, connections=2) as server:
        connection, response = begin(server)
        held = half(server, 5, b"GET")
        held[0].sock.settimeout(60)
        with suppress(ConnectionResetError):
            assert held[0].sock.recv(1) == b""
        assert len(response.read(2000)) == 2000
        connection.close()


def test_a_text_does_not_wait_for_the_media_of_others(vlm, monkeypatch):
    go_on = threading.Event()
    read = MediaReader.read

    def read_late(self):
        messages = read(self)
        if self.pixels:
            go_on.wait(60)
        return messages

    monkeypatch.setattr(MediaReader, "read", read_late)
    with serving.start(vlm) as server, ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(ask, server, CIRCLES) for _ in range(6)]
        assert wait_until(lambda: health(server)["waiting"] == 6)
        try:
            assert send(server, GOOD)[0] == 200
            assert not any(future.done() for future in waiting)
        finally:
            go_on.set()
        assert len({text_of(future.result()) for future in waiting}) == 1


def answers(server):
    with suppress(OSError, http.client.HTTPException):
        return health(server)["status"] == "ok"


def test_bodies_that_are_sent_slowly_take_nobodys_place(endless):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
    held = half(endless, 9, head)
    body = {"model": endless.name, "max_tokens": 2, "messages": GOOD["messages"]}
    assert send(endless, body)[0] == 200
    for connection in held:
        connection.close()


@pytest.mark.serial
def test_a_kept_connection_is_answered_at_once(server):
    """Nagle's algorithm and delayed acknowledgements would take 40 ms."""
    connection, seconds = connect(server), []
    for _ in range(9):
        start = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        seconds.append(time.perf_counter() - start)
    assert min(seconds[1:]) < 0.03


def test_slow_downloads_hold_up_no_other_request(vlm, monkeypatch):
    """More of them than threads that read media."""
    silent = socket.create_server(("127.0.0.1", 0), backlog=32)
    url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.png"
    part = {"type": "image_url", "image_url": {"url": url}}
    slow = {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
    monkeypatch.setattr("vlkit.media.sources.DOWNLOAD_TIMEOUT", 6.0)
    with serving.start(vlm, urls=True, hosts=("127.0.0.1",)) as server:
        with ThreadPoolExecutor(6) as pool:
            waiting = [pool.submit(send, server, slow) for _ in range(6)]
            assert wait_until(lambda: health(server)["waiting"] == 6)
            assert send(server, GOOD)[0] == 200
            assert not any(future.done() for future in waiting)
            refused = [future.result() for future in waiting]
    assert all(status == 400 for status, *_ in refused)
    assert "did not arrive within 6 s" in refused[0][2]["error"]["message"]
    silent.close()


def test_the_log_is_limited_and_says_what_it_left_out():
    limit, lines = RateLimit(), []
    for second, count in ((5, 1000), (6, 2)):
        for _ in range(count):
            record = logging.makeLogRecord({"msg": "a %s", "args": ("line",), "created": second})
            if limit.filter(record):
                lines.append(record.getMessage())
    assert len(lines) == 52 and lines[:50] == ["a line"] * 50
    assert lines[50:] == ["(950 lines left out) a line", "a line"]


def test_a_name_that_a_web_page_gave_this_machine_is_refused(server):
    status, _, answer = send(server, GOOD, headers={"Host": "evil.example:8000"})
    assert status == 403 and "evil.example" in answer["error"]["message"]
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        assert send(server, GOOD, headers={"Host": host})[0] == 200


def test_a_key_opens_all_but_the_health_check(vlm):
    with serving.start(vlm, api_key=KEY) as server:
        right = {"Authorization": f"Bearer {KEY}", "Host": "any.example"}
        assert send(server, GOOD, headers=right)[0] == 200
        for scheme in ("", KEY, f"Bearer {KEY}x", "Bearer é", f"Basic {KEY}"):
            wrong = {"Authorization": scheme} if scheme else {}
            for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET")):
                status, headers, answer = send(
                    server, GOOD, path=path, method=method, headers=wrong
                )
                assert status == 401 and headers["www-authenticate"] == "Bearer"
                assert KEY not in json.dumps(answer)
        assert health(server)["status"] == "ok" and KEY not in repr(server)


# --- many requests, and clients that leave -------------------------------------------------------


def test_a_full_queue_says_so_and_when_to_come_again(endless):
    first, _ = begin(endless)
    waiting = queue.SimpleQueue()
    body = {"model": endless.name, "max_tokens": 2, "messages": GOOD["messages"]}
    thread = threading.Thread(target=lambda: waiting.put(send(endless, body)[0]))
    thread.start()
    assert wait_until(lambda: health(endless)["waiting"] == 1)
    status, headers, answer = send(endless, body)
    assert status == 429 and int(headers["retry-after"]) >= 1
    assert answer["error"]["code"] == "rate_limit_exceeded"
    first.close()
    thread.join(60)
    assert waiting.get_nowait() == 200
    assert send(endless, body)[0] == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(endless, stream, monkeypatch):
    advance, steps = Engine.advance, []
    monkeypatch.setattr(Engine, "advance", lambda self: steps.append(1) or advance(self))
    if stream:
        connection, _ = begin(endless)
    else:
        connection = connect(endless)
        body = {"model": endless.name, "max_tokens": 3500, "messages": GOOD["messages"]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), JSON)
    assert wait_until(lambda: health(endless)["running"] == 1)
    connection.close()
    assert wait_until(lambda: health(endless)["running"] == 0, seconds=120)
    assert len(steps) < 3000  # not the whole answer
    body = {"model": endless.name, "max_tokens": 2, "messages": GOOD["messages"]}
    assert send(endless, body)[0] == 200


def test_forty_at_once_are_all_answered_and_right(vlm, server):
    # answers so long that the next pictures are read meanwhile, also on a busy machine
    names = [name for name, path in SAMPLES.items() if path.stat().st_size < 100_000][:8]
    messages = [user("Describe this image.", SAMPLES[name]) for name in names]
    alone = [text_of(ask(server, message, max_tokens=40)) for message in messages]
    with ThreadPoolExecutor(40) as pool:
        texts = pool.map(lambda i: text_of(ask(server, messages[i % 8], max_tokens=40)), range(40))
        assert list(texts) == alone * 5
    assert health(server)["most_at_once"] >= 4
    assert health(server)["running"] == health(server)["waiting"] == 0


def test_memory_stays_the_same_over_many_requests(tiny_vlm):
    """Every request has another picture of its own; 2 MB of patches each would be seen."""
    noise = PIL.Image.effect_noise((300, 300), 80).convert("RGB")

    def message(index):
        noise.putpixel((0, 0), (index % 256, index // 256, 0))
        buffer = io.BytesIO()
        noise.save(buffer, "png")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}

    with serving.start(tiny_vlm("qwen2_vl")) as server, ThreadPoolExecutor(8) as pool:

        def answer(messages):
            list(pool.map(lambda each: ask(server, each, max_tokens=3), messages))
            gc.collect()
            return psutil.Process().memory_info().rss, len(gc.get_objects())

        answer([message(index) for index in range(30)])
        before, objects = answer([message(index) for index in range(30, 60)])
        after, more_objects = answer([message(index) for index in range(60, 150)])
    assert after - before < 64e6 and more_objects - objects < 1000


def test_freed_memory_goes_back_after_some_answers_and_at_rest(tiny_vlm, monkeypatch):
    returned = []
    monkeypatch.setattr(worker, "return_freed_memory", lambda: returned.append(time.monotonic()))
    monkeypatch.setattr(worker, "TIDY_ANSWERS", 2)
    monkeypatch.setattr(worker, "TIDY_SECONDS", 30.0)
    with serving.start(tiny_vlm("qwen2_vl")) as server:
        for _ in range(4):
            ask(server, user("Hi"), max_tokens=1)
        assert wait_until(lambda: len(returned) == 2)
        monkeypatch.setattr(worker, "TIDY_SECONDS", 0.05)
        ask(server, user("Hi"), max_tokens=1)
        assert wait_until(lambda: len(returned) == 3)
        time.sleep(0.3)
    assert len(returned) == 3  # once, however long nobody asks


def test_memory_that_was_freed_goes_back_to_the_system():
    """Blocks under one that is kept stay with the C library otherwise."""
    process = psutil.Process()
    blocks = [bytearray(b"x" * 60_000) for _ in range(4000)]
    kept = blocks[-1]
    del blocks
    before = process.memory_info().rss
    return_freed_memory()
    assert process.memory_info().rss < before - 150e6 and len(kept) == 60_000


def test_a_row_that_the_model_cannot_take_fails_alone(vlm, server, monkeypatch):
    """Of a group that fails, the others are answered."""
    admit = Engine.admit

    def fail(self, rows):
        if any(row.length > 100 for row in rows):
            raise RuntimeError("no such tensor")
        return admit(self, rows)

    monkeypatch.setattr(Engine, "admit", fail)
    good, bad = GOOD, GOOD | {"messages": [{"role": "user", "content": "a b c d " * 60}]}
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda body: send(server, body), [good, bad, good, good, bad, good]))
    assert [status for status, *_ in found] == [200, 500, 200, 200, 500, 200]
    assert "RuntimeError: no such tensor" in found[1][2]["error"]["message"]


def test_after_a_broken_step_the_next_request_is_answered(server, monkeypatch):
    expected = text_of(ask(server, CIRCLES))
    advance, broken = Engine.advance, [True]

    def fail(self):
        if broken.pop() if broken else False:
            raise RuntimeError("a step broke")
        return advance(self)

    monkeypatch.setattr(Engine, "advance", fail)
    status, _, answer = send(server, {"model": "tiny", "messages": [CIRCLES]})
    assert status == 500 and "a step broke" in answer["error"]["message"]
    assert text_of(ask(server, CIRCLES)) == expected


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_once_what_runs_is_finished(warm, number):
    environment = os.environ | {"VLKIT_API_KEY": KEY}
    process = warm.start("-m", "vlkit", "serve", "tiny", "--port", "0", env=environment)
    serving_line = re.compile(r"^Serving.*\n", re.MULTILINE)
    assert wait_until(lambda: serving_line.search(process.stdout()), 60), process.stderr()
    line = serving_line.search(process.stdout())[0]
    served = type("Server", (), {"url": line.split()[3].rstrip(";"), "name": "tiny"})
    body = {"model": "tiny", "max_tokens": 60, "messages": [CIRCLES], "stream": True}
    connection, headers = connect(served), JSON | {"Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
    response = connection.getresponse()
    process.send_signal(number)
    assert response.read().endswith(b"data: [DONE]\n\n")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and output.endswith("Server stopped.\n")
    assert KEY not in output + errors and "Traceback" not in errors
    assert '"POST /v1/chat/completions HTTP/1.1" 200' in errors


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--host", "0.0.0.0"], "set VLKIT_API_KEY"),
        (["--api-key", "short"], "at least 8"),
        (["--allow-local", "missing"], "local=missing is not a folder"),
        (
            ["openai:tiny"],
            "openai:tiny is a hosted model; vlkit serve is for models on this machine",
        ),
    ],
)
def test_what_would_not_be_safe_is_refused_before_a_model_is_loaded(arguments, reason, monkeypatch):
    monkeypatch.delenv("VLKIT_API_KEY", raising=False)
    monkeypatch.setattr(
        "vlkit.models.load.load", lambda *a, **k: pytest.fail("the model was loaded")
    )
    result = CliRunner().invoke(app, ["serve", "--port", "0", *arguments])
    assert reason in str(result.exception)


def test_hosts_and_web_pages_are_named_one_by_one(monkeypatch):
    given = {}
    command = importlib.import_module("vlkit.cli.serve")
    monkeypatch.setattr(command, "Limits", lambda **limits: given.update(limits) or 1 / 0)
    named = ["--allow-host", "a", "--allow-host", "b", "--allow-origin", "https://c.example"]
    CliRunner().invoke(app, ["serve", *named])
    assert given["hosts"] == ("a", "b") and given["origins"] == ("https://c.example",)


def test_the_chosen_model_is_served(monkeypatch):
    asked = {}
    monkeypatch.setattr("vlkit.models.load.load", lambda **options: asked.update(options) or 1 / 0)
    serve = ["serve", "--port", "0", "--max-image-tokens", "64"]
    assert isinstance(CliRunner().invoke(app, serve).exception, ZeroDivisionError)
    assert asked == {"max_image_tokens": 64}  # so that load() takes the choice
    monkeypatch.setenv("VLKIT_MODEL", "openai:large")
    result = CliRunner().invoke(app, serve)
    assert "openai:large is a hosted model" in str(result.exception)


def test_without_the_extra_one_line_says_what_to_install(vlm, monkeypatch):
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(vlkit.errors.VlkitError, match=r'pip install "vlkit\[serve\]"'):
        serving.start(vlm)


def test_a_clip_beyond_the_limit_of_frames_is_thinned_out(vlm):
    url = data_url(vlkit.clips()["moves_right"].path)
    part = {"type": "video_url", "video_url": {"url": url}, "fps": 16}
    with serving.start(vlm, frames=4) as server:
        answer = ask(server, {"role": "user", "content": [part]}, max_tokens=4)
    expected = vlkit.preflight(
        vlm, vlkit.user("", vlkit.Video(vlkit.clips()["moves_right"].path, frames=4))
    )
    counted = answer["usage"]["prompt_tokens_details"]["video_tokens"]
    assert counted == expected.usage.video_tokens
