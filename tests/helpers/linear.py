"""Time that grows with a text's length, and not with its square."""

import gc
import time


def grows_linearly(work, text: str) -> bool:
    """Whether ``work(text)`` takes less than 8 times as long as with a quarter of the text.

    What grows with the square takes 16 times as long. Measured in this thread's own CPU time and
    without collecting garbage, whose walks are as long as everything that earlier tests left in
    memory; a tenth of a second is left for what other processes change. One of three tries must
    be good.
    """

    def seconds(part: str) -> float:
        start = time.thread_time()
        work(part)
        return time.thread_time() - start

    quarter = text[: len(text) // 4]
    collects = gc.isenabled()
    gc.disable()
    try:
        return any(seconds(text) < 8 * seconds(quarter) + 0.1 for _ in range(3))
    finally:
        if collects:
            gc.enable()
