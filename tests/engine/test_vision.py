"""Work shared out over the cores of a CPU, and a batch's pictures encoded together."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import vlkit
from vlkit.engine import vision
from vlkit.threads import Cores, compute_each


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def threads_of_another():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_those_who_compute_at_once_share_the_cores(four_threads):
    cores = Cores()
    inside, leave = threading.Semaphore(0), threading.Event()

    def compute(_):
        with cores.share():
            inside.release()
            leave.wait(30)
            return torch.get_num_threads()

    with ThreadPoolExecutor(5) as pool:
        counts = [pool.submit(compute, 0)]
        inside.acquire()  # one after the other, so that the order is known
        for _ in range(4):
            counts.append(pool.submit(compute, 0))
            inside.acquire()
        assert cores.busy == 5
        leave.set()
        assert [each.result() for each in counts] == [4, 2, 1, 1, 1]
    assert cores.busy == 0 and threads_of_another() == 4
    with cores.share():
        assert torch.get_num_threads() == 4


def test_cores_are_free_again_after_an_error(four_threads):
    cores = Cores()
    with pytest.raises(ValueError, match="broke"), cores.share():
        raise ValueError("broke")
    assert cores.busy == 0


def test_each_has_its_share_of_the_threads_and_results_come_in_order(four_threads):
    together = threading.Barrier(2)

    def work(item):
        together.wait(30)
        return item, torch.get_num_threads(), torch.is_inference_mode_enabled()

    assert compute_each(work, "ab") == [("a", 2, True), ("b", 2, True)]
    assert torch.get_num_threads() == 4


def test_one_item_has_all_threads(four_threads):
    assert compute_each(lambda item: (item, torch.get_num_threads()), [7]) == [(7, 4)]
    assert compute_each(str, []) == []


def test_after_an_error_nothing_more_is_begun_and_the_threads_are_as_before(four_threads):
    begun, failed = [], threading.Event()

    def work(item):
        begun.append(item)
        if item == 0:
            failed.set()
            raise KeyboardInterrupt
        failed.wait(30)

    with pytest.raises(KeyboardInterrupt):
        compute_each(work, range(1000))
    assert len(begun) < 1000
    assert torch.get_num_threads() == 4


def test_pictures_of_a_batch_are_encoded_ahead_of_their_rows(vlm, monkeypatch):
    names = ["red_circle", "three_shapes", "six_shapes", "portrait", "taxi", "red_circle"]
    rows = [vlkit.user("Describe this image.", vlkit.sample(name)) for name in names]
    calls, whole = [], vision.Encoder._run_all

    def run_all(self, groups):
        calls.append(sum(map(len, groups)))
        return whole(self, groups)

    monkeypatch.setattr(vision.Encoder, "_run_all", run_all)
    answers = vlkit.generate_batch(vlm, rows, max_new_tokens=20, progress=False)
    assert calls[0] > 1 and sum(calls) == 5  # several at once, none twice
    alone = [vlkit.generate(vlm, row, max_new_tokens=20).text for row in rows]
    assert [answer.text for answer in answers] == alone


def test_a_picture_that_the_tower_cannot_take_fails_its_row_alone(vlm, monkeypatch):
    names = ["red_circle", "three_shapes", "six_shapes"]
    rows = [vlkit.user("How many objects are there?", vlkit.sample(name)) for name in names]
    expected = [vlkit.generate(vlm, row, max_new_tokens=20).text for row in rows]
    whole = vision.Encoder._run

    def run(self, media):
        if any(len(each.pixels) == most for each in media):
            raise RuntimeError("no such size")
        return whole(self, media)

    most = max(len(each) for each in pixels_of(vlm, rows))
    monkeypatch.setattr(vision.Encoder, "_run", run)
    answers = vlkit.generate_batch(vlm, rows, max_new_tokens=20, progress=False)
    texts = [getattr(answer, "text", None) for answer in answers]
    failed = [index for index, text in enumerate(texts) if text is None]
    assert len(failed) == 1 and "no such size" in answers[failed[0]].error
    assert [t for t in texts if t] == [t for i, t in enumerate(expected) if i not in failed]


def pixels_of(vlm, rows):
    from vlkit.inputs import prepare_inputs

    tensors = [prepare_inputs(vlm, [row]).tensors for row in rows]
    return [each["pixel_values"] for each in tensors]


@pytest.mark.parametrize("own", [None, lambda values: 7 * values])
def test_replaced_forwards_return_after_the_last_of_those_who_replace_them(own):
    layer, values = torch.nn.Linear(2, 2), torch.ones(1, 2)
    if own is not None:  # as accelerate's hooks have it
        layer.forward = own
    before, changed = layer(values), {layer: torch.zeros_like}
    with pytest.raises(ValueError), vision.replaced_forwards(changed):
        with vision.replaced_forwards(changed):
            assert not layer(values).any()
        assert not layer(values).any()
        raise ValueError
    assert torch.equal(layer(values), before)
    assert vars(layer).get("forward") is own
