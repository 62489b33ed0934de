"""One seed for everything that draws at random."""

from __future__ import annotations

import random

from vlkit import recording
from vlkit.errors import VlkitError


def seed_everything(seed: int) -> int:
    """Seed Python, numpy and torch on all devices; an open run takes note of it.

    With a ``seed`` of its own an answer needs no call of this. Same seed and same machine give
    the same answers, sampled ones and those of a batch included. What nobody can promise: other
    GPUs, drivers, versions of torch or numbers of threads round sums in another order, so a token
    that was nearly tied may turn out the other way, and everything after it differs; on a GPU in
    bfloat16 another batch size does the same, and torch draws other random numbers on a GPU than
    on a CPU. :func:`vlkit.records.replay` says which answers are the same here.

    Returns:
        The seed.

    Raises:
        VlkitError: no whole number from 0 to 2³² - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise VlkitError(f"seed={seed!r} must be a whole number from 0 to {2**32 - 1:,}")
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    recording.tell(recording.open_runs(), "log", seed_everything=seed)
    return seed
