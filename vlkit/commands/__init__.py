"""Shell commands, each in a module of its own; what they need is imported when they run."""
