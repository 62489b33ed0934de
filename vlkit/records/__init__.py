"""Runs that can be repeated, compared and written up.

``with vlkit.records.Run("name") as run:`` records whatever is asked and trained inside it.
"""

from importlib import import_module

_HOME = {
    "run": ["Run"],
    "reading": ["Record", "read_run", "runs"],
    "seeding": ["seed_everything"],
    "replaying": ["Replay", "replay"],
    "differences": ["RunDiff", "diff"],
    "comparing": ["ModelComparison", "compare"],
    "pages": ["report"],
    "citations": ["bibtex"],
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [*_WHERE]


def __getattr__(name: str):
    """Import a public name when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module 'vlkit.records' has no attribute {name!r}")
    value = getattr(import_module(f"vlkit.records.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
