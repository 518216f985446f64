"""Alembic operations for pgvector, usable in any application's revisions."""
