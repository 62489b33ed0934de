"""What is wrong with training data, row by row, in one error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlkit.errors import VlkitError

SHOWN = 20  # problems that an error spells out


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one row; a ``.jsonl`` counts its lines, from 1."""

    row: int
    text: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.text}"


class DataError(VlkitError):
    """Training data with rows that cannot be learnt from.

    Attributes:
        problems: all of them, in order.
    """

    def __init__(self, name: str, problems: Sequence[Problem]):
        advice = "mend them, or pass strict=False to leave these rows out"
        super().__init__(f"{list_problems(name, problems)}; {advice}")
        self.problems = tuple(problems)


def list_problems(name: str, problems: Sequence[Problem]) -> str:
    """All problems of a source in one line."""
    rows = len({problem.row for problem in problems})
    more = len(problems) - SHOWN
    listed = "; ".join(map(str, problems[:SHOWN]))
    listed += f"; and {more:,} more (in .problems)" if more > 0 else ""
    return f"{name}: {rows:,} {'row has' if rows == 1 else 'rows have'} problems: {listed}"
