"""Move a running application's embeddings into PostgreSQL + pgvector under Alembic, and back."""
