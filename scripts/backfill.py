"""Fill an embedding column from Pinecone; `amprenta-vectors backfill` under the name that deploy scripts use."""

import sys

from amprenta_vectors.cli import main

if __name__ == "__main__":
    main(["backfill", *sys.argv[1:]], prog_name="backfill.py")
