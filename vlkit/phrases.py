"""Pieces of sentences."""


def counted(number: int, noun: str) -> str:
    """``"1 row"``, ``"2,000 rows"``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
