"""Runs that can be repeated, compared and written up.

``with vlkit.records.Run("name") as run:`` records whatever is asked and trained inside it.
"""

from vlkit.lazy import lazy_names

_HOMES = {
    "recording": ["Run", "seed_everything"],
    "reading": ["Record", "read_run", "runs"],
    "replaying": ["Replay", "replay"],
    "comparing": ["ModelComparison", "RunDiff", "compare", "diff"],
    "reports.page": ["bibtex", "report"],
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _HOMES)
