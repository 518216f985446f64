"""Compare Pinecone and PostgreSQL on the same queries; `amprenta-vectors benchmark` under its guide's name."""

import sys

from amprenta_vectors.cli import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]], prog_name="benchmark_vector_stores.py")
