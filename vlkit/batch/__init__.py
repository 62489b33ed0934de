"""Many conversations: answered, written as they finish, resumed."""
