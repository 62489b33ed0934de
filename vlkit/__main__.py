"""`python -m vlkit` is the `vlkit` command."""

from vlkit.cli import main

main()
