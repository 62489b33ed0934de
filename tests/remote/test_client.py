"""Whatever goes wrong at a service: one line, in time, without the key."""

import gc
import json
import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from email.utils import formatdate

import pytest
from openai_server import KEY, USAGE, Said, end, serve, streamed, whole

import vlkit
from vlkit.errors import RemoteError
from vlkit.remote import client
from vlkit.remote.client import retry_after

MODEL = "Qwen/Qwen2-VL-2B-Instruct"


@pytest.fixture
def server():
    with serve() as server:
        server.key = KEY
        yield server


@pytest.fixture
def load(server, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def load(**options):
        given = {"base_url": server.url, "api_key": KEY, **options}
        return vlkit.load(f"openai:{MODEL}", **given)

    return load


def refusal(call, seconds=30.0):
    """The error of a call: one line, in time, and nothing behind it that holds a key."""
    start = time.monotonic()
    with pytest.raises(RemoteError) as caught:
        call()
    assert time.monotonic() - start < seconds
    error = caught.value
    assert "\n" not in str(error) and KEY not in str(error)
    assert error.__cause__ is None and error.__context__ is None
    assert KEY not in "".join(traceback.format_exception(error))
    return str(error)


REFUSED = {
    "unknown model": (
        Said(status=404, message="The model `x` does not exist", code="model_not_found"),
        "no such model or address .* check the model's name",
    ),
    "unknown model, vLLM's way": (
        Said(status=404, message="The model `x` does not exist.", code="404"),
        "no such model",
    ),
    "refused content": (
        Said(status=400, message="Input data may contain inappropriate content.",
             code="data_inspection_failed"),
        "the content was refused .* change the question or picture",
    ),
    "refused answer": (Said(text="", finish="content_filter"), "the content was refused"),
    "refusal": (Said(text=None, extra={"refusal": "I can not"}), "the content was refused .I can"),
    "quota": (
        Said(status=429, message="You exceeded your current quota", code="insufficient_quota"),
        "the account's quota or balance is used up",
    ),
    "arrears": (
        Said(status=400, message="Access denied, please make sure your account is in good standing",
             code="Arrearage"),
        "the account's quota or balance is used up",
    ),
    "no access": (Said(status=403, message="forbidden"), "the key has no access to this model"),
    "too large": (Said(status=413, message="body too large"), "was refused .HTTP 413: body too"),
    "bad request": (Said(status=400, message="max_tokens is wrong"), "max_tokens is wrong"),
    "failing": (Said(status=500, message="boom"), "HTTP 500: boom.* .tried 5 times"),
    "long wait": (Said(status=429, message="slow", headers={"Retry-After": "900"}), "900 s"),
    "a web page": (Said(body=b"<html>hello</html>"), "is not a chat completion .* /v1"),
    "other JSON": (Said(body=b'{"answer": 42}'), "is not a chat completion"),
    "no choices": (Said(body=b'{"choices": [], "object": "chat.completion"}'), "not a chat comp"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_in_time(server, load, case, monkeypatch):
    said, told = REFUSED[case]
    server.script = [said]
    vlm = load()
    line = refusal(lambda: vlkit.generate(vlm, "?"))
    assert re.search(told, line) and line.startswith(f"{MODEL} at {server.url}: ")
    monkeypatch.setattr("vlkit.remote.client.FIRST_PAUSE", 0.01)
    line = refusal(lambda: list(vlkit.stream(vlm, "?")))
    assert line.startswith((f"{MODEL} at {server.url}: ", "the answer was interrupted"))


def test_the_waits_of_a_question_end_within_ten_seconds():
    """By the numbers, for a clock would also count what other processes do."""
    pauses = [client.FIRST_PAUSE * 2**tries for tries in range(client.TRIES_AGAIN)]
    assert 7 < 1.1 * sum(pauses) < 9  # a pause varies by a tenth
    assert client.CONNECT_SECONDS < client.LIST_SECONDS < 10


def test_a_wrong_key_is_told_at_once(server, load):
    server.key = "another"
    assert "the key is refused (Incorrect API key: Bearer …)" in refusal(load)


def test_no_network_is_told_in_time(load, blocked_network):
    assert "no connection" in refusal(load)
    assert blocked_network


def test_nobody_listens(server, load):
    vlm = load()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        vlm.client.base_url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    told = refusal(lambda: vlkit.generate(vlm, "?"))
    assert "no connection (Connection refused); check the network and base_url" in told


def test_a_host_that_never_answers_is_told_in_time(load):
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        told = refusal(lambda: load(base_url=address))
    assert "no answer" in told or "no connection" in told


def test_names_that_do_not_exist(load):
    assert "no connection" in refusal(lambda: load(base_url="http://nowhere.invalid/v1"))


@pytest.mark.serial
def test_an_answer_that_takes_too_long(server, load):
    server.script = [Said(wait=5)]
    vlm = load(timeout=0.3)
    told = refusal(lambda: vlkit.generate(vlm, "?"), seconds=2)
    assert "no answer within 0.3 s" in told and len(server.requests) == 1  # it would be paid twice
    server.script = [Said("x" * 50, pause=5)]
    assert "no answer within" in refusal(lambda: list(vlkit.stream(vlm, "?")), seconds=2)


def test_busy_services_are_asked_again(server, load):
    server.script = [Said(status=429, headers={"Retry-After": "0.4"}), Said(status=502), Said("ok")]
    start = time.monotonic()
    assert vlkit.generate(load(), "?").text == "ok"
    assert time.monotonic() - start > 0.4 + 0.8  # what it asked for, then twice 0.5 s less a jitter
    assert len(server.requests) == 3


def test_nothing_is_asked_again_without_retries(server, load):
    server.script = [Said(status=503)]
    refusal(lambda: vlkit.generate(load(retries=0), "?"))
    assert len(server.requests) == 1


def test_a_minutes_quota_at_dashscope_is_waited_for(server, monkeypatch):
    vlm = dashscope(server, monkeypatch, "qwen-vl-max")
    quota = Said(status=429, message="exceeded your current quota", code="insufficient_quota")
    server.script = [quota, Said("ok")]
    assert vlkit.generate(vlm, "?").text == "ok"
    assert server.requests[-1]["stream"]  # what takes over 300 s would be cut off otherwise
    server.script = [Said(status=401, message="Invalid", code="invalid_api_key")]
    assert "DASHSCOPE_API_KEY" in refusal(lambda: vlkit.generate(vlm, "?"))


def dashscope(server, monkeypatch, model, **options):
    """A model of the loopback server, asked as at DashScope."""
    services = vlkit.remote.services
    monkeypatch.setitem(services.REGIONS, "beijing", server.url)
    monkeypatch.setattr(services, "service_at", lambda url: services.DASHSCOPE)
    return vlkit.load(f"dashscope:{model}", api_key=KEY, **options)


@pytest.mark.parametrize(
    "value, low, high",
    [("3", 3, 3), ("0.5", 0.5, 0.5), ("-1", 0, 0), ("Sun, 06 Nov 1994 08:49:37 GMT", 0, 0)],
)
def test_retry_after(value, low, high):
    assert low <= retry_after({"retry-after": value}) <= high


def test_retry_after_a_date():
    date = formatdate(time.time() + 100, usegmt=True)
    assert 98 <= retry_after({"retry-after": date}) <= 100


def test_retry_after_that_is_none():
    assert retry_after({}) is None and retry_after({"retry-after": "soon"}) is None


# --- answers of any shape ------------------------------------------------------------------------

PARTS = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
NO_CHOICES = {"choices": None, "usage": USAGE}  # pydantic-ai#5165
ANSWERS = {  # name: (what the service sends, text, thinking)
    "plain": (whole({"content": "hello"}), "hello", ""),
    "a list of parts": (whole({"content": PARTS}), "hello", ""),  # laravel/ai#865
    "a list of strings": (whole({"content": ["hel", "lo"]}), "hello", ""),
    "a single part": (whole({"content": {"type": "text", "text": "hello"}}), "hello", ""),
    "a number": (whole({"content": 3}), "3", ""),
    "null": (whole({"content": None}), "", ""),
    "no content": (whole({}), "", ""),
    "no finish reason": (whole({"content": "hello"}, finish=None), "hello", ""),
    "TGI's finish reason": (whole({"content": "hello"}, finish="eos_token"), "hello", ""),
    "DashScope's reasoning": (
        whole({"content": "hello", "reasoning_content": "Hm."}), "hello", "Hm."),
    "vLLM's reasoning": (
        whole({"content": "hello", "reasoning": "Hm.", "reasoning_content": None}), "hello", "Hm."),
    "reasoning alone": (whole({"content": None, "reasoning_content": "Hm."}), "", "Hm."),
    "tags": (whole({"content": "<think>\nHm.\n</think>\n\nhello"}), "hello", "Hm."),
    "the end tag alone": (whole({"content": "Hm.\n</think>\n\nhello"}), "hello", "Hm."),
    "cut off in its tags": (whole({"content": "<think>\nHm"}, finish="length"), "", "Hm"),
    "a part of OpenAI's newer interface": (
        whole({"content": [{"type": "output_text", "text": "hello", "annotations": []}]}),
        "hello", ""),
    "a text in a part's text": (
        whole({"content": [{"type": "text", "text": {"value": "hello"}}]}), "hello", ""),
    "Mistral's thinking": (
        whole({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                           {"type": "text", "text": "hello"}]}), "hello", "Hm."),
    "thinking in a part's text": (
        whole({"content": [{"type": "reasoning", "text": "Hm."},
                           {"type": "text", "text": "hello"}]}), "hello", "Hm."),
    "another case": (whole({"content": "hello"}, finish="STOP"), "hello", ""),
    "Anthropic's finish reason": (whole({"content": "hello"}, finish="end_turn"), "hello", ""),
    "cut off in other words": (whole({"content": "hel"}, finish="max_tokens"), "hel", ""),
    "half a character": (whole({"content": "a\ud83d"}), "a\ufffd", ""),
    "the second of two answers first": (
        whole({}, choices=[
            {"index": 1, "message": {"content": "other"}, "finish_reason": "stop"},
            {"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}]), "hello", ""),
    "an empty error": (whole({"content": "hello"}, error={}), "hello", ""),
    "a byte order mark": (
        Said(body=b"\xef\xbb\xbf" + whole({"content": "hello"}).body), "hello", ""),
    "a plain text": (
        Said(body=whole({"content": "hello"}).body, content_type="text/plain"), "hello", ""),
    "on several lines": (
        Said(body=json.dumps({"choices": [{"message": {"content": "hello"}}]}, indent=1).encode()),
        "hello", ""),
}  # fmt: skip
HELLO = streamed({"content": "hel"}, {"content": "lo"}, end()).body


def events(body):
    return Said(body=body, content_type="text/event-stream")


STREAMS = {
    "a stream": (streamed({"content": "hel"}, {"content": "lo"}, end()), "hello", ""),
    "parts in a stream": (streamed({"content": PARTS}, end()), "hello", ""),
    "usage last": (streamed({"content": "hel"}, {"content": "lo"}, end(), NO_CHOICES), "hello", ""),
    "a null choice": (streamed({"choices": [None]}, {"content": "hello"}, end()), "hello", ""),
    "OpenRouter's comments": (
        Said(body=b': OPENROUTER PROCESSING\n\ndata: {"choices": [{"delta": {"content": "hello"}, '
             b'"finish_reason": "stop"}]}\n\n', content_type="text/event-stream"), "hello", ""),
    "usage first": (streamed(NO_CHOICES, {"content": "hello"}, end()), "hello", ""),
    "reasoning in a stream": (
        streamed({"content": None, "reasoning_content": "H"}, {"reasoning_content": "m."},
                 {"content": "hel", "reasoning_content": None}, {"content": "lo"}, end()),
        "hello", "Hm."),
    "tags in a stream": (
        streamed({"content": " <th"}, {"content": "ink>H"}, {"content": "m.</thi"},
                 {"content": "nk>\n"}, {"content": "\nhel"}, {"content": "lo"}, end()),
        "hello", "Hm."),
    "a stream cut off in its tags": (
        streamed({"content": "<think>"}, {"content": "Hm"}, end("length")), "", "Hm"),
    "a stream of nothing": (streamed(end()), "", ""),
    "a byte order mark before a stream": (events(b"\xef\xbb\xbf" + HELLO), "hello", ""),
    "lines that end in CR LF": (events(HELLO.replace(b"\n", b"\r\n")), "hello", ""),
    "lines that end in CR": (events(HELLO.replace(b"\n", b"\r")), "hello", ""),
    "comments between events": (
        events(b": hi\n\n" + HELLO.replace(b"\n\n", b"\n\n: ping\n\n")), "hello", ""),
    "names and numbers of events": (
        events(HELLO.replace(b"data: {", b"event: message\nid: 7\nretry: 9\ndata:{")), "hello", ""),
    "an event on two lines": (
        events(HELLO.replace(b'{"id": "x",', b'{"id": "x",\ndata:')), "hello", ""),
    "no [DONE]": (events(HELLO.replace(b"data: [DONE]\n\n", b"")), "hello", ""),
    "a line separator in a text": (
        events(HELLO.replace(b"hel", "a\u2028".encode())), "a\u2028lo", ""),
    "a heartbeat": (
        events(b'event: ping\ndata: {"type": "ping"}\n\n' + HELLO), "hello", ""),
    "two answers at once": (
        streamed({"content": "hel"}, {"choices": [{"index": 1, "delta": {"content": "XX"}}]},
                 {"content": "lo"}, end()), "hello", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_whole_answers_of_any_shape(server, load, name):
    said, text, thinking = ANSWERS[name]
    server.script = [said]
    vlm = load()
    reply = vlkit.generate(vlm, "?")
    assert (reply.text, reply.thinking) == (text, thinking)
    assert reply.finish_reason == ("length" if "cut off" in name else "stop")
    (row,) = vlkit.generate_batch(vlm, ["?"], progress=False)
    assert (row.text, row.thinking) == (text, thinking)


@pytest.mark.parametrize("name", {**STREAMS, **ANSWERS})
def test_streams_of_any_shape(server, load, name):
    """Some services send the whole answer where a stream was asked for."""
    said, text, thinking = {**STREAMS, **ANSWERS}[name]
    server.script = [said]
    pieces = vlkit.stream(load(), "?")
    shown = "".join(pieces)
    assert (pieces.reply.text, pieces.reply.thinking) == (text, thinking)
    assert pieces.reply.finish_reason == ("length" if "cut off" in name else "stop")
    if name != "the end tag alone":  # its thinking has been shown before the tag comes
        assert shown.replace("\ud83d", "\ufffd") == text


@pytest.mark.parametrize("told", [True, False])
def test_a_prompt_that_ends_in_think(server, load, told):
    """Qwen3-VL-Thinking's does; its pieces are held back until the thinking ends, if it thinks."""
    server.models = [{"id": "Qwen/Qwen3-VL-8B-Thinking"}]
    vlm = vlkit.load("openai:Qwen/Qwen3-VL-8B-Thinking", base_url=server.url, api_key=KEY)
    said = [{"content": "Hm"}, {"content": ".\n</think>\n\nhel"}] if told else [{"content": "hel"}]
    server.script = [streamed(*said, {"content": "lo"}, end())]
    pieces = vlkit.stream(vlm, "?")
    assert "".join(pieces) == pieces.reply.text == "hello"
    assert pieces.reply.thinking == ("Hm." if told else "")


OVERLOADED = {"code": 502, "message": "Upstream overloaded"}
BROKEN = {  # name: (what the service sends, what the user reads, requests in all)
    "an error without a number": (
        Said(body=b'{"error": {"message": "Vision add-on is not loaded"}}'),
        "ended the answer with an error (Vision add-on is not loaded)", 1),
    "an error as text": (Said(body=b'{"error": "Model unloaded."}'), "error (Model unloaded)", 1),
    "vLLM's earlier form": (
        Said(body=b'{"object": "error", "message": "is too long", "code": 400}'),
        "(HTTP 400: is too long)", 1),
    "a gateway's": (Said(body=b'{"message": "no Route matched"}'), "error (no Route matched)", 1),
    "DashScope's own form": (
        Said(body=b'{"code": "InvalidApiKey", "message": "Invalid API-key provided."}'),
        "the key is refused (Invalid API-key provided)", 1),
    "a refusal for now": (
        Said(body=b'{"error": {"message": "Rate limit exceeded", "code": 429}}'),
        "too many requests (Rate limit exceeded)", 2),
    "OpenRouter's, with the words behind it": (
        whole({}, choices=None, error={"message": "Provider returned error", "code": 502,
                                       "metadata": {"raw": "CUDA out of memory"}}),
        "(HTTP 502: Provider returned error: CUDA out of memory)", 2),
    "an error in the choice": (
        whole({"content": "half"}, finish="error", choice={"error": OVERLOADED}),
        "(HTTP 502: Upstream overloaded)", 2),
    "half an answer": (whole({"content": "half"}, finish="error"), "broke the answer off", 2),
    "an aborted answer": (whole({"content": "half"}, finish="abort"), "finish_reason='abort'", 2),
    "an unknown reason": (whole({"content": "half"}, finish="repetition"), "'repetition'", 1),
    "plain text": (
        Said(status=503, body=b"no healthy upstream", content_type="text/plain"),
        "(HTTP 503: no healthy upstream)", 2),
    "text in error": (
        Said(status=422, body=b'{"error": "inputs tokens must be < 4096", "error_type": "x"}'),
        "(HTTP 422: inputs tokens must be < 4096)", 1),
    "FastAPI's detail": (
        Said(status=500, body=b'{"detail": "out of memory"}'), "(HTTP 500: out of memory)", 2),
    "Google's list": (
        Said(status=400, body=b'[{"error": {"code": 400, "message": "not valid"}}]'),
        "(HTTP 400: not valid)", 1),
    "a proxy's page": (
        Said(status=502, body=b"<html><title>502</title></html>", content_type="text/html"),
        "(HTTP 502: it sent a web page)", 2),
    "nothing": (Said(status=500, body=b""), "(HTTP 500: no reason given)", 2),
    "a list": (Said(body=b"[1, 2]"), "is not a chat completion ([1, 2])", 1),
    "words under HTTP 200": (
        Said(body=b"model is loading", content_type="text/plain"),
        "is not a chat completion (model is loading)", 1),
    "a page under HTTP 200": (
        Said(body=b"<html>Sign in</html>", content_type="text/html"),
        "is not a chat completion (it sent a web page)", 1),
    "words as an event": (events(b"data: overloaded\n\n"), "overloaded); check that base_url", 1),
    "a code and a message": (
        Said(body=b'{"code": 1001, "msg": "quota is low", "data": null}'), "(quota is low)", 1),
    "a form of its own": (
        Said(body=b'{"status": "failed", "reason": "no GPU"}'), "'reason': 'no GPU'", 1),
    "an error beside an answer": (
        whole({"content": "half"}, error={"message": "GPU lost", "code": 500}),
        "(HTTP 500: GPU lost)", 2),
    "a refusal in a part": (
        whole({"content": [{"type": "refusal", "refusal": "I can not."}]}),
        "the content was refused (I can not.)", 1),
    "a part without text": (
        whole({"content": [{"type": "image_url", "image_url": {"url": "data:,"}},
                           {"type": "text", "text": "half"}]}),
        "a part of the type 'image_url' contains no text", 1),
    "a tool's call": (
        whole({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
              finish="tool_calls"), "called a tool instead of answering", 1),
    "another kind of completion": (
        whole({}, choices=[{"index": 0, "text": "half", "finish_reason": "stop"}]),
        "is not a chat completion", 1),
    "half a response": (Said(body=whole({"content": "half"}).body[:-20]), "not a chat compl", 1),
    "choices that are none": (Said(body=b'{"choices": 3}'), "is not a chat completion", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("asked", ["generate", "stream"])
def test_what_is_no_whole_answer_is_an_error_in_the_services_words(
    server, load, name, asked, monkeypatch
):
    monkeypatch.setattr("vlkit.remote.client.FIRST_PAUSE", 0.01)
    said, words, requests = BROKEN[name]
    server.script = [said]
    vlm = load(retries=1)
    ask = vlkit.generate if asked == "generate" else lambda *args: list(vlkit.stream(*args))
    line = refusal(lambda: ask(vlm, "?"))
    assert words in line
    if asked == "generate" or "interrupted after" not in line:  # what was seen is not asked again
        assert len(server.requests) == requests


def test_an_error_in_a_stream_is_asked_again_where_its_code_says_so(server, load, monkeypatch):
    monkeypatch.setattr("vlkit.remote.client.FIRST_PAUSE", 0.01)
    vlm = dashscope(server, monkeypatch, "qwen-vl-max")  # every answer is streamed there
    error = {"choices": [], "error": OVERLOADED}
    server.script = [streamed({"content": "half"}, error), Said("whole")]
    assert vlkit.generate(vlm, "?").text == "whole"
    server.script = [streamed({"content": "half"}, end("error")), Said("whole")]
    assert vlkit.generate(vlm, "?").text == "whole"
    begun = streamed({"content": "half"}).body  # without a finish reason
    for body in (begun, begun.replace(b"data: [DONE]\n\n", b""), HELLO[:-60], HELLO[:-200], b""):
        server.script = [events(body)]
        assert "the answer was interrupted" in refusal(lambda: vlkit.generate(vlm, "?"))


def test_one_rows_odd_answer_ends_no_batch(server, load, monkeypatch, tmp_path):
    monkeypatch.setattr("vlkit.remote.client.FIRST_PAUSE", 0.01)
    broken = {name: row for name, row in BROKEN.items() if "the key" not in row[1]}  # that ends it
    odd = [said for said, *_ in (*ANSWERS.values(), *broken.values())]
    server.script = lambda body: odd[int(body["messages"][0]["content"])]
    rows = [str(number) for number in range(len(odd))]
    vlm = load(retries=0, prices={"input": 1, "output": 1})
    results = vlkit.generate_batch(vlm, rows, out=tmp_path / "a.jsonl", progress=False)
    kinds = [type(result).__name__ for result in results]
    assert kinds == ["Reply"] * len(ANSWERS) + ["Failure"] * len(broken)


COUNTS = {  # name: (usage, prompt tokens, new tokens); None where they are estimated
    "absent": (None, None, None),
    "empty": ({}, None, None),
    "null": ({"prompt_tokens": None, "completion_tokens": None}, None, None),
    "one of them": ({"prompt_tokens": 100, "total_tokens": 100}, 100, None),
    "zero": ({"prompt_tokens": 0, "completion_tokens": 0}, None, None),
    "text": ({"prompt_tokens": "100", "completion_tokens": True}, None, None),
    "a list": ([1, 2], None, None),
    "not finite": ({"prompt_tokens": float("inf"), "completion_tokens": 7}, None, 7),
    "whole": (USAGE, 100, 7),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_that_a_service_does_not_give_are_estimated_and_marked(server, load, name, tmp_path):
    usage, prompt_tokens, new_tokens = COUNTS[name]
    server.script = [whole({"content": "a red circle"}, usage=usage)]
    vlm = load(prices={"input": 1.0, "output": 2.0})
    with vlkit.records.Run("counted", directory=tmp_path) as run:
        reply = vlkit.generate(vlm, "What is this?")
        row = vlkit.generate_batch(vlm, ["?"], out=tmp_path / "a.jsonl", progress=False)[0]
    again = vlkit.generate_batch(vlm, ["?"], out=tmp_path / "a.jsonl", progress=False)[0]
    known = (prompt_tokens, new_tokens)
    estimated = None in known
    assert reply.usage.estimated is row.usage.estimated is again.usage.estimated is estimated
    for count, given in zip(
        (reply.usage.prompt_tokens, reply.usage.new_tokens), known, strict=True
    ):
        assert count == given if given else 0 < count < 60
    assert ("counts estimated" in reply._repr_html_()) is estimated
    assert reply.cost == (reply.usage.prompt_tokens + 2 * reply.usage.new_tokens) / 1e6
    page = vlkit.records.report(run, tmp_path / "r.html")
    assert ("counts estimated" in page.read_text(encoding="utf-8")) is estimated


# --- fields that a service refuses ---------------------------------------------------------------


def choosy(*refused, form="Unexpected fields in the request: {names}", status=422):
    """A service that refuses requests with these fields, by name."""

    def script(body):
        if names := sorted(set(refused) & body.keys()):
            detail = form.format(names=names)
            return Said(status=status, body=json.dumps({"detail": detail}).encode())
        return Said("fine")

    return script


@pytest.mark.parametrize("status", [400, 422])
def test_a_field_of_vlkits_own_is_left_out_and_remembered(server, load, status):
    server.script = choosy("skip_special_tokens", "top_k", status=status)
    vlm = load()
    with pytest.warns(UserWarning, match="does not accept skip_special_tokens and top_k"):
        assert vlkit.generate(vlm, "?", temperature=0.5, seed=1).text == "fine"
    assert len(server.requests) == 2
    assert server.requests[1]["temperature"] == 0.5 and server.requests[1]["seed"] == 1
    vlkit.generate(vlm, "?")
    limited = vlm.with_limit(60)  # the same endpoint
    assert len(vlkit.generate_batch(limited, ["?"] * 4, temperature=0.5, progress=False)) == 4
    assert len(server.requests) == 7  # none was refused again


def test_rows_at_once_leave_a_field_out_together(server, load):
    server.script = choosy("skip_special_tokens")
    with pytest.warns(UserWarning, match="skip_special_tokens") as caught:
        results = vlkit.generate_batch(load(), ["?"] * 8, progress=False)
    assert [result.text for result in results] == ["fine"] * 8 and len(caught) == 1


def test_a_stream_without_usage_where_its_option_is_refused(server, load):
    server.script = choosy("stream_options")
    with pytest.warns(UserWarning, match="does not accept stream_options"):
        assert list(vlkit.stream(load(), "?")) == ["fine"]


ASKED = {  # what the user asked for: (option of load, call, refused field, words)
    "seed": ({}, lambda vlm: vlkit.generate(vlm, "?", temperature=1.0, seed=3), "seed"),
    "temperature": ({}, lambda vlm: vlkit.generate(vlm, "?", temperature=1.0), "temperature"),
    "max_new_tokens": ({}, lambda vlm: vlkit.generate(vlm, "?"), "max_tokens"),
    "a field of the user": (
        {"extra_body": {"top_k": 5}}, lambda vlm: vlkit.generate(vlm, "?"), "top_k"),
    "the clip": (
        {}, lambda vlm: vlkit.generate(vlm, vlkit.user("?", vlkit.sample("moves_right"))),
        "media_io_kwargs"),
    "the assistant's message": (
        {}, lambda vlm: vlkit.generate(vlm, [vlkit.user("?"), vlkit.assistant("It")]),
        "continue_final_message"),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_what_the_user_asked_for_is_never_left_out(server, load, name):
    options, ask, refused = ASKED[name]
    server.script = choosy(refused)
    vlm = load(**options)
    line = refusal(lambda: ask(vlm))
    named = {"a field of the user": "top_k"}.get(name, name)
    assert f"Unexpected fields in the request: ['{refused}']" in line
    assert f"change or leave out {named}" in line and len(server.requests) == 1


def test_none_in_extra_body_leaves_a_field_out(server, load):
    vlm = load(
        extra_body={"skip_special_tokens": None, "temperature": None, "stream_options": None}
    )
    vlkit.generate(vlm, "?")
    list(vlkit.stream(vlm, "?"))
    assert server.requests[0].keys() == {"model", "messages", "max_tokens"}
    assert server.requests[1].keys() == {"model", "messages", "max_tokens", "stream"}


# --- streams -------------------------------------------------------------------------------------


def test_a_stream_comes_in_pieces_and_leaves_a_reply(server, load):
    server.script = [Said("one two three")]
    pieces = vlkit.stream(load(), "?")
    assert list(pieces) == ["one t", "wo th", "ree"]
    assert pieces.reply.text == "one two three" and pieces.reply.usage.new_tokens == 7
    assert server.requests[0]["stream_options"] == {"include_usage": True}


def test_leaving_a_stream_closes_the_connection(server, load):
    server.script = [Said("x" * 500, pause=0.05)]
    pieces = vlkit.stream(load(), "?")
    for _ in pieces:
        break
    reply = pieces.reply
    assert reply.finish_reason == "cancelled" and reply.text.startswith("xxxxx")
    assert reply.usage.new_tokens == len(reply.text) // 5
    assert wait_for(lambda: server.gone == 1)


@pytest.mark.serial
def test_stopping_a_stream_that_has_not_begun(server, load):
    server.script = [Said(wait=30)]
    pieces = vlkit.stream(load(), "?")
    assert wait_for(lambda: server.running)
    start = time.monotonic()
    pieces.stop()
    assert time.monotonic() - start < 1
    assert pieces.reply.finish_reason == "cancelled" and pieces.reply.text == ""
    assert wait_for(lambda: server.gone == 1)


def test_a_stream_that_breaks_off(server, load):
    server.script = [Said("one two three", cut=2)]
    pieces, got = vlkit.stream(load(), "?"), []

    def read():
        for piece in pieces:
            got.append(piece)

    assert "interrupted after 2 pieces" in refusal(read)
    assert got == ["one t", "wo th"] and len(server.requests) == 1


@pytest.mark.parametrize(
    "code, told",
    [
        ("data_inspection_failed", "the content was refused (stop it)"),
        (None, "ended the answer with an error"),
    ],
)
def test_an_error_within_a_stream(server, load, code, told):
    error = json.dumps({"error": {"message": "stop it", "code": code}})
    server.script = [Said(body=f"data: {error}\n\n".encode())]
    assert told in refusal(lambda: list(vlkit.stream(load(), "?")))


def test_a_chat_remembers_nothing_of_an_error(server, load):
    chat = vlkit.Chat(load())
    server.script = [Said(status=400), Said("fine")]
    refusal(lambda: chat.ask("a"))
    assert chat.ask("b").text == "fine" and list(chat.stream("c")) == ["fine"]
    assert [m["content"] for m in server.requests[-1]["messages"]] == ["b", "fine", "c"]


def test_ctrl_c_closes_the_connection(server, load):
    server.script = [Said(wait=30)]
    vlm = load()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        vlkit.generate(vlm, "?")
    assert wait_for(lambda: server.gone == 1)


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


QUICKSTART = [  # https://www.alibabacloud.com/help/en/model-studio/visual-reasoning, streamed
    {"content": None, "reasoning_content": "", "role": "assistant"},
    {"content": None, "reasoning_content": "The figure"},
    {"content": None, "reasoning_content": " is a cuboid."},
    {"content": "The area", "reasoning_content": None},
    {"content": " is 52."},
    {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {
        "prompt_tokens": 1186, "completion_tokens": 321, "total_tokens": 1507,
        "completion_tokens_details": {"reasoning_tokens": 280, "text_tokens": 41},
        "prompt_tokens_details": {"image_tokens": 108, "text_tokens": 1078}}},
]  # fmt: skip


def test_dashscopes_streaming_quickstart(server, monkeypatch):
    server.script = [streamed(*QUICKSTART)]
    vlm = dashscope(server, monkeypatch, "qwen3-vl-plus", thinking=81920)
    pieces = vlkit.stream(vlm, vlkit.user("Solve this.", vlkit.sample("three_shapes")))
    assert list(pieces) == ["The area", " is 52."]
    reply = pieces.reply
    assert (reply.thinking, reply.text) == ("The figure is a cuboid.", "The area is 52.")
    assert (reply.usage.prompt_tokens, reply.usage.new_tokens) == (1186, 321)
    sent = server.requests[0]
    assert sent["enable_thinking"] is True and sent["thinking_budget"] == 81920
    assert sent["stream"] is True and sent["stream_options"] == {"include_usage": True}
    chat = vlkit.Chat(vlm)
    chat.ask("Solve this.", vlkit.sample("three_shapes"))
    assert chat.messages[-1]["content"][0]["text"] == "The area is 52."


# --- the key -------------------------------------------------------------------------------------


def test_the_key_is_nowhere(server, load, tmp_path, caplog):
    """In what is shown, written or logged; everything that vlkit makes of a remote model."""
    caplog.set_level(logging.DEBUG)
    vlm = load(extra_body={"top_k": 3})
    message = vlkit.user("?", vlkit.sample("three_shapes"))
    server.script = [Said(f"my key is {KEY[::-1]}"), Said(status=400, message=f"key {KEY} is bad")]
    reply = vlkit.generate(vlm, message)
    results = vlkit.generate_batch(
        vlm, [message, message], out=tmp_path / "a.jsonl", progress=False
    )
    plan = vlkit.preflight(vlm, message)
    shown = [
        repr(vlm), str(vlm), str(vlm.identity), str(vlm.load_options), repr(vlm.service),
        repr(reply), reply._repr_html_(), str(results), str(results.report), repr(plan),
        plan._repr_html_(), repr(vlkit.Chat(vlm)), (tmp_path / "a.jsonl").read_text(), caplog.text,
        "".join(map(repr, results)),
    ]  # fmt: skip
    assert caplog.records and all(isinstance(each, str) for each in shown)
    for each in shown:
        assert KEY not in each
    assert "key … is bad" in str(results[1])
    with pytest.raises(RemoteError, match="contains a key and cannot be saved"):
        pickle.dumps(vlm)


def test_what_looks_like_a_key_is_taken_out_of_a_services_words(server, load):
    server.script = [Said(status=400, message="Incorrect key provided: sk-proj-abcdef0123456789")]
    assert "sk-proj" not in refusal(lambda: vlkit.generate(load(), "?"))


# --- where it runs -------------------------------------------------------------------------------


def test_the_openai_package_is_an_extra(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(RemoteError, match=r'pip install "vlkit\[remote\]"'):
        load()


def test_no_proxy_stands_before_this_machine(load, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert vlkit.generate(load(), "?").text == "a red circle"


def test_an_unknown_model_is_told_with_those_that_are_served(server, load):
    server.models = [{"id": "Qwen2-VL-first"}, {"id": "Qwen2-VL-second"}]
    server.script = [Said(status=404, message="no such model")]
    told = refusal(lambda: vlkit.generate(load(), "?"))
    assert told.endswith("it serves Qwen2-VL-first, Qwen2-VL-second")


def test_torch_is_not_needed(server):
    code = f"""
import sys, vlkit
vlm = vlkit.load("openai:{MODEL}", base_url={server.url!r}, api_key={KEY!r})
message = vlkit.user("?", vlkit.sample("red_circle"))
vlkit.generate(vlm, message), list(vlkit.stream(vlm, message)), vlkit.Chat(vlm).ask("?")
vlkit.generate_batch(vlm, [message] * 3, progress=False), vlkit.preflight(vlm, message)
print({{"torch", "transformers", "torchvision"}} & set(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (run.stdout, run.stderr) == ("set()\n", "")


def test_the_chosen_model_may_be_a_hosted_one(server, monkeypatch):
    monkeypatch.setenv("VLKIT_MODEL", f"openai:{MODEL}")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    vlm = vlkit.load()
    gc.collect()  # of the first one, which does not know yet who chose it
    time.sleep(0.1)
    assert vlkit.generate(vlm, "?").text == "a red circle"
    assert "chosen by VLKIT_MODEL" in repr(vlm)
