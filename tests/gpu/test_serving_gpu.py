"""`vlkit serve` on a CUDA GPU: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import ask, connect, health, text_of, user

import vlkit
from vlkit import serving

pytestmark = pytest.mark.gpu
PATHS = [sample.path for sample in vlkit.samples().values()]
QUESTIONS = ("Describe this image.", "Detect all objects.", "这是什么？", "How many?")


def questions(count: int) -> list:
    """So many of them; neighbours are about other pictures, of other sizes."""
    return [
        (QUESTIONS[(i + i // len(PATHS)) % len(QUESTIONS)], PATHS[i % len(PATHS)])
        for i in range(count)
    ]


def ask_all(server, asked, **options) -> list[str]:
    """Their answers, all asked at once."""
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = pool.map(lambda each: ask(server, user(*each), **options), asked)
        return [text_of(answer) for answer in answers]


def test_float32_answers_to_many_at_once_are_those_of_generate():
    vlm = vlkit.load(device="cuda:0", dtype="float32")
    asked = questions(48)
    expected = [vlkit.generate(vlm, vlkit.user(*each), max_new_tokens=32).text for each in asked]
    with serving.start(vlm) as server:
        assert ask_all(server, asked, max_tokens=32) == expected
        assert health(server)["most_at_once"] >= 24


def test_bfloat16_graphs_are_captured_while_pictures_of_others_go_to_the_gpu():
    """Media threads put pictures on the GPU while the model's thread captures its steps."""
    vlm = vlkit.load(device="cuda:0", dtype="bfloat16")
    asked = questions(200)
    with serving.start(vlm) as server:
        alone = [text_of(ask(server, user(*each), max_tokens=32)) for each in asked[:24]]
        together = ask_all(server, asked, max_tokens=32)
    assert len(together) == 200
    same = sum(a == b for a, b in zip(alone, together, strict=False))
    assert same >= 0.75 * len(alone)  # rounding decides between nearly equal tokens


def test_sampled_answers_follow_their_seeds():
    vlm = vlkit.load(device="cuda:0", dtype="float32")
    asked, sampled = questions(12), {"temperature": 1.2, "seed": 7, "max_tokens": 24}
    expected = [
        vlkit.generate(vlm, vlkit.user(*e), temperature=1.2, seed=7, max_new_tokens=24).text
        for e in asked
    ]
    with serving.start(vlm) as server:
        assert ask_all(server, asked, **sampled) == expected


def test_who_goes_away_leaves_the_others_their_answers():
    vlm = vlkit.load(device="cuda:0", dtype="float32")
    asked = questions(12)
    with serving.start(vlm) as server:
        before = ask_all(server, asked, max_tokens=24)
        gone = [connect(server) for _ in asked]
        for connection, each in zip(gone, asked, strict=True):
            body = {"model": server.name, "messages": [user(*each)], "max_tokens": 500}
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
            connection.close()
        assert ask_all(server, asked, max_tokens=24) == before
