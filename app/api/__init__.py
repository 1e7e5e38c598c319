"""What every route shares: operations, problem documents, the fast path."""
