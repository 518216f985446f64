"""Fill an embedding column from Pinecone; `amprenta-vectors backfill` under the name that deploy scripts use."""

from amprenta_vectors.entry import run

if __name__ == "__main__":
    run("backfill", name="backfill.py")
