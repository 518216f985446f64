"""Checks of a database, its index and the settings: one small function a check, and nothing is changed."""
