"""Move simple vector stores into PostgreSQL; the name that older run books use for scripts/migrate_simple_store.py."""

import sys

from amprenta_vectors.cli import main

if __name__ == "__main__":
    main(["documents", "migrate", *sys.argv[1:]], prog_name="migrate_to_pgvector.py")
