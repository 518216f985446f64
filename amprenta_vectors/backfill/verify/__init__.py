"""Comparing every vector, text and model of a source with its table."""
