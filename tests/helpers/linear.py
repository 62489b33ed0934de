"""Time that grows with a text's length, and not with its square."""

import time


def grows_linearly(work, text: str) -> bool:
    """Whether ``work(text)`` takes less than 8 times as long as with a quarter of the text.

    Measured in CPU time, which other processes change little; a tenth of a second is left for what
    they do change. What grows with the square takes 16 times as long. One of three tries must be
    good, for a collection of garbage may fall into any of them.
    """

    def seconds(part: str) -> float:
        start = time.process_time()
        work(part)
        return time.process_time() - start

    quarter = text[: len(text) // 4]
    return any(seconds(text) < 8 * seconds(quarter) + 0.1 for _ in range(3))
