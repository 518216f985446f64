"""Simple vector stores, one folder per user: their move, its rollback, and the removal of their files."""
