"""``python -m vlkit`` runs the ``vlkit`` command."""

from vlkit.cli.app import main

main()
