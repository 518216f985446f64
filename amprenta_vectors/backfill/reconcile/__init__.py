"""Bringing a table to what its source has by now: rows that changed, rows that are gone, a dry run of both."""
