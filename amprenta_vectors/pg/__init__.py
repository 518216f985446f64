"""All that is known of PostgreSQL and pgvector: names, types, tables, indexes, sessions, locks, errors.

The bottom of the house: it stands on SQLAlchemy and `amprenta_vectors.errors` alone, and works on every driver.
"""
