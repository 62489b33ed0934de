"""`vlkit serve` under load on loopback: one at a time, many at once, and memory over many requests.

    python benchmarks/serving.py                      # bundled model, CPU
    python benchmarks/serving.py --model Qwen/Qwen2-VL-7B-Instruct
    python benchmarks/serving.py --random-weights 7b --max-context 4096   # random bfloat16

A server process of its own answers questions about the samples; the client is another process, on
the same machine, so both share its cores. The same questions, each about another picture, are
asked one at a time and all at once; answers must be the same. Memory is the server's resident set.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from batch_inference import SHAPES
from batch_processes import save_random
from reporting import report

import vlkit

QUESTIONS = (
    "Describe this image.",
    "How many objects are there?",
    "这是什么？",
    "Detect all objects.",
    "What color is the largest object? Answer with one word.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--random-weights", choices=SHAPES)
    parser.add_argument("--max-context", type=int, help="of the server; by default the model's")
    parser.add_argument("--alone", type=int, default=40, help="requests one at a time")
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--many", type=int, default=2000, help="requests for the memory")
    parser.add_argument("--concurrency", type=int, default=64, help="of those")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.random_weights:
            save_random(arguments.random_weights, folder)
        model = folder if arguments.random_weights else arguments.model
        with Served(model, arguments.max_context) as server:
            result = asyncio.run(measure(server, arguments))
    report(result, arguments.output)


class Served:
    """`vlkit serve` in a process of its own."""

    def __init__(self, model: str, max_context: int | None):
        command = [sys.executable, "-m", "vlkit", "serve", model, "--port", "0"]
        command += [] if max_context is None else ["--max-context", str(max_context)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.process = psutil.Process(self._process.pid)
        assert self._process.stdout is not None
        line = next(line for line in self._process.stdout if line.startswith("Serving"))
        self.name, self.url = line.split()[1], line.split()[3].rstrip(";")

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def megabytes(self) -> float:
        return self.process.memory_info().rss / 1e6


@dataclass(frozen=True)
class Answered:
    status: int
    text: str
    seconds: float
    new_tokens: int


async def measure(server: Served, arguments: argparse.Namespace) -> dict:
    bodies = make_bodies(server.name, arguments.new_tokens, arguments.at_once)
    timeout = httpx.Timeout(3600)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=timeout, limits=limits) as client:

        async def ask(index: int) -> Answered:
            return await post(client, server.url, bodies[index % len(bodies)])

        for index in range(4):
            await ask(index)
        alone, alone_seconds = await timed(ask, range(arguments.alone), 1)
        idle = server.megabytes
        at_once, at_once_seconds = await timed(ask, range(arguments.at_once), arguments.at_once)
        health = (await client.get(server.url.removesuffix("/v1") + "/health")).json()
        memory = await watch_memory(ask, server, arguments)
    same = [a.text == b.text for a, b in zip(alone, at_once, strict=False)]
    one, many = summarize(alone, alone_seconds), summarize(at_once, at_once_seconds)
    return {
        "command": describe_command(arguments),
        "model": arguments.random_weights or arguments.model,
        "weights": "random" if arguments.random_weights else "trained",
        "machine": describe_machine(),
        "load_average_at_start": LOAD,
        "torch_threads_of_the_server": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "requests": {"different": len(bodies), "new_tokens_at_most": arguments.new_tokens},
        "one at a time": one,
        "all at once": {**many, "most_rows_at_once": health["most_at_once"]},
        "same_answers": sum(same) / len(same),
        "times_one_at_a_time": round(many["requests_per_second"] / one["requests_per_second"], 2),
        "memory": {"megabytes_before_load": round(idle), **memory},
    }


def describe_command(arguments: argparse.Namespace) -> str:
    numbers = ("alone", "at_once", "many", "concurrency", "new_tokens")
    given = " ".join(f"--{name.replace('_', '-')} {getattr(arguments, name)}" for name in numbers)
    random = arguments.random_weights
    model = f"--random-weights {random}" if random else f"--model {arguments.model}"
    context = f" --max-context {arguments.max_context}" if arguments.max_context else ""
    return f"python benchmarks/serving.py {model}{context} {given}"


def describe_machine() -> str:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join([platform.machine(), f"{os.cpu_count()} cores", *gpus])


LOAD = [round(value, 2) for value in os.getloadavg()]


def make_bodies(model: str, new_tokens: int, count: int) -> list[bytes]:
    """Questions about the sample pictures as JSON; one pixel makes each picture another one."""
    samples, bodies = list(vlkit.samples().values()), []
    for index in range(count):
        picture = vlkit.load_image(samples[index % len(samples)].path)
        picture.putpixel((0, 0), (index % 256, index // 256, 0))
        buffer = io.BytesIO()
        picture.save(buffer, "png", compress_level=1)
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        question = QUESTIONS[(index + index // len(samples)) % len(QUESTIONS)]
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": question},
        ]
        messages = [{"role": "user", "content": content}]
        body = {"model": model, "max_tokens": new_tokens, "messages": messages}
        bodies.append(json.dumps(body).encode())
    return bodies


async def post(client: httpx.AsyncClient, url: str, body: bytes) -> Answered:
    start = time.perf_counter()
    headers = {"Content-Type": "application/json"}
    response = await client.post(f"{url}/chat/completions", content=body, headers=headers)
    seconds, answer = time.perf_counter() - start, response.json()
    if response.status_code != 200:
        return Answered(response.status_code, str(answer), seconds, 0)
    text = answer["choices"][0]["message"]["content"]
    return Answered(200, text, seconds, answer["usage"]["completion_tokens"])


async def timed(ask: Any, indices: Any, concurrency: int) -> tuple[list[Answered], float]:
    gate = asyncio.Semaphore(concurrency)

    async def one(index: int) -> Answered:
        async with gate:
            return await ask(index)

    start = time.perf_counter()
    answers = await asyncio.gather(*map(one, indices))
    return answers, time.perf_counter() - start


def summarize(answers: list[Answered], seconds: float) -> dict:
    waits = sorted(answer.seconds for answer in answers)
    return {
        "requests": len(answers),
        "answered": sum(answer.status == 200 for answer in answers),
        "seconds": round(seconds, 2),
        "requests_per_second": round(len(answers) / seconds, 3),
        "new_tokens_per_second": round(sum(a.new_tokens for a in answers) / seconds, 1),
        "seconds_of_a_request": {
            "median": round(waits[len(waits) // 2], 3),
            "longest": round(waits[-1], 3),
        },
    }


async def watch_memory(ask: Any, server: Served, arguments: argparse.Namespace) -> dict:
    """The server's resident set after every tenth of the requests."""
    seen, answered, step = [], 0, max(1, arguments.many // 10)
    for start in range(0, 10 * step, step):
        answers, _ = await timed(ask, range(start, start + step), arguments.concurrency)
        answered += sum(answer.status == 200 for answer in answers)
        seen.append(round(server.megabytes))
    growth = {name: seen[-1] / seen[place] - 1 for name, place in (("whole", 0), ("half", 4))}
    return {
        "requests": 10 * step,
        "answered": answered,
        "concurrency": arguments.concurrency,
        "megabytes_after_each_tenth": seen,
        "growth_since_the_first_tenth": round(growth["whole"], 4),
        "growth_over_the_second_half": round(growth["half"], 4),
    }


if __name__ == "__main__":
    main()
