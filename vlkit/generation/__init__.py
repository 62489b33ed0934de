"""Questions and answers: ``generate``, ``stream``, ``Chat``, ``Reply``."""
