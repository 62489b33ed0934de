"""`vlkit serve` on a CPU: pictures are seen ahead in threads that share the cores."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from served import ask, send, text_of, user, wait_until

import vlkit
from vlkit import serving
from vlkit.engine.scheduler import Scheduler
from vlkit.engine.slots import Engine
from vlkit.engine.vision import Encoder, fast_tower
from vlkit.serving import worker

SAMPLES = {name: sample.path for name, sample in vlkit.samples().items()}


@pytest.fixture(scope="module")
def server(vlm):
    with serving.start(vlm) as server:
        yield server


def test_a_tower_is_fast_until_the_last_thread_leaves_it(vlm):
    visual = vlm.model.model.visual
    modules = [visual.patch_embed, *(block.attn for block in visual.blocks)]

    def replaced():
        return ["forward" in vars(module) for module in modules]

    with fast_tower(visual):
        entered, leave = threading.Event(), threading.Event()

        def other():
            with fast_tower(visual):
                entered.set()
                leave.wait(30)

        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(30)
    assert all(replaced())
    leave.set()
    thread.join()
    assert not any(replaced())


def test_pictures_reach_the_engine_as_features_and_a_second_time_cost_nothing(
    vlm, server, monkeypatch
):
    admit, run, seen, runs = Engine.admit, Encoder._run, [], []

    def watch(self, rows):
        seen.extend(medium for row in rows for medium in row.media)
        if len(seen) == 1:  # the second question comes while the first is under way
            assert wait_until(lambda: len(submitted) == 2)
        return admit(self, rows)

    submit, submitted = worker.Worker.submit, []
    monkeypatch.setattr(Engine, "admit", watch)
    monkeypatch.setattr(
        worker.Worker, "submit", lambda self, job: submitted.append(job) or submit(self, job)
    )
    monkeypatch.setattr(Encoder, "_run", lambda self, media: runs.append(media) or run(self, media))
    message = user("Describe this image.", SAMPLES["circles"])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, server, message, max_tokens=12)
        while not seen:
            time.sleep(0.01)
        second = pool.submit(ask, server, message, max_tokens=12)
        assert text_of(first.result()) == text_of(second.result())
    assert [medium.pixels for medium in seen] == [None, None]
    width = vlm.model.config.get_text_config().hidden_size
    tokens = int(seen[0].grid.prod()) // 4
    assert [medium.features[0].shape for medium in seen] == [(tokens, width)] * 2
    assert len(runs) == 1


def test_a_picture_that_the_tower_cannot_take_fails_alone(server, monkeypatch):
    encode_ahead = Scheduler.encode_ahead

    def fail(self, rows):
        if any(row.media for row in rows):
            raise RuntimeError("no such tower")
        encode_ahead(self, rows)

    monkeypatch.setattr(Scheduler, "encode_ahead", fail)
    body = {"model": server.name, "messages": [user("What is it?", SAMPLES["circles"])]}
    status, _, answer = send(server, body)
    assert status == 500 and "RuntimeError: no such tower" in answer["error"]["message"]
    assert text_of(ask(server, user("Hi"), max_tokens=4))


class Writer:
    """An engine whose rows get a token a step."""

    slots = 4

    def __init__(self, seeing):
        self.rows, self.busy_elsewhere, self.steps = [], seeing, []

    def admit(self, waiting):
        self.rows += waiting
        waiting.clear()
        return []

    def advance(self, waiting):
        self.steps.append(time.monotonic())
        for row in self.rows:
            row.tokens.append(0)
        done = [row for row in self.rows if len(row.tokens) >= row.limit]
        self.rows = [row for row in self.rows if row not in done]
        return done

    def forget(self):
        pass


def seconds_between_steps(seeing):
    engine, ended = Writer(seeing), threading.Event()
    row = SimpleNamespace(tokens=[], limit=6, error=None)
    row.payload = SimpleNamespace(
        row=row, created=time.monotonic(), cancelled=False,
        reads_each_step=False, done=False, release_media=lambda: None, end=ended.set,
    )  # fmt: skip
    worked = worker.Worker(engine)
    worked.submit(row.payload)
    assert ended.wait(30)
    worked.close()
    steps = engine.steps
    return [after - before for before, after in itertools.pairwise(steps)]


@pytest.mark.serial
def test_rows_under_way_go_on_at_a_slower_pace_while_others_pictures_are_seen(monkeypatch):
    monkeypatch.setattr(worker, "STEP_SECONDS", 0.2)
    slower = seconds_between_steps(seeing=True)
    assert len(slower) == 5 and min(slower) > 0.15
    assert min(seconds_between_steps(seeing=False)) < 0.1
