"""The source and PostgreSQL on the same queries: why a hit is missing, and what the index needs to find it."""
