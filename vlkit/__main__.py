"""`python -m vlkit` is the `vlkit` command."""

from vlkit.cli.app import main

main()
