"""Many conversations at once, written as they finish, and resumed."""

from vlkit.batch.run import BatchReport, Results, generate_batch

__all__ = ["BatchReport", "Results", "generate_batch"]
