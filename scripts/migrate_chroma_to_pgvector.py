"""Move products from ChromaDB to pgvector; `amprenta-vectors products migrate` under its guide's name."""

import sys

from amprenta_vectors.cli import main

if __name__ == "__main__":
    main(["products", "migrate", *sys.argv[1:]], prog_name="migrate_chroma_to_pgvector.py")
