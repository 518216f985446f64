"""Fill an embedding column from Pinecone; the name that older run books use for scripts/backfill.py."""

from amprenta_vectors.entry import run

if __name__ == "__main__":
    run("backfill", name="migrate_pinecone_to_pgvector.py")
