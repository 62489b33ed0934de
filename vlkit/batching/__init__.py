"""How `vlkit.generate_batch` answers many rows at once; no public names."""
