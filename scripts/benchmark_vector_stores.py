"""Compare Pinecone and PostgreSQL on the same queries; `amprenta-vectors benchmark` under its guide's name."""

from amprenta_vectors.entry import run

if __name__ == "__main__":
    run("benchmark", name="benchmark_vector_stores.py")
