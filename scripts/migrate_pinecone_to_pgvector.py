"""Fill an embedding column from Pinecone; the name that older run books use for scripts/backfill.py."""

import sys

from amprenta_vectors.cli import main

if __name__ == "__main__":
    main(["backfill", *sys.argv[1:]], prog_name="migrate_pinecone_to_pgvector.py")
