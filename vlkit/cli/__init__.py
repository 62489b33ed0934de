"""The ``vlkit`` command."""

from vlkit.cli.app import app, main

__all__ = ["app", "main"]
