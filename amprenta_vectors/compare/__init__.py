"""Compares the source and PostgreSQL on the same queries: why a hit is missing, and which settings would find it."""
