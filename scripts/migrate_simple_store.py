"""Move simple vector stores, a folder a user, into PostgreSQL; `amprenta-vectors documents migrate` as a script."""

from amprenta_vectors.entry import run

if __name__ == "__main__":
    run("documents", "migrate", name="migrate_simple_store.py")
