"""Embeddings that already lie in a column of the same database, in whatever form."""
