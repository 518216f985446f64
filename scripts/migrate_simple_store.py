"""Move simple vector stores, a folder a user, into PostgreSQL; `amprenta-vectors documents migrate` as a script."""

import sys

from amprenta_vectors.cli import main

if __name__ == "__main__":
    main(["documents", "migrate", *sys.argv[1:]], prog_name="migrate_simple_store.py")
