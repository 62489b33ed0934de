"""Many conversations: answered, written as they finish, resumed."""

from vlkit.batch.answering import BatchReport, Results, generate_batch

__all__ = ["BatchReport", "Results", "generate_batch"]
