"""Stores that join two stores behind one: one file a mode of ``VECTOR_MODE``."""
