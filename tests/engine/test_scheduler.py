"""Reading ahead: what waits for the model is bounded, and the scheduler knows when to begin."""

import torch

from vlkit.engine import scheduler
from vlkit.engine.scheduler import Feed
from vlkit.engine.slots import Row
from vlkit.engine.vision import Medium


def row(index):
    return Row({}, [Medium("image", index, torch.zeros(100), None)], 1, payload=index)


def test_a_feed_that_has_no_room_says_that_it_reads_no_more(monkeypatch):
    """Else a few large pictures would wait for ever for others to be admitted with them."""
    monkeypatch.setattr(scheduler, "HELD_BYTES", 700)  # of rows of 400 bytes
    feed = Feed(row, range(7), ahead=2)
    held: list[Row] = []
    try:
        while len(held) < 2:
            assert feed.reading or not held
            held += feed.take(held, block=True)
        assert not feed.reading and not feed.exhausted
        taken = [held.pop(0).payload]
        while not feed.exhausted:
            held += feed.take(held, block=feed.reading)
            if not feed.reading and held:
                taken.append(held.pop(0).payload)
    finally:
        feed.close()
    assert sorted([*taken, *(each.payload for each in held)]) == list(range(7))
