"""Move simple vector stores into PostgreSQL; the name that older run books use for scripts/migrate_simple_store.py."""

from amprenta_vectors.entry import run

if __name__ == "__main__":
    run("documents", "migrate", name="migrate_to_pgvector.py")
