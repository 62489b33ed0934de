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
from openai_server import KEY, Said, serve

import vlkit
from vlkit.errors import RemoteError
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


def refusal(call, seconds=10.0):
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
