"""Move products from ChromaDB to pgvector; `amprenta-vectors products migrate` under its guide's name."""

from amprenta_vectors.entry import run

if __name__ == "__main__":
    run("products", "migrate", name="migrate_chroma_to_pgvector.py")
